"""One endpoint for several workers: what it shows of those that answer, and of those that don't."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving import worker_metrics as module
from serving.endpoint import HealthState, serve_collector
from serving.worker_metrics import WorkerMetrics, WorkerState


class Steps(Collector):
    """A worker's metrics, as small as can be."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def collect(self) -> Iterator[Metric]:
        """A counter with a label, and a histogram."""
        counter = CounterMetricFamily("cellstream_steps", "Steps", labels=("model",))
        counter.add_metric(('odd "name"',), self._steps)
        yield counter
        yield HistogramMetricFamily("cellstream_batch_streams", "Streams", buckets=[("1", 2), ("+Inf", 3)], sum_value=4)


def well() -> HealthState:
    """A worker that is well."""
    return {"live": True, "ready": True}


def ill() -> HealthState:
    """A worker whose model doesn't compute."""
    return {"live": True, "ready": False}


def test_the_whole_is_ready_if_every_worker_that_listens_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is being replaced doesn't count, one that is ill or hangs does; before the first, nothing is ready."""
    monkeypatch.setattr(module, "SCRAPE_SECONDS", 0.5)
    good, bad = (
        WorkerState(number, 0, serve_collector(Steps(1), "127.0.0.1:0", how)) for number, how in enumerate((well, ill))
    )
    starting = WorkerState(2, 1, None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = WorkerState(3, 0, silent.getsockname()[1])
        found = [
            WorkerMetrics(lambda states=states: states).health()  # type: ignore[misc]
            for states in ([good], [good, starting], [good, bad], [good, hanging], [starting], [])
        ]
    assert [one["ready"] for one in found] == [True, True, False, False, False, False]
    assert all(one["live"] for one in found)
    assert found[1]["workers"] == {"0": well(), "2": None}
    assert found[3]["workers"] == {"0": well(), "3": None}


def shown(states: list[WorkerState]) -> str:
    """What a scrape of the supervisor gives."""
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(lambda: states))
    return generate_latest(registry).decode()


def test_each_worker_has_its_own_series_of_one_family() -> None:
    """Labels are kept, histograms too; a family is announced once, and nothing is added up."""
    text = shown(
        [WorkerState(number, 0, serve_collector(Steps(10 + number), "127.0.0.1:0", well)) for number in range(2)]
    )
    for number in range(2):
        labels = rf'model="odd \"name\"",worker="{number}"'
        assert f"cellstream_steps_total{{{labels}}} {10 + number}.0" in text
        assert f'cellstream_batch_streams_bucket{{le="+Inf",worker="{number}"}} 3.0' in text
    assert text.count("# TYPE cellstream_steps_total counter") == 1
    assert text.count("# TYPE cellstream_batch_streams histogram") == 1


def test_workers_that_do_not_answer_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that isn't ready, one that has just died and one that hangs: the others are shown, without much delay."""
    monkeypatch.setattr(module, "SCRAPE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as dead:
        dead_port = dead.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        text = shown(
            [
                WorkerState(0, 3, None),
                WorkerState(1, 1, dead_port),
                WorkerState(2, 0, hanging.getsockname()[1]),
                WorkerState(3, 0, serve_collector(Steps(5), "127.0.0.1:0", well)),
            ]
        )
    assert "\ncellstream_workers 3.0\n" in text
    for number, restarts in enumerate((3, 1, 0, 0)):
        assert f'cellstream_worker_restarts_total{{worker="{number}"}} {restarts}.0' in text
    assert [line for line in text.splitlines() if line.startswith("cellstream_steps_total")] == [
        r'cellstream_steps_total{model="odd \"name\"",worker="3"} 5.0'
    ]
