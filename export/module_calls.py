"""How a user's module is called: which of its arguments are inputs, which the state, and where the new state comes out.

Owns nested states and outputs: their leaves, names, and how they are put together again. Runs modules, judges nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Y = "y"


class ModuleError(ValueError):
    """The module can't be exported as it is; the text says why, and what to do."""


class Gives(StrEnum):
    """Where a call's answer has the new state."""

    NOTHING = "no state"
    LAST = "the new state last"
    ALL = "the new state alone"


@dataclass(frozen=True, slots=True)
class Convention:
    """Which arguments are what. `structure` is one nested state per state argument, its leaves numbered."""

    inputs: tuple[str, ...]
    states: tuple[str, ...] = ()
    structure: tuple[Any, ...] = ()
    gives: Gives = Gives.NOTHING
    nones: tuple[str, ...] = ()  # arguments that are given None

    def call(self, module: nn.Module, inputs: Mapping[str, Tensor], states: Sequence[Tensor] | None) -> Any:
        """The module's answer; `states` None lets it begin by itself."""
        given: dict[str, Any] = dict(inputs)
        given |= dict.fromkeys((*self.nones, *(self.states if states is None else ())))
        if states is not None:
            pairs = zip(self.states, self.structure, strict=True)
            given |= {name: built(structure, states) for name, structure in pairs}
        return module(**given)

    def outputs(self, answer: Any) -> dict[str, Tensor]:
        """An answer's outputs by name."""
        if self.gives is Gives.NOTHING:
            return named(answer)
        if self.gives is Gives.ALL:
            return dict([(Y, leaf) for leaf in leaves(answer)][:1])
        outputs = self._several(answer)[: -len(self.states)]
        return named(outputs[0] if len(outputs) == 1 else outputs)

    def state(self, answer: Any) -> tuple[Any, ...]:
        """An answer's new state, one nested value for each state argument."""
        if self.gives is Gives.NOTHING:
            return ()
        return (answer,) if self.gives is Gives.ALL else self._several(answer)[-len(self.states) :]

    def _several(self, answer: Any) -> tuple[Any, ...]:
        if not isinstance(answer, (tuple, list)) or len(answer) <= len(self.states):
            raise ModuleError(f"it gives no outputs with the new {', '.join(self.states)} behind them")
        return tuple(answer)


def named(answer: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in a nested answer, with names: keys of dicts, numbers of tuples; a tensor alone is y."""
    if isinstance(answer, Tensor):
        return {name or Y: answer}
    if answer is None:
        return {}
    found: dict[str, Tensor] = {}
    for key, part in _parts(answer):
        inner = f"{name}.{key}" if name and not key.isdecimal() else f"{name or Y * key.isdecimal()}{key}"
        found |= named(part, inner)
    return found


def _parts(value: Any) -> list[tuple[str, Any]]:
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
    return [] if value is None else [leaf for _, part in _parts(value) for leaf in leaves(part)]


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
    raise ModuleError(f"its state holds a {type(value).__name__}, and only tensors can be carried")


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
    return structure
