"""A run as JSON, tables, pictures and a page."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from bench import document, performance_page, tables
from bench.cases import single
from bench.samples import Spread, by_case, spread
from tests.bench.figures import a_document, sample


def test_json_there_and_back(tmp_path: Path) -> None:
    """What is read is what was written; the file says which targets are met to whoever reads only it."""
    made = a_document()
    made.save(tmp_path / "new" / "run.json")
    assert document.load(tmp_path / "new" / "run.json") == made
    plain = json.loads((tmp_path / "new" / "run.json").read_text())
    assert {target["met"] for target in plain["targets"]} == {True, False}


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    """With its name."""
    path = tmp_path / "run.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(ValueError, match=r"run\.json has schema 99"):
        document.load(path)
    path.write_text("not JSON")
    for wrong in (path, tmp_path / "none.json"):
        with pytest.raises(ValueError, match=f"{wrong.name} isn't a result"):
            document.load(wrong)


def test_tables_show_every_kind_of_figure() -> None:
    """On a terminal and as Markdown: titles, medians, spreads, what isn't met."""
    console = Console(file=io.StringIO(), width=160)
    tables.show(a_document(), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (
        "Targets", "NO", "yes", "18.0 (9.0 to 27.0)", "Python client", "10,000 idle", "5,000 steps/s asked", "T = 16"
    ):  # fmt: skip
        assert text in shown
    grid = next(grid for grid in tables.grids(a_document()) if grid.title.startswith("Where each"))
    lines = grid.markdown().splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    row = next(line for line in lines if line.startswith("| 64 streams |"))
    assert row == "| 64 streams | 18.0 (9.0 to 27.0) | 10.0 | 5.00 | 3.00 | 64.0 | 2.00 |"


def test_tables_without_studies() -> None:
    """A quick run."""
    made = a_document()
    quick = document.Document(
        date=made.date, commit="", machine="", versions={}, seconds=1.0, load=0.0, rounds=made.rounds[:1]
    )
    titles = [grid.title for grid in tables.grids(quick)]
    assert not any("Open loop" in title or "Everything else" in title for title in titles)


def test_the_page_is_rewritten_between_its_marks_only(tmp_path: Path) -> None:
    """Twice gives what once gives; the pictures are XML."""
    page = tmp_path / "performance.md"
    page.write_text(f"# By hand\n{performance_page.BEGIN}\nold\n{performance_page.END}\nalso by hand\n")
    performance_page.publish(a_document(), Path("bench/results/x.json"), tmp_path)
    once = page.read_text()
    performance_page.publish(a_document(), Path("bench/results/x.json"), tmp_path)
    assert page.read_text() == once
    assert once.startswith("# By hand\n")
    assert once.endswith("\nalso by hand\n")
    assert "old" not in once
    assert "a machine" in once
    for name in (performance_page.BARS, performance_page.CURVES):
        assert f"({name})" in once
        root = ET.fromstring((tmp_path / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    bars = ET.fromstring((tmp_path / performance_page.BARS).read_text())
    hints = [title.text for title in bars.iter("{http://www.w3.org/2000/svg}title")]
    assert "compute: raw ONNX Runtime: 5.00" in hints


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    """And the fault is named."""
    page = tmp_path / "performance.md"
    page.write_text("# By hand\n")
    with pytest.raises(ValueError, match="lacks the marks"):
        performance_page.publish(a_document(), Path("x.json"), tmp_path)
    assert page.read_text() == "# By hand\n"


def test_open_loops_are_shown_by_their_medians() -> None:
    """Three rounds of one case are one line; another rate is another case."""
    case = replace(single(64), rate=100.0)
    rounds = [sample(case, p99=value, unanswered=value) for value in (5.0, 1.0, 900.0)]
    (first, other) = by_case([*rounds, sample(replace(case, rate=200.0))])
    assert (first.p99, first.unanswered, first.case) == (5.0, 5.0, case)
    assert other.case.rate == 200.0


def test_spreads() -> None:
    """Median and extremes, with about three digits."""
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([]) is None
    assert str(Spread(1234.5, 12.0, 2e4)) == "1,234 (12 to 20,000)"
