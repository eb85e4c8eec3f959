"""The HTTP endpoint: metrics for Prometheus, and health for balancers and probes that speak no gRPC.

Of metrics it knows the log's, which every process has; of health the three paths and their statuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, Required, TypedDict

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.config import host_and_port
from serving.errors import ConfigError
from serving.log_output import COUNTS

if TYPE_CHECKING:  # there is no such module when the program runs
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class HealthState(TypedDict, total=False):
    """What /healthz says, as JSON."""

    live: Required[bool]  # the process works; if not, it should be restarted
    ready: Required[bool]  # it takes new streams, and every model computes
    not_served: dict[str, str]  # versions that can't be served, and why
    workers: dict[str, HealthState | None]  # by number; None: it doesn't listen at the moment


_HEALTH_PATHS: dict[str, Literal["live", "ready"]] = {
    "/healthz": "ready", "/healthz/ready": "ready", "/healthz/live": "live",
}  # fmt: skip


def log_metrics() -> Iterator[Metric]:
    """What isn't in this process's log."""
    yield CounterMetricFamily("cellstream_log_lines_lost", "Log lines that couldn't be written", value=COUNTS.lost)
    yield CounterMetricFamily(
        "cellstream_log_lines_suppressed", "Log lines that came too often", value=COUNTS.suppressed
    )


def serve_collector(collector: Collector, address: str, health: Callable[[], HealthState]) -> int:
    """Serve /metrics and /healthz on host:port; returns the port (for port 0: the one chosen). Raises ConfigError."""
    registry = CollectorRegistry()
    registry.register(collector)
    host, port = host_and_port(address)
    try:
        server, _thread = start_http_server(port, addr=host.strip("[]"), registry=registry)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"can't serve metrics on {address!r}: {error}") from error
    metrics = server.get_app()
    assert metrics is not None
    server.set_app(_with_health(metrics, health))
    return int(server.server_port)


def _with_health(metrics: WSGIApplication, health: Callable[[], HealthState]) -> WSGIApplication:
    """The application that answers /healthz and /healthz/ready (200: ready), /healthz/live (200: live), and metrics."""

    def answer(request: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = str(request.get("PATH_INFO", "")).rstrip("/")
        if path != "/healthz" and not path.startswith("/healthz/"):
            return metrics(request, start)
        if path not in _HEALTH_PATHS:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there are /healthz, /healthz/live, /healthz/ready and /metrics\n"]
        state = health()
        good = state[_HEALTH_PATHS[path]]
        start("200 OK" if good else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps(state).encode() + b"\n"]

    return answer
