"""One Prometheus endpoint for all workers: their metrics, each with the label `worker`, and how the workers are.

Owns the label and the metrics about workers. Adds nothing up: a worker that was replaced counts from zero again, which
Prometheus sees and allows for in each series, and could not see in a sum.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serving.endpoint import HealthState, log_metrics

SCRAPE_SECONDS = 2.0  # a worker that takes longer is left out of this scrape
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker, as the supervisor sees it."""

    worker: int
    restarts: int  # times it was replaced
    metrics_port: int | None  # on loopback; None: it isn't ready
    hung: int = 0  # times it was killed since it gave no sign of life


class WorkerMetrics(Collector):
    """Asks every worker when it is asked."""

    def __init__(self, states: Callable[[], Iterable[WorkerState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Every worker's metrics, at this moment."""
        states = list(self._states())
        ready = [state for state in states if state.metrics_port is not None]
        yield GaugeMetricFamily("cellstream_workers", "Worker processes that are ready", value=len(ready))
        restarts = CounterMetricFamily("cellstream_worker_restarts", "Times a worker was replaced", labels=("worker",))
        for state in states:
            restarts.add_metric((str(state.worker),), state.restarts)
        yield restarts
        hung = CounterMetricFamily("cellstream_workers_hung", "Times a worker hung and was killed", labels=("worker",))
        for state in states:
            hung.add_metric((str(state.worker),), state.hung)
        yield hung
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = pool.map(_scrape, ready)
        yield from _merged(zip(ready, answers, strict=True))

    def health(self) -> HealthState:
        """Every worker's health: all is ready if a worker listens, and each that does is ready."""
        states = list(self._states())
        listening = [state for state in states if state.metrics_port is not None]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = dict(zip([state.worker for state in listening], pool.map(_ask_health, listening), strict=True))
        said: dict[int, HealthState] = {worker: answer for worker, answer in answers.items() if answer is not None}
        return {
            "live": True,
            "ready": bool(listening) and len(said) == len(listening) and all(one["ready"] for one in said.values()),
            "workers": {str(state.worker): said.get(state.worker) for state in states},
        }


def _merged(answers: Iterable[tuple[WorkerState, str]]) -> Iterable[Metric]:
    merged: dict[str, Metric] = {}
    for state, text in answers:
        for family in text_string_to_metric_families(text):
            _merge(merged, family, str(state.worker))
    for family in log_metrics():
        _merge(merged, family, "supervisor")
    return merged.values()


def _merge(merged: dict[str, Metric], family: Metric, worker: str) -> None:
    known = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    known.samples += [sample._replace(labels={"worker": worker, **sample.labels}) for sample in family.samples]


def _ask_health(state: WorkerState) -> HealthState | None:
    try:
        found: HealthState = json.loads(_scrape(state, "/healthz"))
    except ValueError:
        return None
    return found


def _scrape(state: WorkerState, path: str = "/metrics") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", state.metrics_port, timeout=SCRAPE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""  # it has just died, or is about to: its restarts tell
    finally:
        connection.close()
