"""The picture: p99 against load, a panel per scenario and a line per variant, as an SVG file of its own.

Owns shapes, no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

from export.plots import colours

PANEL, GAP, HEIGHT = 430, 64, 330
LEFT, TOP, BOTTOM, LEGEND = 64, 34, 48, 30
LOW, HIGH = 0.1, 1000.0  # ms
DECADES = 4
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#495057}.title{font-weight:600;fill:#212529}"
    ".grid{stroke:#e9ecef}.target{stroke:#c92a2a;stroke-dasharray:4 4}.curve{fill:none;stroke-width:2}"
)
Points = Sequence[tuple[float, float]]  # load, ms


def chart(panels: Mapping[str, Mapping[str, Points]], *, target_ms: float) -> str:
    """The file's text. Loads from 0 to the largest; waits on a log scale from LOW to HIGH, cut off beyond."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    chosen = colours(names)
    width = LEFT + len(panels) * PANEL + (len(panels) - 1) * GAP + 24
    height = HEIGHT + LEGEND
    parts = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for place, (title, lines) in enumerate(panels.items()):
        parts += _panel(LEFT + place * (PANEL + GAP), title, lines, chosen, target_ms)
    x = LEFT
    for name, colour in chosen.items():
        parts.append(f'<rect x="{x}" y="{HEIGHT + 8}" width="14" height="4" fill="{colour}"/>')
        parts.append(_text(x + 20, HEIGHT + 15, name))
        x += 40 + 7 * len(name)
    label = "p99 of single steps against load"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(
    left: int, title: str, lines: Mapping[str, Points], chosen: Mapping[str, str], target_ms: float
) -> list[str]:
    most = max((load for points in lines.values() for load, _ in points), default=1.0)
    bottom = HEIGHT - BOTTOM

    def across(load: float) -> float:
        return left + PANEL * load / most

    def up(ms: float) -> float:
        return bottom - (bottom - TOP) * log10(min(max(ms, LOW), HIGH) / LOW) / DECADES

    parts = [_text(left, TOP - 14, title, kind="title")]
    for exponent in range(DECADES + 1):
        ms = LOW * 10**exponent
        parts += [_line(left, up(ms), left + PANEL, up(ms), "grid"), _text(left - 8, up(ms) + 4, f"{ms:g}", "end")]
    for tick in range(int(most / 0.2 + 1e-9) + 1):
        load = tick * 0.2
        parts.append(_line(across(load), TOP, across(load), bottom, "grid"))
        parts.append(_text(across(load), bottom + 18, f"{load:.0%}", "middle"))
    parts.append(_line(left, up(target_ms), left + PANEL, up(target_ms), "target"))
    for name, points in reversed(list(lines.items())):  # equal lines lie under the first
        path = " ".join(f"{across(load):.1f},{up(ms):.1f}" for load, ms in points)
        parts.append(
            f'<polyline points="{path}" class="curve" stroke="{chosen[name]}"><title>{escape(name)}</title></polyline>'
        )
    parts.append(_text(left + PANEL / 2, bottom + 36, "load, share of capacity as built", "middle"))
    parts.append(
        f'<text transform="translate({left - 46} {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">ms, p99 of'
        " single steps</text>"
    )
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'
