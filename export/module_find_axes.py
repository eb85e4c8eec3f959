"""Which axis of a recurrent layer's input is the stream's time, and how its batch is made of streams.

Owns that judgement: a layer may run along frequency within one frame, or along time for every frequency. What counts is
how the layer's axes follow the numbers of streams and steps, not its attributes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from export.layouts import BATCH
from export.module_calls import ModuleError
from export.module_plan import Lanes, Tensor
from export.module_probe import STEPS, STREAMS, Caller, Seen, alike, same
from model.recurrent_calls import Called


@dataclass(frozen=True, slots=True)
class Runs:
    """One step of STREAMS streams; the same of one stream less (None: it fails), and of STEPS steps (None: no time)."""

    caller: Caller
    base: Seen
    fewer: Seen | None
    longer: Seen | None

    @classmethod
    def of(cls, caller: Caller, base: Seen) -> Runs:
        """With the other two made."""
        bare = not any(tensor.timed for tensor in caller.probe.inputs)
        fewer = None
        with suppress(ModuleError):  # a state kept in an attribute, say, whose own reason comes later
            cut = None if caller.first is None else fewer_streams(caller)
            fewer = caller.see_from(cut, streams=STREAMS - 1)
        same_calls = fewer is not None and [call.slot for call in fewer.calls] == [call.slot for call in base.calls]
        return cls(caller, base, fewer if same_calls else None, None if bare else caller.see(steps=STEPS))


def runs_within_a_step(runs: Runs, place: int) -> bool:
    """Whether the place-th call in a step runs along something else than time, and begins anew in each step.

    Raises ModuleError for a layer along the streams, and for one that reads the stream's time from its end.
    """
    call = runs.base.calls[place]
    if runs.fewer is not None:
        _refuse_along_streams(call, runs.fewer.calls[place], runs.caller.probe.inputs)
    if call.x.shape[0] > 1 if runs.longer is None else _begins_each_step(call, runs.base.calls, runs.longer.calls):
        return True
    if call.core.directions > 1:
        raise ModuleError(
            f"{call.layer} (nn.{call.core.kind}) is bidirectional: it reads a sequence from its end too, and its"
            " sequence is the stream's time, whose end a stream doesn't have when its first step is to be answered;"
            " train a unidirectional one"
        )
    return False


def fewer_streams(caller: Caller) -> list[torch.Tensor]:
    """The same leaves for one stream fewer: found by running, from states cut on each axis that could be the batch."""
    first = caller.first or []
    choices = [[axis for axis, size in enumerate(leaf.shape) if size == STREAMS] for leaf in first]
    for axes in itertools.islice(itertools.product(*choices), 64):
        cut = [leaf.narrow(axis, 0, STREAMS - 1) for leaf, axis in zip(first, axes, strict=True)]
        try:
            seen = caller.see_from(cut, streams=STREAMS - 1)
        except ModuleError:
            continue
        if alike(cut, seen.states):
            return cut
    raise ModuleError("its state has no axis that follows the number of streams")


def _refuse_along_streams(call: Called, less: Called, inputs: Sequence[Tensor]) -> None:
    length, shorter = call.x.shape[0], less.x.shape[0]
    if not call.core.cell and length != shorter:
        told = " ".join(f"--input {one.name}={one.dtype}[{','.join(map(str, one.layout))}]" for one in inputs)
        raise ModuleError(
            f"{call.layer} runs along the streams: its sequence axis has {length} steps for {STREAMS} streams and"
            f" {shorter} for {STREAMS - 1}, so one stream's state would go into the next; either the axes of {told} are"
            f" in the wrong order, or batch_first={call.core.batch_first} is wrong for what forward gives it"
        )


def _begins_each_step(call: Called, once: Sequence[Called], often: Sequence[Called]) -> bool:
    """Whether a call in one step is made anew at every step, with nothing carried from the step before."""
    before = [other for other in once if other.layer == call.layer]
    after = [other for other in often if other.layer == call.layer]
    place = [other.slot for other in before].index(call.slot)
    if len(after) == len(before):  # all steps in one call
        return call.x.shape[0] == after[place].x.shape[0] and (
            not call.core.cell or _batch(after[place]) != _batch(call)
        )
    if len(after) != STEPS * len(before):
        raise ModuleError(
            f"{call.layer} is called {len(before)} times in one step and {len(after)} times in {STEPS}: which call"
            " carries its state on can't be told"
        )
    if call.x.shape[0] > 1:
        return True  # a loop over time with a whole sequence in each step
    first, second = after[place], after[place + len(before)]
    if first.given is None or second.given is None:
        return first.given is None and second.given is None
    return all(map(same, first.given, second.given))


def _batch(call: Called) -> int:
    return call.x.shape[1]


def lanes_of(runs: Runs, place: int) -> Lanes:
    """How the batch of the place-th call in a step is made of streams; raises ModuleError where that can't be told."""
    call = runs.base.calls[place]
    count, rest = divmod(_batch(call), STREAMS)
    less = count * (STREAMS - 1) if runs.fewer is None else _batch(runs.fewer.calls[place])
    if rest or less != count * (STREAMS - 1):
        raise ModuleError(
            f"{call.layer} computes {_batch(call)} sequences for {STREAMS} streams and {less} for {STREAMS - 1}: its"
            " batch isn't the streams, nor so many for each"
        )
    if count == 1:
        return Lanes()
    changed = _changed_by_first_stream(runs.caller, call)
    first = set(range(count)), set(range(0, _batch(call), STREAMS))
    fits = [changed <= places for places in first]
    if fits == [True, True] or not any(fits):
        raise ModuleError(
            f"{call.layer} computes {count} sequences for each stream, and which of its batch are a stream's can't be"
            " told: fold them as x.reshape(batch * n, time, features) does"
        )
    return Lanes(count, streams_first=fits[0])


def _changed_by_first_stream(caller: Caller, call: Called) -> set[int]:
    """The places of the layer's batch that the first stream's inputs reach."""
    values, others = caller.probe.values(), caller.probe.values(seed=1)
    for tensor in caller.probe.inputs:
        axis = tensor.layout.index(BATCH)
        values[tensor.name] = torch.cat(
            [
                others[tensor.name].narrow(axis, 0, 1),
                values[tensor.name].narrow(axis, 1, STREAMS - 1),
            ],
            axis,
        )
    seen = caller.probe.see(caller.convention, values, caller.first)
    moved = next(other for other in seen.calls if other.slot == call.slot)
    differs = (moved.x != call.x).any(dim=0).flatten(1).any(dim=1)
    return set(differs.nonzero().flatten().tolist())
