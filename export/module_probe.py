"""Finding out what a user's module is as a stream: it is called with small random inputs, and watched.

Owns what is tried and what is concluded. A wrong conclusion isn't dangerous: `module_streams` compares the whole
module with its steps before anything is exported.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from export.layouts import BATCH, TIME, Layout, sized
from export.module_calls import Convention, Gives, ModuleError, leaves, structure_of
from export.module_plan import Plan, State, Tensor
from export.theirs import one_line
from model.recurrent import CELLS, Called, RecurrentError, Tape, pytorch, replaced

STREAMS, STEPS = 3, 5  # of a probe: sizes that nothing else is likely to have
_LIKE_A_STATE = re.compile(r"(?i)state|hidden|cell|cache|memory|carry|past|^(h|c|s|hc|hx|cx|h0|c0|h_0|c_0|hc0)$")
_BEGINNERS = ("initial_state", "init_state", "zero_state", "init_hidden", "initial_hidden", "get_initial_state")
_SAME = 1e-5  # of the largest value: what two calls of float32 may differ by
Begin = Callable[[int], Any]  # a batch size to a nested state
Values = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one call of the module gave."""

    answer: Any
    outputs: dict[str, torch.Tensor]
    states: list[torch.Tensor]
    calls: list[Called]


class Probe:
    """A copy of the module in which every recurrent layer says how it is called."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        self.tape = Tape()
        try:
            self.module = replaced(copy.deepcopy(module).eval(), pytorch, self.tape)
        except RecurrentError as error:
            raise ModuleError(str(error)) from error

    def values(self, seed: int = 0, streams: int = STREAMS, steps: int = 1) -> Values:
        """Inputs: normal floats, integers 0 and 1."""
        random = np.random.default_rng(seed)
        found: Values = {}
        for tensor in self.inputs:
            shape = sized(tensor.layout, streams, steps)
            floats = np.dtype(tensor.dtype).kind == "f"
            value = random.standard_normal(shape) if floats else random.integers(0, 2, shape)
            if not floats and value.size:
                value.flat[seed % value.size] = 1  # never nothing but zeros
            found[tensor.name] = torch.from_numpy(np.asarray(value).astype(tensor.dtype))
        return found

    @torch.no_grad()
    def see(self, convention: Convention, values: Values, states: Sequence[torch.Tensor] | None) -> _Seen:
        """Call it; raises ModuleError in one line where it fails."""
        self.tape.begin({})
        try:
            answer = convention.call(self.module, values, states)
            outputs, new = convention.outputs(answer), leaves(convention.state(answer))
        except (RecurrentError, ModuleError) as error:
            raise ModuleError(str(error)) from error
        except Exception as error:  # whatever a user's code raises
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise ModuleError(
                f"forward fails with {shapes}: {type(error).__name__}: {one_line(error)}; say what it takes, as in"
                " --input x=float32[batch,time,5]"
            ) from error
        return _Seen(answer, outputs, new, list(self.tape.calls))


def find_plan(module: nn.Module, inputs: Sequence[Tensor], begin: Begin | None = None) -> Plan:
    """What the module is as a stream; raises ModuleError naming what stands in the way."""
    inputs = tuple(inputs) or (_guessed(module),)
    probe = Probe(module, inputs)
    inputs = tuple(replace(tensor, bounds=tensor.bounds or _looked_up(probe, tensor)) for tensor in inputs)
    probe.inputs = inputs
    convention, first, begins = _convention(module, probe, begin)
    found = _found(probe, convention, first)
    explicit = _explicit(probe, convention, first)
    states = (*explicit, *found)
    bare = not any(tensor.timed for tensor in inputs)
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
    outputs, remarks = _outputs(probe, convention, first, bare=bare)
    return Plan(
        convention,
        inputs,
        outputs,
        states,
        stepwise=bare or not _takes_time(probe, convention, first, outputs),
        begins=begins,
        remarks=tuple(remarks),
    )


def _guessed(module: nn.Module) -> Tensor:
    """The input of a module that says itself what it takes: by its only argument and its first layer."""
    found = _parameters(module)
    names = [name for name, p in found.items() if p.default is p.empty and not _is_state(name, p)]
    names = names or list(found)[:1]
    layers = [part for part in module.modules() if not list(part.children())]
    if len(names) != 1 or not layers:
        raise ModuleError("say what forward takes, as in --input x=float32[batch,time,5]")
    first: Any = layers[0]
    if isinstance(first, nn.Embedding):
        return Tensor(names[0], "int64", (BATCH, TIME))
    size = getattr(first, "in_features", getattr(first, "input_size", None))
    if not isinstance(size, int):
        raise ModuleError(f"say what forward takes, as in --input {names[0]}=float32[batch,time,5]")
    if isinstance(first, tuple(CELLS)) and first is module:
        return Tensor(names[0], "float32", (BATCH, size))
    return Tensor(
        names[0], "float32", (BATCH, TIME, size) if getattr(first, "batch_first", True) else (TIME, BATCH, size)
    )


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(module.forward).parameters
    return {name: parameter for name, parameter in found.items() if parameter.kind in kinds}


def _is_state(name: str, parameter: inspect.Parameter) -> bool:
    """Whether an argument may be the state: it has no value of its own, or None and a state's name."""
    return parameter.default in (inspect.Parameter.empty, None) and bool(_LIKE_A_STATE.search(name))


def _convention(
    module: nn.Module, probe: Probe, begin: Begin | None
) -> tuple[Convention, list[torch.Tensor] | None, bool]:
    """How it is called, its first state's leaves (None: it takes none), and whether it begins by itself."""
    inputs = tuple(tensor.name for tensor in probe.inputs)
    parameters = _parameters(module)
    unknown = [name for name in inputs if name not in parameters]
    if unknown:
        raise ModuleError(f"--input {unknown[0]}: forward takes {', '.join(parameters) or 'nothing'}")
    required = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in inputs]
    candidates = required + [
        name for name, p in parameters.items() if name not in (*inputs, *required) and _is_state(name, p)
    ]
    plain = Convention(inputs)
    if not candidates:
        return plain, None, True
    begin = begin or _beginner(module)
    if begin is not None:
        return _with_first(probe, inputs, tuple(candidates), begin)
    return _begun_with_none(probe, plain, tuple(candidates), required)


def _beginner(module: nn.Module) -> Begin | None:
    """The module's own way to make a first state, where it has one that takes a batch size."""
    for name in _BEGINNERS:
        method = getattr(module, name, None)
        if callable(method):
            needed = [p for p in inspect.signature(method).parameters.values() if p.default is inspect.Parameter.empty]
            if len(needed) == 1:
                return method  # type: ignore[no-any-return]
    return None


def _with_first(
    probe: Probe, inputs: tuple[str, ...], candidates: tuple[str, ...], begin: Begin
) -> tuple[Convention, list[torch.Tensor], bool]:
    """The first state is given: where does the new one come out?"""
    try:
        state = begin(STREAMS)
    except Exception as error:
        raise ModuleError(f"making a first state for {STREAMS} streams fails: {one_line(error)}") from error
    parts = (state,) if len(candidates) == 1 else tuple(state)
    first = [leaf.detach() for leaf in leaves(parts)]
    for gives in (Gives.LAST, Gives.ALL):
        convention = Convention(inputs, candidates, structure_of(parts, itertools.count()), gives)
        try:
            seen = probe.see(convention, probe.values(), first)
        except ModuleError as error:
            if gives is Gives.ALL:
                raise ModuleError(str(error)) from error
            continue
        if seen.outputs and _alike(first, seen.states):
            return convention, first, False
    raise ModuleError(
        f"forward takes {', '.join(candidates)}, and gives no new state of the same shapes last: let it give (y, state)"
    )


def _begun_with_none(
    probe: Probe, plain: Convention, candidates: tuple[str, ...], required: list[str]
) -> tuple[Convention, list[torch.Tensor] | None, bool]:
    """The module begins by itself where the state is None; the state that it then gives says what it takes."""
    nones = replace(plain, nones=candidates)
    try:
        probe.see(nones, probe.values(), None)
    except ModuleError as error:
        if not required:
            raise
        raise ModuleError(
            f"forward needs {', '.join(required)}, and fails with None ({error}); say what a first state is: a method"
            f" {_BEGINNERS[0]}(batch), or --state {required[0]}=float32[batch,7]"
        ) from error
    for gives in (Gives.LAST, Gives.ALL):
        convention = _fed_back(probe, replace(plain, states=candidates, gives=gives))
        if convention is not None:
            first = [torch.zeros_like(state) for state in probe.see(convention, probe.values(), None).states]
            if _begins_with_zeros(probe, convention, first):
                return convention, first, True
    return nones, None, True


def _fed_back(probe: Probe, convention: Convention) -> Convention | None:
    """The convention with its structure, if what comes out for None can go in, and keeps its shapes."""
    try:
        seen = probe.see(convention, probe.values(), None)
        parts = convention.state(seen.answer)
        if not seen.states or not seen.outputs or len(parts) != len(convention.states):
            return None
        found = replace(convention, structure=structure_of(parts, itertools.count()))
        again = probe.see(found, probe.values(), seen.states)
        longer = probe.see(found, probe.values(steps=STEPS), None)
    except ModuleError:
        return None
    return found if _alike(seen.states, again.states) and _alike(seen.states, longer.states) else None


def _begins_with_zeros(probe: Probe, convention: Convention, zeros: list[torch.Tensor]) -> bool:
    """Whether None means zeros."""
    none, zero = (probe.see(convention, probe.values(), first) for first in (None, zeros))
    pairs = [(none.outputs[name], zero.outputs[name]) for name in none.outputs]
    return all(_same(a, b) for a, b in [*pairs, *zip(none.states, zero.states, strict=True)])


def _alike(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return [(a.shape, a.dtype) for a in first] == [(b.shape, b.dtype) for b in second]


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape:
        return False
    a, b = first.double(), second.double()
    return bool((a - b).abs().max() <= _SAME * max(1e-30, float(a.abs().max()))) if a.numel() else True


def _explicit(probe: Probe, convention: Convention, first: list[torch.Tensor] | None) -> list[State]:
    """The leaves of forward's own state."""
    found = []
    fewer = [] if first is None else _fewer(probe, convention, first)
    for place, (leaf, less) in enumerate(zip(first or [], fewer, strict=True)):
        axes = [axis for axis, (a, b) in enumerate(zip(leaf.shape, less.shape, strict=True)) if a != b]
        name = convention.states[0] if len(fewer) == 1 else _leaf_name(convention, place)
        if len(axes) != 1:
            raise ModuleError(f"state {name!r} {list(leaf.shape)} has no axis that is one per stream")
        layout: Layout = tuple(BATCH if axis == axes[0] else int(size) for axis, size in enumerate(leaf.shape))
        dtype = str(leaf.dtype).removeprefix("torch.")
        initial = _one(leaf, axes[0], f"state {name!r}")
        found.append(State(name, f"forward's {name}", dtype, layout, initial, None, place))
    return found


def _leaf_name(convention: Convention, place: int) -> str:
    """What a leaf is called: by its argument, where that has one leaf; with a number elsewhere."""
    for name, structure in zip(convention.states, convention.structure, strict=True):
        if structure == place:
            return name
        inside = [int(number) for number in re.findall(r"\d+", repr(structure))]
        if place in inside:
            return f"{name}{place - min(inside)}"
    return f"state{place}"


def _fewer(probe: Probe, convention: Convention, first: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same leaves for one stream fewer: found by running, from states cut on each axis that could be the batch."""
    choices = [[axis for axis, size in enumerate(leaf.shape) if size == STREAMS] for leaf in first]
    for axes in itertools.islice(itertools.product(*choices), 64):
        cut = [leaf.narrow(axis, 0, STREAMS - 1) for leaf, axis in zip(first, axes, strict=True)]
        try:
            seen = probe.see(convention, probe.values(streams=STREAMS - 1), cut)
        except ModuleError:
            continue
        if _alike(cut, seen.states):
            return cut
    raise ModuleError("its state has no axis that follows the number of streams")


def _one(value: torch.Tensor, axis: int, what: str) -> Any:
    """One stream's value of a first state; None where it is zero."""
    one = value.select(axis, 0)
    if not _same(value, one.unsqueeze(axis).expand_as(value)):
        raise ModuleError(f"{what} begins differently for each stream: a first state can't depend on the batch")
    return None if not bool(one.any()) else one.detach().numpy().copy()


def _found(probe: Probe, convention: Convention, first: list[torch.Tensor] | None) -> list[State]:
    """The states of recurrent layers that begin by themselves, or from something that never changes."""
    base = probe.see(convention, probe.values(), first)
    other = probe.see(convention, probe.values(seed=1), first)
    moved = base if first is None else probe.see(convention, probe.values(), _moved(first))
    found = []
    if not len(base.calls) == len(other.calls) == len(moved.calls):
        raise ModuleError("which of its recurrent layers run depends on the input: data-dependent control flow")
    for call, elsewhere, after in zip(base.calls, other.calls, moved.calls, strict=True):
        initial: tuple[Any, ...] = (None,) * len(call.core.states)
        if call.given is not None:
            if after.given is not None and not all(map(_same, call.given, after.given)):
                continue  # it is a part of forward's own state
            if elsewhere.given is None or not all(map(_same, call.given, elsewhere.given)):
                raise ModuleError(
                    f"the state that {call.slot} begins from depends on the input (an encoder's last state, or a layer"
                    " called twice): it would begin anew at every step, so it can't be carried"
                )
            initial = tuple(_one(value, 0, f"{call.slot}'s state") for value in call.given)
        for place, name in enumerate(call.core.states):
            layers = f", {call.core.layers} layers" if call.core.layers > 1 else ""
            found.append(
                State(
                    f"{call.slot.replace('#', '.')}.{name}",
                    f"{call.slot}: {call.core.kind} {name}{layers}",
                    "float32",
                    (BATCH, call.core.layers, call.core.hidden_size),
                    initial[place],
                    call.slot,
                    place,
                )
            )
    return found


def _moved(states: list[torch.Tensor]) -> list[torch.Tensor]:
    return [state + torch.rand_like(state) if state.is_floating_point() else state for state in states]


def _outputs(
    probe: Probe, convention: Convention, first: list[torch.Tensor] | None, *, bare: bool
) -> tuple[tuple[Tensor, ...], list[str]]:
    """The outputs and their axes, from how their shapes follow the numbers of streams and of steps."""
    steps = 1 if bare else STEPS
    seen = probe.see(convention, probe.values(steps=steps), first)
    cut = None if first is None else _fewer(probe, convention, first)
    fewer = probe.see(convention, probe.values(streams=STREAMS - 1, steps=steps), cut).outputs
    shorter = seen.outputs if bare else probe.see(convention, probe.values(steps=STEPS - 1), first).outputs
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
            if size != short and (size, short) != (STEPS, STEPS - 1):
                raise ModuleError(
                    f"output {name!r} has {size} values on one axis for {STEPS} steps: a stream's outputs are one per"
                    " step (a convolution that shortens its input needs its past as a state)"
                )
        if layout.count(BATCH) != 1 or layout.count(TIME) > 1:
            raise ModuleError(f"output {name!r} {list(value.shape)} has no axis that is one per stream")
        outputs.append(Tensor(name, str(value.dtype).removeprefix("torch."), tuple(layout)))
    return tuple(outputs), remarks


def _takes_time(
    probe: Probe, convention: Convention, first: list[torch.Tensor] | None, outputs: Sequence[Tensor]
) -> bool:
    """Whether several steps can be one call of the graph: all has time, and no Python loop steps through it."""
    one = probe.see(convention, probe.values(), first).calls
    more = probe.see(convention, probe.values(steps=STEPS), first).calls
    timed = all(tensor.timed for tensor in (*probe.inputs, *outputs))
    return timed and len(one) == len(more) and not any(call.core.cell for call in one)


def _looked_up(probe: Probe, tensor: Tensor) -> tuple[int, int] | None:
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
        nones = tuple(n for n, p in _parameters(probe.module).items() if n not in names and p.default is p.empty)
        with suppress(ModuleError):  # the embedding may have been reached all the same
            probe.see(Convention(names, nones=nones), values, None)
    finally:
        for hook in hooks:
            hook.remove()
    return (0, min(found) - 1) if found else None
