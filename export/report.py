"""What a person reads of an export: a table of parity, condensed, and what to do next. Owns words, no numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from export.parity import EMULATED
from export.precision import Precision
from model.contract import ParityRecord

CAPTION = "as a multiple of PyTorch's own error in float32, or of what roundings alone make, where that is more"
FEW = 6
LEAST_SHARE = 1e-5  # below which nobody wants digits
REDUCED = (
    "ONNX: as a multiple of what the same roundings make when emulated in float64; nn.LSTM: of what float32 makes;"
    " share: the rms error as a share of the tensor's rms, and its bar"
)


def parity_table(records: Iterable[ParityRecord]) -> Table:
    """One line for each level and tensor: its worst ratios over both initial states, for each number of steps."""
    records = list(records)
    steps = sorted({record.steps for record in records if record.rms_bar > 0})
    reduced = any(record.share_bar > 0 for record in records)
    caption = REDUCED if reduced else CAPTION
    view = Table(title="parity: error against float64, rms / max", caption=caption, title_justify="left")
    view.add_column("level")
    view.add_column("tensor")
    for count in steps:
        view.add_column(f"T={count}", justify="right")
    view.add_column("bar", justify="right")
    if reduced:
        view.add_column("share", justify="right")
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
        verdict = _verdict(members)
        shares = [_share(members)] if reduced else []
        view.add_row("" if subject == shown else subject, tensor, *cells, _bar(members[0]), *shares, verdict)
        shown = subject
    return view


def _verdict(records: list[ParityRecord]) -> str:
    """Whether all passed, or by which criteria some failed."""
    if all(record.passed for record in records):
        return "[green]ok[/green]"
    criteria = dict.fromkeys(record.failed_by.partition(":")[0] for record in records if record.failed_by)
    return "[red]FAILED[/red]" + (f" ({', '.join(criteria)})" if criteria else "")


def _share(records: list[ParityRecord]) -> str:
    """The worst share of a tensor's rms, and its bar where there is one."""
    worst = max(records, key=lambda record: record.share)
    if worst.rms_bar == 0:
        return ""
    return percent(worst.share) + (f" / {percent(worst.share_bar)}" if worst.share_bar else "")


def percent(share: float) -> str:
    """A share in percent, to two digits."""
    return f"{100 * share:.2g}%" if share == 0 or share >= LEAST_SHARE else f"<{100 * LEAST_SHARE:g}%"


def cost(records: Iterable[ParityRecord], precision: Precision) -> str:
    """What a reduced precision costs this model at worst, in a sentence; nothing in fp32."""
    ours = [record for record in records if record.share_bar > 0]
    if not ours:
        return ""
    found = max(record.share for record in ours if record.subject != EMULATED)
    expected = max(record.share for record in ours if record.subject == EMULATED)
    limit = precision.terms.share
    text = f"{precision}: {precision.terms.means}; an error of {percent(found)} of a tensor's rms at worst"
    emulated = f"{percent(expected)} where the same roundings are emulated in float64"
    if max(found, expected) > limit:
        return f"{text} and {emulated}: BEYOND the usual {percent(limit)}, since this model amplifies roundings"
    return f"{text} ({emulated}), and the limit is {percent(limit)}"


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


def condensed(keys: Iterable[str]) -> str:
    """Keys; where they are many, by the module that they are of, with how many each has: `model.fc (2), scale`."""
    keys = list(keys)
    if len(keys) <= FEW:
        return _listed(keys)
    modules: dict[str, int] = {}
    for key in keys:
        module = key.rpartition(".")[0] or key
        modules[module] = modules.get(module, 0) + 1
    return _listed([name if count == 1 else f"{name} ({count})" for name, count in modules.items()])


def _listed(names: list[str]) -> str:
    return ", ".join(names)
