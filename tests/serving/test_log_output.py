"""The log and the line on stdout: whatever becomes of them, nothing else is changed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import structlog

from serving.log_output import MOST_LINES, MOST_OF_A_KIND, MOST_PLAIN, WINDOW_SECONDS, Counts, Output, Throttle
from tests.serving.client import StreamCall
from tests.serving.test_process import SECONDS
from tests.serving.test_server import vectors
from tests.waiting import wait_until

PIPE_BYTES = 4096


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of the smallest size: what reads, what writes."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        yield read, write
    finally:
        for end in (read, write):
            with contextlib.suppress(OSError):  # the test may have done it
                os.close(end)


def test_lines_arrive_in_their_order() -> None:
    """What is written comes out, line by line."""
    with pipe() as (read, write):
        output = Output(write, Counts())
        for number in range(5):
            output.write(f"line {number}")
        assert output.flush(SECONDS)
        assert os.read(read, PIPE_BYTES) == b"line 0\nline 1\nline 2\nline 3\nline 4\n"


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    """Every line that ENOSPC meets is counted."""
    counts = Counts()
    with Path("/dev/full").open("wb", buffering=0) as full:
        output = Output(full.fileno(), counts)
        for _ in range(7):
            output.write("line")
        assert output.flush(SECONDS)
    assert counts.lost == 7


def test_a_reader_that_has_gone_costs_lines_and_nothing_else() -> None:
    """EPIPE, and a descriptor that is closed."""
    counts = Counts()
    with pipe() as (read, write):
        os.close(read)
        output = Output(write, counts)
        output.write("line")
        assert output.flush(SECONDS)
        assert counts.lost == 1
    output.write("line")
    assert output.flush(SECONDS)
    assert counts.lost == 2


def test_a_reader_that_has_stopped_holds_nobody_up() -> None:
    """Writers go on at once, the latest lines are lost, and when the reader goes on it is told how many."""
    counts = Counts()
    told: list[int] = []
    with pipe() as (read, write):
        output = Output(write, counts)
        output.on_recovered = told.append
        line = "x" * 1023
        for _ in range(MOST_LINES + 50):
            output.write(line)
        assert not output.flush(0.1)
        wait_until(lambda: counts.lost > 0)
        lost, left = counts.lost, (MOST_LINES + 50 - counts.lost) * 1024
        while left:
            left -= len(os.read(read, min(left, PIPE_BYTES)))
        assert output.flush(SECONDS)
        assert told == [lost]
        output.write("again")
        assert os.read(read, PIPE_BYTES) == b"again\n"


def test_a_descriptor_that_another_process_made_non_blocking() -> None:
    """What doesn't fit at once is written when the reader has read."""
    counts = Counts()
    with pipe() as (read, write):
        os.set_blocking(write, False)
        output = Output(write, counts)
        output.write("y" * (2 * PIPE_BYTES - 1))
        left = 2 * PIPE_BYTES
        while left:
            left -= len(os.read(read, left))
        assert output.flush(SECONDS)
        assert counts.lost == 0


def let_through(throttle: Throttle, method: str, **event: object) -> bool:
    """Whether a line is written."""
    try:
        throttle(None, method, dict(event))
    except structlog.DropEvent:
        return False
    return True


def test_each_kind_of_line_has_its_bound() -> None:
    """One model's failing runs leave room for another's; the next window's first line says how many were left out."""
    counts, now = Counts(), 0.0
    throttle = Throttle(counts, lambda: now)
    failing = {"event": "run failed", "model": "a", "version": 1}
    written = sum(let_through(throttle, "warning", **failing, error=str(number)) for number in range(500))
    assert (written, counts.suppressed) == (MOST_OF_A_KIND, 480)
    assert let_through(throttle, "warning", **failing | {"model": "b"})
    assert throttle.take_quiet() == {}
    now = WINDOW_SECONDS
    event = throttle(None, "warning", dict(failing))
    assert event["suppressed_before"] == 480
    assert sum(let_through(throttle, "info", event="model loaded", model="a") for _ in range(2000)) == MOST_PLAIN
    now = 2 * WINDOW_SECONDS
    assert throttle.take_quiet() == {"model loaded a": 1000}
    assert throttle.take_quiet() == {}


def serve(artifacts: Path, *options: str, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    """`python -m serving`, with these for its output."""
    command = [sys.executable, "-m", "serving", "--model-repository", str(artifacts), *options]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)


def free_port() -> int:
    """A port that nobody has at the moment."""
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_whose_readers_have_stopped(artifacts: Path, workers: str) -> None:
    """With stdout and stderr stuck from the start it starts, computes, tells of lost lines, and drains."""
    port, metrics = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    options = ("--listen", address, "--metrics-listen", f"127.0.0.1:{metrics}", "--workers", workers)
    with ExitStack() as stack:
        (_, out), (_, err) = stack.enter_context(pipe()), stack.enter_context(pipe())
        for end in (out, err):
            os.write(end, bytes(PIPE_BYTES))
        process = serve(artifacts, *options, stdout=out, stderr=err)
        stack.callback(process.wait)
        stack.callback(process.kill)
        channel = stack.enter_context(grpc.insecure_channel(address))
        grpc.channel_ready_future(channel).result(SECONDS)
        with StreamCall(channel) as stream:
            stream.open("vectors")
            assert len(stream.run(vectors(3, 0))) == 3
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=SECONDS) as response:
            assert "cellstream_log_lines_lost_total" in response.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_without_standard_files(artifacts: Path, workers: str) -> None:
    """With 0, 1 and 2 closed no connection gets their numbers, and clients get answers instead of log lines."""
    address = f"127.0.0.1:{free_port()}"
    serving = f"{sys.executable} -m serving --model-repository {artifacts} --listen {address} --workers {workers}"
    process = subprocess.Popen(["sh", "-c", f"exec {serving} <&- >&- 2>&-"])
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(SECONDS)
            with StreamCall(channel) as stream:
                stream.open("vectors")
                assert len(stream.run(vectors(3, 0))) == 3
                for number in range(3):
                    assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path(os.devnull)
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def test_an_error_that_no_one_reads_keeps_its_status(artifacts: Path) -> None:
    """An operator's mistake is status 2 though stderr is full."""
    with Path("/dev/full").open("wb") as full:
        process = serve(artifacts, "--max-streams", "0", stdout=full.fileno(), stderr=full.fileno())
        assert process.wait(SECONDS) == 2


def test_what_libraries_say_is_a_line_of_the_log() -> None:
    """Python's own logging, warnings and a thread's death come out as our lines do."""
    program = """
import logging, threading, warnings
from serving import log_output
log_output.set_up("json", 3)
logging.getLogger("some.library").error("it %s", "broke")
warnings.warn("look out")
def die():
    raise ValueError("gone")
thread = threading.Thread(target=die)
thread.start()
thread.join()
log_output.flush(5)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=True)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["worker"] for line in lines] == [3, 3, 3]
    assert (lines[0]["event"], lines[0]["library"], lines[0]["level"]) == ("it broke", "some.library", "error")
    assert "look out" in lines[1]["event"]
    assert (lines[2]["event"], "ValueError: gone" in lines[2]["exception"]) == ("a thread has died", True)
