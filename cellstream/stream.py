"""One stream, for threads: a step, a chunk, or a pipeline of them.

Owns the use of the core and the link for one stream. What a message looks like and which may be sent is the core's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self

from cellstream._link import Link
from cellstream._pipeline import Pipeline
from cellstream._protocol import Opened, StreamCore
from cellstream._tensors import Values
from cellstream._view import StreamView, open_timeout, step_timeout


class Stream(StreamView):
    """A stream that is open; its state is on the server. Made by `Client.stream`.

    Leaving its block by an error cancels it; otherwise what was sent is computed first. Threads may share it: each
    step is answered to the thread that asked, in the order in which the steps were taken.
    """

    def __init__(self, method: Any, core: StreamCore, forget: Callable[[Stream], None], **options: Any) -> None:
        super().__init__(core)
        self._forget = forget
        self._link = Link(method, core, **options)

    def wait_opened(self, timeout: float) -> Opened:
        """Wait for the server's answer to Open; for `Client.stream`. Raises why it doesn't open."""
        with self._link.changed:
            if not self._link.wait(lambda: self._core.opened is not None or self._core.ended, timeout):
                raise open_timeout(timeout)
            return self._core.check_opened()

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
        request = self._encode(values)
        with self._link.changed:
            answer = self._core.push(request)
            self._link.pump()
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
        pipeline, changed = Pipeline(self._core), self._link.changed
        threading.Thread(target=self._feed, args=(pipeline, inputs), name="cellstream-feeder", daemon=True).start()
        try:
            while True:
                with changed:
                    self._link.wait(pipeline.has_next, None)
                    taken = pipeline.take()
                if taken is None:
                    return
                yield taken[1]
                with changed:
                    pipeline.release(taken[0])
                    self._link.notify()
        finally:
            with changed:
                pipeline.stopped = True
                self._link.notify()
            if pipeline.unseen:
                self.cancel()

    def close(self) -> None:
        """End the stream once what was sent is answered (for a few seconds at most). Idempotent."""
        with self._link.changed:
            self._core.finish()
        self._link.drain()
        self._forget(self)

    def cancel(self) -> None:
        """End the stream at once. Idempotent."""
        self._link.cancel()
        self._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.cancel()

    def _feed(self, pipeline: Pipeline, inputs: Iterable[Any]) -> None:
        error: BaseException | None = None
        try:
            for values in inputs:
                request = self._encode(values)
                with self._link.changed:
                    self._link.wait(functools.partial(pipeline.has_room, request), None)
                    if pipeline.stopped:
                        break
                    pipeline.push(request)
                    self._link.pump()
                    self._link.notify()
        except BaseException as caught:  # noqa: BLE001  it is for the one who takes
            error = caught
        with self._link.changed:
            pipeline.end(error)
            self._link.notify()
