"""Our own copies: the engine's parcels, page-locked and not, and what is said where pages can't be locked."""

from __future__ import annotations

import time

import pytest

from bench.gpu.desk import Desk
from bench.gpu.parcels import parcels
from bench.gpu.plan import Job, Work
from bench.gpu.records import OURS, Copy, Skipped
from tests.serving.cuda_runtime import Runtime

JOB = Job(work=Work.PARCELS, limit=10, hidden=8, batches=(4, 9), seconds=0.001)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """On the CPU."""
    return Desk("cpu", tmp_path_factory.mktemp("models"), time.monotonic() + 60, lambda _text, _who: None)


@pytest.mark.parametrize("room", [1, 0])
def test_both_ways_are_timed_for_every_batch(desk: Desk, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Locked for its own figures only, and let go; where that's refused, the others are there, and the reason."""
    runtime = Runtime(room=room)
    monkeypatch.setattr("bench.gpu.parcels.cuda_runtime", lambda _device: runtime)
    found = list(parcels(JOB, desk))
    copies = [one for one in found if isinstance(one, Copy)]
    pinned = [False, True] if room else [False]
    assert [(one.size, one.pinned) for one in copies] == [(size, how) for size in (128, 288) for how in pinned]
    assert all(one.by == OURS and one.to_device_us > 0 and one.from_device_us > 0 for one in copies)
    refused = "cudaHostRegister answers 288 bytes with error 2"
    assert found[len(copies) :] == ([] if room else [Skipped("our copies, page-locked", refused)])
    assert runtime.locked == {}


def test_a_cpu_locks_no_pages(desk: Desk) -> None:
    """Which is said, once."""
    *copies, last = parcels(JOB, desk)
    assert [one.pinned for one in copies if isinstance(one, Copy)] == [False, False]
    assert last == Skipped("our copies, page-locked", "on the CPU there is nobody to lock pages for")
