"""The recorder, before a real server: what clients send is noted, and plays back."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cellstream
from bench import record, simulate
from bench.simulation import arrivals
from serving.config import ServerConfig
from serving.errors import ConfigError


def test_what_clients_send_is_noted_and_plays_back(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chunks of two streams, one after the other, in order with their steps; other models' aren't noted."""
    leave, told = threading.Event(), threading.Event()
    addresses: list[str] = []

    def started(address: str) -> None:
        addresses.append(address)
        told.set()

    with ThreadPoolExecutor(1) as threads:
        config = ServerConfig(artifacts, "127.0.0.1:0", grace=1.0)
        serving = threads.submit(record.record, config, "tokens", started=started, leave=leave)
        assert told.wait(30)
        with cellstream.connect(addresses[0]) as client:
            for cuts in ((1, 3, 1), (40,)):
                with client.stream("tokens") as stream:
                    for steps in cuts:
                        stream.step([1] * steps if steps > 1 else 1)
            with client.stream("vectors") as stream:
                stream.step([0.0] * 5)
        leave.set()
        rows, left_well = serving.result(30)
    assert left_well
    assert [(row.stream, row.steps) for row in rows] == [(1, 1), (1, 3), (1, 1), (2, 40)]
    assert rows[0].seconds == 0
    assert [row.seconds for row in rows] == sorted(row.seconds for row in rows)
    path = tmp_path / "noted.csv"
    assert arrivals.write(path, rows) == 4
    assert simulate.main(["--recorded", str(path), "--variant", "as-built", "--variant", "beside-1"]) == 0
    out = capsys.readouterr().out
    assert "noted, as-built: holds" in out
    assert "noted, beside-1: holds" in out


def test_the_command_notes_until_a_signal(artifacts: Path, tmp_path: Path) -> None:
    """Ctrl-C ends it, and the file is written; its exit status says that nothing had arrived."""
    out = tmp_path / "out.csv"
    words = [str(out), "--model-repository", str(artifacts), "--model", "tokens", "--listen", "127.0.0.1:0"]
    command = [sys.executable, "-m", "bench.record", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on 127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().startswith("wrote 0 chunks of ")
        assert process.wait(30) == 1
    assert out.read_text().splitlines() == ["seconds,stream,steps"]


def test_which_model_must_be_clear(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several models and none named, one that isn't there, a folder that isn't there: each is told."""
    config = ServerConfig(artifacts, "127.0.0.1:0")
    leave = threading.Event()
    with pytest.raises(ConfigError, match="name one of tokens, vectors, wide with --model"):
        record.record(config, "", started=lambda _: None, leave=leave)
    with pytest.raises(ConfigError, match="no model 'x'"):
        record.record(config, "x", started=lambda _: None, leave=leave)
    assert record.main([str(tmp_path / "none" / "out.csv")]) == 2
    assert "can't be written" in capsys.readouterr().err
