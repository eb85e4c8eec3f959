"""Sockets and epoll under the connections: moves bytes, knows nothing of them but that they came and when.

`now` is read once after each recv: everything in one piece has arrived by then.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable

from bench.load.connection import Connection, LoadError

_RECEIVE = 1 << 17  # bytes at a time
_COARSE = 2_000_000  # ns; epoll itself waits in whole milliseconds


class Link:
    """A connection on a socket."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        except (OSError, ValueError) as error:
            raise LoadError(f"can't connect to {address!r}: {error}") from error
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = Connection(address)
        self.rest = b""  # the beginning of a frame
        self.unsent = b""


class Sockets:
    """All connections of a run."""

    def __init__(self, address: str, connections: int) -> None:
        self._poll = select.epoll()
        self._links: dict[int, Link] = {}
        self._of: dict[Connection, Link] = {}
        self.now = time.perf_counter_ns()
        self.stamp = [self.now]
        for _ in range(connections):
            link = Link(address)
            self._links[link.socket.fileno()] = self._of[link.connection] = link
            self._poll.register(link.socket, select.EPOLLIN)

    @property
    def connections(self) -> list[Connection]:
        """Every connection."""
        return list(self._of)

    def clock(self) -> int:
        """Nanoseconds; the same clock in every process of the machine."""
        return time.perf_counter_ns()

    def turn(self, until: int) -> None:
        """Wait for bytes, to `until` at the longest, and hand them on; answers made meanwhile are written."""
        left = until - time.perf_counter_ns()
        if 0 < left < _COARSE:
            select.select((self._poll,), (), (), left / 1e9)
            left = 0
        for number, event in self._poll.poll(max(left, 0) / 1e9):
            link = self._links[number]
            if event & ~select.EPOLLOUT:
                self._receive(link)
            self._write(link)

    def flush(self, connections: Iterable[Connection]) -> None:
        """Write what these have to say."""
        for connection in connections:
            self._write(self._of[connection])

    def close(self) -> None:
        """Close every connection, whatever is under way."""
        for link in self._links.values():
            link.socket.close()
        self._poll.close()

    def _receive(self, link: Link) -> None:
        try:
            data = link.socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            raise LoadError(f"the connection is lost: {error}") from error
        if not data:
            raise LoadError("the server has closed the connection")
        self.now = time.perf_counter_ns()
        link.rest = link.connection.receive(link.rest + data if link.rest else data)

    def _write(self, link: Link) -> None:
        data = link.connection.take_output()
        waiting = link.unsent
        if not data and not waiting:
            return
        data = waiting + data
        self.stamp[0] = time.perf_counter_ns()
        self.stamp = [0]
        try:
            sent = link.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise LoadError(f"the connection is lost: {error}") from error
        link.unsent = data[sent:]
        if bool(link.unsent) != bool(waiting):
            events = select.EPOLLIN | (select.EPOLLOUT if link.unsent else 0)
            self._poll.modify(link.socket, events)
