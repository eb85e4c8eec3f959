"""What can be seen of a stream, whoever drives it."""

from __future__ import annotations

from typing import Any

from cellstream._protocol import StreamCore
from cellstream._tensors import Request
from cellstream.errors import CellstreamError, DeadlineExceeded, StepTimeout
from cellstream.models import Model


class StreamView:
    """A stream's figures; the base of the streams for threads and for event loops."""

    def __init__(self, core: StreamCore) -> None:
        self._core = core

    @property
    def model(self) -> Model:
        """The model and version that this stream runs."""
        assert self._core.signature is not None, "the stream isn't open"
        return self._core.signature.model

    @property
    def stream_id(self) -> str:
        """The name under which the server knows the stream."""
        assert self._core.opened is not None, "the stream isn't open"
        return self._core.opened.stream_id

    @property
    def answered_step(self) -> int:
        """The last step whose outputs have arrived, counted from 1."""
        return self._core.answered_step

    @property
    def durable_step(self) -> int:
        """The last step whose state is in the server's checkpoint store; 0: none is."""
        return self._core.durable_step

    @property
    def going_away(self) -> float | None:
        """Seconds that the stream had when the server said that it shuts down; None: it hasn't.

        The stream takes steps until they are over; then it ends as lost.
        """
        grace = self._core.going_away_ms
        return None if grace is None else grace / 1000

    @property
    def error(self) -> CellstreamError | None:
        """Why the stream ended; None: it hasn't, or it ended as asked."""
        return self._core.error

    def _encode(self, values: Any) -> Request:
        assert self._core.signature is not None, "the stream isn't open"
        return self._core.signature.encode(values)


def step_timeout(steps: int, timeout: float | None) -> StepTimeout:
    """The error for an answer that isn't there in time."""
    return StepTimeout(
        f"no answer to {steps} steps within {timeout or 0.0:g} s; they count all the same, and the stream goes on"
    )


def open_timeout(seconds: float) -> DeadlineExceeded:
    """The error for a stream that doesn't open in time."""
    return DeadlineExceeded(f"the server didn't open the stream within {seconds:.3g} s")


def finish_timeout(seconds: float) -> DeadlineExceeded:
    """The error for streams of a multiplexed call that don't end in time."""
    return DeadlineExceeded(f"the streams didn't end within {seconds:.3g} s; they end once their steps are answered")
