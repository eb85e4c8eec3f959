"""What the machine can do, from times that are made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.gpu import floors
from bench.gpu.desk import Desk
from bench.gpu.plan import Job, Work
from bench.gpu.records import Copy, Launches, MatrixRate, Memory

JOB = Job(work=Work.RATES, limit=10, largest=64, hidden=8, batches=(4,))


def _desk() -> Desk:
    return Desk("cpu", Path(), time.monotonic() + 60, lambda _text, _who: None)


def _take(monkeypatch: pytest.MonkeyPatch, micros: list[float]) -> None:
    """One after the other; the call is made, so that it's seen to work."""
    times = iter(micros)

    def timed(call: Callable[[], object], _seconds: float) -> float:
        call()
        return next(times)

    monkeypatch.setattr(floors, "timed", timed)


def test_rates_are_amounts_over_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes read and written, multiplications and additions, and one of 64 more kernels."""
    _take(monkeypatch, [1.0, 5.0, 5.0 + 64 * 1.5, 8.0, 20.0, 10.0, 1.0, 2.0, 4.0])
    launches, memory, *matrix = floors.rates(JOB, _desk())
    assert launches == Launches(5.0, 1.5, 8.0)
    large, small = 4 * 64 * 64, 64 // 3  # floats
    assert memory == Memory(2 * 4 * large / 10e-6, 20 * 2 * 4 * small / 20e-6, 0)
    operations = 2 * 64**3
    assert matrix == [
        MatrixRate("tf32", operations / 1e-6),
        MatrixRate("fp32", operations / 2e-6),
        MatrixRate("fp16", operations / 4e-6),
    ]


def test_a_longer_chain_is_never_counted_as_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise doesn't make kernels cost less than nothing."""
    _take(monkeypatch, [1.0, 5.0, 4.0] + [1.0] * 6)
    launches = next(iter(floors.rates(JOB, _desk())))
    assert isinstance(launches, Launches)
    assert launches.kernel_us == 0.0


def test_copies_go_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's bytes, pinned and not."""
    _take(monkeypatch, [1.0, 2.0, 3.0, 4.0])
    assert list(floors.copies(JOB, _desk())) == [Copy(128, True, 1.0, 2.0), Copy(128, False, 3.0, 4.0)]
