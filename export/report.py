"""What a person reads of an export: a table of parity, condensed, and what to do next. Owns words, no numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from model.contract import ParityRecord

CAPTION = "as a multiple of PyTorch's own error in float32, or of what roundings alone make, where that is more"


def parity_table(records: Iterable[ParityRecord]) -> Table:
    """One line for each level and tensor: its worst ratios over both initial states, for each number of steps."""
    records = list(records)
    steps = sorted({record.steps for record in records if record.rms_bar > 0})
    view = Table(title="parity: error against float64, rms / max", caption=CAPTION, title_justify="left")
    view.add_column("level")
    view.add_column("tensor")
    for count in steps:
        view.add_column(f"T={count}", justify="right")
    view.add_column("bar", justify="right")
    view.add_column("")
    lines = dict.fromkeys((record.subject, record.tensor) for record in records)
    shown = ""
    for subject, tensor in lines:
        if shown and subject != shown:
            view.add_section()
        members = [record for record in records if (record.subject, record.tensor) == (subject, tensor)]
        cells = [ratios([record for record in members if record.steps == count]) for count in steps]
        if all(record.rms_bar == 0 for record in members):
            cells = ["bit for bit" if member.passed else "differs" for member in members[:1]] + [""] * (len(steps) - 1)
        verdict = "[green]ok[/green]" if all(record.passed for record in members) else "[red]FAILED[/red]"
        view.add_row("" if subject == shown else subject, tensor, *cells, _bar(members[0]), verdict)
        shown = subject
    return view


def ratios(records: list[ParityRecord]) -> str:
    """The worst ratios, rms / max; nothing where there are no records."""
    if not records:
        return ""
    return f"{_short(max(r.rms_ratio for r in records))} / {_short(max(r.max_ratio for r in records))}"


def _short(ratio: float) -> str:
    if ratio == 0:
        return "0"
    return f"{ratio:.2f}" if 0.005 <= ratio < 1000 else f"{ratio:.0e}"


def _bar(record: ParityRecord) -> str:
    return "equal" if record.rms_bar == 0 else f"{record.rms_bar:g} / {record.max_bar:g}"


def findings(invariances: Mapping[str, bool], controls: Mapping[str, float]) -> str:
    """What changes no bit, and which planted faults were caught, in two lines."""
    differing = [name for name, held in invariances.items() if not held]
    unseen = [name for name, ratio in controls.items() if ratio == 0]
    least = min((ratio for ratio in controls.values() if ratio > 0), default=0.0)
    same = f"the same bytes whatever the {_listed([name for name, held in invariances.items() if held])}"
    caught = (
        f"{len(controls) - len(unseen)} of {len(controls)} planted faults caught, the faintest {least:,.0f} times over"
    )
    if differing:
        same += f"; NOT whatever the {_listed(differing)}"
    return f"{same}\n{caught}" + (f"; not seen in this model: {', '.join(unseen)}" if unseen else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names)
