"""The measured part of docs/performance.md, and its pictures. What stands outside the marks is written by hand."""

from __future__ import annotations

from pathlib import Path

from bench import charts
from bench.cases import Peer
from bench.document import Document
from bench.samples import by_case
from bench.tables import breakdown_cells, grids

PAGE = "performance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BARS, CURVES = "performance-bars.svg", "performance-curves.svg"
PARTS = ("transport: the echo's", "compute: raw ONNX Runtime", "our own Python")


def measured(found: Document, source: Path) -> str:
    """The part between the marks."""
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    where = f"Measured on {found.date[:10]} at commit {found.commit}: {found.machine}; {versions}"
    others = f"load average {found.load} before they began, from other programs"
    parts = [
        f"{where}; {len(found.rounds)} rounds; {others}. All figures: [{source.name}](../{source.as_posix()}).",
        f"![where each microsecond goes]({BARS})",
    ]
    if found.curves:
        parts.append(f"![latency over throughput]({CURVES})")
    parts += [f"### {grid.title}\n\n{grid.markdown()}" for grid in grids(found)]
    return "\n\n".join(parts)


def pictures(found: Document) -> dict[str, str]:
    """SVG by file name."""
    made = {BARS: charts.stacked(breakdown_cells(found.rounds), PARTS, title="Server's processor time per step, µs")}
    if found.curves:
        curves: dict[str, list[tuple[float, float, float]]] = {}
        samples = by_case(found.curves)
        for peer in (Peer.OURS, Peer.NAIVE_UVLOOP):
            line = [(item.steps_per_second, item.p50, item.p99) for item in samples if item.case.peer is peer]
            if line:
                curves[peer] = line
        made[CURVES] = charts.latencies(curves, title="64 streams, open loop: latency over throughput")
    return made


def publish(found: Document, source: Path, docs: Path) -> None:
    """Put the figures between the marks of the page, and the pictures beside it. Raises ValueError without marks."""
    page = docs / PAGE
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}, between which figures go")
    page.write_text(f"{before}{BEGIN}\n{measured(found, source)}\n{END}{after}", encoding="utf-8")
    for name, picture in pictures(found).items():
        (docs / name).write_text(picture, encoding="utf-8")
