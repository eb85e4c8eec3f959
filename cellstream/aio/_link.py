"""One bidirectional call, driven by an event loop.

Owns the call and the task that reads its answers. gRPC's own task takes the requests from the outbox. Waiting for an
answer never touches gRPC, so that a timeout or a cancelled task leaves the call whole.
"""

# ruff: noqa: ASYNC109  timeouts are given as to the client for threads
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc

from cellstream._process import Maker
from cellstream._protocol import OK, Core
from cellstream._rpc import DISCONNECT_SECONDS, Status, closed_here, status_of
from cellstream.errors import CellstreamError, failed_here

R = TypeVar("R")


class Link:
    """A call under way; `pump` follows every change of the core, and `notify` every change that others wait for."""

    def __init__(self, call: Callable[[AsyncIterator[bytes]], Any], core: Core) -> None:
        """`call`: begins the gRPC call, with its requests."""
        self.maker = Maker()
        self._loop = asyncio.get_running_loop()
        self._core = core
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self._make_call = call
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin the call."""
        self._call = self._make_call(self._requests())
        self.pump()
        self._reader = self._loop.create_task(self._read(), name="cellstream-reader")

    def change(self, do: Callable[[], R]) -> R:
        """Do something to the core, and send what may be sent then. Raises what `do` raises."""
        self.maker.check()
        value = do()
        self.pump()
        return value

    def pump(self) -> None:
        """Send what may be sent."""
        while (message := self._core.next_message()) is not None:
            self._outbox.put_nowait(message)
        if self._core.half_close_due():
            self._outbox.put_nowait(None)

    def notify(self) -> None:
        """Wake those who wait in vain no longer, and nobody else."""
        for future, ready in self._waiting.items():
            if not future.done() and ready():
                future.set_result(None)

    async def wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `ready`; False: `timeout` seconds have passed first."""
        self.maker.check()
        if ready():
            return True
        try:
            async with asyncio.timeout(timeout):
                while not ready():
                    future = asyncio.get_running_loop().create_future()
                    self._waiting[future] = ready
                    try:
                        await future
                    finally:
                        del self._waiting[future]
        except TimeoutError:
            return ready()
        return True

    async def drain(self, timeout: float | None) -> None:
        """Wait until the server has ended the call as asked, for `timeout` seconds at most (None: for ever); end it."""
        if not self.maker.here:
            return
        try:
            self.pump()
            await self.wait(lambda: self._core.ended, timeout)
        finally:
            self.end()
        await self._joined()

    async def cancel(self) -> None:
        """End the call at once, because the user wants it so. Idempotent; in a fork nothing is done."""
        if self.maker.here:
            self.end()
            await self._joined()

    def end(self, error: CellstreamError | None = None) -> None:
        """End the call, for `error` or because it is wanted no more. Idempotent."""
        self._core.fail(error or closed_here())
        self.notify()
        if self._call is not None:
            self._call.cancel()
        self._outbox.put_nowait(None)

    def abandon(self) -> None:
        """The same for a finalizer, which any thread may run at any time."""
        if self.maker.here:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the call with it
                self._loop.call_soon_threadsafe(self.end)

    async def _joined(self) -> None:
        if self._reader is not None and asyncio.current_task() is not self._reader:
            await asyncio.wait([self._reader], timeout=DISCONNECT_SECONDS)

    async def _requests(self) -> AsyncIterator[bytes]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _read(self) -> None:
        status: Status = (OK, "", "")
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._core.receive(data)
                self.pump()
                self.notify()
        except grpc.aio.AioRpcError as error:
            status = status_of(error.code(), error.details(), error.trailing_metadata())
        except Exception as error:  # noqa: BLE001  whatever it is, nobody may be left waiting
            self.end(failed_here(error))
        except asyncio.CancelledError:
            self.end()
        self._core.end(*status)
        self.notify()
        self._outbox.put_nowait(None)
