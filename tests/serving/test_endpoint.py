"""The HTTP endpoint: metrics, and health by its status."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from serving.endpoint import HealthState, serve_collector
from tests.serving.test_worker_metrics import Steps

SECONDS = 10.0


@pytest.fixture(scope="module")
def states() -> list[HealthState]:
    """What health says; the last one holds."""
    return [{"live": True, "ready": True}]


@pytest.fixture(scope="module")
def port(states: list[HealthState]) -> int:
    """An endpoint's port."""
    return serve_collector(Steps(3), "127.0.0.1:0", lambda: states[-1])


def get(port: int, path: str) -> tuple[int, str]:
    """Status and text."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("ready", [True, False])
def test_health_answers_by_its_status(states: list[HealthState], port: int, live: bool, ready: bool) -> None:
    """/healthz and /healthz/ready are 200 where new streams are taken, /healthz/live where no restart is due."""
    states.append({"live": live, "ready": ready, "not_served": {"m/2": "why"}})
    for path, good in (("/healthz", ready), ("/healthz/", ready), ("/healthz/ready", ready), ("/healthz/live", live)):
        status, text = get(port, path)
        assert status == (200 if good else 503), path
        assert json.loads(text) == states[-1]


def test_metrics_stay_where_they_are(port: int) -> None:
    """Prometheus finds them as before; another path below /healthz is none."""
    assert 'cellstream_steps_total{model="odd \\"name\\""} 3.0' in get(port, "/metrics")[1]
    assert get(port, "/healthz/nothing")[0] == 404
