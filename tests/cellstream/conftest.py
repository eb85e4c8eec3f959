"""A fake server for every test that asks, and a watch over threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import cellstream
from tests.cellstream.fake_server import FakeServer

OURS = ("cellstream-", "consume_request_iterator", "channel_spin")


def client_threads() -> set[threading.Thread]:
    """The threads that clients and their gRPC calls have."""
    return {thread for thread in threading.enumerate() if any(name in thread.name for name in OURS)}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A fake server on a free port."""
    fake = FakeServer()
    yield fake
    fake.die()


@pytest.fixture
def client(server: FakeServer) -> Iterator[cellstream.Client]:
    """A client of it, which must leave no thread behind."""
    before = client_threads()
    with cellstream.connect(server.address) as connected:
        yield connected
    for thread in client_threads() - before:
        thread.join(10.0)
        assert not thread.is_alive(), f"{thread.name} is left behind"
