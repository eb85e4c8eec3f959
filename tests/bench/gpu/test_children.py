"""The process that measures may crash, hang or be late; the one that asks goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.gpu.children import Children
from bench.gpu.plan import Job, Who, Work
from bench.gpu.records import Record, Skipped, Step

RACE = Job(work=Work.STEPS, limit=20, steps=(1,), batches=(1, 8))
OTHER = Job(work=Work.COPIES, limit=20)
# A child that says its job's name, gives a figure of batch 1, and then does what the test says to one contestant.
CHILD = """
import json, os, subprocess, sys, time
from bench.gpu.plan import Job
def say(**message):
    print(json.dumps(message), flush=True)
for line in sys.stdin:
    job = Job.from_json(json.loads(line)["job"])
    if job.work == "steps":
        say(begin="nobody's work", contestant="")
        for batch in job.batches:
            if (1, batch) in job.done:
                continue
            for who in ("ours, graphs", "torch.nn.LSTM"):
                if who in job.without:
                    continue
                say(begin=f"{who} at {batch}", contestant=who)
                if batch == 8 and who == "ours, graphs":
                    DISASTER
            say(record=dict(kind="Step", hidden=8, layers=1, precision="fp32", steps=1, batch=batch,
                            contestant="torch.nn.LSTM", device_us=[1.0], host_us=[], error=None))
    say(end=job.name)
"""


class Heard:
    """All records."""

    def __init__(self, folder: Path, disaster: str) -> None:
        self.records: list[Record] = []
        self.told: list[str] = []
        self._script = folder / "child.py"
        self._script.write_text(CHILD.replace("DISASTER", disaster))

    def do(self, jobs: list[Job], monkeypatch: pytest.MonkeyPatch, *, seconds: float = 60, grace: float = 10) -> None:
        """By children of that kind."""
        monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
        Children(
            device="cpu",
            models=self._script.parent,
            deadline=time.monotonic() + seconds,
            give=self.records.append,
            tell=self.told.append,
            program=(str(self._script),),
            grace=grace,
        ).do(jobs)

    @property
    def batches(self) -> list[int]:
        """Of the figures, in order."""
        return [record.batch for record in self.records if isinstance(record, Step)]

    @property
    def skipped(self) -> list[Skipped]:
        """What wasn't measured."""
        return [record for record in self.records if isinstance(record, Skipped)]


def test_a_crash_costs_the_contestant_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It's named with the signal and what was said last; the others race on, and no figure is taken twice."""
    heard = Heard(tmp_path, 'print("CUDA error: misaligned", file=sys.stderr, flush=True); os.abort()')
    heard.do([RACE, OTHER], monkeypatch)
    assert heard.batches == [1, 8]
    (lost,) = heard.skipped
    assert lost.what == f"{Who.OURS} at 8"
    assert "signal SIGABRT" in lost.reason
    assert "CUDA error: misaligned" in lost.reason
    assert f"{Who.EAGER} at 8" in heard.told


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of a hung child doesn't live on; the next job is done."""
    pid = tmp_path / "pid"
    started = f'other = subprocess.Popen(["sleep", "600"]); open({str(pid)!r}, "w").write(str(other.pid)); other.wait()'
    heard = Heard(tmp_path, started)
    began = time.monotonic()
    heard.do([Job(work=Work.STEPS, limit=1, batches=(1, 8)), OTHER], monkeypatch, grace=0.5)
    assert time.monotonic() - began < 20
    assert "still under way after 1 s" in heard.skipped[0].reason
    assert heard.batches == [1, 8]
    state = Path(f"/proc/{pid.read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_after_the_deadline_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is named."""
    heard = Heard(tmp_path, "pass")
    heard.do([RACE, OTHER], monkeypatch, seconds=0.1)
    assert [(one.what, one.reason) for one in heard.skipped] == [
        (RACE.name, "the time was over"),
        (OTHER.name, "the time was over"),
    ]


def test_a_child_that_cannot_start_is_no_endless_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job says what the child said."""
    heard = Heard(tmp_path, "pass")
    (tmp_path / "child.py").write_text("raise SystemExit('no such library')")
    heard.do([RACE, OTHER], monkeypatch)
    assert [one.what for one in heard.skipped] == [RACE.name, OTHER.name]
    assert all("status 1" in one.reason and "no such library" in one.reason for one in heard.skipped)
