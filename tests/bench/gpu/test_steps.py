"""The race: who is timed, in which order, and who isn't."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.gpu import ours, steps
from bench.gpu.desk import Desk, PoisonedError
from bench.gpu.plan import Job, Who, Work
from bench.gpu.records import Record, Skipped, Step
from bench.gpu.runs import Array, Runs

JOB = Job(work=Work.STEPS, limit=10, batches=(8,), seconds=0.0, rounds=2)


class Runner:
    """Answers its inputs times `factor`, and keeps a diary."""

    def __init__(self, name: str, diary: list[str], factor: float = 2.0, *, breaks: str = "") -> None:
        self._name, self._diary, self._factor, self._breaks = name, diary, factor, breaks

    def ready(self, x: Array) -> Runs:
        """Or not."""
        if self._breaks == "ready":
            raise MemoryError("too\nlarge")

        def device() -> None:
            if self._breaks == "device":
                raise RuntimeError("launch failed")
            if self._diary[-1:] != [self._name]:
                self._diary.append(self._name)

        return Runs(lambda: x * self._factor, device, None)


def _race(
    monkeypatch: pytest.MonkeyPatch, makers: dict[Who, Callable[[], Any]], *, seconds: float = 60
) -> list[Record]:
    monkeypatch.setattr(steps, "_makers", lambda _job, _desk: (makers, lambda x: x.astype(np.float64) * 2))
    return list(steps.race(JOB, Desk("cpu", Path(), time.monotonic() + seconds, lambda _text, _who: None)))


def test_rounds_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round goes the other way; each contestant has a figure of each."""
    diary: list[str] = []
    found = _race(monkeypatch, {Who.OURS: lambda: Runner("a", diary), Who.EAGER: lambda: Runner("b", diary)})
    assert diary == ["a", "b", "a"]  # b's two turns are one entry
    assert [record.contestant for record in found if isinstance(record, Step)] == [Who.OURS, Who.EAGER]
    assert all(len(record.device_us) == 2 and record.host_us == () for record in found if isinstance(record, Step))


def test_rubbish_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what isn't a number; whoever is right races on."""
    diary: list[str] = []
    makers = {
        Who.OURS: lambda: Runner("wrong", diary, 2.1),
        Who.PLAIN: lambda: Runner("no number", diary, float("nan")),
        Who.EAGER: lambda: Runner("right", diary),
    }
    found = _race(monkeypatch, makers)
    assert diary == ["right"]
    wrong, no_number, step = found
    assert isinstance(wrong, Skipped)
    assert "off by 0.05 of the outputs' rms" in wrong.reason
    assert isinstance(no_number, Skipped)
    assert isinstance(step, Step)
    assert step.error == 0.0


def test_one_wrong_lane_shows() -> None:
    """Every lane is compared, not just the first of its kind."""
    right = np.random.default_rng(0).standard_normal((steps.VARIANTS, 2, 5))
    y = right[np.arange(100) % steps.VARIANTS].astype(np.float32)
    assert steps.error_of(y, right) < 1e-7
    y[97] = y[98]
    assert steps.error_of(y, right) > 0.1


def test_whoever_breaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it's made, made ready, or timed; in one line."""
    diary: list[str] = []

    def broken() -> Runner:
        raise TypeError("unexpected keyword argument 'device'")

    makers = {
        Who.OURS: broken,
        Who.PLAIN: lambda: Runner("b", diary, breaks="ready"),
        Who.EAGER: lambda: Runner("c", diary, breaks="device"),
        Who.CELL: lambda: Runner("d", diary),
    }
    found = _race(monkeypatch, makers)
    assert [record.reason for record in found if isinstance(record, Skipped)] == [
        "TypeError: unexpected keyword argument 'device'",
        "MemoryError: too large",
        "RuntimeError: launch failed",
    ]
    assert [record.contestant for record in found if isinstance(record, Step)] == [Who.CELL]


def test_a_lost_gpu_ends_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nobody could be measured any more; another process can."""

    class Lost:
        def healthy(self) -> bool:
            return False

    monkeypatch.setattr(steps, "_torch_device", lambda _desk: Lost())
    with pytest.raises(PoisonedError):
        _race(monkeypatch, {Who.OURS: lambda: Runner("a", [], breaks="device")})


def test_after_its_time_a_race_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so."""
    found = _race(monkeypatch, {Who.OURS: lambda: Runner("a", [])}, seconds=-1)
    assert [record.reason for record in found if isinstance(record, Skipped)] == ["its 10 s were over"]
    assert len(found) == 1


def test_what_is_too_large_or_done_is_left_out() -> None:
    """In the order of the plan."""
    both = (8, 1024)
    job = Job(work=Work.STEPS, limit=1, hidden=1024, steps=(1, 16), batches=both, chunk_batches=both)
    job = replace(job, most_bytes=4 << 20, done=((1, 8),))
    assert steps.sizes(job) == [(1, 1024), (16, 8)]
    assert list(steps._too_large(job)) == []  # it was said at the first try
    (said,) = steps._too_large(replace(job, done=()))
    assert said.what.endswith(": 16 steps of 1024 lanes")
    assert said.reason == "more than 4 MiB of inputs in one run"


@pytest.mark.parametrize("graphs", [True, False, None])
def test_the_engine_is_told_of_the_device(graphs: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of graphs; on the CPU of neither."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(ours, "Engine", lambda _path, **options: told.append(options))
    sizes = {"rows": 9, "max_batch": 4, "slice_steps": 2, "room": 8}
    ours.engine(Path("x"), device="cuda:0", graphs=graphs, **sizes)
    ours.engine(Path("x"), device="cpu", graphs=graphs, **sizes)
    assert (told[0]["device"], told[0]["graphs"]) == ("cuda:0", graphs)
    assert not {"device", "graphs"} & told[1].keys()
    assert all(options["max_run_steps"] == 8 for options in told)
