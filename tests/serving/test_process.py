"""The server as a process: its command line, its signals, and what it imports."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from serving import __main__ as command
from serving.config import WIRE_ENVIRONMENT, ServerConfig
from serving.errors import ConfigError
from tests.serving.client import StreamCall
from tests.serving.test_server import vectors

SECONDS = 60.0


@contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m serving` on a free port: the process and its address."""
    command = [sys.executable, "-m", "serving", "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.kill()


def failed_start(*options: str) -> str:
    """What a server that can't start says; it must leave with status 2."""
    command = [sys.executable, "-m", "serving", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_sigterm_drains_and_leaves_with_status_0(artifacts: Path) -> None:
    """An open stream is told, may finish, and the process leaves with 0 and a log in JSON lines."""
    with started("--model-repository", str(artifacts), "--grace", "30") as (process, address):
        with grpc.insecure_channel(address) as channel, StreamCall(channel) as stream:
            stream.open("vectors")
            process.send_signal(signal.SIGTERM)
            assert stream.receive().go_away.grace_ms == 30_000
            assert len(stream.run(vectors(3, 0))) == 3
            stream.half_close()
            assert stream.end()[0] is grpc.StatusCode.OK
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        events = [line for line in said.splitlines() if '"event": "stopped"' in line]
        assert len(events) == 1
        assert '"streams_cut_off": 0' in events[0]


def test_a_second_signal_exits_at_once(artifacts: Path) -> None:
    """With an hour of grace and a stream open, a second Ctrl-C still ends the process now."""
    with (
        started("--model-repository", str(artifacts), "--grace", "3600") as (process, address),
        grpc.insecure_channel(address) as channel,
        StreamCall(channel) as stream,
    ):
        stream.open("vectors")
        process.send_signal(signal.SIGINT)
        assert stream.receive().go_away.grace_ms == 3_600_000
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 128 + signal.SIGINT


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGTTOU"])
def test_other_signals_change_nothing(signalled: tuple[subprocess.Popen[str], StreamCall], name: str) -> None:
    """The stream goes on, and no GoAway is said."""
    process, stream = signalled
    process.send_signal(signal.Signals[name])
    for _ in range(20):
        assert len(stream.run(vectors(1, 0))) == 1
    assert process.poll() is None


@pytest.fixture(scope="module")
def signalled(artifacts: Path) -> Iterator[tuple[subprocess.Popen[str], StreamCall]]:
    """A server and an open stream of it; the server drains in the end."""
    with (
        started("--model-repository", str(artifacts)) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        with StreamCall(channel, timeout=None) as stream:
            stream.open("vectors")
            yield process, stream
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_a_server_outlives_its_terminal(artifacts: Path) -> None:
    """When the terminal that it was started in is closed, the stream goes on, and SIGTERM drains as ever."""
    ours, theirs = pty.openpty()
    take_terminal = (
        "import fcntl, os, sys, termios\n"
        "fcntl.ioctl(2, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'serving', *sys.argv[1:]])"
    )
    options = ["--model-repository", str(artifacts), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [sys.executable, "-c", take_terminal, *options], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        assert process.stdout is not None
        try:
            address = process.stdout.readline().removeprefix("listening on ").strip()
            with grpc.insecure_channel(address) as channel, StreamCall(channel) as stream:
                stream.open("vectors")
                stream.run(vectors(1, 0))
                os.close(ours)
                for _ in range(20):
                    assert len(stream.run(vectors(1, 0))) == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def test_a_port_that_is_taken_is_said(artifacts: Path) -> None:
    """Two servers on a port would each get half of the clients; the second doesn't start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"can't listen on '{address}'" in failed_start("--model-repository", str(artifacts), "--listen", address)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model-repository", "/nonexistent"], "make export"),
        (["--device", "gpu"], "device 'gpu': it must be cpu, cuda or cuda:N"),
        pytest.param(
            ["--device", "cuda", "--listen", "127.0.0.1:0"],
            "error: cuda:0 can't be had on this machine. Driver: libcuda.so.1: ",
            marks=pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="this machine has a GPU"),
        ),
        (["--max-streams", "0"], "max_streams is 0; it must be from 1 to"),
        (["--window-steps", "5000000000"], "window_steps is 5000000000; it must be from 1 to"),
        (["--grace", "-1"], "grace is -1.0 s"),
        (["--grace", "nan"], "grace is nan s"),
        (["--listen", "127.0.0.1"], "'127.0.0.1' isn't an address; it must be HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "with a port from 0 to 65535"),
        (["--listen", "::1:50051"], "in brackets"),
        (["--metrics-listen", "127.0.0.1:99999", "--listen", "127.0.0.1:0"], "with a port from 0 to 65535"),
    ],
)
def test_options_that_can_not_be_had(artifacts: Path, options: list[str], text: str) -> None:
    """An operator's mistake is one line that names it, and status 2."""
    repository = [] if "--model-repository" in options else ["--model-repository", str(artifacts)]
    assert text in failed_start(*repository, *options)


def test_a_damaged_graph_is_said(artifacts: Path, tmp_path: Path) -> None:
    """A file that isn't a graph is named."""
    broken = tmp_path / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "resident.onnx").write_bytes(b"this isn't a graph")
    assert "broken/1/resident.onnx" in failed_start("--model-repository", str(tmp_path), "--listen", "127.0.0.1:0")


def test_help_teaches() -> None:
    """`--help` shows examples and what the signals do."""
    command = [sys.executable, "-m", "serving", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    assert "examples:" in said
    assert "SIGTERM" in said
    assert "(default: 127.0.0.1:50051)" in said


@pytest.mark.parametrize("package", ["serving.server", "cellstream"])
def test_importing_it_loads_neither_torch_nor_onnx(package: str) -> None:
    """A serving machine and a client need none of the exporter's dependencies."""
    program = (
        f"import sys, {package}\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & {'torch', 'onnx', 'safetensors', 'export'}\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(("theirs", "found"), [(None, WIRE_ENVIRONMENT["GRPC_EXPERIMENTS"]), ("", "")])
def test_grpc_is_told_who_reads_its_sockets(
    theirs: str | None, found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server's environment says it before gRPC is there, unless the operator has said something else."""
    monkeypatch.setenv("GRPC_EXPERIMENTS", theirs or "")
    if theirs is None:
        monkeypatch.delenv("GRPC_EXPERIMENTS")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(ConfigError, match="no model under"):
        command._serve(ServerConfig(tmp_path), None)
    assert os.environ["GRPC_EXPERIMENTS"] == found


def test_the_command_line_does_not_import_grpc_by_itself() -> None:
    """GRPC reads its environment when it is imported, so that must come after."""
    code = "import sys, serving.__main__; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
