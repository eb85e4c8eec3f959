"""`make parity`: the whole chain over a grid of models, up to the answers of a real server, and faults that must show.

For each model: reference cell, nn.LSTM, model.onnx by two evaluators, resident.onnx, and what clients are answered
over gRPC. It lies in bench/ because the exporter may know neither server nor client.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.parity_cases import REDUCED, GridCase, full, quick
from bench.parity_page import suite_page
from bench.parity_served import served
from bench.server_process import ServerFailedError, server
from cellstream import CellstreamError
from export import artifact, faults, pipeline, portable, wrap
from export.invariance import invariances
from export.parity import ORACLE, RAGGED_CHUNK, SINGLE, Levels
from export.precision import Precision
from export.report import findings, ratios
from export.run_faults import missed_by
from export.samples import NON_ZERO, ZERO
from model.checkpoint import Checkpoint
from model.contract import Contract, ParityRecord
from model.lstm import Spec
from model.weights import WeightsError

EXPORTED = (artifact.MODEL, artifact.MODEL + ORACLE, artifact.RESIDENT)
PLAIN = Spec(input_size=5, hidden_size=7, layers=2)
PROJECTED = Spec(input_size=5, hidden_size=7, layers=2, proj_size=3)
# The models that faults are planted into, and what is said of each beside the fault's name.
CONTROLLED = (
    ("", PLAIN, Precision.FP32),
    (", projected", PROJECTED, Precision.FP32),
    *((f", {precision}", PLAIN, precision) for precision in REDUCED),
)


@dataclass(slots=True)
class Outcome:
    """Everything found: records by case, what changes no bit here, which faults were caught."""

    records: dict[str, list[ParityRecord]] = field(default_factory=dict)
    invariances: Mapping[str, bool] = field(default_factory=dict)
    controls: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True when every comparison passed and every fault was caught."""
        compared = all(record.passed for records in self.records.values() for record in records)
        return compared and bool(self.controls) and all(ratio > 0 for ratio in self.controls.values())


@dataclass(frozen=True, slots=True)
class Written:
    """A case's graphs in the repository of the suite's server."""

    case: GridCase
    folder: Path
    contract: Contract
    levels: Levels


def write(case: GridCase, repository: Path, seed: int) -> Written:
    """Both graphs of a case, as an export would write them, without a certificate."""
    folder = repository / case.name / "1"
    folder.mkdir(parents=True)
    module = case.module(seed)
    contract = pipeline.write_graphs(Checkpoint(module), folder, case.name, case.precision)
    return Written(case, folder, contract, Levels(module, folder, (artifact.MODEL, artifact.RESIDENT), contract))


def compared(written: Written, seed: int) -> Iterator[list[ParityRecord]]:
    """Every level within this process, a batch of records at a time."""
    for steps in written.case.steps:
        for initial in (ZERO, NON_ZERO):
            yield written.levels.against_truth(steps, initial, seed)
    for most_steps in (1, RAGGED_CHUNK):
        yield written.levels.bit_for_bit(seed, most_steps=most_steps)


def run(cases: Sequence[GridCase], seed: int, bars: Progress) -> Outcome:
    """The suite. Raises ServerFailedError, CellstreamError, ArtifactError or WeightsError."""
    outcome = Outcome()
    task = bars.add_task("", total=sum(2 * len(case.steps) + 3 for case in cases) + len(list(plantable())))
    with tempfile.TemporaryDirectory() as place:
        repository = Path(place)
        contracts: dict[str, tuple[Path, Contract]] = {}
        for case in cases:
            bars.update(task, description=case.name)
            written = write(case, repository, seed)
            contracts[case.name] = written.folder, written.contract
            outcome.records[case.name] = []
            for batch in compared(written, seed):
                outcome.records[case.name] += batch
                bars.advance(task)
        folder, contract = contracts[cases[0].name]
        outcome.invariances = invariances(folder / artifact.RESIDENT, contract)
        bars.update(task, description="over gRPC")
        with server(repository, ["--allow-unproved"]) as running:
            for name, (folder, contract) in contracts.items():
                outcome.records[name] += served(running.address, name, folder, contract, seed)
                bars.advance(task)
    bars.update(task, description="planted faults")
    for name, ratio in planted(seed):
        outcome.controls[name] = ratio
        bars.advance(task)
    return outcome


def plantable() -> Iterator[tuple[str, faults.Fault, Spec, Precision]]:
    """Every fault of the table that is in the graphs, in every kind of model; those of a run in the first one."""
    for kind, spec, precision in CONTROLLED:
        for fault in faults.FAULTS:
            if fault.fits(spec, precision) and (fault.in_graphs or not kind):
                yield f"{fault.name}{kind}", fault, spec, precision


def planted(seed: int) -> Iterator[tuple[str, float]]:
    """What was found of each."""
    for name, fault, spec, precision in plantable():
        module = GridCase("faults", (), spec).module(seed)
        contract = portable.contract_of(spec, name="faults", weights_digest="", notes={}, precision=precision)
        with tempfile.TemporaryDirectory() as folder:
            yield name, missed_by(faults.plant(fault, module, contract, Path(folder)))


def comparable(trained: Path | None) -> Path | None:
    """The artifact, unless there is no PyTorch module of it to compare with. Raises ArtifactError."""
    if trained is None or not wrap.is_wrapped(trained):
        return trained
    print(f"{trained} was wrapped, so there is no PyTorch module of it to compare with: the grid goes without it")
    return None


def table_of(outcome: Outcome) -> Table:
    """One line per case: the worst ratios, PyTorch's and of all forms of the export, and what is equal bit for bit."""
    caption = (
        "ONNX: the worst of ONNX Runtime, onnx's own evaluator and resident.onnx, in int8, tf32 and fp16 by what"
        " the same roundings cost in float64; bytes: chunks, batches, gRPC"
    )
    table = Table(title="the worst ratio of each case, rms / max (bars: 2 / 4)", caption=caption, box=box.SIMPLE)
    for name in ("case", "T", "PyTorch", "ONNX", "bytes", ""):
        table.add_column(name, justify="left" if name in ("case", "") else "right", no_wrap=True)
    for name, records in outcome.records.items():
        longest = max(record.steps for record in records if record.rms_bar)
        own = ratios([record for record in records if record.subject == SINGLE])
        ours = ratios([record for record in records if record.rms_bar and record.subject in EXPORTED])
        same = all(record.passed for record in records if not record.rms_bar)
        passed = all(record.passed for record in records)
        verdict = "[green]ok[/green]" if passed else "[red]FAILED[/red]"
        table.add_row(name, str(longest), own, ours, "equal" if same else "differ", verdict)
    return table


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield bars


def main() -> int:
    """The command line; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.parity_suite", description=__doc__.split("\n\n")[1])
    parser.add_argument("--full", action="store_true", help="the slow end of the grid too: tens of minutes")
    parser.add_argument("--trained", type=Path, metavar="ARTIFACT", help="an LSTM's artifact to be one of the models")
    parser.add_argument("--page", type=Path, default=Path("artifacts/parity.html"), help="the report (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples (%(default)s)")
    arguments = parser.parse_args()
    try:
        cases = (full if arguments.full else quick)(comparable(arguments.trained))
        with _bars() as bars:
            outcome = run(cases, arguments.seed, bars)
    except (ServerFailedError, CellstreamError, artifact.ArtifactError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    console = Console(highlight=False, soft_wrap=True)
    console.print(table_of(outcome))
    console.print(findings(outcome.invariances, outcome.controls))
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(suite_page(outcome.records, outcome.invariances, outcome.controls), encoding="utf-8")
    print(f"{'all passed' if outcome.passed else 'FAILED'}; wrote {arguments.page}")
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
