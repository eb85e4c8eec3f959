"""Finding out what a user's module is as a stream: it is called with small random inputs, and watched.

Owns the order of finding out, and the outputs. A wrong conclusion isn't dangerous: `module_streams` compares the whole
module with its steps before anything is exported.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from export.layouts import BATCH, TIME
from export.module_calls import Convention, ModuleError
from export.module_find_axes import fewer_streams
from export.module_find_convention import find_convention, guessed, parameters_of
from export.module_find_states import check_carried, explicit_states, layer_states
from export.module_plan import FLOATS, Plan, Tensor, bounded
from export.module_probe import STEPS, STREAMS, Begin, Caller, Probe, same
from export.module_repeats import check_repeats, explain_failure

_DRAWS = 8  # calls that must give numbers
_RANGES = ((0.1, 10.0), (0.1, 0.9), (-0.9, 0.9), (1.1, 10.0))  # that are tried where normal inputs give none


def find_plan(
    module: nn.Module,
    inputs: Sequence[Tensor],
    begin: Begin | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    successors: Mapping[str, str] | None = None,
) -> Plan:
    """What the module is as a stream; raises ModuleError naming what stands in the way."""
    inputs = _bounded(tuple(inputs) or (_guessed(module, begin),), ranges or {})
    probe = Probe(module, inputs)
    inputs = tuple(replace(tensor, bounds=tensor.bounds or _looked_up(probe, tensor)) for tensor in inputs)
    probe.inputs = inputs
    try:
        convention, first, begins = find_convention(module, probe, begin, successors)
        probe.see(convention, probe.values(), first)
    except ModuleError as error:
        parameters = [p for p in parameters_of(module).values() if p.default is p.empty]
        names = {tensor.name.split(".")[0] for tensor in inputs}
        explain_failure(module, probe, tuple(p.name for p in parameters if p.name not in names), error)
        raise
    check_repeats(module, probe, convention, first)
    caller = Caller(probe, convention, first)
    _check_numbers(caller)
    bare = not any(tensor.timed for tensor in inputs)
    found = layer_states(caller)
    if found and not bare:
        check_carried(caller)
    explicit = explicit_states(caller)
    states = (*explicit, *found)
    if not states:
        raise ModuleError(
            "no state found: no recurrent layer in it, and forward takes none and gives none; a recurrence of your own"
            " needs forward(x, state) -> (y, state)"
        )
    if bare and found:
        raise ModuleError(
            f"{found[0].origin} begins anew at every call, and the input has no time axis: give forward a time axis"
            " (--input x=float32[batch,time,5]), or let it take and give its state"
        )
    outputs, remarks = _outputs(caller, bare=bare)
    return Plan(
        convention,
        inputs,
        outputs,
        states,
        stepwise=bare or not _takes_time(caller, outputs),
        begins=begins,
        remarks=tuple(remarks),
    )


def _guessed(module: nn.Module, begin: Begin | None) -> Tensor:
    """The input of a module that is told none: on its axes as the recurrent layer has them, or else exchanged."""
    usual = guessed(module)
    if not usual.timed:
        return usual
    exchanged = {BATCH: TIME, TIME: BATCH}
    other = replace(usual, layout=tuple(exchanged.get(str(size), size) for size in usual.layout))
    for tensor in (usual, other):
        probe = Probe(module, (tensor,))
        with suppress(ModuleError):
            convention, first, _ = find_convention(module, probe, begin)
            if keeps_apart(Caller(probe, convention, first)):
                return tensor
    return usual


def keeps_apart(caller: Caller) -> bool:
    """Whether a stream's outputs are the same beside others: where not, its axes may be time's."""
    probe, values = caller.probe, caller.probe.values(steps=STEPS)
    changed = {}
    for tensor in probe.inputs:
        value = values[tensor.name].clone()
        one = value.select(tensor.layout.index(BATCH), 0)
        one.copy_(~one if value.dtype == torch.bool else 1 - one)
        changed[tensor.name] = value
    before, after = (probe.see(caller.convention, given, caller.first).outputs for given in (values, changed))
    for name, value in before.items():
        axes = [axis for axis, size in enumerate(value.shape) if size == STREAMS]
        if len(axes) == 1:
            rest = [one.narrow(axes[0], 1, STREAMS - 1) for one in (value, after[name])]
            if not same(*rest):
                return False
    return True


def _check_numbers(caller: Caller) -> None:
    """Raise ModuleError where outputs are no numbers for ordinary inputs, naming a range for which they are."""
    probe, steps = caller.probe, 1 if not any(tensor.timed for tensor in caller.probe.inputs) else STEPS

    def finite() -> bool:
        seen = [caller.see(seed, steps) for seed in range(_DRAWS)]
        return all(bool(value.isfinite().all()) for one in seen for value in (*one.outputs.values(), *one.states))

    if finite():
        return
    inputs, floats = probe.inputs, [tensor.name for tensor in probe.inputs if tensor.dtype in FLOATS]
    told = ", ".join(f"{t.name} from {t.bounds[0]:g} to {t.bounds[1]:g}" for t in inputs if t.bounds)
    drawn = f"inputs drawn from a normal distribution{f', {told}' * bool(told)}" if floats else told
    advice = "say which values it takes, as in --range NAME=LOW:HIGH"
    try:
        for names, bounds in itertools.product([*([name] for name in floats), floats], _RANGES):
            probe.inputs = tuple(replace(t, bounds=bounds) if t.name in names else t for t in inputs)
            if finite():
                options = " ".join(f"--range {name}={bounds[0]:g}:{bounds[1]:g}" for name in names)
                advice = f"say which values it takes, as in {options}, which gives none"
                break
    finally:
        probe.inputs = inputs
    raise ModuleError(f"forward gives NaN or infinity for {drawn}: {advice}")


def _bounded(inputs: tuple[Tensor, ...], ranges: Mapping[str, tuple[float, float]]) -> tuple[Tensor, ...]:
    names = [tensor.name for tensor in inputs]
    unknown = [name for name in ranges if name not in names]
    if unknown:
        raise ModuleError(f"--range {unknown[0]}: no input is called so; there are {', '.join(names)}")
    return tuple(bounded(t, ranges[t.name]) if t.name in ranges else t for t in inputs)


def _outputs(caller: Caller, *, bare: bool) -> tuple[tuple[Tensor, ...], list[str]]:
    """The outputs and their axes, from how their shapes follow the numbers of streams and of steps."""
    steps = 1 if bare else STEPS
    seen = caller.see(steps=steps)
    cut = None if caller.first is None else fewer_streams(caller)
    fewer = caller.see_from(cut, streams=STREAMS - 1, steps=steps).outputs
    shorter = seen.outputs if bare else caller.see(steps=STEPS - 1).outputs
    last = {id(value): call.slot for call in seen.calls for value in call.returned if not call.core.cell}
    own = {name: last[id(value)] for name, value in seen.outputs.items() if id(value) in last}
    if len(own) == len(seen.outputs):
        own = {}
    outputs, remarks = [], [f"output {name!r} is {slot}'s state, and is left out" for name, slot in own.items()]
    for name, value in seen.outputs.items():
        if name in own:
            continue
        shapes = zip(value.shape, fewer[name].shape, shorter[name].shape, strict=False)
        layout: list[int | str] = []
        for size, less, short in shapes:
            layout.append(BATCH if size != less else TIME if size != short else int(size))
            if (size, less, short) == (STREAMS * STEPS, (STREAMS - 1) * STEPS, STREAMS * (STEPS - 1)):
                raise ModuleError(
                    f"output {name!r} has streams and steps on one axis (a view(-1, …)): {_one_step(caller)}"
                )
            if size != short and (size, short) != (STEPS, STEPS - 1):
                raise ModuleError(
                    f"output {name!r} has {size} values on one axis for {STEPS} steps: a stream's outputs are one per"
                    " step (a convolution that shortens its input needs its past as a state)"
                )
        if layout.count(BATCH) != 1 or layout.count(TIME) > 1:
            raise ModuleError(f"output {name!r} {list(value.shape)} has no axis that is one per stream")
        outputs.append(Tensor(name, str(value.dtype).removeprefix("torch."), tuple(layout)))
    return tuple(outputs), remarks


def _one_step(caller: Caller) -> str:
    """What to do about a forward that joins its axes."""
    shapes = [
        (t.name, t.dtype, ",".join("1" if size == TIME else str(size) for size in t.layout))
        for t in caller.probe.inputs
    ]
    options = " ".join(f"--input {name}={dtype}[{axes}]" for name, dtype, axes in shapes)
    return f"let it keep both, or export single steps, {options}"


def _takes_time(caller: Caller, outputs: Sequence[Tensor]) -> bool:
    """Whether several steps can be one call of the graph: all has time, and no Python loop steps through it.

    A layer that runs within a frame, or with several sequences for each stream, has other lengths than the streams.
    """
    one, more = caller.see().calls, caller.see(steps=STEPS).calls
    timed = all(tensor.timed for tensor in (*caller.probe.inputs, *outputs))
    along = all(call.x.shape[:2] == (STEPS, STREAMS) and call.core.directions == 1 for call in more)
    return timed and along and len(one) == len(more)


def _looked_up(probe: Probe, tensor: Tensor) -> tuple[float, float] | None:
    """The range of an integer input that an nn.Embedding takes as its index."""
    if np.dtype(tensor.dtype).kind not in "iu":
        return None
    found: list[int] = []
    values = {name: value if name == tensor.name else torch.zeros_like(value) for name, value in probe.values().items()}
    wanted = int(values[tensor.name].sum())

    def look(part: nn.Module, given: tuple[Any, ...]) -> None:
        if given and given[0].numel() == values[tensor.name].numel() and int(given[0].sum()) == wanted:
            found.append(part.num_embeddings)  # type: ignore[arg-type]

    hooks = [part.register_forward_pre_hook(look) for part in probe.module.modules() if isinstance(part, nn.Embedding)]
    try:
        names = tuple(values)
        nones = tuple(n for n, p in parameters_of(probe.module).items() if n not in names and p.default is p.empty)
        with suppress(ModuleError):  # the embedding may have been reached all the same
            probe.see(Convention(names, nones=nones), values, None)
    finally:
        for hook in hooks:
            hook.remove()
    return (0, min(found) - 1) if found else None
