"""How a user's module is called: which of its arguments are inputs, which the state, and where the new state comes out.

Owns nested states and outputs: their leaves, names, and how they are put together again. Runs modules, judges nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Y = "y"


class ModuleError(ValueError):
    """The module can't be exported as it is; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Convention:
    """Which arguments are what. `structure` is one nested state per state argument, its leaves numbered.

    An input's name says where it goes: `x` is an argument, `batch.obs` an entry of a dict that is one.
    """

    inputs: tuple[str, ...]
    states: tuple[str, ...] = ()
    structure: tuple[Any, ...] = ()
    successors: tuple[int, ...] = ()  # which of an answer's tensors is each leaf's new value
    nones: tuple[str, ...] = ()  # arguments that are given None

    def call(self, module: nn.Module, inputs: Mapping[str, Tensor], states: Sequence[Tensor] | None) -> Any:
        """The module's answer; `states` None lets it begin by itself."""
        given = nested(inputs)
        given |= dict.fromkeys((*self.nones, *(self.states if states is None else ())))
        if states is not None:
            pairs = zip(self.states, self.structure, strict=True)
            given |= {name: built(structure, states) for name, structure in pairs}
        first = [name for name, kind in _kinds(module).items() if kind is inspect.Parameter.POSITIONAL_ONLY]
        return module(*[given.pop(name) for name in first if name in given], **given)

    def outputs(self, answer: Any) -> dict[str, Tensor]:
        """An answer's outputs by name: all its tensors but the new states, or the first of these if those are all."""
        tensors = leaves(answer)
        if self.successors and len(self.successors) == len(tensors):
            return {Y: tensors[0]}
        return named(_without(answer, frozenset(self.successors), itertools.count()))

    def state(self, answer: Any) -> tuple[Tensor, ...]:
        """An answer's new states, leaf by leaf."""
        tensors = leaves(answer)
        if self.successors and max(self.successors) >= len(tensors):
            raise ModuleError(f"it gives no outputs with the new {', '.join(self.states)} behind them")
        return tuple(tensors[place] for place in self.successors)


def _kinds(module: nn.Module) -> dict[str, Any]:
    return {name: found.kind for name, found in inspect.signature(module.forward).parameters.items()}


def nested(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments from inputs' names: those with a dot are entries of dicts."""
    given: dict[str, Any] = {}
    for name, value in inputs.items():
        *outer, last = name.split(".")
        place = given
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
    return given


class _Dropped:
    """The place of a tensor that is left out."""


def _without(answer: Any, dropped: frozenset[int], places: Iterator[int]) -> Any:
    """A nested answer without some of its tensors; what is left alone in a tuple by that takes the tuple's place."""
    if isinstance(answer, Tensor):
        return _Dropped if next(places) in dropped else answer
    if answer is None or not dropped:
        return answer
    parts = [(key, _without(part, dropped, places)) for key, part in parts_of(answer)]
    left = [(key, part) for key, part in parts if part is not _Dropped]
    if parts and not left:
        return _Dropped
    if not isinstance(answer, (tuple, list)) or hasattr(answer, "_fields"):
        return dict(left)
    values = [part for _, part in left]
    return values[0] if len(values) == 1 < len(parts) else values


def named(answer: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in a nested answer, with names: keys of dicts, numbers of tuples; a tensor alone is y."""
    if isinstance(answer, Tensor):
        return {name or Y: answer}
    if answer is None:
        return {}
    found: dict[str, Tensor] = {}
    for key, part in parts_of(answer):
        inner = f"{name}.{key}" if name and not key.isdecimal() else f"{name or Y * key.isdecimal()}{key}"
        found |= named(part, inner)
    return found


def parts_of(value: Any) -> list[tuple[str, Any]]:
    """What a container holds, with keys of dicts, fields of dataclasses, numbers of tuples; raises ModuleError."""
    if isinstance(value, PackedSequence):
        raise ModuleError(
            "it gives a packed sequence, which needs whole sequences and their lengths beforehand; a stream has"
            " neither: leave the packing out of forward"
        )
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if dataclasses.is_dataclass(value):
        return [(part.name, getattr(value, part.name)) for part in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return [(str(place), part) for place, part in enumerate(value)]
    raise ModuleError(f"it gives a {type(value).__name__}, and only tensors can be streamed (in tuples, lists, dicts)")


def leaves(value: Any) -> list[Tensor]:
    """The tensors of a nested state, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [leaf for _, part in parts_of(value) for leaf in leaves(part)]


def structure_of(value: Any, places: Iterator[int]) -> Any:
    """A nested state with numbers for its tensors."""
    if isinstance(value, Tensor):
        return next(places)
    if isinstance(value, Mapping):
        return {key: structure_of(part, places) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(structure_of(part, places) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(structure_of(part, places) for part in value)
    if value is None:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {name: structure_of(part, places) for name, part in parts_of(value)}
        return dataclasses.replace(value, **parts)
    raise ModuleError(f"its state holds a {type(value).__name__} ({value!s:.40}), and only tensors can be carried")


def built(structure: Any, states: Sequence[Tensor]) -> Any:
    """The inverse: a nested state of these tensors."""
    if isinstance(structure, int):
        return states[structure]
    if isinstance(structure, Mapping):
        return {key: built(part, states) for key, part in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(built(part, states) for part in structure))
    if isinstance(structure, (tuple, list)):
        return type(structure)(built(part, states) for part in structure)
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        return dataclasses.replace(structure, **{name: built(part, states) for name, part in parts_of(structure)})
    return structure


def numbers(structure: Any) -> list[int]:
    """The numbers in a structure, in order."""
    if isinstance(structure, int):
        return [structure]
    return [] if structure is None else [number for _, part in parts_of(structure) for number in numbers(part)]


def leaf_names(name: str, structure: Any) -> list[str]:
    """What the leaves of an argument's state are called: by the argument and a number, or the keys of dicts."""
    if isinstance(structure, int):
        return [name]
    paths = paths_of(structure)
    if all(key.isdecimal() for path in paths for key in path):
        return [f"{name}{place}" for place in range(len(paths))] if len(paths) > 1 else [name]
    return [".".join((name, *path)) for path in paths]


def paths_of(structure: Any) -> list[tuple[str, ...]]:
    """The keys that lead to each leaf, in order."""
    if isinstance(structure, int):
        return [()]
    return [] if structure is None else [(key, *path) for key, part in parts_of(structure) for path in paths_of(part)]
