"""The generator against real servers: it counts right answers, and notices wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.load.connection import LoadError
from bench.load.course import Course, course_of, unchecked
from bench.load.measure import Job, measure
from bench.load.result import latency_of, processor_seconds, resident_bytes
from bench.load.shapes import WrongAnswerError
from bench.server_process import RunningServer, server

STEPS = 3000  # a lone stream goes through it in less than a test


@pytest.fixture(scope="module")
def running(artifacts: Path) -> Iterator[RunningServer]:
    """A server of the test models, with little room."""
    with server(artifacts, ["--max-streams", "100", "--log-format", "json"]) as one:
        yield one


@pytest.fixture(scope="module")
def course(artifacts: Path) -> Course:
    """What the model answers, computed anew and read back from its file."""
    made = course_of(artifacts / "wide" / "1", STEPS)
    assert made == course_of(artifacts / "wide" / "1", STEPS)
    return made


def job(running: RunningServer, **values: object) -> Job:
    """A short one."""
    process = running.process.pid
    base = Job(address=running.address, model="wide", streams=1, warm_up=0.1, seconds=0.3, server_process=process)
    return replace(base, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"streams": 20, "connections": 3},
        {"streams": 5, "connections": 5, "steps_per_message": 50},
        {"steps_per_message": 1000},  # 20 KB a message, and the course ends every third time
        {"streams": 90, "multiplex": True, "connections": 2},
        {"streams": 3, "multiplex": True, "steps_per_message": 300, "in_flight": 2},
        {"streams": 20, "rate": 300.0},
        {"streams": 20, "infer": True, "connections": 3},
        {
            "streams": 2,
            "infer": True,
            "steps_per_message": 50,
            "in_flight": 3,
        },  # the course ends, a new sequence begins
    ],
)
def test_every_shape_against_the_real_server(running: RunningServer, course: Course, shape: dict[str, object]) -> None:
    """Answers come, all of them right, and both sides' processor time is known."""
    result = measure(job(running, **shape), course)
    assert result.steps > 0
    assert result.messages > 0
    assert result.server_cpu_us is not None
    assert result.server_cpu_us > 0
    assert result.load_cpu_us > 0
    assert 0 < result.latency_us.p50 <= result.latency_us.p99 <= result.latency_us.max
    if "rate" in shape:
        assert result.messages == pytest.approx(90, abs=30)


@pytest.mark.parametrize("shape", [{}, {"multiplex": True}, {"infer": True}])
def test_a_wrong_answer_ends_the_run(running: RunningServer, course: Course, shape: dict[str, bool]) -> None:
    """One bit of one step, in the middle of the course."""
    by_stream, by_step = bytearray(course.by_stream), bytearray(course.by_step)
    by_stream[20 * course.output_bytes] ^= 1
    by_step[20 * 8 * course.output_bytes] ^= 1
    wrong = replace(course, by_stream=bytes(by_stream), by_step=bytes(by_step))
    with pytest.raises(WrongAnswerError):
        measure(job(running, streams=4, **shape), wrong)


def test_a_refusal_is_told(running: RunningServer, course: Course) -> None:
    """More streams than the server takes: its own words."""
    with pytest.raises(LoadError, match="100"):
        measure(job(running, streams=101), course)
    with pytest.raises(LoadError, match="no model 'none'"):
        measure(job(running, model="none"), course)


def test_nobody_listens(course: Course) -> None:
    """One line, not a traceback."""
    with pytest.raises(LoadError, match="can't connect"):
        measure(Job(address="127.0.0.1:1", model="wide", streams=1), course)


def test_the_command_line(running: RunningServer, course: Course, artifacts: Path) -> None:
    """Checked against model.onnx, a table for people; a wrong option is named."""
    command = [sys.executable, "-m", "bench.load", "--address", running.address, "--seconds", "0.2", "--streams", "2"]
    done = subprocess.run(
        [*command, "--no-check", "--model", "wide", "--input-size", "5"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "steps/s" in done.stdout
    checked = [*command, "--artifact", str(artifacts / "wide" / "1"), "--json"]
    done = subprocess.run(checked, capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(done.stdout)["checked"] is True
    done = subprocess.run([*command, "--connections", "0"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "--connections is 0" in done.stderr


def test_a_long_course_needs_no_memory_of_its_own() -> None:
    """A course that isn't checked has no outputs."""
    assert unchecked(20).by_stream == b""


def test_quantiles() -> None:
    """In microseconds, of nanoseconds."""
    found = latency_of([1000 * value for value in range(1, 1001)])
    assert found.p50 == pytest.approx(500.5)
    assert found.p999 == pytest.approx(999.001)
    assert found.max == 1000
    assert np.isnan(latency_of([]).p50)


def test_processor_time_and_memory_of_a_process(running: RunningServer) -> None:
    """They are a live process's."""
    before = processor_seconds(running.process.pid)
    assert before > 0.1
    assert processor_seconds(running.process.pid) >= before
    assert 20e6 < resident_bytes(running.process.pid) < 2e9
