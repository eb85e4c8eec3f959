"""One trial: a scenario or a recording, played by a variant and judged; and the search for the largest that holds.

Owns the order of these steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.simulation.arrivals import Arrivals
from bench.simulation.loads import Capacity
from bench.simulation.machine import Machine, play
from bench.simulation.scenarios import Scenario
from bench.simulation.variants import Variant
from bench.simulation.verdict import Criteria, Report, judge

MOST_CHUNKS = 20_000_000  # in one trial: each takes some 150 bytes while it is played
_FINE = 40  # the search ends when its bounds are so near: within 1 part of this
_MOST_STREAMS = 2_000_000


class TooMuchError(ValueError):
    """The trial would take more memory than it should; the text says how to make it smaller."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all trials of one command share."""

    machine: Machine
    criteria: Criteria = field(default_factory=Criteria)
    seconds: float = 5.0
    seed: int = 0


def trial(scenario: Scenario, variant: Variant, setup: Setup, *, streams: int, rate: float) -> Report:
    """Play so many streams at a rate. Raises TooMuchError."""
    weights, _ = scenario.sample(setup.seed)
    expected = streams * rate * setup.seconds * float(weights.sum())
    if expected > MOST_CHUNKS:
        raise TooMuchError(
            f"{streams} streams at {rate:g} a second make {expected:,.0f} chunks in {setup.seconds:g} s; at most"
            f" {MOST_CHUNKS:,} are played: lower --seconds, --rate or --streams"
        )
    arrivals = scenario.arrivals(streams, rate, setup.seconds, setup.seed)
    period_ms = 1e3 / rate if scenario.periodic else None
    return played(arrivals, scenario.name, variant, setup, period_ms=period_ms)


def played(arrivals: Arrivals, name: str, variant: Variant, setup: Setup, *, period_ms: float | None = None) -> Report:
    """Play arrivals, and judge."""
    if not len(arrivals):
        raise TooMuchError(f"{name}: nothing arrives in {arrivals.until:g} s; raise --seconds, --rate or --streams")
    found = play(arrivals, variant.batcher(), setup.machine, in_flight=variant.in_flight, seed=setup.seed)
    load = Capacity(setup.machine, variant).load(found.steps) / max(arrivals.until, 1e-9)
    return judge(found, setup.criteria, scenario=name, variant=variant.name, load=load, period_ms=period_ms)


def holds(report: Report, criteria: Criteria) -> bool:
    """Whether single steps keep the target (p99), and nothing piles up."""
    steady = max(report.staying, report.bulk_staying) <= criteria.staying
    return steady and (report.singles is None or report.singles.p99 < criteria.target_ms)


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest trial that held, if any did, and the smallest that didn't."""

    scenario: str
    variant: str
    held: Report | None
    broke: Report | None


def largest(scenario: Scenario, variant: Variant, setup: Setup, *, rate: float) -> Largest:
    """Find, by bisection over streams at a rate, the largest number that holds. Raises TooMuchError."""
    found: dict[bool, Report | None] = {True: None, False: None}

    def try_out(streams: int) -> bool:
        report = trial(scenario, variant, setup, streams=streams, rate=rate)
        found[holds(report, setup.criteria)] = report
        return holds(report, setup.criteria)

    low, high = 0, Capacity(setup.machine, variant).streams(scenario, rate, 0.6, setup.seed)
    high = max(2, high)
    while try_out(high) and high < _MOST_STREAMS:
        low, high = high, round(high * 1.3)
    while high - low > max(1, high // _FINE):
        middle = (low + high) // 2
        if try_out(middle):
            low = middle
        else:
            high = middle
    return Largest(scenario.name, variant.name, found[True], found[False])


def curve(
    scenario: Scenario,
    variant: Variant,
    setup: Setup,
    *,
    streams: int,
    shares: Sequence[float],
    progress: Callable[[], None] = lambda: None,
) -> list[Report]:
    """The same streams at one load after the other, each a share of the capacity of the machine as built."""
    reports = []
    capacity = Capacity(setup.machine, Variant("as-built"))
    for share in shares:
        rate = capacity.rate(scenario, streams, share, setup.seed)
        reports.append(trial(scenario, variant, setup, streams=streams, rate=rate))
        progress()
    return reports
