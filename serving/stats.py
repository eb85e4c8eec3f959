"""Counting on the hot path: plain integers, exported when somebody scrapes.

Owns the numbers. One thread writes them (the loop's); others only read, and may see one a moment old.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # streams in a run
MICROS_BITS = 24  # of the longest time whose bucket has a bound: 16.8 s
UINT32_BITS = 32


class Histogram:
    """Counts per bucket; a value belongs to the first bound that isn't below it, else to the last bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Times:
    """A histogram of microseconds of 32 bits, in buckets of powers of two: an integer's length is its bucket."""

    __slots__ = ("_counts", "_micros")

    bounds = tuple((1 << bits) / 1e6 for bits in range(MICROS_BITS + 1))  # seconds

    def __init__(self) -> None:
        self._counts = [0] * (UINT32_BITS + 1)
        self._micros = 0

    def add(self, values: Sequence[int]) -> None:
        """Count times."""
        counts = self._counts
        for value in values:
            counts[value.bit_length()] += 1
        self._micros += sum(values)

    @property
    def counts(self) -> list[int]:
        """How many there are up to each bound, above the one before; then those above all."""
        return [*self._counts[: MICROS_BITS + 1], sum(self._counts[MICROS_BITS + 1 :])]

    @property
    def total(self) -> float:
        """All of them together, in seconds."""
        return self._micros / 1e6


@dataclass(slots=True)
class ModelStats:
    """What one model has done since it was loaded."""

    opened: int = 0
    steps: int = 0
    failed_runs: int = 0
    latest_run: float | None = None  # when it began, in monotonic seconds
    runs: Counter[int] = field(default_factory=Counter)  # by streams in one
    run_micros: Counter[int] = field(default_factory=Counter)  # all of them together, likewise
    batch_streams: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
    queue_times: Times = field(default_factory=Times)
    compute_times: Times = field(default_factory=Times)


@dataclass(slots=True)
class ServerStats:
    """What belongs to no single model."""

    refusals: Counter[str] = field(default_factory=Counter)  # by reason
    messages_in: int = 0
    gates: list[Sized] = field(default_factory=list)  # the calls that have sent nothing, by wire
    messages_out: int = 0
