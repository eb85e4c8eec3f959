"""Pictures of a run as SVG files that stand alone: stacked bars, and latency over throughput."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, RIGHT, TOP = 860, 70, 44
ROW = 26  # pixels
COLOURS = ("#868e96", "#1971c2", "#e8590c", "#2f9e44", "#9c36b5")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#212529}.title{font-weight:600}.grid{stroke:#dee2e6}"
    ".curve{fill:none;stroke-width:2}.far{stroke-dasharray:6 4}"
)


def _picture(height: float, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>\n{_text(12, 20, title, kind="title")}\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _legend(names: Sequence[str], y: float, colours: Sequence[str] = COLOURS) -> list[str]:
    parts, x = [], 12.0
    for name, colour in zip(names, colours, strict=False):
        parts.append(f'<rect x="{x:.0f}" y="{y - 10:.0f}" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 16, y, name))
        x += 34 + 6.6 * len(name)
    return parts


def _ticks(largest: float) -> list[float]:
    step = 10 ** math.floor(math.log10(largest))
    step = step / 5 if largest / step < 2 else step / 2 if largest / step < 5 else step
    return [step * place for place in range(math.floor(largest / step) + 1)]


def stacked(rows: Mapping[str, Sequence[float]], names: Sequence[str], *, title: str) -> str:
    """A bar for each row, one part for each name; a part below zero is left out."""
    left, top = 330, TOP + 22
    largest = max(sum(max(value, 0) for value in values) for values in rows.values())
    bottom = top + ROW * len(rows)

    def across(value: float) -> float:
        return left + (WIDTH - RIGHT - left) * value / largest

    parts = _legend(names, TOP)
    for tick in _ticks(largest):
        parts.append(f'<line x1="{across(tick):.1f}" y1="{top}" x2="{across(tick):.1f}" y2="{bottom}" class="grid"/>')
        parts.append(_text(across(tick), bottom + 16, f"{tick:g}", "middle"))
    for place, (label, values) in enumerate(rows.items()):
        y, at = top + ROW * place, 0.0
        parts.append(_text(left - 8, y + 17, label, "end"))
        for value, colour, name in zip(values, COLOURS, names, strict=False):
            size = f'width="{across(max(value, 0)) - left:.1f}" height="{ROW - 6}"'
            hint = f"<title>{escape(f'{name}: {value:.2f}')}</title>"
            parts.append(f'<rect x="{across(at):.1f}" y="{y + 3}" {size} fill="{colour}">{hint}</rect>')
            at += max(value, 0)
        parts.append(_text(across(at) + 5, y + 17, f"{sum(values):.1f}"))
    return _picture(bottom + 28, parts, title)


def latencies(curves: Mapping[str, Sequence[tuple[float, float, float]]], *, title: str) -> str:
    """(steps/s, p50, p99 in µs) of each server: p50 drawn through, p99 dashed, on a logarithmic scale."""
    left, top, bottom = 70, TOP + 22, 400
    points = [point for line in curves.values() for point in line]
    fastest = max(point[0] for point in points)
    low = math.floor(math.log10(min(point[1] for point in points)))
    high = math.ceil(math.log10(max(point[2] for point in points)))

    def across(value: float) -> float:
        return left + (WIDTH - RIGHT - left) * value / fastest

    def up(value: float) -> float:
        return bottom - (bottom - top) * (math.log10(value) - low) / max(high - low, 1)

    parts = _legend([f"{name} (p99 dashed)" for name in curves], TOP, COLOURS[1:])
    for exponent in range(low, high + 1):
        y = up(10.0**exponent)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="grid"/>')
        label = f"{10 ** (exponent - 3):g} ms" if exponent >= 3 else f"{10**exponent:g} µs"
        parts.append(_text(left - 8, y + 4, label, "end"))
    for tick in _ticks(fastest):
        parts.append(f'<line x1="{across(tick):.1f}" y1="{top}" x2="{across(tick):.1f}" y2="{bottom}" class="grid"/>')
        parts.append(_text(across(tick), bottom + 16, f"{tick:,.0f}", "middle"))
    for (name, line), colour in zip(curves.items(), COLOURS[1:], strict=False):
        for place, kind in ((1, "curve"), (2, "curve far")):
            path = " ".join(f"{across(point[0]):.1f},{up(point[place]):.1f}" for point in line)
            parts.append(f'<polyline points="{path}" class="{kind}" stroke="{colour}"/>')
        parts += [
            f'<circle cx="{across(point[0]):.1f}" cy="{up(point[place]):.1f}" r="3" fill="{colour}">'
            f"<title>{escape(f'{name}: {point[0]:,.0f} steps/s, {point[place]:,.0f} µs')}</title></circle>"
            for point in line
            for place in (1, 2)
        ]
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 34, "steps/s answered", "middle"))
    return _picture(bottom + 46, parts, title)
