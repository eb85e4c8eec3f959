"""What each time limit covers, and that it holds: opening, stepping, closing, and a connection that falls silent."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cellstream
from cellstream import aio, options
from cellstream.options import Attempts
from serving.config import ServerConfig
from serving.server import _options
from tests.cellstream.fake_server import FakeServer, Refusal
from tests.cellstream.holes import Hole

PATIENT = cellstream.Retry(first=60, longest=60, total=100)  # whose waits would be seen
MUCH = 10.0  # seconds: far above what any of these takes, far below what they took without a bound


@contextmanager
def within(seconds: float = MUCH) -> Iterator[None]:
    """Fail if the block takes longer."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_opening_takes_no_longer_than_the_streams_timeout(server: FakeServer) -> None:
    """The timeout of a stream covers its opening and every attempt at it; the reason of the latest is told."""
    server.die()
    with cellstream.connect(server.address, retry=PATIENT) as client:
        for call in (client.stream, client.multiplex):
            with within(), pytest.raises(cellstream.CellstreamError) as caught:
                call("sum", timeout=0.2)
            assert caught.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            assert "Connection refused" in str(caught.value)


def test_opening_at_a_server_that_says_nothing(mute: str) -> None:
    """A connection that never gets ready holds neither opening nor closing."""
    with within(), cellstream.connect(mute, retry=PATIENT) as client:
        with pytest.raises(cellstream.DeadlineExceeded):
            client.stream("sum", timeout=0.1)
        with pytest.raises(cellstream.DeadlineExceeded):
            client.stream("sum", retry=cellstream.Retry(total=0.1))
        with pytest.raises(cellstream.CellstreamError):
            client.models(timeout=0.1)


def test_asyncio_keeps_the_same_limits(server: FakeServer, mute: str) -> None:
    """The same for asyncio."""

    async def body() -> None:
        async with aio.connect(server.address, retry=PATIENT) as client:
            stream = await client.stream("sum")
            server.gate.clear()
            with within(), pytest.raises(cellstream.StepTimeout):
                await stream.step(1, timeout=0.05)
            with within(4.0):
                await stream.close(timeout=0.05)
        server.die()
        async with aio.connect(server.address, retry=PATIENT) as client:
            with within(), pytest.raises(cellstream.CellstreamError):
                await client.stream("sum", timeout=0.2)
        async with aio.connect(mute, retry=PATIENT) as client:
            with within(), pytest.raises(cellstream.DeadlineExceeded):
                await client.stream("sum", timeout=0.1)

    asyncio.run(body())


@pytest.mark.parametrize("timeout", [0.0, -1.0, 0.05])
def test_a_step_and_a_close_keep_their_timeouts(server: FakeServer, client: cellstream.Client, timeout: float) -> None:
    """A server that answers nothing holds neither; a timeout of nothing, or less, is over at once."""
    stream = client.stream("sum")
    server.gate.clear()
    with within(), pytest.raises(cellstream.StepTimeout):
        stream.step(1, timeout=timeout)
    with within(4.0):  # it took 5 s whatever was wanted
        stream.close(timeout=timeout)


def test_an_endless_timeout_is_no_timeout(client: cellstream.Client) -> None:
    """Infinity is a number of seconds, too."""
    with client.stream("sum", timeout=float("inf")) as stream:
        assert stream.step(1, timeout=float("inf")) == 1


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**400])
def test_what_grpc_cant_hold_is_no_timeout(client: cellstream.Client, timeout: float) -> None:
    """A very long timeout is none, for every call; gRPC would end it at once."""
    assert client.model("sum", timeout=timeout).name == "sum"
    assert client.models(timeout=timeout)
    with client.stream("sum", timeout=timeout, retry=cellstream.Retry(total=float("inf"))) as stream:
        assert stream.step(1, timeout=timeout) == 1
        stream.close(timeout=timeout)
    with client.multiplex("sum", timeout=timeout, retry=cellstream.Retry(total=float("inf"))) as many:
        many.open(1, timeout=timeout)
        assert many.step({1: 1}, timeout=timeout) == {1: 1}
        many.finish(1, timeout=timeout)


@pytest.mark.parametrize("timeout", [float("nan"), "5", b"5", [5]])
def test_what_is_no_timeout_is_refused_before_anything_is_sent(
    server: FakeServer, client: cellstream.Client, timeout: float
) -> None:
    """A step that isn't sent doesn't count."""
    wrong = pytest.raises(ValueError, match=r"timeout is .*; give a number of seconds, or None")
    with client.stream("sum") as stream, client.multiplex("sum") as many:
        many.open(1)
        for call in (
            lambda: client.stream("sum", timeout=timeout),
            lambda: client.multiplex("sum", timeout=timeout),
            lambda: client.models(timeout=timeout),
            lambda: stream.step(1, timeout=timeout),
            lambda: stream.close(timeout=timeout),
            lambda: many.open(2, timeout=timeout),
            lambda: many.finish(1, timeout=timeout),
            lambda: many.step({1: 1}, timeout=timeout),
        ):
            with wrong:
                call()
        assert stream.step(1) == 1
        assert many.step({1: 1}) == {1: 1}

    async def body() -> None:
        async with aio.connect(server.address) as other, other.stream("sum") as stream, other.multiplex("sum") as many:
            await many.open(1)
            for call in (
                lambda: other.models(timeout=timeout),
                lambda: stream.step(1, timeout=timeout),
                lambda: stream.close(timeout=timeout),
                lambda: many.step({1: 1}, timeout=timeout),
                lambda: many.finish(1, timeout=timeout),
            ):
                with wrong:
                    await call()
            with wrong:
                await other.stream("sum", timeout=timeout)
            assert await stream.step(1) == 1

    asyncio.run(body())


def test_a_lack_of_time_is_told_in_words(server: FakeServer, mute: str, client: cellstream.Client) -> None:
    """Every error for a timeout says which time is over, and not gRPC's bare words."""
    with client.stream("sum", timeout=0.3) as stream, client.multiplex("sum") as many:
        many.open(1)
        server.gate.clear()
        with pytest.raises(cellstream.DeadlineExceeded, match="time given to the call is over"):
            stream.step(1)
        with pytest.raises(cellstream.StepTimeout, match="within 0 s"):
            many.step({1: 1}, timeout=0)
        with pytest.raises(cellstream.DeadlineExceeded, match=r"didn't end within 0\.01 s"):
            many.finish(1, timeout=0.01)
        server.gate.set()
    with cellstream.connect(mute) as other:
        with pytest.raises(cellstream.DeadlineExceeded, match=r"didn't answer within 0\.05 s"):
            other.models(timeout=0.05)
        with pytest.raises(cellstream.DeadlineExceeded, match=r"within 0\.05 s"):
            other.multiplex("sum", timeout=0.05)


def test_total_is_used_and_kept(server: FakeServer, client: cellstream.Client) -> None:
    """Attempts go on until the total is used up, and no longer."""
    server.behaviour.refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "", "not yet")
    server.behaviour.refuse_opens = 10_000
    began = time.monotonic()
    with within(), pytest.raises(cellstream.CellstreamError, match="not yet"):
        client.stream("sum", retry=cellstream.Retry(total=0.6, first=0.02, longest=0.1))
    assert time.monotonic() - began > 0.4
    assert server.opens > 4


@given(dice=st.floats(0, 1, exclude_max=True), restart=st.floats(0, 25))
def test_the_default_outlasts_a_restart(dice: float, restart: float) -> None:
    """However the dice fall, opening by defaults is still being tried when a server is back after many seconds."""
    now = [0.0]
    attempts = Attempts(cellstream.Retry(), None, lambda: now[0])
    while now[0] < restart:
        now[0] += attempts.wait_after(cellstream.Unavailable("down")) + 0.01
    assert attempts.seconds_left() > 2


def test_the_reason_behind_a_lack_of_time_is_told() -> None:
    """An attempt that is out of time doesn't hide why the one before failed."""
    now = [0.0]
    attempts = Attempts(cellstream.Retry(total=1), None, lambda: now[0])
    attempts.wait_after(cellstream.Unavailable("connection refused"))
    now[0] = 2.0
    with pytest.raises(cellstream.DeadlineExceeded, match=r"within 1 s.*connection refused"):
        attempts.wait_after(cellstream.DeadlineExceeded("late"))


def test_a_silent_connection_is_lost(server: FakeServer) -> None:
    """A server that vanishes without a word is noticed after the time that is set, with steps under way."""
    quick = cellstream.Channel(keepalive_ms=1000, keepalive_timeout_ms=500)
    with Hole(server.port) as hole, cellstream.connect(hole.address, channel=quick) as client:
        stream = client.stream("sum")
        stream.step(1)
        hole.swallow()
        with within(), pytest.raises(cellstream.StreamLost, match="after step 1 was answered"):
            stream.step(1, timeout=20)


def test_probing_is_on_and_allowed() -> None:
    """By defaults a silent connection is lost within 20 s; the server allows what clients may be set to."""
    arguments = dict(cellstream.Channel().arguments())
    silence, answer = arguments["grpc.keepalive_time_ms"], arguments["grpc.http2.ping_timeout_ms"]
    assert int(silence) + int(answer) < 20_000
    assert arguments["grpc.keepalive_permit_without_calls"] == 1
    allowed = dict(_options(ServerConfig(Path(), "127.0.0.1:0")))["grpc.http2.min_ping_interval_without_data_ms"]
    assert allowed < options._LEAST_KEEPALIVE_MS
    with pytest.raises(ValueError, match="keepalive_ms is 999; it must be at least 1000"):
        cellstream.Channel(keepalive_ms=999)


def test_the_latest_settings_win() -> None:
    """What a user gives by gRPC's own names is obeyed."""
    find: Callable[[str], int | str] = dict(
        cellstream.Channel(extra=(("grpc.http2.ping_timeout_ms", 7), ("grpc.enable_http_proxy", 1))).arguments(
            "localhost"
        )
    ).__getitem__
    assert (find("grpc.http2.ping_timeout_ms"), find("grpc.enable_http_proxy")) == (7, 1)
