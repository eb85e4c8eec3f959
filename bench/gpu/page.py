"""The measured part of docs/gpu.md, and its pictures. What stands outside the marks is written by hand."""

from __future__ import annotations

from pathlib import Path

from bench.gpu.pictures import pictures
from bench.gpu.records import Document
from bench.gpu.tables import grids

PAGE = "gpu.md"
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"


class NoPlaceError(ValueError):
    """The page or its marks aren't there; the text names what."""


def measured(found: Document, source: Path, shown: list[str]) -> str:
    """The part between the marks, with these pictures."""
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    cut = "" if found.finished else " It was cut off: what is missing wasn't measured."
    where = f"Measured on {found.date[:10]} at commit {found.commit}: {found.device}; {found.machine}; {versions}"
    parts = [
        f"{where}; {found.seconds:.0f} s.{cut} All figures: [{source.name}](../{source.as_posix()}).",
        "Models have random weights and no certificate; every contestant's answers were compared with float64 first.",
        *(f"![{name.removesuffix('.svg')}]({name})" for name in shown),
    ]
    # What decides stands first on a page, where nothing is cut off.
    parts += [f"### {grid.title}\n\n{grid.markdown()}" for grid in reversed(grids(found))]
    return "\n\n".join(parts)


def publish(found: Document, source: Path, docs: Path) -> list[Path]:
    """Write the pictures into `docs`, and the figures between the marks of its page; what was written.

    Raises NoPlaceError where the page lacks them, with the pictures written all the same.
    """
    made = pictures(found)
    docs.mkdir(parents=True, exist_ok=True)
    for name, picture in made.items():
        (docs / name).write_text(picture, encoding="utf-8")
    page = docs / PAGE
    if not page.is_file():
        raise NoPlaceError(f"{page} isn't there to be filled in")
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoPlaceError(f"{page} lacks the marks {BEGIN} and {END}, between which figures go")
    page.write_text(f"{before}{BEGIN}\n{measured(found, source, list(made))}\n{END}{after}", encoding="utf-8")
    return [page, *(docs / name for name in made)]
