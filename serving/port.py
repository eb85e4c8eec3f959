"""One port for several processes, and for nobody else.

Owns the reservation: sockets that are bound and never listen. While they are there, processes of this user that ask for
SO_REUSEPORT may listen on the address, and the kernel spreads connections over those that do; whoever wants the address
for itself, or to reserve it too, is refused.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from serving.config import host_and_port
from serving.errors import ConfigError


def cannot_listen(address: str) -> ConfigError:
    """The error for an address that can't be had."""
    return ConfigError(f"can't listen on {address!r}; is another server there? (--listen HOST:PORT)")


class Reservation:
    """An address that is reserved until the block is left."""

    def __init__(self, address: str) -> None:
        """Reserve HOST:PORT, on every address that the host's name stands for; port 0 takes a free one.

        Raises ConfigError.
        """
        host, port = host_and_port(address)
        self._sockets: list[socket.socket] = []
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, where in dict.fromkeys((family, where) for family, *_, where in found):
                with _absent_addresses_skipped():
                    self._sockets.append(_reserve(family, (where[0], port, *where[2:])))
                    port = self._sockets[0].getsockname()[1]  # the one that was taken for 0
        except OSError as error:
            self.close()
            raise cannot_listen(address) from error
        if not self._sockets:
            raise cannot_listen(address)
        self.address = f"{host}:{port}"

    def close(self) -> None:
        """Give the address back; whoever listens there goes on."""
        for reserved in self._sockets:
            reserved.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _absent_addresses_skipped() -> Iterator[None]:
    # Where IPv6 is off, localhost may stand for ::1 all the same; gRPC listens on the addresses that there are.
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise


def _reserve(family: int, where: tuple[str | int, ...]) -> socket.socket:
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        if where[1] == 0:
            reserved.bind(where)
        else:
            # SO_REUSEADDR: connections of an earlier server that linger in TIME_WAIT don't count. It would let two
            # sockets share a port until one listens, so this one listens for a moment, and is strict from then on.
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(where)
            reserved.listen(1)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            reserved.shutdown(socket.SHUT_RDWR)  # bound still: a port that was asked for is kept
        # Only now, so that sharing it isn't what lets us in.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        reserved.close()
        raise
    return reserved
