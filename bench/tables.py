"""The figures of a run as tables: for a terminal, and as Markdown. Chooses what is shown; computes medians only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from rich.console import Console
from rich.table import Table

from bench.cases import Case, Peer
from bench.document import Document
from bench.samples import Round, Sample, Spread, by_case, over, spread
from bench.studies import PERIOD, median
from bench.targets import TIMES, Target, compute, transport


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; the first column is text, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for place, name in enumerate(self.columns):
            table.add_column(name, justify="right" if place else "left", no_wrap=not place)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a page."""
        lines = [self.columns, tuple("---:" if place else "---" for place in range(len(self.columns))), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """With about three digits."""
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def _text(value: Spread | None) -> str:
    return "" if value is None else str(value)


def _median(value: Spread | None) -> str:
    return "" if value is None else number(value.median)


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit == TIMES else f"{number(value)} {unit}"


def targets_grid(found: Sequence[Target]) -> Grid:
    """Target, found, met?"""
    rows = tuple(
        (
            target.name,
            f"{'at most' if target.at_most else 'at least'} {_with_unit(target.bar, target.unit)}",
            _with_unit(target.found, target.unit),
            f"{_with_unit(target.low, target.unit)} to {_with_unit(target.high, target.unit)}",
            "yes" if target.met else "NO",
        )
        for target in found
    )
    return Grid("Targets, as ratios within each round", ("", "target", "found", "rounds", "met?"), rows)


def _shapes(rounds: Sequence[Round]) -> list[Case]:
    """Our cases in the order of the first round, without those of the client."""
    return [item.case for item in rounds[0].samples if item.case.peer is Peer.OURS and item.case.by_generator]


def per_round(rounds: Sequence[Round], case: Case, read: Callable[[Round, Sample], float | None]) -> Spread | None:
    """A figure that needs its round."""
    pairs = ((round_, round_.find(case)) for round_ in rounds)
    values = (None if sample is None else read(round_, sample) for round_, sample in pairs)
    return spread(value for value in values if value is not None)


def own(round_: Round, sample: Sample) -> float | None:
    """What is left of a step's processor time for our own Python."""
    wire, work = transport(round_, sample), compute(round_, sample)
    return None if wire is None or work is None else sample.server_cpu - wire - work


def breakdown_grid(rounds: Sequence[Round]) -> Grid:
    """Where each microsecond of a step goes."""
    rows = [
        (
            case.shape,
            _text(over(rounds, case, attrgetter("server_cpu"))),
            _median(per_round(rounds, case, transport)),
            _median(per_round(rounds, case, compute)),
            _median(per_round(rounds, case, own)),
            _median(over(rounds, case, attrgetter("batch"))),
            _median(over(rounds, case, attrgetter("load_cpu"))),
        )
        for case in _shapes(rounds)
    ]
    names = ("shape", "server, µs a step", "transport", "compute", "our own", "mean batch", "generator")
    title = "Where each microsecond goes: processor time of the server per step, median (and extremes) of rounds"
    return Grid(title, names, tuple(rows))


def breakdown_cells(rounds: Sequence[Round]) -> dict[str, tuple[float, ...]]:
    """The same for a picture: transport, compute and our own, by shape; shapes that lack one are left out."""
    found = {}
    for case in _shapes(rounds):
        parts = [per_round(rounds, case, read) for read in (transport, compute, own)]
        if None not in parts:
            found[case.shape] = tuple(part.median for part in parts if part is not None)
    return found


def speed_grid(rounds: Sequence[Round]) -> Grid:
    """Throughput and latency, flat out."""
    rows = []
    for case in _shapes(rounds):
        echo = case.of(Peer.ECHO)
        rows.append(
            (
                case.shape,
                _text(over(rounds, case, lambda one: one.steps_per_second)),
                *(_median(over(rounds, case, attrgetter(name))) for name in ("p50", "p99", "p999")),
                _median(over(rounds, echo, lambda one: one.steps_per_second)),
                *(_median(over(rounds, echo, attrgetter(name))) for name in ("p50", "p99")),
            )
        )
    names = ("shape", "steps/s", "p50, µs", "p99", "p99.9", "echo: steps/s", "p50", "p99")
    return Grid("Flat out: each stream has one message under way", names, tuple(rows))


def peers_grid(rounds: Sequence[Round]) -> Grid:
    """Beside what one would write today."""
    asked = [item.case for item in rounds[0].samples]
    shapes = [case for case in _shapes(rounds) if case.of(Peer.NAIVE_UVLOOP) in asked]
    rows = []
    for case in shapes:
        for peer in Peer:
            one = case.of(peer)
            if one in asked:
                rows.append(
                    (
                        f"{case.shape}: {peer}",
                        _text(over(rounds, one, lambda item: item.steps_per_second)),
                        _median(over(rounds, one, lambda item: item.p50)),
                        _median(over(rounds, one, lambda item: item.p99)),
                        _text(over(rounds, one, lambda item: item.server_cpu)),
                    )
                )
    return Grid("Beside other servers", ("", "steps/s", "p50, µs", "p99", "server, µs a step"), tuple(rows))


def ceilings_grid(rounds: Sequence[Round]) -> Grid:
    """Raw ONNX Runtime."""
    sizes = {(item.batch, item.steps) for round_ in rounds for item in round_.ceilings}
    steps = sorted({length for _, length in sizes})

    def cell(batch: int, length: int) -> str:
        runs = [item for round_ in rounds for item in round_.ceilings if (item.batch, item.steps) == (batch, length)]
        per_run, per_step = spread(item.us_per_run for item in runs), spread(item.us_per_step for item in runs)
        return "" if per_run is None or per_step is None else f"{number(per_step.median)} ({number(per_run.median)})"

    rows = tuple(
        (str(batch), *(cell(batch, length) for length in steps)) for batch in sorted({batch for batch, _ in sizes})
    )
    names = ("batch", *(f"T = {length}" for length in steps))
    return Grid("Raw ONNX Runtime on the resident graph: µs of processor time per step (per run)", names, rows)


def client_grid(rounds: Sequence[Round]) -> Grid:
    """The Python client beside the generator."""
    rows = []
    asked = [item.case for item in rounds[0].samples]
    for item in rounds[0].samples:
        if item.case.client:
            by = {
                "Python client": item.case,
                "bare calls of grpcio": replace(item.case, client=False, bare=True),
                "generator": replace(item.case, client=False),
            }
            rows += [
                (
                    f"{case.shape}: {who}",
                    _text(over(rounds, case, lambda one: one.load_cpu)),
                    _text(over(rounds, case, lambda one: one.steps_per_second)),
                )
                for who, case in by.items()
                if case in asked
            ]
    return Grid("The Python client", ("", "its µs a step", "steps/s"), tuple(rows))


def curves_grid(samples: Sequence[Sample]) -> Grid:
    """Open loop."""
    rows = tuple(
        (
            f"{item.case.peer}, {item.case.rate:,.0f} steps/s asked",
            number(item.steps_per_second),
            number(item.p50),
            number(item.p99),
            number(item.p999),
            number(item.server_cpu),
            f"{item.unanswered:,.0f}",
        )
        for item in by_case(samples)
        if item.case.rate is not None
    )
    names = ("64 streams, 1 connection", "steps/s", "p50, µs", "p99", "p99.9", "server, µs a step", "unanswered")
    return Grid("Open loop: latency counts from the planned moment", names, rows)


def studies_grid(found: Document) -> Grid:
    """What isn't one closed loop, in absolute figures."""
    rows: list[tuple[str, str]] = [
        (f"most streams with a step every {PERIOD * 1000:.0f} ms and p99 below that: {item.peer}", f"{item.streams:,}")
        for item in found.sustained
    ]
    if found.fairness:
        names = {
            "p99_alone": "p99 of 56 paced single-step streams alone, µs",
            "p99_beside": "… beside 8 streams pushing chunks of 1,000",
            "bulk_alone": "steps/s of those 8 alone",
            "bulk_beside": "… beside the 56",
        }
        rows += [(text, _text(spread(map(attrgetter(name), found.fairness)))) for name, text in names.items()]
    if found.memory:
        memory = found.memory
        rows += [
            ("bytes per idle stream (the echo's)", f"{memory.idle:,.0f} ({memory.echo_idle:,.0f})"),
            ("bytes per active stream (the echo's)", f"{memory.active:,.0f} ({memory.echo_active:,.0f})"),
            ("… of which its row of state", f"{memory.row:,}"),
        ]
    if found.held:
        rows.append(("steps/s of 64 streams alone", number(median(found.held.alone))))
        rows.append((f"… beside {found.held.idle_streams:,} idle ones", number(median(found.held.beside))))
    if found.start_up:
        rows.append(("seconds to ready", number(median(found.start_up.ready))))
        rows.append(("… importing the libraries alone", number(median(found.start_up.libraries))))
    return Grid("Everything else", ("", "found"), tuple(rows))


def grids(found: Document) -> list[Grid]:
    """All that have something to show; ratios first."""
    rounds = found.rounds
    made = [
        targets_grid(found.targets()),
        breakdown_grid(rounds),
        speed_grid(rounds),
        peers_grid(rounds),
        curves_grid(found.curves),
        client_grid(rounds),
        studies_grid(found),
        ceilings_grid(rounds),
    ]
    return [grid for grid in made if grid.rows]


def show(found: Document, console: Console) -> None:
    """On a terminal."""
    for grid in grids(found):
        console.print(grid.rich())
    console.print(
        f"{found.machine}; {len(found.rounds)} rounds in {found.seconds:,.0f} s; load average before: {found.load}"
    )
