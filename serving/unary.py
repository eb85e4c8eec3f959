"""Unary RPCs that aren't hot, and watchers of health, on a queue and a thread of their own.

Owns that thread, and the pool on which functions run that wait for something. A call that sends nothing holds neither,
so that nobody can keep health, or anybody else's call, from being answered.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from serving.call import Call, Handler
from serving.errors import InvalidInput, Refusal, TooManyCalls
from serving.gate import Gate
from serving.stats import ServerStats
from serving.status import code_of, trailing
from serving.wire import Wire

REQUEST_SECONDS = 10.0  # for a call's message to come
_ANSWER_SECONDS = 60.0  # for an answer to be read
_THREADS = 16
MOST_SLOW = 256  # calls that wait for a thread, or have one
_POLL_SECONDS = 0.5
_SWEEP_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Method:
    """A function of a request, which may raise a Refusal."""

    function: Callable[[Any], Any]
    request: Any  # the class of its messages; None: whatever the bytes are
    slow: bool = False  # it waits for the loop, for a disk or for other processes


class UnaryWire:
    """The thread, its queue and its pool."""

    def __init__(
        self,
        server: grpc.Server,
        methods: Mapping[str, Method],
        watches: Mapping[str, Callable[[Call], Handler]],
        stats: ServerStats,
        gate: Gate,
    ) -> None:
        """`methods` and `watches` by full name; the latter make handlers of their own. Before server.start()."""
        self.stats = stats
        self.answering: dict[Call, float] = {}  # since when; for its calls alone
        self._gate = gate
        made = {path: functools.partial(_UnaryCall, self, method) for path, method in methods.items()}
        self._wire = Wire(server, {**made, **watches}, gate)
        self._pool = ThreadPoolExecutor(_THREADS, "admin")
        self._slow = 0
        self._inbox: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._swept = 0.0
        self._thread = threading.Thread(target=self._run, name="unary", daemon=True)
        self.beat = time.monotonic()  # when the latest turn began

    def start(self) -> None:
        """Answer. After server.start()."""
        self._wire.start()
        self._thread.start()

    def post(self, work: Callable[[], None], call: Call) -> None:
        """Have `work` done for a call on the thread, at once. Safe from any thread."""
        self._inbox.append(work)
        call.wake()

    def finish(self, code: grpc.StatusCode, details: str, seconds: float) -> None:
        """End every call with this status, and the thread, within so many seconds."""
        self._inbox.append(lambda: self._wire.finish_all(code, details))
        deadline = time.monotonic() + seconds
        while self._wire.live and time.monotonic() < deadline:
            time.sleep(0.01)
        self._stopping = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._thread.join(seconds)

    def stop(self) -> None:
        """Give the queue back. After finish() and server.stop(0)."""
        if not self._thread.is_alive():
            self._wire.stop()

    def run_slowly(
        self, work: Callable[[], bytes | Refusal], call: Call, done: Callable[[bytes | Refusal], None]
    ) -> None:
        """Do `work` on the pool; `done` is told on the thread. Raises TooManyCalls."""
        if self._slow >= MOST_SLOW:
            raise TooManyCalls(f"{MOST_SLOW} calls of this kind wait to be answered; the limit is {MOST_SLOW}")
        self._slow += 1

        def finished(result: bytes | Refusal) -> None:
            self._slow -= 1
            done(result)

        def carry_out() -> None:
            result = work()
            self.post(lambda: finished(result), call)

        self._pool.submit(carry_out)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception:  # what a handler raises: the wire's own books are right
                log.exception("an admin call ended badly")

    def _turn(self) -> None:
        self.beat = now = time.monotonic()
        self._wire.poll(_POLL_SECONDS)
        while self._inbox:
            self._inbox.popleft()()
        if now - self._swept >= _SWEEP_SECONDS:
            self._swept = now
            self._gate.sweep()
            for call in [call for call, since in self.answering.items() if now - since >= _ANSWER_SECONDS]:
                call.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"the answer wasn't read within {_ANSWER_SECONDS:g} s")


class _UnaryCall:
    """One call."""

    def __init__(self, desk: UnaryWire, method: Method, call: Call) -> None:
        self._desk = desk
        self._method = method
        self._call = call
        self._asked = False
        call.tells_sent = False
        call.receive()

    def on_message(self, data: bytes) -> None:
        """The request has arrived."""
        if self._asked:
            self._end(InvalidInput("the method takes one request a call"))
            return
        self._asked = True
        work = functools.partial(_carry_out, self._method, data)
        if not self._method.slow:
            self._end(work())
            return
        try:
            self._desk.run_slowly(work, self._call, self._end)
        except Refusal as refusal:
            self._end(refusal)

    def on_half_close(self) -> None:
        """The client sends no more."""
        if not self._asked:
            self._end(InvalidInput("the call ended without a request"))

    def on_sent(self) -> None:
        """Nothing is sent but the answer."""

    def on_closed(self, *, cancelled: bool) -> None:  # noqa: ARG002  nothing is kept either way
        """The call is over."""
        self._desk.answering.pop(self._call, None)

    def _end(self, result: bytes | Refusal) -> None:
        self._desk.answering[self._call] = time.monotonic()
        if isinstance(result, bytes):
            self._call.answer(result)
        elif isinstance(result, _Fault):
            self._call.finish(grpc.StatusCode.INTERNAL, str(result))
        else:
            self._desk.stats.refusals[result.reason] += 1
            self._call.finish(code_of(result), str(result), trailing(result))


class _Fault(Refusal):
    """A fault of ours."""


def _carry_out(method: Method, data: bytes) -> bytes | Refusal:
    try:
        request = data if method.request is None else method.request.FromString(data)
        reply: bytes = method.function(request).SerializeToString()
    except DecodeError:
        return InvalidInput(f"the message isn't a {method.request.DESCRIPTOR.full_name}")
    except Refusal as refusal:
        return refusal
    except Exception:
        log.exception("an admin call failed")
        return _Fault("the server has an internal fault; its log says more")
    return reply
