"""`make bench`: everything side by side in interleaved rounds on this machine, as ratios, medians and spreads.

Owns the order of things. bench/cases.py says what is measured, bench/targets.py what is aimed at, bench/tables.py and
bench/charts.py how it looks.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import document, model, performance_page, studies, tables
from bench.cases import Case, Peer, full, quick, single
from bench.ceilings import Raw, sizes
from bench.document import Document
from bench.load.connection import LoadError
from bench.load.course import course_of
from bench.machinery import MeasurementError, Stand, sample, stands
from bench.samples import Round, Sample, over
from bench.server_process import ServerFailedError
from export import machine

RESULTS = Path("bench/results")
DOCS = Path("docs")
CURVE = (0.2, 0.5, 0.7, 0.8, 0.9, 1.0)  # of what each server does flat out
CURVE_ROUNDS = 3
CEILING_SECONDS = 0.05  # for each (B, T)
FAIR_ROUNDS = 3
_VERSIONS = ("grpcio", "protobuf", "onnxruntime", "numpy", "uvloop")
_PAPER = 150  # columns, where it isn't a terminal's
_ABOUT = 36  # measurements of the studies; the searches among them can't be counted beforehand


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    cases: tuple[Case, ...]
    rounds: int
    warm_up: float
    seconds: float
    chunks: tuple[int, ...]  # T of the ceilings
    studies: bool

    @property
    def measurements(self) -> int:
        """For the progress bar."""
        return self.rounds * (len(self.cases) + 1) + self.studies * (_ABOUT + 2 * len(CURVE) * CURVE_ROUNDS)


QUICK = Plan(tuple(quick()), rounds=2, warm_up=0.3, seconds=0.8, chunks=(1, 16), studies=False)
FULL = Plan(tuple(full()), rounds=3, warm_up=0.3, seconds=1.0, chunks=(1, 4, 16, 32), studies=True)


class Teller:
    """The progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def __call__(self, what: str) -> None:
        """One more measurement begins."""
        self._progress.update(self._task, advance=1, description=f"{what:<60.60}")


@dataclass(frozen=True, slots=True)
class Bench:
    """A run under way."""

    plan: Plan
    artifact: Path
    tell: Teller

    def run(self) -> dict[str, Any]:
        """Everything; what Document takes beside date and place. Raises MeasurementError and ServerFailedError."""
        raw = Raw(self.artifact)
        found: dict[str, Any] = {}
        with stands(self.artifact, sorted({case.peer for case in self.plan.cases})) as made:
            found["rounds"] = tuple(self._round(number, made, raw) for number in range(self.plan.rounds))
            if self.plan.studies:
                found.update(self._beside(found["rounds"], made))
        if self.plan.studies:
            found["memory"] = studies.memory(self.artifact, raw.row_bytes, self.tell)
            found["held"] = studies.held(self.artifact, 3, 1.5, self.tell)
            found["start_up"] = studies.start_up(self.artifact, 3, self.tell)
        return found

    def _round(self, number: int, made: dict[Peer, Stand], raw: Raw) -> Round:
        """Everything once; every second round the other way round."""
        self.tell("raw ONNX Runtime")
        ceilings = tuple(raw.measure(*size, CEILING_SECONDS) for size in sizes(self.plan.chunks))
        cases = self.plan.cases[:: -1 if number % 2 else 1]
        return Round(tuple(self._sample(case, made, number) for case in cases), ceilings)

    def _sample(self, case: Case, made: dict[Peer, Stand], number: int = 0) -> Sample:
        rate = f", {case.rate:,.0f} steps/s asked" if case.rate else ""
        self.tell(f"{case.peer}{' by the client' * case.client}{' by bare calls' * case.bare}: {case.shape}{rate}")
        stand, plan = made[case.peer], self.plan
        return sample(case, number, stand, self.artifact, warm_up=plan.warm_up, seconds=plan.seconds)

    def _beside(self, rounds: Sequence[Round], made: dict[Peer, Stand]) -> dict[str, Any]:
        """What isn't a closed loop, on the same servers."""
        compared = (Peer.OURS, Peer.NAIVE_UVLOOP)
        rates = {peer: over(rounds, single(64).of(peer), lambda one: one.steps_per_second) for peer in compared}
        asked = [
            Case(peer=peer, streams=64, rate=round(part * best.median))
            for part in CURVE
            for peer, best in rates.items()
            if best is not None
        ]
        fair = []
        for number in range(FAIR_ROUNDS):
            self.tell(f"fairness, round {number + 1}")
            fair.append(studies.fairness(made[Peer.OURS], self.artifact, 2.0))
        return {
            "curves": tuple(self._sample(case, made, number) for number in range(CURVE_ROUNDS) for case in asked),
            "fairness": tuple(fair),
            "sustained": tuple(studies.sustained(peer, made[peer], self.artifact, 1.5, self.tell) for peer in compared),
        }


def measure(plan: Plan, console: Console) -> Document:
    """Make the model if need be, measure, and note where and when."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tell = Teller(progress, plan.measurements)
        tell("making the model, once")
        artifact = model.artifact()
        course_of(artifact)
        started, load = time.monotonic(), os.getloadavg()[0]
        found = Bench(plan, artifact, tell).run()
    return Document(
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        machine=machine.describe(),
        versions={name: version(name) for name in _VERSIONS},
        seconds=round(time.monotonic() - started, 1),
        load=round(load, 1),
        **found,
    )


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    """The command line; the exit status says whether it could be measured, not whether targets are met."""
    parser = argparse.ArgumentParser(prog="python -m bench.suite", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute instead of ten: the main figures only")
    parser.add_argument("--publish", action="store_true", help="rewrite the figures in docs/performance.md, and plots")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE.json", help="measure nothing, show this")
    options = parser.parse_args()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PAPER
    try:
        if options.source is not None:
            found, path = document.load(options.source), options.source
        else:
            found = measure(QUICK if options.quick else FULL, console)
            path = RESULTS / ("quick.json" if options.quick else f"{found.date[:10]}.json")
            found.save(path)
        tables.show(found, console)
        if options.publish:
            performance_page.publish(found, path, DOCS)
    except (MeasurementError, ServerFailedError, LoadError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    console.print(f"wrote {path}" if options.source is None else f"read {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
