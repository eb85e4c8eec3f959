"""The figures as tables: for a terminal and as Markdown. Chooses what is shown."""

from __future__ import annotations

from rich.console import Console

from bench.gpu.plan import Who
from bench.gpu.records import (
    Company,
    Copy,
    Document,
    Launches,
    MatrixRate,
    Memory,
    Parity,
    Rates,
    Served,
    Skipped,
    Step,
)
from bench.gpu.targets import by_size, floor_of, of_matrix_rate, over_floor, targets
from bench.tables import Grid, number

BRIEF = {1: (1, 64, 1024, 8192), 16: (64,)}  # B by T that a terminal is shown; the page has all
_ON_DEVICE = (Who.OURS, Who.PARTS, Who.PLAIN, Who.EAGER, Who.CELL)
_FROM_HOST = (Who.ENGINE, Who.EAGER)
_MOST_SKIPPED = 12  # lines of them on a terminal


def targets_grid(found: Document) -> Grid:
    """Met or missed."""
    verdicts = {True: "met", False: "MISSED", None: "unknown"}
    rows = tuple(
        (one.name, one.bar, "" if one.found is None else f"{one.found:.2f}", verdicts[one.met], one.where)
        for one in targets(found)
    )
    return Grid("Targets, at the worst size", ("", "target", "found", "met?", "where"), rows)


def steps_grid(found: Document, *, brief: bool = False) -> Grid:
    """µs per time step of the whole batch, all contestants beside the floor."""
    rates = found.rates
    rows = []
    for all_ in by_size(sorted(found.of(Step), key=lambda step: step.size)).values():
        any_ = next(iter(all_.values()))
        if brief and any_.batch not in BRIEF.get(any_.steps, ()):
            continue
        ours = all_.get(Who.OURS) or all_.get(Who.PLAIN)
        rows.append(
            (
                f"{any_.hidden}, {any_.layers} layers, {any_.precision}, T {any_.steps}",
                str(any_.batch),
                *_floor_cells(any_, ours, rates),
                *(_device(all_.get(who)) for who in _ON_DEVICE),
                *(_host(all_.get(who)) for who in _FROM_HOST),
            )
        )
    names = ("hidden", "B", "floor", "by", "over floor", "of rate", *_ON_DEVICE)
    hosts = tuple(f"host: {who}" for who in _FROM_HOST)
    return Grid(
        "µs per time step of the batch: on the device, and from and to host memory", (*names, *hosts), tuple(rows)
    )


def _floor_cells(any_: Step, ours: Step | None, rates: Rates | None) -> tuple[str, str, str, str]:
    if rates is None:
        return "", "", "", ""
    least = floor_of(any_, rates)
    per_step = least.us / any_.steps
    if ours is None:
        return number(per_step), least.bound, "", ""
    over, share = over_floor(ours, rates), of_matrix_rate(ours, rates)
    ratios = ("" if over is None else f"{over:.1f}", "" if share is None else f"{share:.0%}")
    return number(per_step), least.bound, *ratios


def _device(step: Step | None) -> str:
    return "" if step is None or step.device is None else number(step.device)


def _host(step: Step | None) -> str:
    return "" if step is None or step.host is None else number(step.host)


def rates_grid(found: Document) -> Grid:
    """What the machine can do."""
    rows: list[tuple[str, str]] = []
    for memory in found.of(Memory):
        rows.append(("device memory, GB/s read plus written", number(memory.bandwidth / 1e9)))
        cached = f"a block that fits its cache of {memory.cache_bytes >> 20} MiB"
        rows.append((cached if memory.cache_bytes else "a small block", number(memory.cache_bandwidth / 1e9)))
    rows += [(f"matrix rate, {one.precision}, TFLOP/s", number(one.rate / 1e12)) for one in found.of(MatrixRate)]
    for launches in found.of(Launches):
        rows.append(("smallest graph, replayed and waited for, µs", number(launches.replay_us)))
        rows.append(("one more kernel in it, µs", number(launches.kernel_us)))
        rows.append(("one kernel without a graph, µs", number(launches.launch_us)))
    return Grid("The machine, measured by PyTorch", ("", "found"), tuple(rows))


def parity_grid(found: Document) -> Grid:
    """By precision."""
    rows = tuple(
        (
            f"{one.precision}: {one.model}, T {one.steps}",
            f"{one.rms_ratio:.2f} (bar {one.rms_bar:g})",
            f"{one.max_ratio:.2f} (bar {one.max_bar:g})",
            f"{one.share:.1e}",
            "ok" if one.passed else "FAILED",
        )
        for one in found.of(Parity)
    )
    return Grid(
        "Parity on the device, against float64: the worst of outputs and states",
        ("", "rms ratio", "max ratio", "of the rms", ""),
        rows,
    )


def company_grid(found: Document) -> Grid:
    """By precision."""
    rows = tuple(
        (
            f"{one.precision}: {one.model}, {one.steps} steps",
            "the same bytes" if one.within else "DIFFERENT BYTES",
            f"{one.answers} different",
            f"{one.share:.1e}",
        )
        for one in found.of(Company)
    )
    batches = sorted({batch for one in found.of(Company) for batch in one.batches})
    across = f"among batches of {', '.join(map(str, batches))}"
    return Grid("One lane in company", ("", "within a bucket", across, "at most, of the rms"), rows)


def copies_grid(found: Document) -> Grid:
    """To the device and back."""
    rows = tuple(
        (
            f"{one.by}: {one.size:,} bytes, {'pinned' if one.pinned else 'not pinned'}",
            number(one.to_device_us),
            number(one.from_device_us),
        )
        for one in found.of(Copy)
    )
    return Grid("Copies of one batch, µs until done", ("", "to the device", "back"), rows)


def _load(one: Served) -> str:
    return f"{one.streams} streams, {one.steps_per_message} steps a message"


def served_grid(found: Document) -> Grid:
    """End to end."""
    rows = tuple(
        (
            f"{one.device}, {one.precision}: {one.workers} workers, {_load(one)}",
            number(one.steps_per_second),
            *(number(value) for value in (one.p50, one.p99, one.p999)),
            f"{one.server_cores:.1f}",
            f"{one.busy:.0f} %" if one.busy is not None else one.busy_unknown,
            f"{one.seconds_to_ready:.1f}",
        )
        for one in found.of(Served)
    )
    names = ("over gRPC", "steps/s", "p50, µs", "p99", "p99.9", "server's cores", "GPU busy", "s to ready")
    return Grid("End to end over gRPC, flat out", names, rows)


def skipped_grid(found: Document) -> Grid:
    """What is missing, and why."""
    rows = tuple((one.what, one.reason) for one in found.of(Skipped))
    return Grid("Not measured", ("what", "why"), rows)


def grids(found: Document, *, brief: bool = False) -> list[Grid]:
    """All that have something to show, the long ones first and the verdicts last: a log is often cut in front."""
    made = [
        steps_grid(found, brief=brief),
        copies_grid(found),
        rates_grid(found),
        company_grid(found),
        parity_grid(found),
        served_grid(found),
        skipped_grid(found),
        targets_grid(found),
    ]
    return [grid for grid in made if grid.rows]


def show(found: Document, console: Console) -> None:
    """On a terminal: the telling batches, and not too many lines of what is missing."""
    for grid in grids(found, brief=not found.quick):
        shown = grid
        if grid.columns[:1] == ("what",) and len(grid.rows) > _MOST_SKIPPED:
            more = (f"and {len(grid.rows) - _MOST_SKIPPED} more", "see the JSON file")
            shown = Grid(grid.title, grid.columns, (*grid.rows[:_MOST_SKIPPED], more))
        console.print(shown.rich())
    console.print(
        f"{found.device}; {found.machine}; {found.seconds:.0f} of {found.budget:.0f} s;"
        f" load average before: {found.load}; models with random weights, unproved"
    )
