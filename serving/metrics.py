"""The Prometheus endpoint: the loop's integers, read when somebody scrapes.

Owns the metrics' names. Reads numbers that another thread writes, each possibly a moment old.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.endpoint import HealthState, log_metrics, serve_collector
from serving.front import Front
from serving.lane import Lane
from serving.stats import Histogram, Times

_LABELS = ("model", "version")


class Scrape(Collector):
    """Turns the counts into metrics."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def collect(self) -> Iterator[Metric]:
        """Every metric, at this moment."""
        lanes = list(self._front.lanes)
        gauges: dict[str, tuple[str, Callable[[Lane], float]]] = {
            "cellstream_live_streams": ("Streams that are open", lambda lane: lane.streams.live),
            "cellstream_rows_in_use": ("Rows of the slab that hold a state", lambda lane: lane.streams.rows.in_use),
            "cellstream_state_bytes": (
                "Bytes of state held",
                lambda lane: lane.streams.rows.in_use * lane.engine.row_bytes,
            ),
            "cellstream_waiting_steps": ("Steps not yet computed", lambda lane: lane.streams.batcher.waiting_steps),
            "cellstream_live_sequences": ("Sequences that are live", lambda lane: len(lane.sequences)),
            "cellstream_model_ready": (
                "1: the model computes; 0: it doesn't, or this version can't be served",
                lambda lane: int(lane.ready),
            ),
        }
        for name, (text, read) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for lane in lanes:
                gauge.add_metric(_labels(lane), read(lane))
            if name == "cellstream_model_ready":
                for model, version in self._front.lanes.broken.keys() - {(lane.name, lane.version) for lane in lanes}:
                    gauge.add_metric((model, str(version)), 0)
            yield gauge
        counters: dict[str, tuple[str, Callable[[Lane], float]]] = {
            "cellstream_streams_opened": ("Streams opened", lambda lane: lane.stats.opened),
            "cellstream_steps": ("Steps computed", lambda lane: lane.stats.steps),
            "cellstream_failed_runs": ("Runs that failed", lambda lane: lane.stats.failed_runs),
            "cellstream_sequences_started": ("Sequences started", lambda lane: lane.sequences.started),
            "cellstream_sequences_restarted": (
                "Live sequences begun anew by a START",
                lambda lane: lane.sequences.restarted,
            ),
            "cellstream_sequences_expired": (
                "Sequences idle, or without their client, for too long",
                lambda lane: lane.sequences.expired,
            ),
            "cellstream_sequences_displaced": (
                "Idle sequences that made room where every place was taken",
                lambda lane: lane.sequences.displaced,
            ),
            "cellstream_sequences_evicted": ("Sequences ended by the operator", lambda lane: lane.sequences.evicted),
            "cellstream_requests_answered": (
                "Requests of sequences that were answered",
                lambda lane: lane.sequences.answered,
            ),
            "cellstream_requests_refused": (
                "Requests of sequences that were refused",
                lambda lane: lane.sequences.failed,
            ),
        }
        for name, (text, read) in counters.items():
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            for lane in lanes:
                counter.add_metric(_labels(lane), read(lane))
            yield counter
        histograms: dict[str, tuple[str, Callable[[Lane], Histogram | Times]]] = {
            "cellstream_batch_streams": ("Streams in a run", lambda lane: lane.stats.batch_streams),
            "cellstream_queue_seconds": ("A chunk's wait for its run", lambda lane: lane.stats.queue_times),
            "cellstream_compute_seconds": ("A run's time in the engine", lambda lane: lane.stats.compute_times),
        }
        for name, (text, pick) in histograms.items():
            family = HistogramMetricFamily(name, text, labels=_LABELS)
            for lane in lanes:
                family.add_metric(_labels(lane), _buckets(pick(lane)), pick(lane).total)
            yield family
        yield from self._server_metrics()

    def _server_metrics(self) -> Iterator[Metric]:
        stats = self._front.stats
        refusals = CounterMetricFamily("cellstream_refusals", "Refusals", labels=("reason",))
        for reason, count in sorted(stats.refusals.copy().items()):
            refusals.add_metric((reason,), count)
        yield refusals
        yield GaugeMetricFamily(
            "cellstream_silent_calls", "Open calls that have sent no message", value=sum(map(len, stats.gates))
        )
        yield from log_metrics()
        yield CounterMetricFamily("cellstream_messages_received", "Messages on hot calls", value=stats.messages_in)
        yield CounterMetricFamily("cellstream_messages_sent", "Answers on hot calls", value=stats.messages_out)


def serve_metrics(front: Front, address: str, health: Callable[[], HealthState]) -> int:
    """Serve /metrics and /healthz on host:port; returns the port (for port 0: the one chosen). Raises ConfigError."""
    return serve_collector(Scrape(front), address, health)


def _labels(lane: Lane) -> tuple[str, str]:
    return (lane.name, str(lane.version))


def _buckets(histogram: Histogram | Times) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return buckets
