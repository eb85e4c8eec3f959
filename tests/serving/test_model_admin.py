"""The operator's hand on models, over a real port: what is listed, loaded and let go, and what is said of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cellstream.errors import CellstreamError, UnknownModel
from cellstream.models import ModelSummary
from cellstream.models.__main__ import main
from cellstream.models.control import ModelChange, list_models, load_model, unload_model
from serving.config import Batching, Limits, ServerConfig
from serving.server import Server


@pytest.fixture
def repository(artifacts: Path, tmp_path: Path) -> Path:
    """vectors/1, vectors/2, and a vectors/3 that can't be served."""
    for version in ("1", "2"):
        shutil.copytree(artifacts / "vectors" / version, tmp_path / "vectors" / version)
    shutil.copytree(artifacts / "vectors" / "1", tmp_path / "vectors" / "3")
    (tmp_path / "vectors" / "3" / "resident.onnx").write_bytes(b"no graph")
    return tmp_path


@pytest.fixture
def address(repository: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that may be told what to serve, unless the test says otherwise."""
    control = getattr(request, "param", True)
    config = ServerConfig(
        repository,
        "127.0.0.1:0",
        grace=0.2,
        limits=Limits(max_streams=9),
        batching=Batching(2, 2),
        model_control=control,
    )
    running = Server(config)
    running.start()
    yield running.address
    assert running.drain()


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    """A connection to it."""
    with grpc.insecure_channel(address) as connection:
        yield connection


WHY = "ONNX Runtime can't load its resident.onnx"


def test_one_version_goes_and_comes_back(channel: grpc.Channel) -> None:
    """Each answer says what was done; the list says what is served, what could be, and why something isn't."""
    assert list_models(channel) == (
        ModelSummary("vectors", 1, ready=True),
        ModelSummary("vectors", 2, ready=True),
        ModelSummary("vectors", 3, ready=False, reason=WHY),
    )
    assert unload_model(channel, "vectors", 2) == (ModelChange(2, "unloaded", "", None),)
    assert [(one.ready, one.reason) for one in list_models(channel)] == [
        (True, ""),
        (False, "not loaded"),
        (False, WHY),
    ]
    assert load_model(channel, "vectors") == (
        ModelChange(1, "unchanged", "", None),
        ModelChange(2, "loaded", "", None),
        ModelChange(3, "failed", WHY, None),
    )
    assert [change.version for change in unload_model(channel, "vectors")] == [1, 2]
    with pytest.raises(UnknownModel, match="'vectors' version 2: it isn't served"):
        unload_model(channel, "vectors", 2)
    with pytest.raises(UnknownModel, match="'vectors' version 9: the repository has no such model"):
        load_model(channel, "vectors", 9)


def test_the_command_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same by hand: a line for each version, and exit status 1 where something failed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["--address", address, *arguments])
        said = capsys.readouterr()
        ours = [line for line in said.out.splitlines(keepends=True) if not re.match(r"\d{4}-", line)]  # no log lines
        return status, "".join(ours), said.err

    status, out, err = run("list")
    assert (status, err) == (0, "")
    assert [line.split(maxsplit=2) for line in out.splitlines()[1:]] == [
        ["vectors", "1", "ready"],
        ["vectors", "2", "ready"],
        ["vectors", "3", WHY],
    ]
    assert run("unload", "vectors", "--version", "2") == (0, "vectors/2 unloaded\n", "")
    assert run("load", "vectors") == (1, "vectors/1 unchanged\nvectors/2 loaded\n", f"vectors/3 failed: {WHY}\n")
    status, out, err = run("load", "nope")
    assert (status, out) == (1, "")
    assert "failed to load 'nope': the repository has no such model" in err


@pytest.mark.parametrize("address", [False], indirect=True)
def test_without_model_control_nothing_changes(address: str, channel: grpc.Channel) -> None:
    """Both are refused, naming the option; the list answers."""
    for change in (load_model, unload_model):
        with pytest.raises(CellstreamError, match="start the server with --model-control explicit"):
            change(channel, "vectors")
    assert sum(one.ready for one in list_models(channel)) == 2


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, no traceback."""
    assert main(["--address", "127.0.0.1:9", "--timeout", "5", "list"]) == 1
    said = capsys.readouterr().err
    assert said
    assert "Traceback" not in said
