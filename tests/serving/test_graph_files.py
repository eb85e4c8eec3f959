"""A graph's bytes are read once: what happens to its files later changes no answer and kills nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export import pipeline
from model.checkpoint import Checkpoint
from model.lstm import LSTM, Spec
from serving import device
from serving.engine import Engine
from serving.errors import ConfigError
from serving.graph_files import WEIGHTS, GraphFiles

WORDS = 3000  # rows of the table: hundreds of pages, so that a mapping of the file would show


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a table that isn't packed when it is loaded, unproved."""
    folder = tmp_path_factory.mktemp("made")
    spec = Spec(vocabulary=WORDS, encoder_size=64, hidden_size=8, output_size=3)
    pipeline.write_graphs(Checkpoint(LSTM(spec), {}), folder, "words")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "1"))


def engine_of(source: Path | GraphFiles) -> Engine:
    """A small engine."""
    return Engine(source, rows=4, max_batch=1, slice_steps=4, max_run_steps=4, threads=1)


def answers(engine: Engine) -> list[bytes]:
    """What it says to words from all over the table, each from the first state."""
    words = range(0, WORDS, 97)
    runs = [engine.run([(np.int64(word).tobytes(),)], [1], [0], [1]) for word in words]
    return [output for run in runs for outputs in run for output in outputs]


def overwrite(path: Path) -> None:
    """Other bytes in the same file."""
    with path.open("r+b") as file:
        file.write(b"\x3f" * path.stat().st_size)


def replace(path: Path) -> None:
    """Another file of that name."""
    path.with_suffix(".new").write_bytes(b"\x3f" * path.stat().st_size)
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("most_bytes", [device.MOST_BYTES, 0], ids=["in memory", "a private copy"])
@pytest.mark.parametrize(
    "change",
    [overwrite, replace, lambda path: os.truncate(path, 0), lambda path: os.truncate(path, 5000), Path.unlink],
    ids=["overwritten", "replaced", "emptied", "truncated", "removed"],
)
def test_files_that_change_under_an_engine_change_no_answer(
    folder: Path, change: Callable[[Path], object], most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine of a folder that is rewritten, cut or emptied answers as before, in every row of its table."""
    monkeypatch.setattr(device, "MOST_BYTES", most_bytes)
    engine, before = engine_of(folder / "resident.onnx"), answers(engine_of(folder / "resident.onnx"))
    change(folder / WEIGHTS)
    change(folder / "resident.onnx")
    assert answers(engine) == before


def test_what_was_read_is_what_computes(folder: Path) -> None:
    """Weights that change between the reading and the session are neither computed with nor what the digest is of."""
    files = GraphFiles.read(folder / "resident.onnx")
    read, before = files.weights_digest, answers(engine_of(folder / "resident.onnx"))
    overwrite(folder / WEIGHTS)
    assert files.weights_digest == read != GraphFiles.read(folder / "resident.onnx").weights_digest
    assert answers(engine_of(files)) == before


def test_files_that_can_not_be_read_are_named(folder: Path) -> None:
    """A graph that is missing, and weights that are a folder, are errors that say which; a client hears no path."""
    (folder / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=rf"no {WEIGHTS} beside it") as error:
        engine_of(folder / "resident.onnx")
    assert str(folder) not in error.value.public
    (folder / WEIGHTS).mkdir()
    with pytest.raises(ConfigError, match=rf"can't read .*{WEIGHTS}: Is a directory"):
        GraphFiles.read(folder / "resident.onnx")
    with pytest.raises(ConfigError, match=r"can't read .*gone\.onnx: No such file"):
        GraphFiles.read(folder / "gone.onnx")
