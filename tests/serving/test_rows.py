"""The rows: a state machine against a plain count of references."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.rows import INITIAL, Rows

CAPACITY = 6


class RowsMachine(RuleBasedStateMachine):
    """Claims, references and releases in any order: a row is fresh exactly when nobody refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows(CAPACITY)
        self.references: dict[int, int] = {}

    @precondition(lambda self: len(self.references) < CAPACITY - 1)
    @rule()
    def claim(self) -> None:
        (row,) = self.rows.claim(1)
        assert row != INITIAL
        assert row not in self.references
        self.references[row] = 1

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def refer(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.references)))
        assert self.rows.refer(row) == row
        self.references[row] += 1

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.references)))
        self.rows.release([row])
        self.references[row] -= 1
        if not self.references[row]:
            del self.references[row]

    @rule()
    def row_0_is_never_freed(self) -> None:
        self.rows.release([self.rows.refer(INITIAL)])
        self.rows.release([INITIAL])

    @invariant()
    def books_balance(self) -> None:
        self.rows.check()
        assert self.rows.in_use == len(self.references)


TestRowsMachine = RowsMachine.TestCase


def test_releasing_twice_is_caught() -> None:
    """A row given back twice would soon hold two streams' states, so it is an error at once."""
    rows = Rows(3)
    claimed = rows.claim(1)
    rows.release(claimed)
    with pytest.raises(AssertionError, match="released twice"):
        rows.release(claimed)


def test_claiming_more_than_there_are_is_caught() -> None:
    """The slab is sized so that a claim can't fail; if one could, it is an error at once."""
    rows = Rows(2)
    rows.claim(1)
    with pytest.raises(AssertionError, match="more rows"):
        rows.claim(1)


def test_a_slab_without_a_row_to_write_is_refused() -> None:
    """Row 0 is never written, so one row isn't a slab."""
    with pytest.raises(ValueError, match="1 rows"):
        Rows(1)
