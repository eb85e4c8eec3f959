"""A Multiplex call's streams in columns: each key's slot, and the figures of every slot.

Owns the numbering by slot. Knows no requests and no messages. A column's entry means nothing once its slot is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_COLUMNS, _FEWEST = 6, 16


class Lineup:
    """The streams of one request, looked up: most requests name the same ones as the request before."""

    __slots__ = ("_order", "_sorted", "keys", "slots")

    def __init__(self, keys: tuple[int, ...], slots: Ints) -> None:
        self.keys = keys
        self.slots = slots
        self._order: Ints | None = None
        self._sorted = slots

    def find(self, slots: Ints) -> Ints:
        """Where each of these slots stands in it; -1: nowhere."""
        if self._order is None:
            self._order = np.argsort(self.slots)
            self._sorted = self.slots[self._order]
        at = np.minimum(np.searchsorted(self._sorted, slots), len(self._sorted) - 1)
        return np.where(self._sorted[at] == slots, self._order[at], -1)


class Streams:
    """The streams that are open or being opened."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}  # by key
        self._free: list[int] = []
        self._table = np.zeros((_COLUMNS, 0), np.int64)
        self._grow()

    def __contains__(self, key: int) -> bool:
        return key in self._slots

    @property
    def keys(self) -> tuple[int, ...]:
        """All keys, in the order in which they came."""
        return tuple(self._slots)

    @property
    def slots(self) -> Ints:
        """All slots in use."""
        return np.fromiter(self._slots.values(), np.int64, len(self._slots))

    def add(self, key: int) -> None:
        """A new stream, with nothing sent."""
        if not self._free:
            self._grow()
        slot = self._slots[key] = self._free.pop()
        self.opened[slot] = self.sent[slot] = self.answered[slot] = 0

    def remove(self, key: int) -> int:
        """A stream is over; its slot, which the next one may get."""
        slot = self._slots.pop(key)
        self._free.append(slot)
        return slot

    def clear(self) -> None:
        """All streams are over."""
        self._free.extend(self._slots.values())
        self._slots.clear()

    def slot(self, key: int) -> int:
        """One key's slot. Raises KeyError."""
        return self._slots[key]

    def find(self, keys: Iterable[int], count: int) -> Ints:
        """The slots of `count` keys. Raises KeyError for the first that is no stream's."""
        return np.fromiter(map(self._slots.__getitem__, keys), np.int64, count)

    def columns(self, slots: Ints) -> Ints:
        """All figures of these slots, a column in each row: opened, sent, answered, head, ends, shift."""
        return self._table.take(slots, axis=1)

    def is_open(self, key: int) -> bool:
        """Whether the server has opened it."""
        return key in self._slots and bool(self.opened[self._slots[key]])

    def all_open(self, keys: Sequence[int]) -> bool:
        """Whether the server has opened each of these."""
        slots = self._slots
        return all(key in slots for key in keys) and bool(self.opened[self.find(keys, len(keys))].all())

    def _grow(self) -> None:
        size = self._table.shape[1]
        more = max(_FEWEST, size)
        table = np.pad(self._table, ((0, 0), (0, more)))
        self._table = table
        # opened: 1, or 0. sent, answered: the last step. head: the number of the request that the next answer is for,
        # ends: that request's last step of this stream, shift: a step's place in that request's answer less its number.
        self.opened, self.sent, self.answered, self.head, self.ends, self.shift = table
        self._free.extend(range(size + more - 1, size - 1, -1))
