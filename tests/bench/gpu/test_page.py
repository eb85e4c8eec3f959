"""Tables, pictures and the page."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from bench.gpu import page, pictures, tables
from bench.gpu.records import Skipped
from tests.bench.gpu.figures import a_document, step

SVG = "{http://www.w3.org/2000/svg}"


def test_the_page_is_rewritten_between_its_marks_only(tmp_path: Path) -> None:
    """Twice gives what once gives, verdicts first."""
    (tmp_path / page.PAGE).write_text(f"# By hand\n{page.BEGIN}\nold\n{page.END}\nalso by hand\n")
    written = page.publish(a_document(), Path("bench/results/gpu-x.json"), tmp_path)
    once = written[0].read_text()
    assert page.publish(a_document(), Path("bench/results/gpu-x.json"), tmp_path)[0].read_text() == once
    assert once.startswith("# By hand\n")
    assert once.endswith("\nalso by hand\n")
    assert "old" not in once
    assert "NVIDIA H100" in once
    assert "(../bench/results/gpu-x.json)" in once
    assert "It was cut off" in once
    assert once.index("### Targets") < once.index("### µs per time step")
    assert [path.name for path in written] == [page.PAGE, pictures.steps_of("tf32"), pictures.SERVED]


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    """And so is one that isn't there; the pictures are drawn all the same."""
    with pytest.raises(page.NoPlaceError, match=r"gpu\.md isn't there"):
        page.publish(a_document(), Path("x.json"), tmp_path)
    (tmp_path / page.PAGE).write_text("# By hand\n")
    with pytest.raises(page.NoPlaceError, match="lacks the marks"):
        page.publish(a_document(), Path("x.json"), tmp_path)
    assert (tmp_path / page.PAGE).read_text() == "# By hand\n"
    assert (tmp_path / pictures.steps_of("tf32")).exists()


def test_pictures_show_every_contestant_and_the_floor() -> None:
    """As curves over the batch that lie within the picture; chunks are no part of them."""
    made = pictures.pictures(a_document(step(8, device=1e6, steps=16)))
    root = ET.fromstring(made[pictures.steps_of("tf32")])
    hints = {title.text for title in root.iter(f"{SVG}title")}
    assert {
        "ours, graphs: B 64, 13.0 µs",
        "torch.nn.LSTM: B 1, 48.0 µs",
        "compiled cell in a graph: B 1, 6.0 µs",
        "floor: B 1, 7.0 µs",
    } <= hints
    assert not any("B 8," in str(hint) for hint in hints)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    bars = {title.text for title in ET.fromstring(made[pictures.SERVED]).iter(f"{SVG}title")}
    assert "thousand steps per second: 400.00" in bars


def test_nothing_is_drawn_of_nothing() -> None:
    """A run that was cut off at its very start."""
    empty = a_document()
    empty.records.clear()
    assert pictures.pictures(empty) == {}
    assert [grid.title for grid in tables.grids(empty)] == ["Targets, at the worst size"]


def test_a_terminal_is_shown_the_telling_sizes() -> None:
    """Floor, ratios, times; what wasn't measured, but not endlessly; the verdicts last."""
    found = a_document(step(4), *(Skipped(f"thing {number}", "crashed") for number in range(20)))
    console = Console(file=io.StringIO(), width=220)
    tables.show(found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line for line in shown.splitlines() if line.startswith("│ 1024, 1 layers, tf32, T 1 │")]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert [row[1] for row in cells] == ["1", "64"]  # and not 4
    # floor, bound, over it, of the matrix rate; on the device; from and to host memory
    assert cells[0][2:] == ["7.00", "launches", "1.7", "0%", "12.0", "24.0", "36.0", "48.0", "6.00", "20.0", "50.0"]
    assert "nvidia-smi doesn't tell" in shown
    assert "and 9 more" in shown
    assert shown.index("Not measured") < shown.index("Targets, at the worst size")
