"""One bidirectional call, driven by threads.

Owns the call, the thread that reads its answers, and the lock around its core. gRPC's own thread takes the requests
from the outbox. Waiting for an answer never touches gRPC, so that a timeout or Ctrl-C leaves the call whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc

from cellstream._protocol import Core
from cellstream._rpc import CLOSE_SECONDS, closed_here, status_of
from cellstream.errors import CellstreamError, failed_here

C = TypeVar("C", bound=Core)


class Outbox:
    """Messages on their way to gRPC: an iterator that blocks until there is one; None ends it."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[bytes | None] = SimpleQueue()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        message = self.queue.get()
        if message is None:
            raise StopIteration
        return message


class Link:
    """A call under way. All use of the core happens with `changed` held, and `pump` follows every change."""

    def __init__(self, method: Any, core: Core, **options: Any) -> None:
        self.changed = threading.RLock()
        self._waiting: list[tuple[Callable[[], bool], threading.Condition]] = []
        self._core = core
        self._outbox = Outbox()
        self._call = method(self._outbox, **options)
        self._reader = threading.Thread(target=self._read, name="cellstream-reader", daemon=True)
        with self.changed:
            self.pump()
        self._reader.start()

    def pump(self) -> None:
        """Send what may be sent; with `changed` held."""
        while (message := self._core.next_message()) is not None:
            self._outbox.queue.put(message)
        if self._core.half_close_due():
            self._outbox.queue.put(None)

    def wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait with `changed` held until `ready`; False: `timeout` seconds have passed first."""
        if ready():
            return True
        waiting = ready, threading.Condition(self.changed)
        self._waiting.append(waiting)
        try:
            return waiting[1].wait_for(ready, timeout)
        finally:
            self._waiting.remove(waiting)

    def notify(self) -> None:
        """Wake those who wait in vain no longer, and nobody else; with `changed` held, after every change."""
        for ready, condition in self._waiting:
            if ready():
                condition.notify()

    def drain(self) -> None:
        """Wait until the server has ended the call as asked, for a bounded time; then end it."""
        with self.changed:
            self.pump()
            self.wait(lambda: self._core.ended, CLOSE_SECONDS)
        self.cancel()

    def cancel(self, error: CellstreamError | None = None) -> None:
        """End the call at once, for `error` or because the user wants it so. Idempotent."""
        with self.changed:
            self._core.fail(error or closed_here())
            self.notify()
        self._call.cancel()
        self._outbox.queue.put(None)
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _read(self) -> None:
        try:
            for data in self._call:
                with self.changed:
                    self._core.receive(data)
                    self.pump()
                    self.notify()
        except grpc.RpcError:
            pass  # the status below says it
        except Exception as error:  # noqa: BLE001  whatever it is, nobody may be left waiting
            self.cancel(failed_here(error))
        status = status_of(self._call.code(), self._call.details(), self._call.trailing_metadata())
        with self.changed:
            self._core.end(*status)
            self.notify()
        self._outbox.queue.put(None)
