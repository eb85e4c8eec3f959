"""The client's side of one stream, without I/O: requests in, bytes out; bytes in, answers out.

Owns the numbering of steps, the window, what is sent and not yet answered, and a stream's life. Knows no channel, no
thread, no event loop and no clock; whoever drives it does so from one thread at a time.

A stream's life:

    OPENING  --Opened-->  OPEN  --finish-->  FINISHING  --status-->  ENDED
    and from every phase  --status, fail-->  ENDED

GoAway changes no phase: the stream goes on stepping until the server's grace is over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from google.protobuf.message import DecodeError

from cellstream._catalog import Catalog
from cellstream._tensors import Answer, Request, Signature, Values, decode
from cellstream.errors import (
    CellstreamError,
    LimitReached,
    ProtocolError,
    StreamClosed,
    error_of,
    fresh,
    stream_error_of,
)
from cellstream.v1 import stream_inference_pb2 as pb

OK = "OK"
_OVERHEAD, _TENSOR_OVERHEAD = 64, 16  # bytes of a message besides its tensors' own, and to spare


class Core(Protocol):
    """What the drivers (threads or event loop) need of a core."""

    @property
    def ended(self) -> bool:
        """Nothing will come any more."""

    def receive(self, data: bytes) -> None:
        """Take a message of the server's. Raises ProtocolError."""

    def next_message(self) -> bytes | None:
        """A message to send now, if there is one."""

    def half_close_due(self) -> bool:
        """Whether to half-close now; true once."""

    def end(self, code: str, reason: str, message: str) -> None:
        """The call has ended with this status."""

    def fail(self, error: CellstreamError) -> None:
        """It is over, for a reason of our own. The first reason counts."""


class Phase(Enum):
    """Where a stream stands in its life."""

    OPENING = "opening"
    OPEN = "open"
    FINISHING = "finishing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Opening:
    """What a stream is opened with."""

    model: str
    version: int = 0
    stream_id: str = ""

    def message(self, known: Signature | None) -> pb.Open:
        """As the protocol's Open, by a client that has this description of the model."""
        digest = known.digest if known is not None else b""
        return pb.Open(model=self.model, version=self.version, stream_id=self.stream_id, known_digest=digest)


@dataclass(frozen=True, slots=True)
class Opened:
    """What the server said when it opened the stream.

    `resume_token` and `epoch` are kept for resuming, which this version doesn't do.
    """

    model: str
    version: int
    stream_id: str
    next_step: int
    epoch: int
    resume_token: bytes
    window_steps: int
    max_steps_per_message: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk that is ready to be sent, or sent and not yet answered: its steps, and its bytes as they go out."""

    first_step: int
    steps: int
    message: bytes

    @property
    def last_step(self) -> int:
        """Its last step's number."""
        return self.first_step + self.steps - 1


def opened_from(message: pb.Opened) -> Opened:
    """What an Opened says. Raises ProtocolError unless it is a new stream's."""
    if message.next_step != 1:
        raise ProtocolError(f"the server opened a new stream at step {message.next_step}; it must start at 1")
    return Opened(
        model=message.model,
        version=message.version,
        stream_id=message.stream_id,
        next_step=message.next_step,
        epoch=message.epoch,
        resume_token=message.resume_token,
        window_steps=message.window_steps,
        max_steps_per_message=message.max_steps_per_message,
    )


class StreamCore:
    """One stream. Drive it: `next_message` and `half_close_due` after every change, `receive`, and at last `end`."""

    def __init__(self, opening: Opening, catalog: Catalog) -> None:
        self.phase = Phase.OPENING
        self.opened: Opened | None = None
        self.error: CellstreamError | None = None  # why it ended; None: as asked
        self.going_away_ms: int | None = None  # the server's grace, once it said that it shuts down
        self.durable_step = 0
        self.answered_step = 0
        self.sent_step = 0
        self._last_step = 0  # of everything that was pushed
        self.signature: Signature | None = None  # the model's, as the server that opened the stream says
        self._opening = opening
        self._catalog = catalog
        self._proposal = catalog.proposal(opening.model, opening.version)
        self._greeting: bytes | None = pb.StreamRequest(open=opening.message(self._proposal)).SerializeToString()
        self._unsent: deque[Piece] = deque()
        self._unanswered: deque[Piece] = deque()
        self._answers: deque[Answer] = deque()  # not complete yet, oldest first
        self._half_closed = False

    # The user's side.

    def check_opened(self) -> Opened:
        """What the server said when it opened the stream. Raises why it didn't, or why the stream is over since."""
        if self.error is not None:
            raise fresh(self.error)
        assert self.opened is not None
        return self.opened

    def push(self, request: Request) -> Answer:
        """Number a request's steps and queue them.

        Raises StreamClosed, LimitReached for a step that no message can hold, or why the stream ended.
        """
        self._check_open()
        assert self.signature is not None
        most = self._piece_steps(self.signature)
        answer = Answer(self.signature, request.steps, chunk=request.chunk)
        at = 0
        while at < request.steps:
            stop = min(at + most, request.steps)
            chunk = pb.Chunk(first_step=self._last_step + 1, steps=stop - at, inputs=request.cut(at, stop))
            message = pb.StreamRequest(chunk=chunk).SerializeToString()
            self._unsent.append(Piece(self._last_step + 1, stop - at, message))
            self._last_step += stop - at
            at = stop
        self._answers.append(answer)
        return answer

    def ready(self, answer: Answer) -> bool:
        """Whether `result` has something to say."""
        return answer.done or self.ended

    def result(self, answer: Answer) -> Values:
        """A complete answer's outputs. Raises why the stream ended where it did so before the answer was complete."""
        if answer.done:
            return answer.value()
        assert self.error is not None
        raise fresh(self.error)

    def finish(self) -> None:
        """No more pushes: half-close once everything is sent."""
        if self.phase in (Phase.OPENING, Phase.OPEN):
            self.phase = Phase.FINISHING

    def fail(self, error: CellstreamError) -> None:
        """The stream is over, for a reason of our own. The first reason counts."""
        if self.phase is not Phase.ENDED:
            self.phase = Phase.ENDED
            self.error = error

    @property
    def ended(self) -> bool:
        """Nothing will come any more."""
        return self.phase is Phase.ENDED

    @property
    def window(self) -> int:
        """Steps that may be sent and not yet answered."""
        assert self.opened is not None
        return max(1, self.opened.window_steps)

    @property
    def unanswered(self) -> tuple[Piece, ...]:
        """What was sent and isn't answered, oldest first: what a resumed stream would send again."""
        return tuple(self._unanswered)

    # The wire's side.

    def next_message(self) -> bytes | None:
        """The next message that the window lets through; None: not now."""
        if self._greeting is not None:
            greeting, self._greeting = self._greeting, None
            return greeting
        if not self._unsent or self.ended:
            return None
        piece = self._unsent[0]
        if self._unanswered and piece.last_step - self.answered_step > self.window:
            return None
        self._unanswered.append(self._unsent.popleft())
        self.sent_step = piece.last_step
        return piece.message

    def half_close_due(self) -> bool:
        """Whether to half-close now; true once."""
        if self.phase is not Phase.FINISHING or self._unsent or self._half_closed:
            return False
        self._half_closed = True
        return True

    def receive(self, data: bytes) -> None:
        """Take a message of the server's. Raises ProtocolError; messages of a later protocol are passed over."""
        try:
            response = pb.StreamResponse.FromString(data)
        except DecodeError:
            raise ProtocolError("the server sent something that is no cellstream.v1.StreamResponse") from None
        kind = response.WhichOneof("message")
        if kind == "outputs":
            self._take_outputs(response.outputs)
        elif kind == "durable":
            self.durable_step = max(self.durable_step, response.durable.durable_step)
        elif kind == "go_away":
            self.going_away_ms = response.go_away.grace_ms
        elif kind == "opened":
            if self.opened is not None:
                raise ProtocolError("the server opened the stream twice")
            self._take_opened(response.opened)
            if self.phase is Phase.OPENING:
                self.phase = Phase.OPEN

    def end(self, code: str, reason: str, message: str) -> None:
        """The call has ended with this status."""
        if self.ended:
            return
        if self._half_closed and self.answered_step == self._last_step:
            self.phase = Phase.ENDED  # as asked: whatever the status says, nothing was left to lose
        elif self.opened is None and code != OK:
            self.fail(error_of(code, reason, message))
        else:
            code, message = ("UNAVAILABLE", "the server ended it") if code == OK else (code, message)
            steps = {"answered_step": self.answered_step, "sent_step": self.sent_step}
            self.fail(stream_error_of(code, reason, message, **steps))

    def _take_opened(self, message: pb.Opened) -> None:
        opened = opened_from(message)
        known = () if self._proposal is None else (self._proposal,)
        self.signature = self._catalog.opened(message, (self._opening.model, self._opening.version), known)
        self.opened = opened

    def _check_open(self) -> None:
        if self.error is not None:
            raise fresh(self.error)
        if self.phase is not Phase.OPEN:
            raise StreamClosed("the stream is closed")

    def _piece_steps(self, signature: Signature) -> int:
        """The most steps that go in one message."""
        assert self.opened is not None
        most = self.opened.max_steps_per_message or self.window
        limit = signature.model.limits.max_message_bytes
        room = limit - _OVERHEAD - _TENSOR_OVERHEAD * len(signature.inputs)
        if limit and room < signature.input_step_bytes:
            raise LimitReached(f"one step has {signature.input_step_bytes} bytes; a message has {limit} at most")
        if limit and signature.input_step_bytes:
            most = min(most, room // signature.input_step_bytes)
        return most

    def _take_outputs(self, outputs: pb.Outputs) -> None:
        first, steps = outputs.first_step, outputs.steps
        if steps < 1 or first != self.answered_step + 1 or self.answered_step + steps > self.sent_step:
            raise ProtocolError(
                f"the server answered {steps} steps from step {first}; answered so far: {self.answered_step}, sent: "
                f"{self.sent_step}"
            )
        assert self.signature is not None
        slices = decode(self.signature.outputs, steps, outputs.outputs)
        self.answered_step += steps
        self.durable_step = max(self.durable_step, outputs.durable_step)
        while self._unanswered and self._unanswered[0].last_step <= self.answered_step:
            self._unanswered.popleft()
        while steps:
            answer = self._answers[0]
            count = min(steps, answer.missing)
            answer.append([part[:count] for part in slices])
            slices, steps = [part[count:] for part in slices], steps - count
            if answer.done:
                self._answers.popleft()
