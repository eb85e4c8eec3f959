"""Inputs that say whether a sequence starts: what they say, as a note of the contract, and when they say it.

Owns that note. Such an input is a state to everybody else: its first value says so, its successor never does again.
Knows no graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.contract import Contract, StatePair

STARTS = "starts"  # the note: by input, what it says for false and for true, as JSON
Array = npt.NDArray[Any]


class Start(NamedTuple):
    """A state that says whether a sequence starts, and its two values: each [*shape] of the state."""

    state: StatePair
    false: Array
    true: Array

    def said(self, *, first: bool) -> Array:
        """What a step is told: whether it is the first of its sequence."""
        return self.true if first else self.false


def note(values: Mapping[str, tuple[Array, Array]]) -> dict[str, str]:
    """The note of a contract whose states of these names say (false, true); none where there are none."""
    plain = {name: [value.item() for value in both] for name, both in values.items()}
    return {STARTS: json.dumps(plain)} if plain else {}


def noted(contract: Contract) -> tuple[Start, ...]:
    """The states of a contract that say whether a sequence starts."""
    values = json.loads(contract.notes.get(STARTS, "{}"))
    return tuple(
        Start(state, *(np.full(state.shape, value, state.dtype) for value in values[state.input]))
        for state in contract.states
        if state.input in values
    )
