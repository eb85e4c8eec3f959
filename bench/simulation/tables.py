"""Reports for people, as tables and lines, and for programs, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from bench.simulation.trials import Largest
from bench.simulation.verdict import Report, Waits


def waits_table(reports: Sequence[Report]) -> Table:
    """One line per trial: load, throughput, and who waited how long."""
    columns = ("scenario", "variant", "streams", "load", "steps/s", "batch", "run ms")
    waits = ("single p50", "p99", "p99.9", "max", "chunk p50", "p99", "max", "bulk")
    caption = (
        "waits in ms from a message's arrival to its last answer; load: share of capacity; run: the longest;"
        " bulk: share of the steps computed (and of those offered) that came in chunks"
    )
    table = _table("", caption, (*columns, *waits), left=2)
    for report in reports:
        single, chunk = _waits(report.singles), _waits(report.chunks)
        bulk = f"{report.bulk_computed:.0%} ({report.bulk_offered:.0%})" if report.chunks else ""
        table.add_row(*_begin(report), f"{report.run_ms:.1f}", *single, chunk[0], chunk[1], chunk[3], bulk)
    return table


def verdict_lines(reports: Sequence[Report]) -> list[str]:
    """What broke, or that nothing did, trial by trial."""
    return [
        f"{report.scenario}, {report.variant}: "
        + (f"breaks here: {'; '.join(report.breaks)}" if report.breaks else "holds")
        for report in reports
    ]


def sweep_table(found: Sequence[Largest], rate: float, target_ms: float) -> Table:
    """One line per scenario and variant: the largest number of streams that holds."""
    title = f"the most streams, of {rate:g} chunks/s each, whose single steps keep p99 < {target_ms:g} ms"
    columns = ("scenario", "variant", "streams", "load", "steps/s", "batch", "single p50", "p99", "chunk p99")
    table = _table(title, "load: share of the variant's own capacity", (*columns, "with more"), left=2)
    for one in found:
        if one.held is None:
            table.add_row(one.scenario, one.variant, "none", *[""] * 6, _why(one.broke, target_ms))
            continue
        single, chunk = _waits(one.held.singles), _waits(one.held.chunks)
        table.add_row(*_begin(one.held), single[0], single[1], chunk[1], _why(one.broke, target_ms))
    return table


def as_json(reports: Sequence[Report] | Sequence[Largest], **settings: Any) -> str:
    """Everything found, and what it was found with."""
    return json.dumps({**settings, "found": [asdict(report) for report in reports]}, indent=1) + "\n"


def _table(title: str, caption: str, columns: Sequence[str], *, left: int) -> Table:
    table = Table(title=title or None, caption=caption, box=box.SIMPLE, title_justify="left", caption_justify="left")
    for place, name in enumerate(columns):
        justify = "left" if place < left or name == "with more" else "right"
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def _begin(report: Report) -> tuple[str, ...]:
    return (
        report.scenario,
        report.variant,
        f"{report.streams:,}",
        f"{report.load:.2f}",
        f"{report.steps_per_second:,.0f}",
        f"{report.mean_batch:.1f}",
    )


def _waits(waits: Waits | None) -> tuple[str, str, str, str]:
    if waits is None:
        return "", "", "", ""
    p50, p99, p999, worst = (_millis(value) for value in (waits.p50, waits.p99, waits.p999, waits.worst))
    return p50, p99, p999, worst


def _millis(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def _why(broke: Report | None, target_ms: float) -> str:
    if broke is None:
        return ""
    if broke.singles is not None and broke.singles.p99 >= target_ms:
        return f"p99 {_millis(broke.singles.p99)} ms"
    return f"{max(broke.staying, broke.bulk_staying):.0%} of what arrives stays"
