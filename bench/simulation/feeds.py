"""Arrivals as the machine takes them: all that have come by now, as chunks for the batcher.

Owns whose turn it is to arrive. A chunk's `inputs`, which the batcher passes through unopened, hold the chunk's number
here: by it the answer finds its arrival again.
"""

from __future__ import annotations

import functools
import heapq
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from bench.simulation.arrivals import Arrivals, Floats, Ints
from serving.batcher import Chunk

NEVER = float("inf")
_BLOCK = 1 << 14  # arrivals turned into objects at once: memory stays small however many there are

_chunk: Callable[[tuple[int, int, int, float]], Chunk] = functools.partial(tuple.__new__, Chunk)


class Feed(Protocol):
    """What the machine asks of arrivals."""

    next: float  # when the next chunk arrives; NEVER after the last

    def upto(self, now: float, most: int) -> Sequence[tuple[int, Chunk]]:
        """The chunks, with their streams, that have arrived by `now` and weren't taken yet: at most so many."""

    def answered(self, number: int, now: float) -> None:
        """A chunk has been answered."""

    def arrived(self) -> tuple[Floats, Ints, Ints]:
        """When each chunk arrived, its stream and its steps, by number."""


def feed_of(arrivals: Arrivals, seed: int) -> Feed:
    """The feed for these arrivals."""
    return Open(arrivals) if arrivals.think_seconds is None else Closed(arrivals, arrivals.think_seconds, seed)


class Open:
    """Arrivals that come whatever is answered."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._first_steps = arrivals.first_steps()
        self._block: list[tuple[int, Chunk]] = []
        self._seconds: list[float] = []
        self._at = self._loaded = 0
        self.next = NEVER
        self._load()

    def upto(self, now: float, most: int) -> Sequence[tuple[int, Chunk]]:
        """See Feed; fewer come where a block ends, and the next call gives more."""
        at = self._at
        end = min(bisect_right(self._seconds, now, at), at + most)
        taken = self._block[at:end]
        self._at = end
        if end < len(self._seconds):
            self.next = self._seconds[end]
        else:
            self._load()
        return taken

    def answered(self, number: int, now: float) -> None:
        """Changes nothing here."""

    def arrived(self) -> tuple[Floats, Ints, Ints]:
        """See Feed."""
        return self._arrivals.seconds, self._arrivals.stream, self._arrivals.steps

    def _load(self) -> None:
        begin, end = self._loaded, min(self._loaded + _BLOCK, len(self._arrivals))
        block = slice(begin, end)
        self._seconds = self._arrivals.seconds[block].tolist()
        firsts, steps = self._first_steps[block].tolist(), self._arrivals.steps[block].tolist()
        chunks = map(_chunk, zip(firsts, steps, range(begin, end), self._seconds, strict=True))
        self._block = list(zip(self._arrivals.stream[block].tolist(), chunks, strict=True))
        self._at, self._loaded = 0, end
        self.next = self._seconds[0] if self._seconds else NEVER


class Closed:
    """A closed loop: each stream sends its next single step a while after the last one's answer."""

    def __init__(self, arrivals: Arrivals, think_seconds: float, seed: int) -> None:
        self._until = arrivals.until
        self._thinks = _exponential(think_seconds, np.random.default_rng([seed, 1]))
        self._seconds = array("d", arrivals.seconds.tolist())
        self._stream = array("q", arrivals.stream.tolist())
        self._steps = array("q", arrivals.steps.tolist())
        self._sent = dict(zip(self._stream, self._steps, strict=True))
        assert len(self._sent) == len(self._seconds), "a closed loop begins with one chunk of each stream"
        self._coming = list(zip(self._seconds, range(len(self._seconds)), strict=True))  # in order: a heap already
        self.next = self._coming[0][0] if self._coming else NEVER

    def upto(self, now: float, most: int) -> Sequence[tuple[int, Chunk]]:
        """See Feed."""
        coming = self._coming
        taken: list[tuple[int, Chunk]] = []
        while coming and coming[0][0] <= now and len(taken) < most:
            seconds, number = heapq.heappop(coming)
            stream, steps = self._stream[number], self._steps[number]
            taken.append((stream, _chunk((self._sent[stream] - steps + 1, steps, number, seconds))))
        self.next = coming[0][0] if coming else NEVER
        return taken

    def answered(self, number: int, now: float) -> None:
        """Let the stream think, then send."""
        seconds = now + next(self._thinks)
        if seconds >= self._until:
            return
        stream = self._stream[number]
        self._sent[stream] += 1
        heapq.heappush(self._coming, (seconds, len(self._seconds)))
        self._seconds.append(seconds)
        self._stream.append(stream)
        self._steps.append(1)
        self.next = self._coming[0][0]

    def arrived(self) -> tuple[Floats, Ints, Ints]:
        """See Feed."""
        return np.array(self._seconds), np.array(self._stream), np.array(self._steps)


def _exponential(mean: float, random: np.random.Generator) -> Iterator[float]:
    while True:
        yield from random.exponential(mean, _BLOCK).tolist()
