"""The HTTP endpoint that Prometheus scrapes. Of metrics it knows the log's, which every process has."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.config import host_and_port
from serving.errors import ConfigError
from serving.log_output import COUNTS


def log_metrics() -> Iterator[Metric]:
    """What isn't in this process's log."""
    yield CounterMetricFamily("cellstream_log_lines_lost", "Log lines that couldn't be written", value=COUNTS.lost)
    yield CounterMetricFamily(
        "cellstream_log_lines_suppressed", "Log lines that came too often", value=COUNTS.suppressed
    )


def serve_collector(collector: Collector, address: str) -> int:
    """Serve /metrics on host:port; returns the port (for port 0: the one chosen). Raises ConfigError."""
    registry = CollectorRegistry()
    registry.register(collector)
    host, port = host_and_port(address)
    try:
        server, _thread = start_http_server(port, addr=host.strip("[]"), registry=registry)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"can't serve metrics on {address!r}: {error}") from error
    return int(server.server_port)
