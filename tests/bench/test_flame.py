"""The flame graph: shares as the stacks have them, and clear words for files that hold none."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import flame

STACKS = """\
thread_run (libpython.so);Loop._run (serving/loop.py:7);Loop._turn (serving/loop.py:79);Wire.poll (serving/wire.py:3);\
Call.on_message (serving/wire.py:9) 2
Loop._run (serving/loop.py:7);Loop._turn (serving/loop.py:83);Lane.turn (serving/lane.py:1);\
Engine.run (serving/engine.py:9);\
0x1 (onnxruntime_pybind11_state.so);0x2 (onnxruntime_pybind11_state.so) 5
Loop._turn (serving/loop.py:83);Lane.turn (serving/lane.py:2);join (abc.py:1);Engine.run (serving/engine.py:8) 3
main (other.py:1);sleep (libc.so) 90
"""


def test_frames_have_their_shares() -> None:
    """Samples outside the loop don't count, lines of one function are one, a library is one frame."""
    root = flame.fold(STACKS.splitlines())
    assert root.count == 10
    assert {name: frame.count for name, frame in root.calls.items()} == {"Wire.poll": 2, "Lane.turn": 8}
    assert list(root.calls["Wire.poll"].calls) == ["Call.on_message"]
    engine = root.calls["Lane.turn"].calls["Engine.run"]
    assert (engine.count, engine.calls["ONNX Runtime"].count) == (8, 5)
    assert engine.calls["ONNX Runtime"].calls == {}


def test_the_picture_is_as_wide_as_the_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame's rectangle is its share of the width, under its caller's."""
    (tmp_path / "stacks").write_text(STACKS)
    out = tmp_path / "flame.svg"
    monkeypatch.setattr(sys, "argv", ["flame", str(tmp_path / "stacks"), "--out", str(out)])
    assert flame.main() == 0
    groups = ET.fromstring(out.read_text()).findall("{*}g")
    widths = {}
    for group in groups:
        rectangle, title = group.find("{*}rect"), group.find("{*}title")
        assert rectangle is not None
        assert title is not None
        widths[(title.text or "").split(":")[0]] = float(rectangle.get("width", 0))
    assert widths["one turn of the loop"] == flame.WIDTH
    assert widths["Lane.turn"] == 0.8 * flame.WIDTH
    assert widths["ONNX Runtime"] == 0.5 * flame.WIDTH


@pytest.mark.parametrize(("text", "said"), [("", "no stack with Loop._turn"), ("Loop._turn x", "error")])
def test_what_holds_no_stacks_is_told(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and no picture."""
    (tmp_path / "stacks").write_text(text)
    monkeypatch.setattr(sys, "argv", ["flame", str(tmp_path / "stacks"), "--out", str(tmp_path / "out.svg")])
    assert flame.main() == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.svg").exists()
