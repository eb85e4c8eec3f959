"""One stream, for asyncio: a step, a chunk, or a pipeline of them.

Owns the use of the core and the link for one stream. What a message looks like and which may be sent is the core's.
"""

# ruff: noqa: ASYNC109  timeouts are given as to the client for threads
from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from cellstream._pipeline import Pipeline
from cellstream._protocol import StreamCore
from cellstream._rpc import CLOSE_SECONDS, time_limit, warn_dropped
from cellstream._tensors import Values
from cellstream._view import StreamView, open_timeout, step_timeout
from cellstream.aio._link import Link


class Stream(StreamView):
    """A stream whose state is on the server. Made by `Client.stream`.

    Leaving its block by an error cancels it; otherwise what was sent is computed first. Tasks may share it: each step
    is answered to the task that asked, in the order in which the steps were taken.
    """

    def __init__(self, core: StreamCore, link: Link, forget: Callable[[Link], None], address: str) -> None:
        super().__init__(core)
        self._link = link
        self._forget = forget
        self._address = address

    async def wait_opened(self, seconds: float) -> None:
        """Begin the call, and wait until the server has opened the stream; for `Client`. Raises why it doesn't."""
        self._link.begin()
        if not await self._link.wait(lambda: self._core.opened is not None or self._core.ended, seconds):
            raise open_timeout(seconds)
        self._core.check_opened()

    async def step(self, values: Any, *, timeout: float | None = None) -> Values:
        """Compute one step ([*shape]) or a chunk ([T, *shape]): its outputs, in the same form.

        What is converted, refused and raised is as in `cellstream.Stream.step`. A task that is cancelled while it
        waits is as a StepTimeout: the step counts, its answer is dropped, and the stream goes on.
        """
        timeout = time_limit(timeout)
        request = self._encode(values)
        answer = self._link.change(lambda: self._core.push(request))
        if not await self._link.wait(lambda: self._core.ready(answer), timeout):
            raise step_timeout(request.steps, timeout)
        return self._core.result(answer)

    async def run(self, inputs: AsyncIterable[Any] | Iterable[Any]) -> AsyncGenerator[Values, None]:
        """Pipeline: the outputs of every step or chunk that `inputs` gives, in order and as soon as each is there.

        `inputs` is read by a task of its own, ahead of the outputs by at most the server's window of steps; an
        ordinary iterable must not block. An error that it raises, or an InvalidInput for one of its values, comes
        after the outputs of everything before it, and the stream goes on. Leaving the loop early cancels the stream
        if steps were sent whose outputs nobody saw (at once under contextlib.aclosing, else when Python collects
        the generator).
        """
        pipeline, link = Pipeline(self._core), self._link
        feed = _feed(link, self._core, pipeline, inputs)
        feeder = asyncio.get_running_loop().create_task(feed, name="cellstream-feeder")
        try:
            while True:
                await link.wait(pipeline.has_next, None)
                taken = pipeline.take()
                if taken is None:
                    return
                yield taken[1]
                pipeline.release(taken[0])
                link.notify()
        finally:
            pipeline.stopped = True
            feeder.cancel()
            if pipeline.unseen:
                await self.cancel()
            await asyncio.wait([feeder])

    async def close(self, *, timeout: float = CLOSE_SECONDS) -> None:
        """End the stream once what was sent is answered, within `timeout` seconds; then cancel it. Idempotent."""
        limit = time_limit(timeout)
        self._core.finish()
        await self._link.drain(limit)
        self._forget(self._link)

    async def cancel(self) -> None:
        """End the stream at once. Idempotent."""
        await self._link.cancel()
        self._forget(self._link)

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is None or not link.maker.here:
            return
        self._forget(link)
        if not self._core.ended:
            link.abandon()
            warn_dropped(self, self._address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            await self.cancel()


async def _feed(link: Link, core: StreamCore, pipeline: Pipeline, inputs: AsyncIterable[Any] | Iterable[Any]) -> None:
    # Holds no stream, so that one can be dropped while `inputs` waits.
    assert core.signature is not None
    error: BaseException | None = None
    try:
        async with contextlib.aclosing(_each(inputs)) as each:
            async for values in each:
                request = core.signature.encode(values)
                await link.wait(functools.partial(pipeline.has_room, request), None)
                if pipeline.stopped:
                    break
                link.change(functools.partial(pipeline.push, request))
                link.notify()
    except BaseException as caught:  # noqa: BLE001  it is for the one who takes
        error = caught
    pipeline.end(error)
    link.notify()


async def _each(inputs: AsyncIterable[Any] | Iterable[Any]) -> AsyncGenerator[Any, None]:
    if isinstance(inputs, AsyncIterable):
        async for values in inputs:
            yield values
    else:
        for values in inputs:
            yield values
            await asyncio.sleep(0)  # the others' turn
