"""One hot call: its outstanding operations, in their order, and what waits to be sent.

Must not know what a message means. serving/wire.py gives it its events, and says what it is to touch
`grpc._cython.cygrpc`, as only these two do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc

# After so many messages in a row a client is taken to wait for every answer before it sends on; it is looked at again
# after every so many more. One that pauses for longer than _BRISK seconds isn't.
_LOCKSTEP = 64
_LOOK_AGAIN = 64
_BRISK = 1.0
_NO_FLAGS = 0
_FOR_EVER = 1e11  # seconds since 1970; gRPC writes "no deadline" as one beyond this
_ReceiveMessage, _SendMessage = cygrpc.ReceiveMessageOperation, cygrpc.SendMessageOperation
_CODES = {code: code.value[0] for code in grpc.StatusCode}

Metadata = tuple[tuple[str, str | bytes], ...]


class WireError(RuntimeError):
    """gRPC refused an operation that should never have been started, or isn't the gRPC this module is written for."""


class Handler(Protocol):
    """What a service gives the wire for each call. Called from within Wire.poll only, never from within a Call.

    Once the service has called finish() or abort(), nothing but on_closed follows.
    """

    def on_message(self, data: bytes) -> None:
        """Take one message; no other is received before Call.receive() is called again."""

    def on_half_close(self) -> None:
        """Note that the client has sent its last message."""

    def on_sent(self) -> None:
        """Note that a message has left the outbox: Call.unsent and Call.unsent_bytes went down. If Call.tells_sent."""

    def on_closed(self, *, cancelled: bool) -> None:
        """Let go of the call: the last callback, exactly once. `cancelled` unless a finish() of ours has ended it."""


class Queue(Protocol):
    """What a call asks of the wire."""

    now: float
    half_closed: list[Call]

    def heard(self, call: Call) -> None:
        """Note that a call has sent its first message, or that it sends none."""

    def forget(self, call: Call) -> None:
        """Let go of a call that is over."""


class Call:
    """One call of a hot method. At most one receive and one send of it are outstanding, whatever its service asks."""

    __slots__ = (
        "__weakref__",
        "_aborted",
        "_call",
        "_cancelled",
        "_deferred",
        "_due",
        "_exchanging",
        "_finishing",
        "_greeted",
        "_half_closed",
        "_handler",
        "_lockstep",
        "_on_exchanged",
        "_on_received",
        "_on_sent",
        "_outbox",
        "_peer",
        "_receiving",
        "_sending",
        "_sent_at",
        "_status",
        "_wire",
        "deadline",
        "metadata",
        "method",
        "tells_sent",
        "unsent",
        "unsent_bytes",
    )

    def __init__(self, wire: Queue, method: str, event: Any) -> None:
        self.method = method
        self.metadata: Metadata = event.invocation_metadata
        deadline = event.call_details.deadline
        self.deadline: float | None = deadline if deadline < _FOR_EVER else None  # seconds since 1970
        self.unsent = 0  # messages given to send() that haven't left
        self.unsent_bytes = 0
        self.tells_sent = True  # whether the handler wants on_sent(): it costs something for each message
        self._wire = wire
        self._handler: Handler | None = None  # none yet, or never: refused
        self._call = event.call  # none once the call is over: each one kept costs tens of KiB
        self._peer: str | None = None
        self._due = 0  # operations outstanding; ReceiveCloseOnServer is one of them to the end
        self._receiving = False
        self._deferred = False  # the next message is asked for together with the next send
        self._exchanging = False  # an answer and the receive behind it are outstanding, in one operation
        self._lockstep = 0  # messages in a row that were answered before the next came
        self._sent_at = 0.0  # by the wire's time
        self._half_closed = False
        self._greeted = False  # initial metadata goes out with the first message or the status
        self._sending: bytes | None = None
        self._outbox: deque[bytes] = deque()  # what waits behind the message being sent
        self._finishing = False  # by finish() or abort() of ours, or because the client is gone
        self._status: tuple[grpc.StatusCode, str, Metadata] | None = None  # what waits behind the outbox
        self._aborted = False
        self._cancelled = False
        # Bound once, not for every message. They refer back to the call; _over() breaks the circle.
        self._on_received: Callable[[Any], None] | None = self._first_received
        self._on_sent: Callable[[Any], None] | None = self._sent
        self._on_exchanged: Callable[[Any], None] | None = self._exchanged
        self._start((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)

    @property
    def peer(self) -> str:
        """The client's address as gRPC writes it, e.g. ipv4:127.0.0.1:40000; empty if first asked after the end."""
        if self._peer is None:
            self._peer = self._call.peer().decode() if self._call is not None else ""
        return self._peer

    def receive(self) -> None:
        """Ask for the next message. Does nothing if one is asked for already, or none can come any more."""
        self._lockstep = 0
        self._deferred = False
        self._receive()

    def receive_after_reply(self) -> None:
        """Ask for the next message, perhaps no sooner than with the next reply(), which the service is sure to call.

        Once a client is known to wait for every answer, both are one operation. From then until its next message, what
        is given to send() stays in the outbox; finish() doesn't wait.
        """
        self._lockstep = known = self._lockstep + 1 if self._wire.now - self._sent_at < _BRISK else 0
        if known > _LOCKSTEP and known % _LOOK_AGAIN and not self._receiving:
            self._deferred = True
        else:
            self._receive()

    def reply(self, data: bytes) -> None:
        """Send the answer to the message that was taken last: send(), and what receive_after_reply() has put off."""
        self._sent_at = self._wire.now
        if not self._deferred or self._sending is not None or not self._greeted:
            self.send(data)
        elif not self._finishing:
            self._deferred = False
            self._exchanging = self._receiving = True
            self._start((_SendMessage(data, _NO_FLAGS), _ReceiveMessage(_NO_FLAGS)), self._on_exchanged)

    def send(self, data: bytes) -> None:
        """Send a message, after those already waiting. Does nothing if the call is finishing or over."""
        if self._finishing:
            return
        if self._deferred:
            self._deferred = False
            self._receive()
        self.unsent += 1
        self.unsent_bytes += len(data)
        if self._sending is None and not self._exchanging:
            self._start_send(data)
        else:
            self._outbox.append(data)

    def answer(self, data: bytes) -> None:
        """Send the only message of a call and end it with OK, all in one operation."""
        if self._finishing:
            return
        assert not self._greeted, "a call that has sent something isn't answered by one message"
        self._finishing = self._greeted = True
        self._start(
            (
                cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),
                _SendMessage(data, _NO_FLAGS),
                cygrpc.SendStatusFromServerOperation((), 0, b"", _NO_FLAGS),
            ),
            self._status_sent,
        )

    def finish(self, code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> None:
        """End the call with this status, after all that is waiting. Does nothing if it is finishing or over."""
        if self._finishing:
            return
        self._finishing = True
        self._status = (code, details, metadata)
        if self._exchanging:
            self._drop_outbox()  # nothing in it answers anything, and it can't leave before the client's next message
        if self._sending is None:
            self._start_status()

    def abort(self, code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> None:
        """End the call with this status now, even if it is finishing, and drop what hasn't left.

        For a client that doesn't read. While a message of ours may be on its way gRPC can't pass `metadata`.
        """
        if self._aborted or self._call is None:
            return
        self._aborted = True
        self._drop_outbox()
        if self._finishing or self._exchanging or self._sending is not None:
            self._cancel(code, details)
        else:
            self._cancelled = True
            self.finish(code, details, metadata)

    def _cancel(self, code: grpc.StatusCode, details: str) -> None:
        # gRPC sends this status ahead of data that waits for the client to read. If the call is over it does nothing.
        self._finishing = True
        self._status = None
        self._call.cancel(_CODES[code], details.encode())

    def _drop_outbox(self) -> None:
        self.unsent -= len(self._outbox)
        self.unsent_bytes -= sum(map(len, self._outbox))
        self._outbox.clear()

    def _start(self, operations: tuple[Any, ...], on_done: Callable[[Any], None] | None) -> None:
        # An operation object is used once only: gRPC frees what is inside when it completes.
        error = self._call.start_server_batch(operations, on_done)
        if error:
            what = ", ".join(type(operation).__name__ for operation in operations)
            raise WireError(f"gRPC refused {what} of a call of {self.method} with call error {error}")
        self._due += 1

    def _receive(self) -> None:
        if self._receiving or self._half_closed or self._finishing:
            return
        self._receiving = True
        self._start((_ReceiveMessage(_NO_FLAGS),), self._on_received)

    def _start_send(self, data: bytes) -> None:
        self._sending = data
        message = _SendMessage(data, _NO_FLAGS)
        if self._greeted:
            self._start((message,), self._on_sent)
        else:
            self._greeted = True
            self._start((cygrpc.SendInitialMetadataOperation((), _NO_FLAGS), message), self._on_sent)

    def _start_status(self) -> None:
        assert self._status is not None
        code, details, metadata = self._status
        self._status = None
        status = cygrpc.SendStatusFromServerOperation(metadata, _CODES[code], details.encode(), _NO_FLAGS)
        if self._greeted:
            self._start((status,), self._status_sent)
        else:
            self._start((cygrpc.SendInitialMetadataOperation((), _NO_FLAGS), status), self._status_sent)

    # Completions. Each first brings the books up to date and only then calls the handler, which may raise.

    def _first_received(self, event: Any) -> None:
        self._on_received = self._received
        self._wire.heard(self)
        self._received(event)

    def _received(self, event: Any) -> None:
        self._take_in(event.batch_operations[0].message())

    def _take_in(self, data: bytes | None) -> None:
        self._receiving = False
        self._due -= 1
        if data is None:
            self._half_closed = True
            self._wire.half_closed.append(self)
        if not self._due:
            self._over()
        elif data is not None and not self._finishing and self._handler is not None:
            self._handler.on_message(data)

    def _exchanged(self, event: Any) -> None:
        self._exchanging = False
        self._send_next(sent=event.success)
        self._take_in(event.batch_operations[1].message())

    def _sent(self, event: Any) -> None:
        self._due -= 1
        sent, self._sending = self._sending, None
        assert sent is not None
        self.unsent -= 1
        self.unsent_bytes -= len(sent)
        self._send_next(sent=event.success)
        if not self._due:
            self._over()
        elif self.tells_sent and not self._finishing and self._handler is not None:
            self._handler.on_sent()

    def _send_next(self, *, sent: bool) -> None:
        if not sent:
            self._cancel(grpc.StatusCode.INTERNAL, "an answer could not be sent")
        elif self._outbox:
            self._start_send(self._outbox.popleft())
        elif self._status is not None:
            self._start_status()

    def _status_sent(self, event: Any) -> None:
        self._due -= 1
        if not event.success:
            self._cancel(grpc.StatusCode.INTERNAL, "the status could not be sent")
        if not self._due:
            self._over()

    def _closed(self, event: Any) -> None:
        self._due -= 1
        self._cancelled |= event.batch_operations[0].cancelled()
        self._finishing = True
        self._drop_outbox()
        if not self._due:
            self._over()

    def _over(self) -> None:
        handler, self._handler = self._handler, None
        self._call = self._on_received = self._on_sent = self._on_exchanged = None
        self._wire.forget(self)
        if handler is not None:
            handler.on_closed(cancelled=self._cancelled)

    def wake(self) -> None:
        """Have the poll that waits return at once, if the call isn't over. Safe from any thread."""
        call = self._call
        if call is not None:
            call.start_server_batch((), None)

    # For the wire alone.

    def mark(self) -> None:
        """Put a marker into the queue: an event whose tag is None."""
        self._call.start_server_batch((), None)

    def serve(self, service: Callable[[Call], Handler]) -> None:
        """Let `service` make the call's handler."""
        self._handler = service(self)

    def half_close(self) -> None:
        """Tell the handler that the client has sent its last message."""
        if not self._finishing and self._handler is not None:
            self._handler.on_half_close()
