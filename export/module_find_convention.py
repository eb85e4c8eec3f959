"""How a user's module is called, found by calling it: its input, its state, and where the new state comes out.

Owns what is tried and concluded of arguments and answers.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from export.layouts import BATCH, TIME
from export.module_calls import Convention, ModuleError, built, leaves, parts_of, structure_of
from export.module_first_states import beginner, begun, by_none, check_agrees, first_of_none, proposed
from export.module_plan import Tensor
from export.module_probe import STEPS, Begin, ForwardError, Probe, alike, moved, same
from export.module_successors import AmbiguousError, find_successors, part_at, shapes
from model.recurrent import CELLS, SEQUENCES

_LIKE_A_STATE = re.compile(
    r"(?i)state|hidden|cell|cache|memory|carry|past|recurrent|hxs?$|cxs?$|^(prev_?|last_?|init_?|rnn_?|gru_?|lstm_?)?"
    r"(h|c|s|hc|hid|mem)_?(\d+|in|t|n|prev|last|old|init|tm1|rnn|gru|lstm|actor|critic|pi|vf)?$"
)
_MOST_OPTIONAL = 4  # arguments that may be None of which every combination is tried as the state
Found = tuple[Convention, list[torch.Tensor] | None, bool]


def guessed(module: nn.Module) -> Tensor:
    """The input of a module that says itself what it takes: by its only argument and its first layer."""
    found = parameters_of(module)
    names = [name for name, p in found.items() if p.default is p.empty and not _is_state(name, p)]
    names = names or list(found)[:1]
    layers = [part for part in module.modules() if not list(part.children()) and list(part.parameters())]
    if len(names) != 1 or not layers:
        raise ModuleError("say what forward takes, as in --input x=float32[batch,time,5]")
    first: Any = layers[0]
    if isinstance(first, nn.Embedding):
        return Tensor(names[0], "int64", (BATCH, TIME) if _batch_first(module) else (TIME, BATCH))
    size = getattr(first, "in_features", getattr(first, "input_size", None))
    if not isinstance(size, int):
        raise ModuleError(f"say what forward takes, as in --input {names[0]}=float32[batch,time,5]")
    if isinstance(first, tuple(CELLS)) and first is module:
        return Tensor(names[0], "float32", (BATCH, size))
    return Tensor(names[0], "float32", (BATCH, TIME, size) if _batch_first(module) else (TIME, BATCH, size))


def _batch_first(module: nn.Module) -> bool:
    """Whether the first recurrent layer takes the batch before time."""
    layers: list[Any] = [part for part in module.modules() if isinstance(part, tuple(SEQUENCES))]
    return bool(layers[0].batch_first) if layers else True


def parameters_of(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Forward's arguments that have a name."""
    found = inspect.signature(module.forward).parameters
    return {name: p for name, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _is_state(name: str, parameter: inspect.Parameter) -> bool:
    """Whether an argument may be the state: it has no value of its own, or None and a state's name."""
    return parameter.default in (inspect.Parameter.empty, None) and bool(_LIKE_A_STATE.search(name))


def find_convention(
    module: nn.Module, probe: Probe, begin: Begin | None, successors: Mapping[str, str] | None = None
) -> Found:
    """How it is called, its first state's leaves (None: it takes none), and whether it begins by itself.

    The arguments that are states are those that `begin` names; else those without a value, and those that may be None
    and are called like a state, or take what comes out.
    """
    inputs = tuple(tensor.name for tensor in probe.inputs)
    arguments = _Arguments.of(module, inputs)
    told = tuple(getattr(begin, "names", ()))
    arguments.check_told(told)
    groups = [told] if told else arguments.groups()
    plain, named = Convention(inputs), successors or {}
    if not groups:
        if begin is not None or named:
            raise ModuleError(
                f"forward takes no state beside {', '.join(inputs)}: let it be forward(x, state) -> (y, state)"
            )
        return plain, None, True
    if begin is None and arguments.required:
        begin = beginner(module)
    if begin is not None and begin is not by_none:
        return _first_that_fits(probe, plain, groups, begin, named)
    convention, first, begins = _begun_with_none(probe, plain, arguments, groups, named)
    if begin is not by_none:
        check_agrees(module, probe, convention, first)
    return convention, first, begins


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Forward's arguments, and which aren't inputs: `required` need a value, `likely` and `others` may be None."""

    names: tuple[str, ...]
    inputs: tuple[str, ...]
    required: tuple[str, ...]
    likely: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module, inputs: tuple[str, ...]) -> _Arguments:
        """Those of a module; raises ModuleError for an input that forward doesn't take."""
        parameters = parameters_of(module)
        roots = [name.split(".")[0] for name in inputs]
        free = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())
        for name, root in zip(inputs, roots, strict=True):
            if root not in parameters and not free:
                raise ModuleError(f"--input {name}: forward takes {', '.join(parameters) or _nothing(module)}")
        rest = {name: p for name, p in parameters.items() if name not in roots}
        required = tuple(name for name, p in rest.items() if p.default is p.empty)
        maybe = [name for name, p in rest.items() if p.default is None]
        likely = tuple(name for name in maybe if _is_state(name, rest[name]))
        others = tuple(name for name in maybe if name not in likely)
        return cls(tuple(parameters), tuple(roots), required, likely, others)

    def check_told(self, told: tuple[str, ...]) -> None:
        """Raise ModuleError where an option names no argument, or leaves one out that needs a value."""
        for name in told:
            if name not in self.names:
                raise ModuleError(f"--state {name}: forward takes {', '.join(self.names)}")
            if name in self.inputs:
                raise ModuleError(f"--state {name}: --input says that it is an input")
        missing = [name for name in self.required if told and name not in told]
        if missing:
            raise ModuleError(f"forward needs {missing[0]}, too: say --input {missing[0]}=… or --state {missing[0]}=…")

    def groups(self) -> list[tuple[str, ...]]:
        """Which arguments together may be the state, likely ones first."""
        likely = _subsets(self.likely)
        chosen = [(*self.required, *some) for some in likely]
        more = [some for some in _subsets((*self.likely, *self.others)) if some not in likely]
        chosen += [(*self.required, *some) for some in more]
        ordered = [tuple(name for name in self.names if name in group) for group in chosen]
        return [group for group in dict.fromkeys(ordered) if group]


def _subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All of them, larger ones first; of many only the whole."""
    if len(names) > _MOST_OPTIONAL:
        return [names, ()]
    return [some for size in range(len(names), -1, -1) for some in itertools.combinations(names, size)]


def _nothing(module: nn.Module) -> str:
    return f"nothing that has a name ({inspect.signature(module.forward)}): give its arguments names"


def _first_that_fits(
    probe: Probe, plain: Convention, groups: list[tuple[str, ...]], begin: Begin, successors: Mapping[str, str]
) -> Found:
    """The first state is given: which arguments does it fit?"""
    state = begun(begin)
    faults: list[ModuleError] = []
    for group in groups:
        parts = (state,) if len(group) == 1 else tuple(state) if isinstance(state, (tuple, list)) else ()
        if len(parts) != len(group):
            faults.append(
                ModuleError(f"a first state of {len(parts)} parts is made, and forward takes {', '.join(group)}")
            )
            continue
        try:
            return _with_first(probe, plain, group, parts, successors)
        except ModuleError as error:
            faults.append(error)
    raise faults[0]


def _with_first(
    probe: Probe, plain: Convention, names: tuple[str, ...], parts: tuple[Any, ...], successors: Mapping[str, str]
) -> Found:
    """The first state of these arguments is given: where does the new one come out?"""
    first = [leaf.detach() for leaf in leaves(parts)]
    convention = replace(plain, states=names, structure=structure_of(parts, itertools.count()))
    places = find_successors(probe, convention, first, successors)
    if places is None:
        answer = shapes(leaves(probe.see(convention, probe.values(), first).answer))
        raise ModuleError(
            f"forward takes {', '.join(names)} ({shapes(first)}), and gives {answer}, with no new state of the same"
            " shapes: let it give (y, state)"
        )
    return replace(convention, successors=places), first, False


def _begun_with_none(
    probe: Probe,
    plain: Convention,
    arguments: _Arguments,
    groups: list[tuple[str, ...]],
    successors: Mapping[str, str],
) -> Found:
    """The module begins by itself where the state is None; the state that it then gives says what it takes."""
    nones = replace(plain, nones=arguments.required)
    try:
        answer = probe.see(nones, probe.values(), None).answer
    except ForwardError as error:
        if not arguments.required:
            raise
        raise ModuleError(
            f"forward needs {', '.join(arguments.required)}, and fails with None ({error.reason}): say what a first"
            f" state is by a method initial_state(batch), or by {proposed(probe, groups[0])}"
        ) from error
    for group in groups:
        sure = all(name in (*arguments.required, *arguments.likely) for name in group)
        for parts in _in_answer(answer, group) if not successors else _told_parts(answer, group, successors):
            place = {id(tensor): number for number, tensor in enumerate(leaves(answer))}
            likely = tuple(place[id(leaf)] for leaf in leaves(parts))
            convention = _fed_back(probe, replace(plain, states=group), parts, likely, successors, sure=sure)
            if convention is not None:
                first = first_of_none(probe, convention)
                return convention, first, not any(bool(leaf.any()) for leaf in first)  # computed ones may be rounded
    return nones, None, True


def _in_answer(answer: Any, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Parts of an answer that could be the new values of these arguments: the last, those of their names, the first."""
    inside = [] if isinstance(answer, torch.Tensor) else parts_of(answer)
    values, keys = [part for _, part in inside], dict(inside)
    count = len(names)
    if len(values) > count:
        yield tuple(values[-count:])
    if values and isinstance(values[-1], (tuple, list)) and len(values[-1]) == count > 1:
        yield tuple(values[-1])
    if all(name in keys for name in names):
        yield tuple(keys[name] for name in names)
    if len(values) == count > 1:
        yield tuple(values)
    if len(values) > count:
        yield from (tuple(values[start : start + count]) for start in range(len(values) - count))
    if count == 1:
        yield (answer,)


def _told_parts(answer: Any, names: tuple[str, ...], successors: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    """Those that --successor names."""
    tensors = leaves(answer)
    if set(names) == set(successors):
        yield tuple(built(part_at(answer, f"{name}={successors[name]}", successors[name]), tensors) for name in names)


def _fed_back(
    probe: Probe,
    plain: Convention,
    parts: tuple[Any, ...],
    likely: tuple[int, ...],
    successors: Mapping[str, str],
    *,
    sure: bool,
) -> Convention | None:
    """The convention, if these parts of what comes out for None can go in, keep their shapes, and change what comes.

    Arguments that aren't called like a state must reach a recurrent layer.
    """
    try:
        structure = structure_of(parts, itertools.count())
        first = leaves(parts)
        convention = replace(plain, structure=structure)
        if not first or not _reaches(probe, convention, first, sure=sure):
            return None
        places = find_successors(probe, convention, first, successors, likely)
        if places is None:
            return None
        found = replace(convention, successors=places)
        longer = probe.see(found, probe.values(steps=STEPS), None)
    except AmbiguousError:
        raise
    except ModuleError:
        return None
    return found if alike(first, longer.states) else None


def _reaches(probe: Probe, convention: Convention, first: list[torch.Tensor], *, sure: bool) -> bool:
    """Whether the state changes what the module computes, or, where it isn't `sure` to be one, a recurrent layer's."""
    one, other = (probe.see(convention, probe.values(), states) for states in (first, moved(first)))
    given = [
        (a, b)
        for call, after in zip(one.calls, other.calls, strict=False)
        for a, b in zip(call.given or (), after.given or (), strict=False)
    ]
    tensors = zip(leaves(one.answer), leaves(other.answer), strict=True)
    return any(not same(a, b) for a, b in (given if not sure else [*given, *tensors]))
