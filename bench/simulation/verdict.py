"""What came of a simulation: how long who waited, and whether the policy held or broke.

Owns the criteria and their words. A wait is the time from a message's arrival to its last answer, on the server.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.simulation.arrivals import Floats
from bench.simulation.machine import Played

Mask = npt.NDArray[np.bool_]
TARGET_MS = 10.0
WARM_UP = 0.1  # of the time, not counted


@dataclass(frozen=True, slots=True)
class Criteria:
    """When the policy counts as broken."""

    target_ms: float = TARGET_MS  # p99 of single steps, where they have no period of their own
    most_runs: int = 100  # that may begin while a single step is its stream's next, until its answer
    staying: float = 0.05  # of the steps that arrive in the second half and haven't been computed by its end
    most_waiting: int = 1_000_000  # steps; the server refuses more (max_waiting_steps)


@dataclass(frozen=True, slots=True)
class Waits:
    """Milliseconds."""

    count: int
    p50: float
    p99: float
    p999: float
    worst: float


@dataclass(frozen=True, slots=True)
class Report:
    """One scenario played by one variant."""

    scenario: str
    variant: str
    streams: int
    load: float  # offered, as a share of capacity
    steps_per_second: float
    mean_batch: float
    run_ms: float  # the longest run
    singles: Waits | None
    chunks: Waits | None
    bulk_offered: float  # share of the steps that arrived in chunks longer than one step
    bulk_computed: float  # and of those computed while they arrived
    staying: float  # more steps wait at the end than at half time: as a share of what arrived between
    bulk_staying: float
    most_runs: int
    most_waiting: int
    breaks: tuple[str, ...] = ()


def judge(
    played: Played,
    criteria: Criteria,
    *,
    scenario: str,
    variant: str,
    load: float,
    period_ms: float | None = None,
) -> Report:
    """The figures, and what broke: `breaks` is empty if nothing did. Nothing is counted before WARM_UP is over."""
    begin, end = played.until * WARM_UP, played.until
    counted = played.seconds >= begin
    single = played.steps == 1
    ran = (played.run_ended > begin) & (played.run_ended <= end)
    computed = int(played.run_steps[ran].sum())
    bulk = int(played.run_bulk[ran].sum())
    offered = played.steps[counted]
    lone = counted & single
    runs = _runs_seen(played, lone)
    report = Report(
        scenario=scenario,
        variant=variant,
        streams=len(np.unique(played.stream)),
        load=load,
        steps_per_second=computed / (end - begin) if end > begin else float("nan"),
        mean_batch=float(played.run_lanes.mean()),
        run_ms=float((played.run_ended - played.run_began).max() * 1e3),
        singles=_waits(played.waits[lone]),
        chunks=_waits(played.waits[counted & ~single]),
        bulk_offered=float(offered[offered > 1].sum() / max(1, offered.sum())),
        bulk_computed=bulk / max(1, computed),
        staying=_staying(played, np.ones_like(single), played.run_steps),
        bulk_staying=_staying(played, ~single, played.run_bulk),
        most_runs=runs,
        most_waiting=_most_waiting(played),
    )
    return _with_breaks(report, criteria, period_ms)


def _with_breaks(report: Report, criteria: Criteria, period_ms: float | None) -> Report:
    found = []
    if report.staying > criteria.staying:
        found.append(f"what waits grows: {report.staying:.0%} of what arrives stays")
    elif report.bulk_staying > criteria.staying:
        found.append(f"bulk starves: {report.bulk_staying:.0%} of its steps stay, while single steps are served")
    limit, name = (criteria.target_ms, "the target") if period_ms is None else (period_ms, "the period")
    if report.singles is not None and report.singles.p99 > limit:
        found.append(f"p99 of single steps is {report.singles.p99:.3g} ms, above {name} of {limit:g} ms")
    if report.most_runs > criteria.most_runs:
        found.append(f"a single step saw {report.most_runs} runs begin; {criteria.most_runs} are allowed")
    if report.most_waiting > criteria.most_waiting:
        found.append(f"{report.most_waiting:,} steps waited; the server refuses more than {criteria.most_waiting:,}")
    values = {name: getattr(report, name) for name in report.__dataclass_fields__}
    return Report(**{**values, "breaks": tuple(found)})


def _waits(seconds: Floats) -> Waits | None:
    if not len(seconds):
        return None
    millis = seconds * 1e3
    p50, p99, p999 = np.quantile(millis, (0.5, 0.99, 0.999)).tolist()
    return Waits(len(millis), p50, p99, p999, float(millis.max()))


def _runs_seen(played: Played, chosen: Mask) -> int:
    """The most runs that began while a chunk was its stream's next, until its answer, its own run included."""
    if not chosen.any():
        return 0
    before = np.searchsorted(played.run_began, _nexts(played)[chosen], side="left")
    return int((np.searchsorted(played.run_began, played.answered[chosen], side="left") - before).max())


def _nexts(played: Played) -> Floats:
    """When each chunk was its stream's next: it had arrived, and the one before was answered."""
    order = np.argsort(played.stream, kind="stable")
    stream, answered = played.stream[order], played.answered[order]
    nexts = played.seconds[order]
    later = np.flatnonzero(stream[1:] == stream[:-1]) + 1
    nexts[later] = np.maximum(nexts[later], answered[later - 1])
    found = np.empty_like(nexts)
    found[order] = nexts
    return found


def _staying(played: Played, chosen: Mask, computed: npt.NDArray[np.int64]) -> float:
    """By how much more waits at the end than at half time, as a share of what arrived in between.

    What a run and a chunk hold is no growth: they may just have come.
    """
    seconds, steps = played.seconds[chosen], played.steps[chosen]
    half, end = played.until / 2, played.until
    arrived = int(steps[(seconds > half) & (seconds <= end)].sum())
    done = int(computed[(played.run_ended > half) & (played.run_ended <= end)].sum())
    growth = arrived - done - int(played.run_steps.max()) - int(steps.max(initial=0))
    return max(0.0, growth / arrived) if arrived else 0.0


def _most_waiting(played: Played) -> int:
    """The most steps that had arrived and weren't computed when a run began."""
    arrived = np.concatenate([[0], np.cumsum(played.steps[np.argsort(played.seconds, kind="stable")])])
    computed = np.concatenate([[0], np.cumsum(played.run_steps)])
    came = arrived[np.searchsorted(np.sort(played.seconds), played.run_began, side="right")]
    went = computed[np.searchsorted(played.run_ended, played.run_began, side="right")]
    return int((came - went).max())
