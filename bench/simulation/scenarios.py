"""Who sends what when: the synthetic scenarios, each a few kinds of streams with a pace and a length of chunks.

Owns the drawing of arrivals. Knows no batcher and no cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.simulation.arrivals import Arrivals, Floats, Ints, in_order

Random = np.random.Generator
Pace = Callable[[int, float, float, Random], tuple[Floats, Ints]]  # streams, chunks/s of each, seconds: when, whose
Lengths = Callable[[int, Random], Ints]  # steps of so many chunks

BULK_STEPS = 1000
LONGEST = 2048  # what a message may hold by default
GROUPS = 16  # of streams that are busy together, where arrivals come in bursts
BUSY_SHARE = 0.2
CYCLE_SECONDS = 1.0  # of busy and quiet, on average


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of stream: its share of all streams, how often it sends, and how much."""

    share: float
    pace: Pace
    lengths: Lengths
    often: float = 1.0  # times the scenario's rate


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world of streams. `periodic`: each has a period, within which its step must be answered."""

    name: str
    about: str
    kinds: tuple[Kind, ...]
    periodic: bool = False
    closed: bool = False

    def arrivals(self, streams: int, rate: float, seconds: float, seed: int) -> Arrivals:
        """Arrivals of so many streams, each sending `rate` chunks a second (times its kind's factor)."""
        random = np.random.default_rng([seed, streams])
        parts, first = [], 0
        for kind, count in zip(self.kinds, self._counts(streams), strict=True):
            when, whose = kind.pace(count, rate * kind.often, seconds, random)
            parts.append((when, whose + first, kind.lengths(len(when), random)))
            first += count
        when, whose, steps = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return in_order(when, whose, steps, seconds, 1 / rate if self.closed else None)

    def sample(self, seed: int) -> tuple[Floats, Ints]:
        """How many of each chunk a stream sends per unit of rate, and its steps: for reckoning loads."""
        random = np.random.default_rng([seed, 0])
        drawn = [kind.lengths(20_000, random) for kind in self.kinds]
        weights = [np.full(20_000, kind.share * kind.often / 20_000) for kind in self.kinds]
        return np.concatenate(weights), np.concatenate(drawn)

    def _counts(self, streams: int) -> list[int]:
        others = [max(1, round(kind.share * streams)) for kind in self.kinds[1:]]
        return [max(0, streams - sum(others)), *others]


def poisson(streams: int, rate: float, seconds: float, random: Random) -> tuple[Floats, Ints]:
    """At random moments."""
    count = int(random.poisson(streams * rate * seconds))
    return random.uniform(0, seconds, count), random.integers(0, max(1, streams), count)


def phased(streams: int, rate: float, seconds: float, random: Random) -> tuple[Floats, Ints]:
    """Every 1/rate seconds, each stream with a phase of its own."""
    return _periodic(random.uniform(0, 1 / rate, streams), rate, seconds)


def together(streams: int, rate: float, seconds: float, random: Random) -> tuple[Floats, Ints]:
    """Every 1/rate seconds, all streams at the same instant (in an order of its own each time)."""
    when, whose = _periodic(np.zeros(streams), rate, seconds)
    order = np.lexsort((random.random(len(when)), when))
    return when[order], whose[order]


def bursty(streams: int, rate: float, seconds: float, random: Random) -> tuple[Floats, Ints]:
    """Busy for a fifth of the time, at five times the rate, then quiet; GROUPS groups of streams, each in step."""
    per_group = streams * rate / BUSY_SHARE / GROUPS
    when, whose = [], []
    for group in range(GROUPS):
        members = np.arange(group, streams, GROUPS)
        now = -float(random.uniform(0, CYCLE_SECONDS))
        while now < seconds and len(members):
            busy = float(random.exponential(CYCLE_SECONDS * BUSY_SHARE))
            moments = random.uniform(now, now + busy, int(random.poisson(per_group * busy)))
            moments = moments[(moments >= 0) & (moments < seconds)]
            when.append(moments)
            whose.append(random.choice(members, len(moments)))
            now += busy + float(random.exponential(CYCLE_SECONDS * (1 - BUSY_SHARE)))
    return np.concatenate([np.empty(0), *when]), np.concatenate([np.empty(0, np.int64), *whose])


def begins(streams: int, rate: float, seconds: float, random: Random) -> tuple[Floats, Ints]:
    """Once each, within the first period: a closed loop goes on from there."""
    return random.uniform(0, min(seconds, 1 / rate), streams), np.arange(streams)


def single(count: int, _random: Random) -> Ints:
    """One step."""
    return np.ones(count, np.int64)


def bulk(count: int, _random: Random) -> Ints:
    """A thousand steps."""
    return np.full(count, BULK_STEPS)


def heavy(count: int, random: Random) -> Ints:
    """Mostly one or two steps, sometimes thousands: Pareto of exponent 1.2, up to what a message holds."""
    return np.minimum(random.pareto(1.2, count) + 1, LONGEST).astype(np.int64)


def mixed(count: int, random: Random) -> Ints:
    """Every length class alike: 1 to 63 steps, uniform in the logarithm."""
    return np.exp2(random.uniform(0, 6, count)).astype(np.int64)


def _periodic(phases: Floats, rate: float, seconds: float) -> tuple[Floats, Ints]:
    turns = np.arange(int(np.ceil(seconds * rate)))
    when = (phases[None, :] + turns[:, None] / rate).ravel()
    whose = np.tile(np.arange(len(phases)), len(turns))
    return when[when < seconds], whose[when < seconds]


_BULK = Kind(0.02, poisson, bulk, often=0.05)  # 2 % of the streams bring half of all steps
_UPLOADS = Kind(0.02, together, bulk, often=0.05)
_LONE = Kind(0.98, poisson, single)
_SINGLES, _PERIODIC, _TOGETHER = Kind(1, poisson, single), Kind(1, phased, single), Kind(1, together, single)
_SCENARIOS = (
    Scenario("poisson", "single steps at random moments", (_SINGLES,)),
    Scenario("phases", "single steps, periodic, each stream with its own phase", (_PERIODIC,), periodic=True),
    Scenario("together", "single steps, periodic, all at the same instant", (_TOGETHER,), periodic=True),
    Scenario("bursty", "single steps, 16 groups of streams, each busy a fifth of the time", (Kind(1, bursty, single),)),
    Scenario("bulk", "single steps, and 2 % of the streams send chunks of 1,000", (_LONE, _BULK)),
    Scenario("uploads", "the same, but all chunks of 1,000 come at the same instant", (_LONE, _UPLOADS)),
    Scenario("heavy", "heavy-tailed chunks: mostly 1 step, up to 2,048", (Kind(1, poisson, heavy),)),
    Scenario("mixed", "chunks of 1 to 63 steps, all length classes alike", (Kind(1, poisson, mixed),)),
    Scenario("closed", "single steps, the next a while after the answer", (Kind(1, begins, single),), closed=True),
)
SCENARIOS = {scenario.name: scenario for scenario in _SCENARIOS}
