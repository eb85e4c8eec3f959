"""One bidirectional call, driven by an event loop.

Owns the call and the task that reads its answers. gRPC's own task takes the requests from the outbox. Waiting for an
answer never touches gRPC, so that a timeout or a cancelled task leaves the call whole.
"""

# ruff: noqa: ASYNC109  timeouts are given as to the client for threads
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from cellstream._protocol import OK, Core
from cellstream._rpc import CLOSE_SECONDS, Status, closed_here, status_of
from cellstream.errors import CellstreamError, failed_here


class Link:
    """A call under way; `pump` follows every change of the core, and `notify` every change that others wait for."""

    def __init__(self, method: Any, core: Core, **options: Any) -> None:
        self._core = core
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self._call = method(self._requests(), **options)
        self.pump()
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="cellstream-reader")

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

    async def drain(self) -> None:
        """Wait until the server has ended the call as asked, for a bounded time; then end it."""
        self.pump()
        await self.wait(lambda: self._core.ended, CLOSE_SECONDS)
        await self.cancel()

    async def cancel(self, error: CellstreamError | None = None) -> None:
        """End the call at once, for `error` or because the user wants it so. Idempotent."""
        self._core.fail(error or closed_here())
        self.notify()
        self._call.cancel()
        self._outbox.put_nowait(None)
        if asyncio.current_task() is not self._reader:
            await asyncio.wait([self._reader])

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
            await self.cancel(failed_here(error))
        except asyncio.CancelledError:
            await self.cancel()
        self._core.end(*status)
        self.notify()
        self._outbox.put_nowait(None)
