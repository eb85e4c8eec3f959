"""One job in the measuring process: whatever goes wrong is a record, unless the GPU is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.gpu import child
from bench.gpu.desk import Desk, PoisonedError, timed
from bench.gpu.plan import Job, Work
from bench.gpu.records import Copy, Record, Skipped


def _desk(folder: Path) -> Desk:
    return Desk("cpu", folder, time.monotonic() + 60, lambda _text, _who: None)


def _broken(error: Exception) -> object:
    def work(_job: Job, _desk: Desk) -> Iterator[Record]:
        yield Copy(1, True, 1.0, 1.0)
        raise error

    return lambda _job: work


def test_an_error_is_a_record_behind_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    monkeypatch.setattr(child, "work_of", _broken(ValueError("no\n  memory")))
    found: list[Record] = []
    child.do(Job(work=Work.COPIES, limit=1), _desk(tmp_path), found.append)
    assert found == [Copy(1, True, 1.0, 1.0), Skipped("copies", "ValueError: no memory")]


def test_a_lost_gpu_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't taken for an error of that job alone."""
    monkeypatch.setattr(child, "work_of", _broken(PoisonedError("gone")))
    with pytest.raises(PoisonedError):
        child.do(Job(work=Work.COPIES, limit=1), _desk(tmp_path), lambda _record: None)


def test_a_process_without_a_model_says_how_to_get_it(tmp_path: Path) -> None:
    """Where there is no torch to make it; and what libraries print doesn't come between the messages."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u, os\n"
        "real = u.find_spec\n"
        "def find_spec(name, *more):\n"
        "    if name != 'torch':\n"
        "        return real(name, *more)\n"
        "    os.write(1, b'a library says hello\\n')\n"
        "u.find_spec = find_spec\n"
    )
    job = Job(work=Work.STEPS, limit=10, without=("torch.nn.LSTM", "compiled cell in a graph"))
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.child", "cpu", str(tmp_path)],
        input=json.dumps({"job": job.to_json(), "until": time.monotonic() + 60}) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert "a library says hello" in done.stderr
    heard = [json.loads(line) for line in done.stdout.splitlines()]
    reasons = [message["record"]["reason"] for message in heard if "record" in message]
    assert reasons
    assert all("making it needs torch" in reason and "--prepare" in reason for reason in reasons)
    assert heard[-1] == {"end": job.name}


def test_figures_are_medians_of_several_calls() -> None:
    """Two calls to warm up, then at least three."""
    calls = []
    assert timed(lambda: calls.append(1), 0.0) > 0
    assert len(calls) == 5
