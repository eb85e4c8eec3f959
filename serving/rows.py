"""The slab's bookkeeping: which row holds whose state.

Owns which rows are free and how often each is referred to. Knows no tensor, no stream and no engine.

A row is never changed once written: a step reads row r and writes a fresh row, and r goes back only when the stream
points at the new one. Row 0 holds a new stream's first state; it is never written and never freed.
"""

from __future__ import annotations

from collections.abc import Iterable

INITIAL = 0


class Rows:
    """The rows of one slab, counted by reference."""

    def __init__(self, capacity: int) -> None:
        """`capacity` counts row 0 too: 1 + streams + lanes of the largest batch + 1 for a probe."""
        if capacity < 2:
            raise ValueError(f"a slab of {capacity} rows has none to write to")
        self.capacity = capacity
        self._free = list(range(capacity - 1, 0, -1))  # the last is taken first, so low rows stay warm
        self._references = [0] * capacity
        self._references[INITIAL] = 1

    @property
    def in_use(self) -> int:
        """Rows that hold a state somebody refers to, row 0 aside."""
        return self.capacity - 1 - len(self._free)

    def claim(self, count: int) -> list[int]:
        """So many fresh rows, each referred to once."""
        assert 0 < count <= len(self._free), "more rows claimed than streams and lanes can need"
        rows = self._free[-count:]
        del self._free[-count:]
        for row in rows:
            self._references[row] = 1
        return rows

    def refer(self, row: int) -> int:
        """Refer to a row once more (a fork, a checkpoint); returns it."""
        if row != INITIAL:
            assert self._references[row] > 0, f"row {row} is free"
            self._references[row] += 1
        return row

    def references(self, row: int) -> int:
        """How often a row is referred to."""
        return self._references[row]

    def release(self, rows: Iterable[int]) -> None:
        """Refer to each of the rows once less; the last reference frees a row."""
        references, free = self._references, self._free
        for row in rows:
            if row == INITIAL:
                continue
            left = references[row] - 1
            assert left >= 0, f"row {row} released twice"
            references[row] = left
            if left == 0:
                free.append(row)

    def check(self) -> None:
        """Assert that the books balance."""
        free = set(self._free)
        assert len(free) == len(self._free), "a row is free twice"
        assert INITIAL not in free, "row 0 is free"
        for row in range(1, self.capacity):
            assert (self._references[row] == 0) == (row in free), f"row {row} is lost"
