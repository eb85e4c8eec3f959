"""Streams and clients that are dropped without being closed: their threads end, and their places on the server."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Callable

import pytest

import cellstream
from cellstream import aio
from tests.cellstream.conftest import client_threads
from tests.cellstream.fake_server import FakeServer
from tests.waiting import wait_until


def _and_collect(use: Callable[[], object]) -> None:
    use()
    gc.collect()


def _drop_a_stream(client: cellstream.Client) -> None:
    assert client.stream("sum").step(1) == 1


def _drop_a_run(client: cellstream.Client) -> None:
    run = client.stream("sum").run(itertools.repeat(1))
    assert next(run) == 1


def _drop_a_multiplex(client: cellstream.Client) -> None:
    m = client.multiplex("sum")
    m.open(1)
    assert m.step({1: 2})[1] == 2


@pytest.mark.parametrize("use", [_drop_a_stream, _drop_a_multiplex])
def test_a_dropped_stream_ends(
    server: FakeServer, client: cellstream.Client, use: Callable[[cellstream.Client], None]
) -> None:
    """Its call ends on the server, its threads end here, and a ResourceWarning says what to do."""
    client.models()
    before = client_threads()
    with pytest.warns(ResourceWarning, match=r"(Stream|Multiplex) of 127.* dropped while it was open; use `with`"):
        _and_collect(lambda: use(client))
    wait_until(lambda: not server.calls)
    wait_until(lambda: client_threads() <= before)
    assert not client._live


def test_a_dropped_run_ends(server: FakeServer, client: cellstream.Client) -> None:
    """A pipeline that is dropped half-way ends its stream as leaving its loop does: without a warning."""
    _drop_a_run(client)
    gc.collect()
    wait_until(lambda: not server.calls)
    assert not client._live


def test_a_closed_stream_is_dropped_in_silence(server: FakeServer, client: cellstream.Client) -> None:
    """Closed, cancelled or lost, a stream holds nothing that dropping it would have to free."""
    client.stream("sum").close()
    client.stream("sum").cancel()
    lost = client.stream("sum")
    server.die()
    with pytest.raises(cellstream.StreamLost):
        lost.step(1)
    del lost
    gc.collect()
    assert not client._live


def test_a_dropped_client_disconnects(server: FakeServer) -> None:
    """A client that nobody holds, nor a stream of its, leaves no thread behind."""
    before = client_threads()
    with cellstream.connect(server.address).stream("sum") as stream:
        stream.step(1)
    del stream
    gc.collect()
    wait_until(lambda: client_threads() <= before)


def test_asyncio_streams_that_are_dropped_end(server: FakeServer) -> None:
    """The same for asyncio."""

    async def body() -> None:
        async with aio.connect(server.address) as client:

            async def use() -> None:
                stream = await client.stream("sum")
                assert await stream.step(1) == 1
                m = await client.multiplex("sum")
                await m.open(1)

            with pytest.warns(ResourceWarning, match="dropped while it was open"):
                await use()
            await asyncio.to_thread(wait_until, lambda: not server.calls)
            assert not client._live

    asyncio.run(body())
