"""States as clients know them and rows as the slab has them: the same bytes, each in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract import Contract, StatePair, TensorSpec
from serving.engine import Engine
from serving.errors import InvalidInput
from serving.row_states import RowStates

X, Y = TensorSpec("x", "float32", ()), TensorSpec("y", "float32", ())
STATES = (
    StatePair("z", "z_out", "float32", (2, 3)),
    StatePair("count", "count_out", "int64", ()),
    StatePair("a", "a_out", "float32", ()),
    StatePair("seen", "seen_out", "int64", (4,)),
    StatePair("half", "half_out", "float16", (3,)),
)
CONTRACT = Contract("mixed", (X,), (Y,), STATES, "")


class Slabs:
    """Rows of every dtype, in memory."""

    def __init__(self, contract: Contract = CONTRACT) -> None:
        self.contract = contract
        self.rows = [np.zeros((3, slab.width), slab.dtype) for slab in contract.slabs()]

    def read_state(self, row: int) -> list[npt.NDArray[Any]]:
        return [rows[row].copy() for rows in self.rows]

    def write_state(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        for rows, new in zip(self.rows, values, strict=True):
            assert new.dtype == rows.dtype
            assert new.shape == rows[row].shape
            rows[row] = new


def example(seed: int, contract: Contract = CONTRACT) -> tuple[bytes, ...]:
    """A state of the contract."""
    random = np.random.default_rng(seed)
    return tuple(random.integers(-99, 99, state.elements).astype(state.dtype).tobytes() for state in contract.states)


@given(seed=st.integers(0, 2**31), order=st.permutations(STATES))
def test_what_is_written_is_read(seed: int, order: list[StatePair]) -> None:
    """In the contract's order, whichever slab each is in; other rows are left alone."""
    contract = Contract("mixed", (X,), (Y,), tuple(order), "")
    slabs = Slabs(contract)
    states = RowStates(slabs)
    first, second = example(seed, contract), example(seed + 1, contract)
    states.write_states(1, first)
    states.write_states(2, second)
    assert states.read_states(1) == first
    assert states.read_states(2) == second
    assert not any(rows[0].any() for rows in slabs.rows)


def test_each_state_stands_where_the_graph_looks_for_it() -> None:
    """A row is the states of one dtype, flattened and joined in the contract's order."""
    slabs = Slabs()
    states = example(7)
    RowStates(slabs).write_states(1, states)
    z, count, a, seen, half = states
    assert [rows[1].tobytes() for rows in slabs.rows] == [z + a, count + seen, half]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda states: states[:-1], "4 states; the model has 5"),
        (lambda states: [*states, b""], "6 states; the model has 5"),
        (lambda states: [states[0] + b"\0", *states[1:]], "state 'z' has 25 bytes; float32[2, 3] is 24 bytes"),
        (lambda states: [states[0], b"", *states[2:]], "state 'count' has 0 bytes; int64[] is 8 bytes"),
        (lambda states: [np.full(6, np.nan, np.float32).tobytes(), *states[1:]], "state 'z' holds a value that isn't"),
        (lambda states: [*states[:4], np.full(3, np.inf, np.float16).tobytes()], "state 'half' holds a value that"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Any, text: str) -> None:
    """Number, size and finiteness are checked before a byte is written."""
    slabs = Slabs()
    states = RowStates(slabs)
    states.write_states(1, example(1))
    with pytest.raises(InvalidInput) as caught:
        states.write_states(1, change(list(example(2))))
    assert text in str(caught.value)
    assert states.read_states(1) == example(1)


def test_every_integer_is_a_state() -> None:
    """Only numbers that can be something else are asked to be finite."""
    states = RowStates(Slabs())
    given_states = [*example(1)]
    given_states[3] = np.array([-(2**63), 2**63 - 1, 0, -1]).tobytes()
    states.write_states(1, given_states)
    assert states.read_states(1)[3] == given_states[3]


def test_the_states_of_an_lstm_go_from_one_row_to_another(artifacts: Path) -> None:
    """On a real engine: what one row computes after its state was read and put elsewhere is the same to the byte."""
    path = artifacts / "vectors" / "1" / "resident.onnx"
    engine = Engine(path, rows=6, max_batch=2, slice_steps=4, max_run_steps=8, threads=1)
    states = RowStates(engine)
    x = np.random.default_rng(0).standard_normal((2, 5), dtype=np.float32)
    engine.run([(x[0].tobytes(),)], [1], [0], [1])
    read = states.read_states(1)
    assert [len(data) for data in read] == [4 * state.elements for state in engine.contract.states]
    states.write_states(2, read)
    apart = engine.run([(x[1].tobytes(),)] * 2, [1, 1], [1, 2], [3, 4])
    assert [bytes(data) for data in apart[0]] == [bytes(data) for data in apart[1]]
    assert states.read_states(3) == states.read_states(4)
