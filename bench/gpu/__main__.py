"""The command line of `make bench-gpu`."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.gpu import page, place, plan, records, tables
from bench.gpu.children import Children
from bench.gpu.models import NoModelError, artifact_of, needs_model
from bench.gpu.plan import Job, Who, Work
from bench.gpu.records import Document, Record, Skipped
from bench.gpu.targets import targets

RESULTS, DOCS = Path("bench/results"), Path("docs")
BUDGET = 450.0  # seconds of measuring: eight minutes with the start and the end
_PAPER = 200  # columns, where it isn't a terminal's
_EPILOG = """\
examples:
  python -m bench.gpu                        everything, on the first GPU, in eight minutes
  python -m bench.gpu --device cpu --quick   a rehearsal without a GPU: tiny sizes through every section
  python -m bench.gpu --budget 120           the most important quarter
  python -m bench.gpu --from FILE.json       measure nothing, show this

Whatever was found is in the JSON file as soon as it's found. Each section computes in a process of its own: one that
crashes or hangs is ended and named, and the others go on.
"""


@dataclass(slots=True)
class Log:
    """Puts every record into the document, its file and the progress bar as it comes."""

    found: Document
    path: Path
    progress: Progress
    task: TaskID
    started: float = field(default_factory=time.monotonic)

    def give(self, record: Record) -> None:
        """One more."""
        self.found.records.append(record)
        self.progress.advance(self.task, 0 if isinstance(record, Skipped) else 1)
        if isinstance(record, Skipped):
            self.progress.console.print(f"not measured: {record.what}: {record.reason}", markup=False, highlight=False)
        self.save()

    def tell(self, what: str) -> None:
        """What begins."""
        self.progress.update(self.task, description=f"{what:<64.64}")

    def save(self) -> None:
        """The file as of now."""
        self.found.seconds = round(time.monotonic() - self.started, 1)
        self.found.save(self.path, [target.plain() for target in targets(self.found)])


def possible(jobs: list[Job], device: str) -> tuple[list[Job], list[Skipped]]:
    """The jobs that this machine's software allows, and why the others are left out."""
    no_torch, no_onnxruntime = place.without_torch(device), place.without_onnxruntime(device)
    left: list[Job] = []
    skipped = []
    for job in jobs:
        reasons = {
            Work.RATES: no_torch,
            Work.COPIES: no_torch,
            Work.PARCELS: no_onnxruntime,
            Work.COMPANY: no_onnxruntime,
            Work.PARITY: place.without_torch(place.CPU) or no_onnxruntime,  # PyTorch is asked on the CPU there
            Work.SERVED: None if job.device == place.CPU else no_onnxruntime,
        }
        reason = reasons.get(job.work)
        if reason is not None:
            skipped.append(Skipped(job.name, reason))
        else:
            left.append(job)
    absent = [str(who) for who in Who if (no_torch if who.torch else no_onnxruntime) is not None]
    if no_torch is not None:
        skipped.append(Skipped(f"steps: {Who.EAGER}, {Who.CELL}", no_torch))
    if place.without_torch(place.CPU) is not None:
        skipped.append(Skipped("steps: the check of all answers against float64", "torch isn't installed"))
    if no_onnxruntime is not None:
        skipped.append(Skipped(f"steps: {', '.join(who for who in Who if not who.torch)}", no_onnxruntime))
    return [_without(job, absent) if job.work is Work.STEPS else job for job in left], skipped


def _without(job: Job, absent: list[str]) -> Job:
    return replace(job, without=(*job.without, *absent))


def measure(
    jobs: list[Job], found: Document, *, path: Path, models: Path, console: Console, device: str, deadline: float
) -> None:
    """Do the jobs until the deadline."""
    jobs, skipped = possible(jobs, device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        log = Log(found, path, progress, progress.add_task("", total=sum(job.figures for job in jobs)))
        for one in skipped:
            log.give(one)
        children = Children(device=device, models=models, deadline=deadline, give=log.give, tell=log.tell)
        children.do(jobs)
        found.finished = not any(one.reason == "the time was over" for one in found.of(Skipped))
        log.save()


def prepare(jobs: list[Job], models: Path, console: Console) -> None:
    """Write every model that the jobs need, for a machine that can't. Raises NoModelError."""
    models.mkdir(parents=True, exist_ok=True)
    for job in filter(needs_model, jobs):
        console.print(f"{artifact_of(job, models)}")


@contextmanager
def _models(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        yield Path(folder)


def _document(options: argparse.Namespace) -> Document:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return Document(
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        commit=done.stdout.strip() or "unknown",
        machine=place.host(),
        device=place.describe(options.device),
        versions=place.versions(),
        budget=options.budget,
        load=round(os.getloadavg()[0], 1),
        quick=options.quick,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Measure our engine on a GPU beside PyTorch, the machine's own floors, and end to end over gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="cuda:0", help="cuda:N, or cpu for a rehearsal (default: %(default)s)")
    add("--quick", action="store_true", help="tiny sizes through every section: a rehearsal, no measurement")
    add("--budget", type=float, default=BUDGET, metavar="S", help="seconds of measuring (default: %(default)s)")
    add("--publish", action="store_true", help="fill in docs/gpu.md between its marks, and draw docs/gpu-*.svg")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    add("--docs", type=Path, default=DOCS, metavar="DIR", help="default: %(default)s")
    add("--models", type=Path, metavar="DIR", help="where models lie and stay (default: a temporary folder)")
    add("--prepare", action="store_true", help="write the models into --models and measure nothing; needs torch")
    add("--from", dest="source", type=Path, metavar="FILE.json", help="measure nothing, show this")
    return parser


def run(options: argparse.Namespace, console: Console) -> int:
    """What the options say; the exit status. Raises ValueError and NoModelError."""
    deadline = time.monotonic() + options.budget  # asking libraries about the GPU counts: that may take half a minute
    jobs = plan.quick() if options.quick else plan.full()
    if options.source is not None:
        found, path = records.load(options.source), options.source
    elif options.prepare:
        with _models(options.models) as models:
            prepare(jobs, models, console)
        return 0
    else:
        reason = place.missing(options.device)
        if reason is not None:
            print(f"error: {reason}", file=sys.stderr)
            return 2
        found = _document(options)
        path = options.results / ("gpu-quick.json" if options.quick else f"gpu-{found.date[:10]}.json")
        with _models(options.models) as models:
            measure(jobs, found, path=path, models=models, console=console, device=options.device, deadline=deadline)
    tables.show(found, console)
    if options.publish:
        try:
            written = page.publish(found, path, options.docs)
        except page.NoPlaceError as error:
            console.print(f"the page is left alone: {error}", markup=False)
        else:
            console.print("wrote " + ", ".join(map(str, written)))
    console.print(f"{'read' if options.source is not None else 'wrote'} {path}")
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """What measures is in a session of its own, and must be ended by us."""
    raise KeyboardInterrupt


def main() -> int:
    """The command line; the exit status says whether it could be measured, not whether targets are met."""
    parser = _parser()
    options = parser.parse_args()
    if options.device != place.CPU and not options.device.removeprefix("cuda:").isdecimal():
        parser.error(f"--device is {options.device!r}; it must be cuda:N or cpu")
    if options.budget <= 0:
        parser.error(f"--budget is {options.budget:g}; it must be above 0 seconds")
    if options.prepare and options.models is None:
        parser.error("--prepare needs --models DIR, where the models then stay")
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PAPER
    try:
        return run(options, console)
    except (ValueError, NoModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was found is in the JSON file", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
