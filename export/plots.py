"""Plots as SVG, drawn by hand: lines over steps, dots beside a bar, bars on a log scale. Owns shapes, no numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 760
LEFT, RIGHT, TOP, BOTTOM = 190, 24, 12, 40
ROW = 24  # pixels
APART = 4.5  # between dots of one row
DASHES = "7 5"
COLOURS = ("#e8590c", "#1971c2", "#2f9e44", "#9c36b5", "#868e96", "#c2255c")
POINTS = 160  # of a line: more than the eye sees


def _frame(height: float, content: Sequence[str], label: str) -> str:
    body = "\n".join(content)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">\n{body}\n</svg>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


def legend(chosen: Mapping[str, str]) -> str:
    """Names beside their colours."""
    entries = (f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in chosen.items())
    return f'<p class="legend">{"".join(entries)}</p>'


def _power(exponent: int) -> str:
    return (
        str(10**exponent)
        if 0 <= exponent <= 4
        else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    )


def curves(series: Mapping[str, Sequence[float]], chosen: Mapping[str, str], *, x: str, y: str) -> str:
    """Values over steps 1, 2, …, both axes logarithmic; values of 0 are left out. The last line is dashed."""
    left, height = 64, 330
    values = [value for line in series.values() for value in line if value > 0]
    if not values:
        return "<p>No error at all.</p>"
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    last = max(2, *(len(line) for line in series.values()))
    right, bottom = WIDTH - RIGHT, height - BOTTOM

    def across(step: float) -> float:
        return left + (right - left) * math.log10(step) / math.log10(last)

    def up(value: float) -> float:
        return bottom - (bottom - TOP) * (math.log10(value) - low) / max(1, high - low)

    marks = (1, 2, 5) if high - low <= 2 else (1,)
    parts = []
    for exponent, mark in ((e, m) for e in range(low, high + 1) for m in marks if e < high or m == 1):
        height_of = up(mark * 10.0**exponent)
        label = _power(exponent) if mark == 1 else f"{mark}·{_power(exponent)}"
        parts += [_line(left, height_of, right, height_of, "grid"), _text(left - 8, height_of + 4, label, "end")]
    for exponent in range(math.floor(math.log10(last)) + 1):
        parts.append(_line(across(10**exponent), TOP, across(10**exponent), bottom, "grid"))
        parts.append(_text(across(10**exponent), bottom + 18, _power(exponent), "middle"))
    parts.append(_text((left + right) / 2, height - 4, x, "middle", "axis"))
    parts.append(
        f'<text transform="translate(12 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle"'
        f' class="axis">{escape(y)}</text>'
    )
    for name, line in series.items():
        steps = sorted({min(len(line), max(1, round(last ** (k / POINTS)))) for k in range(POINTS + 1)})
        points = " ".join(f"{across(s):.1f},{up(line[s - 1]):.1f}" for s in steps if line[s - 1] > 0)
        look = f'class="curve" stroke="{chosen[name]}"'
        if len(series) > 1 and name == list(series)[-1]:
            look += f' stroke-dasharray="{DASHES}"'  # so that an equal line beneath it is seen
        parts.append(f'<polyline points="{points}" {look}><title>{escape(name)}</title></polyline>')
    return _frame(height, parts, f"{y} over {x}")


def dots(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], chosen: Mapping[str, str], *, bar: float, x: str
) -> str:
    """One line per row, its values as dots by name, linear from 0 to just past the bar; the rest is at the edge."""
    height = TOP + ROW * len(rows) + BOTTOM
    right, bottom = WIDTH - RIGHT, TOP + ROW * len(rows)

    def across(value: float) -> float:
        return LEFT + (right - LEFT) * min(value / (bar * 1.15), 1.0)

    def middle(place: int) -> float:
        return TOP + ROW * (place + 0.5)

    size = f'width="{right - across(bar):.1f}" height="{bottom - TOP}"'
    parts = [f'<rect x="{across(bar):.1f}" y="{TOP}" {size} class="beyond"/>']
    parts += [_line(LEFT, middle(place), right, middle(place), "thread") for place in range(len(rows))]
    for tick in range(5):
        value = bar * tick / 4
        parts.append(_line(across(value), TOP, across(value), bottom, "bar" if tick == 4 else "grid"))
        parts.append(_text(across(value), bottom + 16, f"{value:g}", "middle"))
    names = list(chosen)
    for place, (label, values) in enumerate(rows):
        parts.append(_text(LEFT - 10, middle(place) + 4, label, "end"))
        for name, value in values:
            y = middle(place) + APART * (names.index(name) - (len(names) - 1) / 2)  # equal values stay visible
            title = f"<title>{escape(f'{label}, {name}: {value:.3g}')}</title>"
            parts.append(f'<circle cx="{across(value):.1f}" cy="{y:.1f}" r="3" fill="{chosen[name]}">{title}</circle>')
    parts.append(_text((LEFT + right) / 2, height - 4, x, "middle", "axis"))
    return _frame(height, parts, x)


def log_bars(values: Mapping[str, float], *, x: str) -> str:
    """One bar per value, from 1 on a log scale; a value of 0 has none, and says so."""
    left = 270
    height = TOP + ROW * len(values) + BOTTOM
    right, bottom = WIDTH - 70, TOP + ROW * len(values)
    decades = max(1, *(math.ceil(math.log10(max(value, 1)) + 1e-9) for value in values.values()))

    def across(value: float) -> float:
        return left + (right - left) * max(0.0, math.log10(value)) / decades

    parts = []
    for exponent in range(0, decades + 1, max(1, decades // 6)):
        parts.append(_line(across(10**exponent), TOP, across(10**exponent), bottom, "grid"))
        parts.append(_text(across(10**exponent), bottom + 16, _power(exponent), "middle"))
    for place, (name, value) in enumerate(values.items()):
        y = TOP + ROW * place
        parts.append(_text(left - 10, y + 16, name, "end"))
        if value > 0:
            width = max(2.0, across(value) - left)
            parts.append(f'<rect x="{left}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}" class="caught"/>')
            parts.append(_text(left + width + 6, y + 16, f"{value:,.0f}"))
        else:
            parts.append(_text(left + 6, y + 16, "not seen", kind="missed"))
    parts.append(_text((left + right) / 2, height - 4, x, "middle", "axis"))
    return _frame(height, parts, x)
