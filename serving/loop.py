"""One thread, run to completion: take all that has arrived, run a batch of each model, send what came, again.

Owns the hot path and the one queue by which other threads reach it. Nothing here waits for a client, a timer or a full
batch: the next batch forms from what arrives while this one runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import grpc
import structlog

from serving.lane import Lane
from serving.one_thread import OneThread

IDLE_SECONDS = 0.05  # the longest wait for an event, and so for a word from another thread

log = structlog.get_logger(__name__)


class Events(Protocol):
    """What the loop asks of the wire (see serving.wire.Wire)."""

    live: int

    def poll(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for an event, then deal with all that have arrived."""

    def refuse_all(self, code: grpc.StatusCode, details: str) -> None:
        """End every call, and refuse every new one."""


class Loop:
    """The hot path's thread."""

    def __init__(
        self,
        wire: Events,
        lanes: Iterable[Lane],
        *,
        flush: Callable[[], None],
        clock: Callable[[], float],
        thread: OneThread | None = None,
    ) -> None:
        """`flush` is called after every turn: services send what they gathered during it. `lanes` may change.

        `thread` (None: a new one) is the one that made the lanes' engines, where these care.
        """
        self._wire = wire
        self._lanes = lanes
        self._flush = flush
        self._clock = clock
        self._inbox: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread = thread or OneThread("loop")
        self.alive = True
        self.beat = clock()  # when the latest turn began
        self.on_death: Callable[[], None] = lambda: None
        self.on_loss: Callable[[], None] = lambda: None  # the wire is lost too: nobody can be told any more

    def start(self) -> None:
        """Start the thread."""
        self._thread.begin(self._run)

    def post(self, work: Callable[[], None]) -> None:
        """Have `work` called on the loop's thread, between two turns. Safe from any thread."""
        self._inbox.append(work)

    def stop(self, timeout: float) -> bool:
        """Leave after the current turn and wait for the thread; False if it hasn't ended within `timeout` seconds."""
        self._stopping = True
        return self._thread.end(timeout)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except Exception:
            log.exception("the loop has died")
            self._live_on()

    def _turn(self) -> None:
        self.beat = self._clock()
        self._wire.poll(0.0 if any(lane.busy for lane in self._lanes) else IDLE_SECONDS)
        while self._inbox:
            self._inbox.popleft()()
        for lane in self._lanes:
            lane.turn()
        self._flush()

    def _live_on(self) -> None:
        try:
            self._die()
        except Exception:
            log.exception("the wire is lost")
            self.on_loss()

    def _die(self) -> None:
        # Nobody may wait for an answer that can't come any more: every call is ended, every new one refused.
        self.alive = False
        self.on_death()
        self._wire.refuse_all(grpc.StatusCode.UNAVAILABLE, "the server has an internal fault; use another one")
        while not self._stopping:
            self.beat = self._clock()
            try:
                self._wire.poll(IDLE_SECONDS)
            except Exception:  # what a handler raises as its call ends: the wire's own books are right
                log.exception("a call ended badly")
