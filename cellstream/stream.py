"""One stream, for threads: a step, a chunk, or a pipeline of them.

Owns the use of the core and the link for one stream. What a message looks like and which may be sent is the core's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self

from cellstream._link import Link
from cellstream._pipeline import Pipeline
from cellstream._protocol import StreamCore
from cellstream._rpc import CLOSE_SECONDS, JOIN_SECONDS, time_limit, warn_dropped
from cellstream._tensors import Values
from cellstream._view import StreamView, open_timeout, step_timeout


class Stream(StreamView):
    """A stream that is open; its state is on the server. Made by `Client.stream`.

    Leaving its block by an error cancels it; otherwise what was sent is computed first. Threads may share it: each
    step is answered to the thread that asked, in the order in which the steps were taken.
    """

    def __init__(self, core: StreamCore, link: Link, forget: Callable[[Link], None], address: str) -> None:
        super().__init__(core)
        self._link = link
        self._forget = forget
        self._address = address

    def wait_opened(self, seconds: float) -> None:
        """Begin the call, and wait until the server has opened the stream; for `Client`. Raises why it doesn't."""
        try:
            self._link.begin()
            opened = self._link.wait(lambda: self._core.opened is not None or self._core.ended, seconds)
            self._core.check_opened() if opened else None
        except BaseException:
            self.leave()
            raise
        if not opened:
            self.leave()
            raise open_timeout(seconds)

    def leave(self) -> None:
        """End the stream and wait for nothing."""
        self._link.cancel()
        self._forget(self._link)

    def step(self, values: Any, *, timeout: float | None = None) -> Values:
        """Compute one step ([*shape]) or a chunk ([T, *shape]): its outputs, in the same form.

        A model with several inputs takes a dict of arrays by name; one with several outputs gives such a dict. Values
        are converted where nothing is lost but float precision: integers of any width to integers where they fit,
        floats to floats (float64 rounds to float32), integers to floats that hold them exactly, booleans to numbers.
        Floats are never taken for integers, and values must be finite and within the model's bounds.

        Raises InvalidInput before anything is sent: the stream goes on as if nothing had been asked. Raises
        StepTimeout if the answer isn't there after `timeout` seconds: the step still counts, its answer is dropped
        when it comes, and the stream goes on. (The same holds for a KeyboardInterrupt.) Raises StreamLost,
        DeadlineExceeded, StreamClosed or the server's refusal when the stream is over. A server that shuts down takes
        steps until its grace is over (see `going_away`); then it ends the stream, which raises StreamLost.
        """
        timeout = time_limit(timeout)
        request = self._encode(values)
        answer = self._link.change(lambda: self._core.push(request))
        if not self._link.wait(lambda: self._core.ready(answer), timeout):
            raise step_timeout(request.steps, timeout)
        return self._core.result(answer)

    def run(self, inputs: Iterable[Any]) -> Generator[Values, None, None]:
        """Pipeline: the outputs of every step or chunk that `inputs` gives, in order and as soon as each is there.

        `inputs` is read on a thread of its own, ahead of the outputs by at most the server's window of steps. An error
        that it raises, or an InvalidInput for one of its values, comes after the outputs of everything before it, and
        the stream goes on. Leaving the loop early cancels the stream if steps were sent whose outputs nobody saw; the
        thread ends when `inputs` gives its next value.
        """
        pipeline, link = Pipeline(self._core), self._link
        feed = functools.partial(_feed, link, self._core, pipeline, inputs)
        link.spawn(feed, "cellstream-feeder", functools.partial(_end_inputs, link, pipeline))
        try:
            while True:
                link.wait(pipeline.has_next, None)
                with link.changed:
                    taken = pipeline.take()
                if taken is None:
                    return
                yield taken[1]
                with link.changed:
                    pipeline.release(taken[0])
                    link.notify()
        finally:
            if link.maker.here:
                with link.changed:
                    pipeline.stopped = True
                    link.notify()
            if pipeline.unseen:
                link.cancel()

    def close(self, *, timeout: float = CLOSE_SECONDS) -> None:
        """End the stream once what was sent is answered, within `timeout` seconds; then cancel it. Idempotent."""
        limit = time_limit(timeout)
        if self._link.maker.here:
            with self._link.changed:
                self._core.finish()
            self._link.drain(limit)
            self._link.join(JOIN_SECONDS)
            self._forget(self._link)

    def cancel(self) -> None:
        """End the stream at once, within a second. Idempotent."""
        self._link.cancel()
        self._link.join(JOIN_SECONDS)
        self._forget(self._link)

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is None or not link.maker.here:
            return
        self._forget(link)
        if not self._core.ended:
            link.abandon()
            warn_dropped(self, self._address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.cancel()


def _feed(link: Link, core: StreamCore, pipeline: Pipeline, inputs: Iterable[Any]) -> None:
    # Holds no stream, so that one can be dropped while `inputs` blocks.
    assert core.signature is not None
    error: BaseException | None = None
    try:
        for values in inputs:
            request = core.signature.encode(values)
            link.wait(functools.partial(pipeline.has_room, request), None)
            if pipeline.stopped:
                break
            link.change(functools.partial(pipeline.push, request))
            with link.changed:
                link.notify()
    except BaseException as caught:  # noqa: BLE001  it is for the one who takes
        error = caught
    _end_inputs(link, pipeline, error)


def _end_inputs(link: Link, pipeline: Pipeline, error: BaseException | None) -> None:
    with link.changed:
        pipeline.end(error)
        link.notify()
