"""Counting on the hot path: plain integers, exported when somebody scrapes.

Owns the numbers. One thread writes them (the loop's); others only read, and may see one a moment old.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # streams in a run
SECONDS_BOUNDS = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1.0, 5.0)


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


@dataclass(slots=True)
class ModelStats:
    """What one model has done since it was loaded."""

    opened: int = 0
    steps: int = 0
    failed_runs: int = 0
    batch_streams: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    compute_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))


@dataclass(slots=True)
class ServerStats:
    """What belongs to no single model."""

    refusals: Counter[str] = field(default_factory=Counter)  # by reason
    messages_in: int = 0
    messages_out: int = 0
