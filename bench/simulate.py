"""`python -m bench.simulate`: the batcher's policy in virtual time.

serving's own batcher (the very class, not a copy) is given arrivals, synthetic or recorded, of up to millions of
streams, and driven as the server's loop drives it, on a clock that only moves by what a table says: messages cost a
few microseconds each, runs what was measured for so many lanes of so many steps. It says who waited how long, and
where the policy breaks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench.simulation import arrivals, costs, tables
from bench.simulation.chart import Points, chart
from bench.simulation.loads import Capacity
from bench.simulation.machine import HAND_OVER_US, PYTHON_US, TRANSPORT_US, Machine
from bench.simulation.scenarios import SCENARIOS, Scenario
from bench.simulation.trials import Largest, Setup, TooMuchError, curve, largest, played, trial
from bench.simulation.variants import AS_BUILT, VARIANTS, Variant
from bench.simulation.verdict import TARGET_MS, Criteria, Report
from serving.errors import ConfigError

LOAD = 0.7
STREAMS = 1000
SWEEP_RATE = 20.0
PLOTTED = ("poisson", "bulk")
LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
MOST_STREAMS = 5_000_000
_SETTINGS = ("max_batch", "slice_steps", "shared_slice_steps", "max_run_steps")
WIDTH = 200  # of tables, so that a pipe gets whole lines


def _epilog() -> str:
    scenarios = "\n".join(f"  {name:<10} {scenario.about}" for name, scenario in SCENARIOS.items())
    return f"""\
examples:
  python -m bench.simulate                                    every scenario, {LOAD:.0%} of capacity, as built
  python -m bench.simulate bulk --variant as-built --variant run-128
  python -m bench.simulate poisson --streams 1000000 --load 0.9 --seconds 60
  python -m bench.simulate --sweep phases bulk                how many streams keep p99 < 10 ms, by variant
  python -m bench.simulate --recorded day.csv --speed 2       a recording (python -m bench.record), twice as fast
  python -m bench.simulate --plot docs/batching.svg           p99 against load
  python -m bench.simulate --calibrate artifacts/mine         measure this machine with a model of yours

scenarios (each stream sends --rate chunks a second; without --rate, what makes --load):
{scenarios}

variants: {", ".join(VARIANTS)}
  as-built    engine on the loop's thread, batches of 128, slices of 32 steps
              (8 beside small pieces), runs of 512
  beside-N    engine on a thread of its own with up to N batches handed over
  batch-N, slice-N, run-N   max_batch, slice_steps (never shorter), max_run_steps of N
  short       slice-8 and run-128; short-beside-1: that, with the engine beside
  no-classes  one line for chunks of all lengths
  powers      batches of 1, 2, 4, … lanes only

A trial breaks where single steps' p99 passes their period (or --target-ms), where more than 5 % of the steps that
arrive in its second half stay (of all, or of bulk), where a single step sees more than 100 runs begin, or where more
than 1,000,000 steps wait. The exit status says whether the command worked, not whether the policy held.
"""


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulate",
        description=__doc__.partition("\n\n")[2],
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenario", nargs="*", metavar="SCENARIO", help="one or more of those below (default: all)")
    add("--variant", action="append", choices=VARIANTS, metavar="NAME",
        help="may be repeated (default: as-built; with --sweep and --plot several)")  # fmt: skip
    add("--recorded", type=Path, metavar="FILE.csv", help="play seconds,stream,steps instead of a scenario")
    add("--speed", type=float, default=1.0, metavar="X", help="of the recording (%(default)s)")
    group = parser.add_argument_group("how much")
    add = group.add_argument
    add("--streams", type=int, default=STREAMS, metavar="N", help="(%(default)s)")
    add(
        "--load",
        type=float,
        default=LOAD,
        metavar="SHARE",
        help="of the capacity as built, by choosing the rate (%(default)s)",
    )
    add("--rate", type=float, metavar="R", help="chunks a second of each stream, instead of --load")
    add("--seconds", type=float, default=5.0, metavar="S", help="of virtual time (%(default)s)")
    add("--seed", type=int, default=0, help="of arrivals (%(default)s)")
    group = parser.add_argument_group("the machine and the policy")
    add = group.add_argument
    add("--costs", type=Path, default=costs.DEFAULT, metavar="FILE.json", help="what runs cost (bench/results/…)")
    add("--transport-us", type=float, default=TRANSPORT_US, metavar="US",
        help="gRPC's microseconds for a message and its answer (%(default)s, as a bare echo)")  # fmt: skip
    add("--python-us", type=float, default=PYTHON_US, metavar="US", help="our own (%(default)s)")
    add("--hand-over-us", type=float, default=HAND_OVER_US, metavar="US",
        help="to an engine thread and back (%(default)s)")  # fmt: skip
    for name in _SETTINGS:
        add(f"--{name.replace('_', '-')}", type=int, metavar="N", help="in every variant")
    add("--target-ms", type=float, default=TARGET_MS, metavar="MS", help="p99 of single steps (%(default)s)")
    group = parser.add_argument_group("what to do")
    add = group.add_argument
    add("--sweep", action="store_true", help=f"find the most streams that hold (--rate {SWEEP_RATE:g} unless told)")
    add("--plot", type=Path, metavar="FILE.svg", help=f"p99 against load, of {' and '.join(PLOTTED)} unless told")
    add("--calibrate", nargs="?", const=True, metavar="ARTIFACT",
        help="measure runs of an artifact (or of a two-layer LSTM) and write them to --costs")  # fmt: skip
    add("--json", type=Path, metavar="FILE.json", help="write what was found")
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    unknown = [name for name in arguments.scenario if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    if arguments.recorded and (arguments.scenario or arguments.sweep or arguments.plot):
        parser.error("--recorded is played by itself, without a scenario, --sweep or --plot")
    if not 1 <= arguments.streams <= MOST_STREAMS:
        parser.error(f"--streams is {arguments.streams}; it must be from 1 to {MOST_STREAMS}")
    for name, low, high in (
        ("load", 1e-6, 5.0),
        ("rate", 1e-6, 1e6),
        ("seconds", 1e-3, 1e6),
        ("speed", 1e-6, 1e6),
        ("target_ms", 1e-3, 1e6),
        ("transport_us", 0.0, 1e6),
        ("python_us", 0.0, 1e6),
        ("hand_over_us", 0.0, 1e6),
    ):
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} is {value:g}; it must be from {low:g} to {high:g}")
    if arguments.seed < 0:
        parser.error(f"--seed is {arguments.seed}; it must be at least 0")


def _setup(arguments: argparse.Namespace) -> Setup:
    machine = Machine(
        costs.read(arguments.costs),
        transport_us=arguments.transport_us,
        python_us=arguments.python_us,
        hand_over_us=arguments.hand_over_us,
    )
    return Setup(machine, Criteria(target_ms=arguments.target_ms), arguments.seconds, arguments.seed)


def _variants(arguments: argparse.Namespace, default: Sequence[str]) -> list[Variant]:
    given = {name: getattr(arguments, name) for name in _SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    chosen = [VARIANTS[name] for name in arguments.variant or default]
    return [replace(variant, batching=replace(variant.batching, **given)) for variant in chosen]


def _scenarios(arguments: argparse.Namespace, default: Sequence[str]) -> list[Scenario]:
    return [SCENARIOS[name] for name in arguments.scenario or default]


def _trials(arguments: argparse.Namespace, setup: Setup, console: Console) -> list[Report]:
    variants = _variants(arguments, (AS_BUILT,))
    if arguments.recorded is not None:
        recording = arrivals.read(arguments.recorded).faster(arguments.speed)
        reports = [played(recording, arguments.recorded.stem, variant, setup) for variant in variants]
    else:
        reports, capacity = [], Capacity(setup.machine, VARIANTS[AS_BUILT])
        for scenario in _scenarios(arguments, list(SCENARIOS)):
            rate = arguments.rate or capacity.rate(scenario, arguments.streams, arguments.load, setup.seed)
            for variant in variants:  # all are given the same arrivals
                reports.append(trial(scenario, variant, setup, streams=arguments.streams, rate=rate))
    console.print(tables.waits_table(reports))
    for line in tables.verdict_lines(reports):
        console.print(line, highlight=False)
    return reports


def _sweep(arguments: argparse.Namespace, setup: Setup, console: Console) -> list[Largest]:
    rate = arguments.rate or SWEEP_RATE
    scenarios, variants = _scenarios(arguments, list(SCENARIOS)), _variants(arguments, list(VARIANTS))
    found = []
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=len(scenarios) * len(variants))
        for scenario in scenarios:
            for variant in variants:
                bars.update(task, description=f"{scenario.name}, {variant.name}")
                found.append(largest(scenario, variant, setup, rate=rate))
                bars.advance(task)
    console.print(tables.sweep_table(found, rate, arguments.target_ms))
    return found


def _plot(arguments: argparse.Namespace, setup: Setup, path: Path) -> list[Report]:
    variants = _variants(arguments, (AS_BUILT, "slice-8", "run-128", "beside-1", "no-classes"))
    reports: list[Report] = []
    panels: dict[str, dict[str, Points]] = {}
    for scenario in _scenarios(arguments, PLOTTED):
        lines = panels[f"{scenario.name}: {scenario.about}"] = {}
        for variant in variants:
            found = curve(scenario, variant, setup, streams=arguments.streams, shares=LOADS)
            lines[variant.name] = [
                (share, report.singles.p99) for share, report in zip(LOADS, found, strict=True) if report.singles
            ]
            reports += found
    path.write_text(chart(panels, target_ms=arguments.target_ms), encoding="utf-8")
    print(f"wrote {path}")
    return reports


def _calibrate(arguments: argparse.Namespace) -> None:
    from bench.simulation.calibration import calibrate  # noqa: PLC0415  torch and ONNX Runtime take seconds

    table = calibrate(None if arguments.calibrate is True else Path(arguments.calibrate))
    costs.write(table, arguments.costs)
    print(f"{table.about}\nwrote {arguments.costs}")


def _carry_out(arguments: argparse.Namespace) -> None:
    if arguments.calibrate is not None:
        _calibrate(arguments)
        return
    setup, console = _setup(arguments), Console(width=WIDTH)
    found: Sequence[Report] | Sequence[Largest]
    if arguments.sweep:
        found = _sweep(arguments, setup, console)
    elif arguments.plot is not None:
        found = _plot(arguments, setup, arguments.plot)
    else:
        found = _trials(arguments, setup, console)
    if arguments.json is not None:
        text = tables.as_json(found, costs=setup.machine.costs.about, seconds=setup.seconds, seed=setup.seed)
        arguments.json.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.json}")


def main(words: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0 if it could do what was asked."""
    parser = _parser()
    arguments = parser.parse_args(words)
    _check(parser, arguments)
    try:
        _carry_out(arguments)
    except (costs.CostsError, arrivals.RecordingError, TooMuchError, ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
