"""The file that grows with every record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu import records
from bench.gpu.plan import Who
from tests.bench.gpu.figures import a_document, step


def test_json_there_and_back(tmp_path: Path) -> None:
    """Of every kind; half a file is never there."""
    made = a_document()
    made.save(tmp_path / "new" / "gpu.json", [{"name": "one", "met": True}])
    assert records.load(tmp_path / "new" / "gpu.json") == made
    assert json.loads((tmp_path / "new" / "gpu.json").read_text())["targets"] == [{"name": "one", "met": True}]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["gpu.json"]


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"schema": 99}',
        '{"schema": 1, "records": [{"kind": "Nobody"}]}',
        '{"schema": 1, "records": [{}]}',
        '{"schema": 1, "records": [{"kind": "Skipped", "what": "one"}]}',
        '{"schema": 1, "records": []}',
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    """In a sentence."""
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"make bench-gpu"):
        records.load(path)


def test_medians_are_of_one_step() -> None:
    """Of the rounds, per time step; nothing of what wasn't measured."""
    one = step(8, device=10.0, steps=16)
    assert one.device == 10.0
    assert one.host is None
    other = step(8, Who.ENGINE, device=None, host=20.0, steps=16)
    assert (other.device, other.host) == (None, 20.0)
