"""gRPC's completion queue: every hot call, and what arrives on them.

Owns the queue and the live calls, all on the one thread that polls; a call's operations are serving/call.py's. Must not
know what a message means, what a stream is, or when a batch runs. These two alone touch `grpc._cython.cygrpc`, which
is no public interface: grpcio's tested releases are listed, and tests/serving/test_wire.py is what another must pass.

The order of a server's life: Wire(server, methods), server.start(), start(), then poll() again and again. At the end
server.stop(grace), finish_all(), more polls for as long as clients may take to read their status, refuse_all() for
those that don't, server.stop(0), stop().
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc

from serving.call import Call, Handler, Metadata, WireError

TESTED_GRPC: tuple[str, ...] = (
    "1.82.3",
    "1.83.2",
    "1.84.2",
    "1.85.0",
    "1.85.1",
    "1.85.3",
)  # `make newest` tries another
# What grpc.server() must be given.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # Of more new calls than this that wait for a busy loop, gRPC fails some at random. Its own limit of 1,000 is
    # passed by a crowd that reconnects while one batch runs.
    ("grpc.server.max_pending_requests", 1 << 16),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 16),
    # A client whose messages aren't received is held at 256 KiB per call; gRPC by itself takes from 4 to 16 MiB of
    # each. It is also what a connection carries per round trip: half of it would be felt across a continent.
    ("grpc.http2.lookahead_bytes", 1 << 18),
    ("grpc.http2.bdp_probe", 0),
)

_MAX_EVENTS = 4096  # taken by one poll: a flood of messages mustn't keep the loop from its other work
_REQUESTED = 32  # calls of each method asked for in advance, so that a burst of new ones is taken in by one poll
_STOP_POLL = 0.05  # seconds
_AT_ONCE = 0  # as a deadline for the queue: long past, so it never waits
_DONE = cygrpc.CompletionType.operation_complete
_SHUT_DOWN = cygrpc.CompletionType.queue_shutdown


class Gate(Protocol):
    """What decides which calls get in."""

    def admit(self, call: Call) -> tuple[grpc.StatusCode, str, Metadata] | None:
        """Let a new call in, or say what it is refused with."""

    def heard(self, call: Call) -> None:
        """Note that a call has sent its first message, or is over; perhaps again."""


class Wire:
    """The completion queue of a server's hot methods. All but `live` is for one thread: the one that polls."""

    def __init__(
        self, server: grpc.Server, methods: Mapping[str, Callable[[Call], Handler]], gate: Gate | None = None
    ) -> None:
        """`methods`: what makes a call's handler, by full name (/package.Service/Method). Before server.start().

        `gate` decides which calls get one.
        """
        self._gate = gate
        self._server = _core_of(server)
        self._methods = dict(methods)
        self._queue = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._queue)
        for method in self._methods:
            self._server.register_method(method)
        self._calls: set[Call] = set()
        self._anchor: Call | None = None  # the call that markers go through
        self._requested = 0
        self._refusal: tuple[grpc.StatusCode, str, Metadata] | None = None
        self.live = 0  # calls that aren't over
        self.now = 0.0  # monotonic seconds: when the latest event was waited for no longer
        self.half_closed: list[Call] = []  # told at the end of the poll; the calls themselves add to it

    def start(self) -> None:
        """Take calls. After server.start()."""
        for method in self._methods:
            on_call = functools.partial(self._accept, method)
            for _ in range(_REQUESTED):
                self._request(method, on_call)

    def poll(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for an event, then deal with all that have arrived, and return their number.

        A flood is taken by several polls. Whatever a handler raises comes out here; the wire's own books are right
        then, and polling may go on.
        """
        poll = self._queue.poll
        events = marked_at = 0
        marked = not timeout and self._mark()
        event = poll(time.time() + timeout if timeout else _AT_ONCE)
        self.now = time.monotonic()
        while event.completion_type == _DONE:
            tag = event.tag
            if tag is not None:
                tag(event)
                events += 1
            elif events == marked_at:
                break  # the marker was alone: all that has arrived is dealt with
            else:
                marked = False
            if events >= _MAX_EVENTS:
                break  # before the next event is taken: it would be lost
            if not marked:
                marked, marked_at = self._mark(), events
            event = None  # it may hold the last reference to a call, which must go before the next poll
            event = poll(_AT_ONCE)
        while self.half_closed:
            # Only now: what a cancelled call gives first looks like a half-close, and its cancel comes right behind.
            self.half_closed.pop().half_close()
        return events

    def finish_all(self, code: grpc.StatusCode, details: str, metadata: Metadata = ()) -> None:
        """End every call with this status once its client has taken what waits, and from now on every new one.

        Polling carries it out. Unlike refuse_all() it reaches the last call of a connection that has had its GOAWAY:
        gRPC closes such a connection before it has written the status of an aborted call.
        """
        self._refusal = (code, details, metadata)
        for call in tuple(self._calls):
            call.finish(code, details, metadata)

    def refuse_all(self, code: grpc.StatusCode, details: str) -> None:
        """End every call with this status now, and from now on every new one. Polling carries it out."""
        self._refusal = (code, details, ())
        for call in tuple(self._calls):
            call.abort(code, details)

    def stop(self, timeout: float = 5.0) -> bool:
        """Cut off what is left and close the queue, within `timeout` seconds; False if gRPC didn't give it all back.

        After server.stop(0), in the thread that polled or when that has ended. Handlers still get their on_closed.
        """
        self.refuse_all(grpc.StatusCode.UNAVAILABLE, "the server has shut down")
        give_up = time.monotonic() + timeout
        while self.live or self._requested:
            if time.monotonic() > give_up:
                return False
            self.poll(_STOP_POLL)
        self._queue.shutdown()
        while (kind := self._queue.poll(time.time() + timeout).completion_type) == _DONE:
            pass  # a marker
        return bool(kind == _SHUT_DOWN)

    def heard(self, call: Call) -> None:
        """Note that a call has sent its first message, or that it sends none. For calls alone."""
        if self._gate is not None:
            self._gate.heard(call)

    def forget(self, call: Call) -> None:
        """Let go of a call that is over. For calls alone."""
        self.heard(call)
        self._calls.remove(call)
        self.live -= 1
        if self._anchor is call:
            self._anchor = None

    def _mark(self) -> bool:
        # An empty batch comes back at once, behind all that has arrived. To see it costs 1 us; to see that the queue
        # is empty costs 20 us and takes 80, since gRPC then has this thread wait for the one that polls the public
        # server's queue, if only for no time. Any live call serves; without one there is no hurry either.
        if self._anchor is None:
            self._anchor = next(iter(self._calls), None)
        if self._anchor is None:
            return False
        self._anchor.mark()
        return True

    def _request(self, method: str, on_call: Callable[[Any], None]) -> None:
        try:
            self._server.request_registered_call(self._queue, self._queue, method, on_call)
        except ValueError:
            return  # another thread has just begun to shut the server down: there are no more calls
        self._requested += 1

    def _accept(self, method: str, event: Any) -> None:
        self._requested -= 1
        if not event.success:
            return  # the server is shutting down
        self._request(method, event.tag)
        call = Call(self, method, event)
        self._calls.add(call)
        self.live += 1
        refusal = self._refusal
        if refusal is None and self._gate is not None:
            refusal = self._gate.admit(call)
        if refusal is None:
            call.serve(self._methods[method])
        else:
            call.finish(*refusal)


def _core_of(server: grpc.Server) -> Any:
    core = getattr(server, "_cy_server", None)
    if grpc.__version__ not in TESTED_GRPC or not isinstance(core, cygrpc.Server):
        raise WireError(
            f"grpcio {grpc.__version__} is installed, and the server is tested with {', '.join(TESTED_GRPC)}: install"
            f" one of them (pip install grpcio=={TESTED_GRPC[-1]}), or see whether tests/serving/test_wire.py passes"
        )
    return core
