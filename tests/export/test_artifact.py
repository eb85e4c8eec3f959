"""The artifact on disk: names, versions, digests, and a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from export import artifact
from export.artifact import ArtifactError


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", ".hidden", "ä", "a\n", "../../etc"])
def test_names_that_make_no_folder_are_refused(name: str) -> None:
    """A name with anything but letters, digits, '.', '_' and '-', or that hides, is refused."""
    with pytest.raises(ArtifactError, match="letters, digits"):
        artifact.check_name(name)


@pytest.mark.parametrize("name", ["bytelm", "My-Model_2.1", "0"])
def test_ordinary_names_are_taken(name: str) -> None:
    """Ordinary names come back as they are."""
    assert artifact.check_name(name) == name


def test_the_next_version_is_after_the_newest(tmp_path: Path) -> None:
    """Versions count from 1 and after the greatest, gaps and strangers notwithstanding."""
    assert artifact.target(tmp_path, "a", None) == tmp_path / "a" / "1"
    for name in ("1", "10", "9", ".11-x", "latest", "012"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert artifact.versions(tmp_path / "a") == [1, 9, 10]
    assert artifact.target(tmp_path, "a", None) == tmp_path / "a" / "11"
    assert artifact.target(tmp_path, "a", 3) == tmp_path / "a" / "3"


def test_an_existing_version_is_refused(tmp_path: Path) -> None:
    """Asking for a version that exists says what to do, and so does one below 1."""
    (tmp_path / "a" / "2").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="exists, and artifacts never change: leave out --version"):
        artifact.target(tmp_path, "a", 2)
    with pytest.raises(ArtifactError, match="count from 1"):
        artifact.target(tmp_path, "a", 0)


def test_a_staged_folder_appears_at_the_end(tmp_path: Path) -> None:
    """While the block runs nothing has the final name; afterwards it is all there, readable by others."""
    final = tmp_path / "a" / "1"
    with artifact.staged(final) as folder:
        (folder / "file").write_text("content")
        assert not final.exists()
        assert artifact.versions(tmp_path / "a") == []
    assert (final / "file").read_text() == "content"
    assert final.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["1"]


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(fault: BaseException, tmp_path: Path) -> None:
    """Whatever ends the block, the folder vanishes, and so does the model's own folder if it was new."""

    def fail() -> None:
        with artifact.staged(tmp_path / "a" / "1") as folder:
            (folder / "file").write_text("content")
            raise fault

    with pytest.raises(type(fault)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_appeared_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Of two exports to one version the first to finish stays, and the second says so."""
    final = tmp_path / "a" / "1"

    def late() -> None:
        with artifact.staged(final) as folder:
            (folder / "file").write_text("second")
            final.mkdir()
            (final / "file").write_text("first")

    with pytest.raises(ArtifactError, match="appeared while this export ran"):
        late()
    assert (final / "file").read_text() == "first"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["1"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Where the repository can't be, the message names it."""
    (tmp_path / "file").write_text("")

    def write() -> None:
        with artifact.staged(tmp_path / "file" / "a" / "1"):
            pass

    with pytest.raises(ArtifactError, match="can't write into"):
        write()


def graph_of(**weights: np.ndarray) -> ModelProto:
    """A graph without nodes that has these initializers."""
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return helper.make_model(helper.make_graph([], "g", [], [], tensors))


def test_weights_move_and_come_back(tmp_path: Path) -> None:
    """Weights go to their file, aligned, and load from there bit for bit; small integers stay in the graph."""
    weights: dict[str, np.ndarray] = {
        "odd": np.arange(7, dtype=np.float32),
        "scalar": np.array(2.5, dtype=np.float64),
        "axes": np.array([0, 1], dtype=np.int64),
        "table": np.arange(1000, dtype=np.int64),
    }
    model = graph_of(**weights)
    digest = artifact.write_weights(model, tmp_path / artifact.WEIGHTS)
    data = (tmp_path / artifact.WEIGHTS).read_bytes()
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    external = {tensor.name for tensor in model.graph.initializer if tensor.data_location}
    assert external == {"odd", "scalar", "table"}
    assert len(data) == 128 + 8000
    onnx.save(model, tmp_path / "m.onnx")
    for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer:
        found = numpy_helper.to_array(tensor)
        assert found.dtype == weights[tensor.name].dtype
        assert np.array_equal(found, weights[tensor.name])


def test_find_names_what_is_missing(tmp_path: Path) -> None:
    """No artifact and half an artifact have different messages; the newest version is found by number."""
    with pytest.raises(ArtifactError, match="no artifact at"):
        artifact.find(tmp_path / "a")
    for version in ("9", "10"):
        (tmp_path / "a" / version).mkdir(parents=True)
        (tmp_path / "a" / version / artifact.MODEL).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"10 is damaged: no model\.onnx\.data and no resident\.onnx"):
        artifact.find(tmp_path / "a")


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    """Junk, and a graph without a contract, are refused with the file's name."""
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 9)
    onnx.save(graph_of(), tmp_path / "bare.onnx")
    with pytest.raises(ArtifactError, match=r"junk\.onnx can't be read"):
        artifact.read_graph(tmp_path / "junk.onnx", weights=False)
    with pytest.raises(ArtifactError, match=r"bare\.onnx: no contract"):
        artifact.read_graph(tmp_path / "bare.onnx", weights=False)
