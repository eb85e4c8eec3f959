"""Clients that vanish without a word: their streams' places are free again, in the time that is stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cellstream
from serving import server as server_module
from serving.config import ServerConfig
from serving.server import Server
from tests.cellstream.holes import Hole
from tests.waiting import wait_until

STATED_MS = 30_000  # README: "within 30 s"


def test_a_client_that_vanished_is_found(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which nothing arrives any more ends after a probe and its time, with the streams on it."""
    real = server_module._options

    def hasty(config: ServerConfig) -> list[tuple[str, Any]]:
        options = dict(real(config))
        assert options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"] <= STATED_MS
        return list({**options, "grpc.keepalive_time_ms": 1000, "grpc.http2.ping_timeout_ms": 500}.items())

    monkeypatch.setattr(server_module, "_options", hasty)
    server = Server(ServerConfig(artifacts, "127.0.0.1:0", grace=0.2))
    server.start()
    deaf = cellstream.Channel(keepalive_ms=None)
    with (
        Hole(int(server.address.rpartition(":")[2])) as hole,
        cellstream.connect(hole.address, channel=deaf) as client,
    ):
        stream = client.stream("tokens")
        assert sum(lane.streams.live for lane in server.lanes) == 1
        hole.swallow()
        wait_until(lambda: not any(lane.streams.live for lane in server.lanes))
        stream.cancel()
    assert server.drain()


def test_a_client_may_probe_every_second(artifacts: Path) -> None:
    """Probes as often as a client may be set to send them, with no stream open, aren't answered by too_many_pings."""
    server = Server(ServerConfig(artifacts, "127.0.0.1:0", grace=0.2))
    server.start()
    least = cellstream.Channel(keepalive_ms=1000, keepalive_timeout_ms=1000, extra=(("grpc.http2.bdp_probe", 0),))
    with cellstream.connect(server.address, channel=least) as client, client.stream("tokens") as stream:
        # Five probes and nothing else; gRPC by itself ends a connection at the third that comes too early.
        assert not stream._link.wait(lambda: stream.error is not None, 5.5)
        assert stream.step(1).shape
    assert server.drain()
