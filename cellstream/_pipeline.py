"""Steps under way between one who pushes and one who takes, without I/O.

Owns the order of the answers and the bound on what is pushed and not yet taken. Whoever drives it does so from one
thread at a time.
"""

from __future__ import annotations

from collections import deque

from cellstream._protocol import StreamCore
from cellstream._tensors import Answer, Request, Values
from cellstream.errors import StreamClosed, fresh


class Pipeline:
    """Inputs at one end, outputs at the other, at most a window of steps between them."""

    def __init__(self, core: StreamCore) -> None:
        self._core = core
        self._answers: deque[tuple[int, Answer]] = deque()  # with its steps, oldest first
        self._steps = 0  # pushed and not yet released
        self._over = False  # no more inputs
        self._error: BaseException | None = None  # what ended the inputs
        self.stopped = False

    # The pushing end.

    def has_room(self, request: Request) -> bool:
        """Whether `push` would not go beyond the window; or there is no point in waiting."""
        fits = self._steps == 0 or self._steps + request.steps <= self._core.window
        return fits or self.stopped or self._core.ended

    def push(self, request: Request) -> None:
        """Send a request. Raises as StreamCore.push does."""
        self._answers.append((request.steps, self._core.push(request)))
        self._steps += request.steps

    def end(self, error: BaseException | None) -> None:
        """There are no more inputs, because of `error` or because they are at their end."""
        self._over, self._error = True, error

    # The taking end.

    def has_next(self) -> bool:
        """Whether `take` has something to say."""
        if self._answers:
            return self._core.ready(self._answers[0][1])
        return self._over or self._core.ended

    def take(self) -> tuple[int, Values] | None:
        """The next outputs and how many steps they are; None: that was all. Raises what ended inputs or stream."""
        if self._answers:
            steps, answer = self._answers[0]
            values = self._core.result(answer)
            self._answers.popleft()
            return steps, values
        if self._error is not None:
            raise self._error
        if self._over:
            return None
        raise fresh(self._core.error) if self._core.error is not None else StreamClosed("the stream is closed")

    def release(self, steps: int) -> None:
        """These steps' outputs have been used."""
        self._steps -= steps

    @property
    def unseen(self) -> bool:
        """Whether steps were pushed whose outputs weren't taken."""
        return bool(self._answers)
