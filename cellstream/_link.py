"""One bidirectional call, driven by threads.

Owns the call, the thread that reads its answers, and the lock around its core. gRPC's own thread takes the requests
from the outbox; the client's worker begins and cancels the call. The user's threads never touch gRPC, so that neither a
timeout nor Ctrl-C can leave anything of it locked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc

from cellstream._process import Maker
from cellstream._protocol import Core
from cellstream._rpc import closed_here, interrupted, status_of
from cellstream._worker import Worker, gate_timeout
from cellstream.errors import CellstreamError, failed_here

R = TypeVar("R")


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
    """A call; `begin` it. All use of the core happens with `changed` held, and `pump` follows every change.

    Holds nothing of the user's, whose stream may be dropped while the call goes on.
    """

    def __init__(self, worker: Worker, call: Callable[[Outbox], Any], core: Core) -> None:
        """`call`: begins the gRPC call, with its requests."""
        self.changed = threading.RLock()
        self.maker = Maker()
        self._waiting: dict[Any, Callable[[], bool]] = {}  # by the lock that a waiter waits for
        self._worker = worker
        self._core = core
        self._outbox = Outbox()
        self._make_call = call
        self._call: Any = None
        self._reader: threading.Thread | None = None
        self._over = False  # the reader has done, or won't begin

    def begin(self) -> None:
        """Have the call begun."""
        self.change(lambda: None)
        self._worker.put(self._begin)

    def change(self, do: Callable[[], R]) -> R:
        """Do something to the core, and send what may be sent then. Raises what `do` raises.

        An interrupt in the middle of it ends the call: nobody knows what was done.
        """
        self.maker.check()
        with self.changed:
            try:
                value = do()
                self.pump()
            except CellstreamError:
                raise
            except BaseException as error:
                self._core.fail(interrupted("an error" if isinstance(error, Exception) else "an interrupt"))
                self._worker.put(self._end)
                raise
            return value

    def pump(self) -> None:
        """Send what may be sent; with `changed` held."""
        while (message := self._core.next_message()) is not None:
            self._outbox.queue.put(message)
        if self._core.half_close_due():
            self._outbox.queue.put(None)

    def wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait, without `changed`, until `ready`; False: `timeout` seconds have passed first."""
        self.maker.check()
        gate, woken = threading.Lock(), False
        gate.acquire()
        try:
            with self.changed:
                if ready():
                    return True
                self._waiting[gate] = ready
            woken = gate.acquire(timeout=gate_timeout(timeout))
        finally:
            if not woken:  # else `notify` has let go of it
                with self.changed:
                    self._waiting.pop(gate, None)
        return woken or ready()

    def notify(self) -> None:
        """Wake those who wait in vain no longer, and nobody else; with `changed` held, after every change."""
        for gate in [gate for gate, ready in self._waiting.items() if ready()]:
            del self._waiting[gate]
            gate.release()

    def drain(self, timeout: float | None) -> None:
        """Wait until the server has ended the call as asked, for `timeout` seconds at most (None: for ever); end it."""
        if not self.maker.here:
            return
        try:
            with self.changed:
                self.pump()
            self.wait(lambda: self._core.ended, timeout)
        finally:
            self.cancel()

    def cancel(self, error: CellstreamError | None = None) -> None:
        """End the call at once, for `error` or because the user wants it so. Idempotent; in a fork nothing is done."""
        if self.maker.here:
            with self.changed:
                self._core.fail(error or closed_here())
                self.notify()
            self._worker.put(self._end)

    def join(self, timeout: float) -> None:
        """Wait, for `timeout` seconds at most, until gRPC has ended the call and its reader is gone. After `cancel`."""
        if not self.maker.here or self._reader is threading.current_thread():
            return
        until = time.monotonic() + timeout
        if self.wait(lambda: self._over, timeout) and self._reader is not None:
            self._reader.join(max(0.0, until - time.monotonic()))

    def abandon(self) -> None:
        """The same for a finalizer, which may run while any lock is held."""
        if self.maker.here:
            self._worker.put(self.cancel)

    def spawn(self, work: Callable[[], None], name: str, failed: Callable[[Exception], None]) -> None:
        """Have `work` done by a thread of its own; `failed` is told why there is none."""

        def start() -> None:
            try:
                threading.Thread(target=work, name=name, daemon=True).start()
            except RuntimeError as error:
                failed(error)

        self._worker.put(start)

    def _begin(self) -> None:
        if self._core.ended:
            self._finish()
            return
        try:
            self._call = self._make_call(self._outbox)
            reader = threading.Thread(target=self._read, name="cellstream-reader", daemon=True)
            reader.start()
            self._reader = reader
        except Exception as error:  # noqa: BLE001  it is raised to the one who waits
            self.cancel(failed_here(error))
            self._finish()

    def _end(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._outbox.queue.put(None)

    def _finish(self) -> None:
        with self.changed:
            self._over = True
            self.notify()
        self._outbox.queue.put(None)

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
        self._finish()
