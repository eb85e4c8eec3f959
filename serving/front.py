"""What the hot services share: the models, the limits, the clock, the live calls, and how a stream is opened.

Knows the protocol's Open and Opened; knows no RPC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cellstream.v1 import stream_inference_pb2 as pb
from serving.config import Limits
from serving.errors import CannotResume, TooLarge
from serving.lane import Lane, Lanes
from serving.stats import ServerStats
from serving.streams import Sink, Stream

SERVICE = "cellstream.v1.StreamInference"
OPEN_INFERENCE = "inference.GRPCInferenceService"
MAX_NAME = 256  # characters of a model or stream_id


class LiveCall(Protocol):
    """What a service can be asked to do with a call of its own."""

    def go_away(self, grace_ms: int) -> None:
        """Tell the client that the server is about to shut down."""

    def flush(self) -> None:
        """Send what was gathered during a turn."""


@dataclass(slots=True)
class Front:
    """One per server."""

    lanes: Lanes
    limits: Limits
    stats: ServerStats
    clock: Callable[[], float]
    calls: set[LiveCall] = field(default_factory=set)
    gathered: list[LiveCall] = field(default_factory=list)  # calls with something to flush

    def go_away(self, grace_seconds: float) -> None:
        """Tell every client that the server is about to shut down."""
        for call in list(self.calls):
            call.go_away(round(grace_seconds * 1000))

    def flush(self) -> None:
        """Send what was gathered during a turn."""
        if self.gathered:
            gathered, self.gathered = self.gathered, []
            for call in gathered:
                call.flush()

    def check_size(self, data: bytes) -> None:
        """Raise TooLarge for a message above the limit."""
        if len(data) > self.limits.max_message_bytes:
            raise TooLarge(f"a message of {len(data)} bytes; the limit is {self.limits.max_message_bytes} bytes")

    def find(self, model: str, version: int) -> Lane:
        """A served model. Raises UnknownModel, or TooLarge for a name that no answer could repeat."""
        check_name("model", model)
        return self.lanes.find(model, version)

    def open(self, opening: pb.Open, sink: Sink) -> tuple[Lane, Stream, pb.Opened]:
        """Open the stream that a client asks for. Raises the Refusal to answer if it can't be had."""
        if opening.resume_token:
            raise CannotResume("this server keeps no checkpoints, so no stream can be resumed; open a new one")
        check_name("stream_id", opening.stream_id)
        lane = self.find(opening.model, opening.version)
        stream = lane.open(opening.stream_id, sink)
        lane.stats.opened += 1
        opened = pb.Opened(
            model=lane.name,
            version=lane.version,
            stream_id=opening.stream_id,
            next_step=1,
            epoch=1,
            window_steps=self.limits.window_steps,
            max_steps_per_message=self.limits.max_steps_per_message,
            model_digest=lane.description.digest,
        )
        return lane, stream, opened


def check_name(what: str, text: str) -> None:
    """Raise TooLarge for a name that is longer than one may be."""
    if len(text) > MAX_NAME:
        raise TooLarge(f"a {what} of {len(text)} characters; the limit is {MAX_NAME}")
