"""A row's states, one by one, as a client knows them: what is in the slab, cut by the contract.

Owns the order of states in a row and the check of those that come from outside. Knows no stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from model.contract import Contract, StatePair
from serving.errors import InvalidInput


class Slab(Protocol):
    """What is asked of an engine."""

    contract: Contract

    def read_state(self, row: int) -> list[npt.NDArray[Any]]:
        """A copy of one row: one [W] array per slab."""

    def write_state(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        """Put a state into a row that no run reads."""


class RowStates:
    """Reads and writes whole states: one item per state pair, in the contract's order, little-endian."""

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self._contract = slab.contract

    def read_states(self, row: int) -> tuple[bytes, ...]:
        """The states in a row."""
        values: dict[str, bytes] = {}
        for slab, row_values in zip(self._contract.slabs(), self._slab.read_state(row), strict=True):
            begin = 0
            for state in slab.states:
                values[state.input] = row_values[begin : begin + state.elements].tobytes()
                begin += state.elements
        return tuple(values[state.input] for state in self._contract.states)

    def write_states(self, row: int, states: Sequence[bytes]) -> None:
        """Put states into a row. Raises InvalidInput unless they fit the contract and are finite."""
        if len(states) != len(self._contract.states):
            raise InvalidInput(f"{len(states)} states; the model has {len(self._contract.states)}")
        values = {state.input: _checked(state, data) for state, data in zip(self._contract.states, states, strict=True)}
        self._slab.write_state(
            row, [np.concatenate([values[state.input] for state in slab.states]) for slab in self._contract.slabs()]
        )


def _checked(state: StatePair, data: bytes) -> npt.NDArray[Any]:
    expected = state.elements * np.dtype(state.dtype).itemsize
    if len(data) != expected:
        raise InvalidInput(
            f"state {state.input!r} has {len(data)} bytes; {state.dtype}{list(state.shape)} is {expected} bytes"
        )
    values = np.frombuffer(data, dtype=state.dtype)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InvalidInput(f"state {state.input!r} holds a value that isn't finite")
    return values
