"""Pictures of a GPU run as SVG files that stand alone: microseconds over batch, and steps per second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from bench import charts
from bench.gpu.plan import Who
from bench.gpu.records import Document, Served, Step
from bench.gpu.targets import by_size, floor_of

SERVED = "gpu-served.svg"
FLOOR = "floor"
_WIDTH, _HEIGHT, _COLUMNS = 860, 300, 2
_PAD = {"left": 56, "right": 16, "top": 30, "bottom": 40}
_HEAD = 56
_COLOURS = {
    Who.OURS: "#1971c2",
    Who.PLAIN: "#74c0fc",
    Who.PARTS: "#ae3ec9",
    Who.EAGER: "#e8590c",
    Who.CELL: "#2f9e44",
    FLOOR: "#868e96",
}
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#212529}.title{font-weight:600}.grid{stroke:#dee2e6}"
    ".curve{fill:none;stroke-width:2}.floor{stroke-dasharray:5 4}"
)
Point = tuple[float, float]
Curves = Mapping[str, Sequence[Point]]


def steps_of(precision: str) -> str:
    """The file with that precision's curves."""
    return f"gpu-steps-{precision}.svg"


def pictures(found: Document) -> dict[str, str]:
    """SVG by file name; none that would be empty."""
    made = {}
    for precision in dict.fromkeys(step.precision for step in found.of(Step)):
        panels = _panels(found, precision)
        if panels:
            title = f"One time step on the device in {precision}, T = 1: µs over batch"
            made[steps_of(precision)] = small_multiples(panels, title=title)
    served = {
        f"{one.workers} workers on {one.device}, {one.streams} streams, {one.steps_per_message} a message": (
            one.steps_per_second / 1e3,
        )
        for one in found.of(Served)
    }
    if served:
        made[SERVED] = charts.stacked(served, ("thousand steps per second",), title="End to end over gRPC, flat out")
    return made


def _panels(found: Document, precision: str) -> dict[str, Curves]:
    """Curves of each model that has at least two batches."""
    rates = found.rates
    by_model: dict[str, dict[str, list[Point]]] = {}
    steps = [step for step in found.of(Step) if step.precision == precision and step.steps == 1]
    for all_ in by_size(sorted(steps, key=lambda step: (step.hidden, step.layers, step.batch))).values():
        one = next(iter(all_.values()))
        curves = by_model.setdefault(f"hidden {one.hidden}, layers {one.layers}", {})
        for who, step in all_.items():
            if step.device is not None:
                curves.setdefault(who, []).append((step.batch, step.device))
        if rates is not None:
            curves.setdefault(FLOOR, []).append((one.batch, floor_of(one, rates).us))
    return {name: curves for name, curves in by_model.items() if max(map(len, curves.values()), default=0) > 1}


def small_multiples(panels: Mapping[str, Curves], *, title: str) -> str:
    """A panel for each name; both axes logarithmic, the same in all panels."""
    points = [point for curves in panels.values() for line in curves.values() for point in line]
    span = (_decades(x for x, _ in points), _decades(y for _, y in points))
    rows = math.ceil(len(panels) / _COLUMNS)
    height = _HEAD + rows * _HEIGHT
    view = f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {view}>\n<style>{_STYLE}</style>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(12, 20, title, kind="title"),
        *_legend(sorted({name for curves in panels.values() for name in curves}, key=list(_COLOURS).index)),
    ]
    for place, (name, curves) in enumerate(panels.items()):
        row, column = divmod(place, _COLUMNS)
        parts += _panel(column * _WIDTH / _COLUMNS, _HEAD + row * _HEIGHT, name, curves, span)
    return "\n".join(parts) + "\n</svg>\n"


def _decades(values: Iterable[float]) -> tuple[int, int]:
    logs = [math.log10(value) for value in values]
    low = math.floor(min(logs))
    return low, max(math.ceil(max(logs)), low + 1)


def _panel(x0: float, y0: float, name: str, curves: Curves, span: tuple[tuple[int, int], tuple[int, int]]) -> list[str]:
    (x_low, x_high), (y_low, y_high) = span
    left, right = x0 + _PAD["left"], x0 + _WIDTH / _COLUMNS - _PAD["right"]
    top, bottom = y0 + _PAD["top"], y0 + _HEIGHT - _PAD["bottom"]

    def across(value: float) -> float:
        return left + (right - left) * (math.log10(value) - x_low) / (x_high - x_low)

    def up(value: float) -> float:
        return bottom - (bottom - top) * (math.log10(value) - y_low) / (y_high - y_low)

    parts = [_text(left, y0 + 18, name, kind="title")]
    for exponent in range(y_low, y_high + 1):
        y = up(10.0**exponent)
        parts.append(f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(left - 6, y + 4, _micros(exponent), "end"))
    for exponent in range(x_low, x_high + 1):
        x = across(10.0**exponent)
        parts.append(f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}" class="grid"/>')
        parts.append(_text(x, bottom + 15, f"{10**exponent:,}", "middle"))
    parts.append(_text((left + right) / 2, bottom + 30, "lanes in the batch", "middle"))
    for who, line in curves.items():
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        kind = "curve floor" if who == FLOOR else "curve"
        parts.append(f'<polyline points="{path}" class="{kind}" stroke="{_COLOURS[who]}"/>')
        parts += [
            f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.5" fill="{_COLOURS[who]}">'
            f"<title>{escape(f'{who}: B {x:g}, {y:,.1f} µs')}</title></circle>"
            for x, y in line
        ]
    return parts


def _micros(exponent: int) -> str:
    return f"{10 ** (exponent - 3):g} ms" if exponent >= 3 else f"{10.0**exponent:g} µs"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], 12.0
    for name in names:
        parts.append(f'<rect x="{x:.0f}" y="32" width="11" height="11" fill="{_COLOURS[name]}"/>')
        parts.append(_text(x + 16, 42, name))
        x += 36 + 6.6 * len(name)
    return parts
