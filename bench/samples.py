"""What was measured, as records that JSON can hold; and medians over rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.cases import Case, Peer
from bench.ceilings import Ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One case in one round. Times in microseconds; processor time per step."""

    case: Case
    round: int
    steps_per_second: float
    p50: float
    p99: float
    p999: float
    server_cpu: float
    load_cpu: float
    unanswered: int = 0
    batch: float | None = None  # mean lanes of a run, where the server tells
    run_steps: float | None = None  # mean steps of all lanes of a run
    engine: float | None = None  # the server's own compute seconds per step: wall, with packing

    @property
    def message_steps(self) -> int:
        """Steps in one message."""
        return self.case.streams if self.case.multiplex else self.case.steps_per_message


@dataclass(frozen=True, slots=True)
class Round:
    """All that was measured in one round."""

    samples: tuple[Sample, ...]
    ceilings: tuple[Ceiling, ...]

    def find(self, case: Case) -> Sample | None:
        """The sample of a case."""
        return next((sample for sample in self.samples if sample.case == case), None)


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the extremes around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def spread(values: Iterable[float]) -> Spread | None:
    """Of some values; None of none."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1]) if found else None


def over(rounds: Sequence[Round], case: Case, read: Callable[[Sample], float | None]) -> Spread | None:
    """A figure of one case over all rounds."""
    samples = (round_.find(case) for round_ in rounds)
    values = (None if sample is None else read(sample) for sample in samples)
    return spread(value for value in values if value is not None)


def by_case(samples: Iterable[Sample]) -> list[Sample]:
    """One sample for each case, with the medians of all of its: of open loops, which have rounds of their own."""
    grouped: dict[Case, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.case, []).append(sample)
    names = ("steps_per_second", "p50", "p99", "p999", "server_cpu", "load_cpu", "unanswered")
    return [
        replace(same[0], **{name: statistics.median(getattr(one, name) for one in same) for name in names})
        for same in grouped.values()
    ]


def from_plain(plain: Sequence[dict[str, Any]]) -> list[Round]:
    """Back from JSON."""
    return [
        Round(
            tuple(sample_from_plain(item) for item in entry["samples"]),
            tuple(Ceiling(**item) for item in entry["ceilings"]),
        )
        for entry in plain
    ]


def sample_from_plain(plain: dict[str, Any]) -> Sample:
    """Back from JSON."""
    case = plain["case"]
    return Sample(**{**plain, "case": Case(**{**case, "peer": Peer(case["peer"])})})
