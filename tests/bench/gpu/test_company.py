"""One lane among others: what changes with its bucket is told from what changes with its neighbours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.gpu import company as module
from bench.gpu import ours
from bench.gpu.company import company
from bench.gpu.desk import Desk
from bench.gpu.plan import Job, Work
from bench.gpu.records import Company
from serving.engine import Engine

JOB = Job(work=Work.COMPANY, limit=10, steps=(4,), batches=(1, 2, 8))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """On the CPU."""
    return Desk("cpu", tmp_path_factory.mktemp("models"), time.monotonic() + 60, lambda _text, _who: None)


def _told(desk: Desk, monkeypatch: pytest.MonkeyPatch, change: Any) -> Company:
    """What is found of an engine whose outputs [B, O] are changed so."""

    def engine(path: Path, **about: Any) -> Engine:
        of = ours.engine(path, **about)
        run = of.run

        def changed(inputs: Any, lengths: Any, read: Any, write: Any) -> Any:
            answers = np.array([np.frombuffer(lane[0], np.float32) for lane in run(inputs, lengths, read, write)])
            x = np.array([np.frombuffer(lane[0], np.float32) for lane in inputs])
            return [(lane.astype(np.float32).tobytes(),) for lane in change(answers, x)]

        monkeypatch.setattr(of, "run", changed)
        return of

    monkeypatch.setattr(module, "engine", engine)
    (found,) = company(JOB, desk)
    return found


def test_nothing_depends_on_company_on_a_cpu(desk: Desk) -> None:
    """One answer among all buckets."""
    (found,) = company(JOB, desk)
    assert (found.within, found.answers, found.share) == (True, 1, 0.0)


def test_a_bucket_that_rounds_otherwise_is_told_from_a_neighbour_that_is_seen(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is counted and measured, and is allowed; the second isn't."""
    buckets = _told(desk, monkeypatch, lambda y, _x: y * (1.001 if len(y) > 4 else 1.0))
    assert (buckets.within, buckets.answers) == (True, 2)
    assert buckets.share == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda y, x: y + 1e-6 * np.abs(x).max(),
        lambda y, _x: y + 1e-6 * np.arange(len(y))[:, None],
        lambda y, _x: y * (1 + 1e-6 * len(y)),
    ],
    ids=["neighbours", "place", "how many lanes"],
)
def test_what_a_lane_must_not_depend_on_is_seen(desk: Desk, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Each by itself."""
    assert not _told(desk, monkeypatch, change).within
