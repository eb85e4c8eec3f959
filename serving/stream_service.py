"""StreamInference.Stream: one call is one stream. Bytes in, bytes out.

Owns the messages of this RPC and when the next one is read. A stream's life is in serving.streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError
from grpc import StatusCode

from cellstream.v1 import stream_inference_pb2 as pb
from serving.call import Call
from serving.errors import InvalidInput, Refusal, ShuttingDown, WrongPhase
from serving.front import SERVICE, Front
from serving.lane import Lane
from serving.single_steps import SingleSteps
from serving.status import code_of, trailing
from serving.streams import Phase, Stream

METHOD = f"/{SERVICE}/Stream"


class StreamCall:
    """One Stream call: the wire's handler and the stream's sink in one."""

    __slots__ = ("_call", "_front", "_held", "_lane", "_singles", "_stalled", "_stream")

    def __init__(self, front: Front, call: Call) -> None:
        self._front = front
        self._call = call
        self._lane: Lane | None = None
        self._stream: Stream | None = None
        self._singles: SingleSteps | None = None  # once the stream is open
        self._held = False  # its client doesn't read, so it gets no turns
        self._stalled = False  # the next message isn't asked for until something is computed or read
        front.calls.add(self)
        call.receive()

    # From the wire.

    def on_message(self, data: bytes) -> None:
        """A message has arrived."""
        front, stream, singles = self._front, self._stream, self._singles
        front.stats.messages_in += 1
        try:
            if stream is not None and singles is not None:
                inputs = singles.read(data, stream.accepted_step + 1)
                if inputs is not None:
                    assert self._lane is not None
                    self._lane.streams.push_next(stream, 1, inputs, front.clock())
                    # _receive_if_room() for the usual case: what isn't held has room, and one answer is owed.
                    if stream.accepted_step - stream.answered_step == 1 < front.limits.window_steps and not self._held:
                        self._call.receive_after_reply()
                    else:
                        self._receive_if_room()
                    return
            front.check_size(data)
            self._take(data)
        except Refusal as refusal:
            self._refuse(refusal)
        else:
            self._receive_if_room()

    def on_half_close(self) -> None:
        """The client sends no more."""
        if self._lane is None or self._stream is None:
            self._refuse(WrongPhase("the call ended before it opened a stream; send Open first"))
        else:
            self._lane.streams.finish(self._stream)

    def on_sent(self) -> None:
        """The client has read something."""
        if self._held and self._call.unsent_bytes <= self._front.limits.max_unsent_bytes // 2:
            assert self._lane is not None
            assert self._stream is not None
            self._held = False
            self._lane.streams.batcher.release(self._stream)
            self._call.tells_sent = self._stalled
        if self._stalled:
            self._receive_if_room()

    def on_closed(self, *, cancelled: bool) -> None:  # noqa: ARG002  however it ended, the stream is over
        """The call is over."""
        self._front.calls.discard(self)
        if self._lane is not None and self._stream is not None:
            self._lane.streams.end(self._stream)

    # From the stream.

    def on_outputs(self, first_step: int, steps: int, outputs: Sequence[bytes], queue_us: int, compute_us: int) -> None:
        """Some steps are computed."""
        front, call = self._front, self._call
        if steps == 1:
            assert self._singles is not None
            data = self._singles.write(first_step, outputs, queue_us, compute_us)
        else:
            answer = pb.Outputs(
                first_step=first_step, steps=steps, outputs=outputs, queue_us=queue_us, compute_us=compute_us
            )
            data = pb.StreamResponse(outputs=answer).SerializeToString()
        front.stats.messages_out += 1
        call.reply(data)
        if call.unsent_bytes >= front.limits.max_unsent_bytes and not self._held:
            assert self._lane is not None
            assert self._stream is not None
            self._held = call.tells_sent = True
            self._lane.streams.batcher.hold(self._stream)
        if self._stalled:
            self._receive_if_room()

    def on_end(self, refusal: Refusal | None) -> None:
        """The stream has ended by itself."""
        if refusal is None:
            self._call.finish(StatusCode.OK)
        else:
            self._refuse(refusal)

    # From the server.

    def go_away(self, grace_ms: int) -> None:
        """Tell the client that the server shuts down; end a call that hasn't opened its stream."""
        if self._stream is None:
            self._refuse(ShuttingDown("the server is shutting down; open the stream on another one"))
            return
        self._send(pb.StreamResponse(go_away=pb.GoAway(grace_ms=grace_ms)))

    def flush(self) -> None:
        """Nothing is gathered: every answer is sent at once."""

    def _take(self, data: bytes) -> None:
        try:
            request = pb.StreamRequest.FromString(data)
        except DecodeError:
            raise InvalidInput("the message isn't a cellstream.v1.StreamRequest") from None
        kind = request.WhichOneof("message")
        if kind == "chunk":
            if self._lane is None or self._stream is None:
                raise WrongPhase("a chunk before the stream is open; send Open first")
            chunk = request.chunk
            self._lane.streams.push(
                self._stream, chunk.first_step, chunk.steps, list(chunk.inputs), self._front.clock()
            )
        elif kind == "open":
            if self._stream is not None:
                raise WrongPhase("a second Open; one call is one stream")
            self._lane, self._stream, opened = self._front.open(request.open, self)
            self._singles = SingleSteps(self._lane.layout)
            description = self._lane.description
            if description.wanted_by(request.open):
                opened.description.CopyFrom(description.message())
            self._send(pb.StreamResponse(opened=opened))
        else:
            raise InvalidInput("the message is neither Open nor Chunk")

    def _send(self, response: pb.StreamResponse) -> None:
        self._front.stats.messages_out += 1
        self._call.send(response.SerializeToString())

    def _receive_if_room(self) -> None:
        stream, limits, call = self._stream, self._front.limits, self._call
        self._stalled = (
            stream is not None
            and (stream.phase is not Phase.OPEN or stream.accepted_step - stream.answered_step >= limits.window_steps)
        ) or call.unsent_bytes >= limits.max_unsent_bytes
        call.tells_sent = self._stalled or self._held
        if not self._stalled:
            call.receive()

    def _refuse(self, refusal: Refusal) -> None:
        self._front.stats.refusals[refusal.reason] += 1
        if self._lane is not None and self._stream is not None:
            self._lane.streams.end(self._stream)
        self._call.finish(code_of(refusal), str(refusal), trailing(refusal))
