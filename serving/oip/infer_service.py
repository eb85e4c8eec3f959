"""ModelInfer and ModelStreamInfer, on the fast wire. Bytes in, bytes out.

Owns the two RPCs: which request an answer belongs to, in which order answers leave, and when the next request is
read. Requests are taken in by serving.oip.desk.
"""

from __future__ import annotations

from collections import deque

from grpc import StatusCode

from serving.call import Call
from serving.errors import InvalidInput, Refusal, ShuttingDown
from serving.front import OPEN_INFERENCE
from serving.oip.answers import error_response
from serving.oip.desk import Desk, Ticket
from serving.status import code_of, trailing

INFER = f"/{OPEN_INFERENCE}/ModelInfer"
STREAM_INFER = f"/{OPEN_INFERENCE}/ModelStreamInfer"
_END_BY_STATUS = ("triton_grpc_error", "true")  # metadata: a request that fails ends the stream


class InferCall:
    """One ModelInfer call."""

    def __init__(self, desk: Desk, call: Call) -> None:
        self._desk = desk
        self._call = call
        self._ticket = Ticket(self)
        self._asked = False
        call.receive()

    def on_message(self, data: bytes) -> None:
        """The request has arrived."""
        if self._asked:
            self._end_as_invalid("ModelInfer takes one request a call; ModelStreamInfer takes many")
            return
        self._asked = True
        try:
            self._desk.take(data, self._ticket, self, streamed=False)
        except Refusal as refusal:
            self.refuse(self._ticket, refusal)
        else:
            self._call.receive()  # what shows that the client sends no more

    def on_half_close(self) -> None:
        """The client sends no more."""
        if not self._asked:
            self._end_as_invalid("a ModelInfer call without a request")

    def on_sent(self) -> None:
        """Nothing is sent but the answer."""

    def on_closed(self, *, cancelled: bool) -> None:
        """The call is over."""
        lane = self._ticket.lane
        if lane is not None:
            lane.sequences.abandon(self, self._desk.front.clock(), cut_off=cancelled)

    def complete(self, _ticket: Ticket, data: bytes) -> None:
        """The request is answered."""
        self._desk.front.stats.messages_out += 1
        self._call.answer(data)

    def refuse(self, ticket: Ticket, refusal: Refusal) -> None:
        """The request is refused."""
        self._desk.fail(ticket, refusal)
        self._call.finish(code_of(refusal), str(refusal), trailing(refusal))

    def _end_as_invalid(self, why: str) -> None:
        """End the call for what is no fault of its request's."""
        self.refuse(Ticket(self), InvalidInput(why))


class StreamInferCall:
    """One ModelStreamInfer call: requests of any sequences, answered in the order in which they came."""

    def __init__(self, desk: Desk, call: Call) -> None:
        self._desk = desk
        self._front = desk.front
        self._call = call
        self._tickets: deque[Ticket] = deque()
        self._steps = 0  # of requests that aren't answered
        self._stalled = False
        self._finishing = False
        self._leaving = False
        self._over = False
        self._ends_by_status = _END_BY_STATUS in tuple(call.metadata)
        call.tells_sent = False
        self._front.calls.add(self)
        call.receive()

    # From the wire.

    def on_message(self, data: bytes) -> None:
        """A request has arrived."""
        ticket = Ticket(self)
        self._tickets.append(ticket)
        try:
            self._desk.take(data, ticket, self, streamed=True)
        except Refusal as refusal:
            ticket.steps = 0
            self.refuse(ticket, refusal)
        else:
            self._steps += ticket.steps
        self._receive_if_room()

    def on_half_close(self) -> None:
        """The client sends no more; what it has sent is answered."""
        self._finishing = True
        self._end_if_drained()

    def on_sent(self) -> None:
        """The client has read something."""
        if self._stalled:
            self._receive_if_room()

    def on_closed(self, *, cancelled: bool) -> None:
        """The call is over; its sequences go on through other calls."""
        self._over = True
        self._front.calls.discard(self)
        for lane in self._front.lanes:
            lane.sequences.abandon(self, self._front.clock(), cut_off=cancelled)

    # From the sequences.

    def complete(self, ticket: Ticket, data: bytes) -> None:
        """A request is answered."""
        ticket.data = data
        if self._tickets[0] is ticket:
            self._send_ready()

    def refuse(self, ticket: Ticket, refusal: Refusal) -> None:
        """A request is refused; the others go on."""
        self._desk.fail(ticket, refusal)
        ticket.refusal = refusal
        ticket.data = error_response(ticket.request_id.decode(), str(refusal), refusal.reason, final=ticket.final)
        if self._tickets[0] is ticket:
            self._send_ready()

    # From the server.

    def go_away(self, grace_ms: int) -> None:  # noqa: ARG002  the protocol has no words for it
        """Leave as soon as no sequence of the call is live: its client learns of it by the status."""
        self._leaving = True
        self._end_if_drained()

    def flush(self) -> None:
        """Nothing is gathered: every answer is sent at once."""

    def _send_ready(self) -> None:
        tickets, call = self._tickets, self._call
        while tickets:
            ticket = tickets[0]
            data = ticket.data
            if data is None:
                break
            tickets.popleft()
            self._steps -= ticket.steps
            if self._over:
                continue  # nobody is there to be told
            if ticket.refusal is not None and self._ends_by_status:
                self._finish(code_of(ticket.refusal), str(ticket.refusal), trailing(ticket.refusal))
                return
            self._front.stats.messages_out += 1
            call.reply(data)
        if self._stalled:
            self._receive_if_room()
        if self._finishing or self._leaving:
            self._end_if_drained()

    def _receive_if_room(self) -> None:
        limits, call = self._front.limits, self._call
        self._stalled = self._steps >= limits.window_steps or call.unsent_bytes >= limits.max_unsent_bytes
        call.tells_sent = self._stalled
        if self._stalled:
            return
        if len(self._tickets) == 1:
            call.receive_after_reply()
        else:
            call.receive()

    def _end_if_drained(self) -> None:
        if self._tickets or self._over:
            return
        if self._finishing:
            self._finish(StatusCode.OK, "", ())
        elif self._leaving and not any(lane.sequences.owned(self) for lane in self._front.lanes):
            refusal = ShuttingDown("the server is shutting down; go on with another one")
            self._finish(code_of(refusal), str(refusal), trailing(refusal))

    def _finish(self, code: StatusCode, details: str, metadata: tuple[tuple[str, str], ...]) -> None:
        self._over = True
        self._call.finish(code, details, metadata)
