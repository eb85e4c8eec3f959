"""Orders that every worker carries out, seen from the supervisor: one after the other, each worker's outcome told.

Owns the order of orders, and what a worker that was away has to catch up with. No socket and no clock: values in, and
messages out by `send`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from serving.orders import FAILED, LATER, Change, Order, Outcome, shortened

ROUND_SECONDS = 600.0  # that workers may take to carry out one order

_STARTING = "the worker is starting, and does it when it's ready"
_DIED = "the worker died before it was done; the one that replaces it does what the others did"
_SLOW = f"the worker hasn't done it within {ROUND_SECONDS:g} s; it may still do it"


@dataclass(slots=True)
class _Round:
    """One order on its way."""

    number: int
    order: Order
    asker: int  # the worker that was asked, and its number for that
    ask: int
    waits_for: set[int] = field(default_factory=set)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    due: float = inf


class Rounds:
    """The orders of one supervisor."""

    def __init__(self, workers: int, send: Callable[[int, dict[str, Any]], bool]) -> None:
        """`send` gives a message to a worker, and says whether it took it."""
        self.serves: dict[str, str] | None = None  # what the workers serve, by NAME/VERSION, and its content's digest
        self._send = send
        self._ready: set[int] = set()
        self._missed: list[list[Order]] = [[] for _ in range(workers)]
        self._queue: deque[_Round] = deque()
        self._count = 0

    @property
    def due(self) -> float:
        """When the order that is being carried out has taken too long."""
        return self._queue[0].due if self._queue else inf

    def ask(self, worker: int, ask: int, order: Order, now: float) -> None:
        """A worker was asked by a client."""
        self._count += 1
        self._queue.append(_Round(self._count, order, worker, ask))
        if len(self._queue) == 1:
            self._begin(now)

    def hello(self, serves: dict[str, str]) -> None:
        """A worker has loaded this: the first one's word holds for those that are started later."""
        if self.serves is None:
            self.serves = serves

    def answer(self, worker: int, number: int, outcome: Outcome, serves: dict[str, str] | None, now: float) -> None:
        """A worker has carried out an order, and serves this now."""
        if serves is not None and not outcome.refusal and all(one.done != FAILED for one in outcome.changes):
            self.serves = serves
        if self._queue and self._queue[0].number == number and worker in self._queue[0].waits_for:
            self._settle(worker, outcome, now)

    def ready(self, worker: int) -> None:
        """A worker serves from now on."""
        self._ready.add(worker)
        missed, self._missed[worker] = self._missed[worker], []
        for order in missed:
            self._send(worker, {"order": order, "round": 0})

    def gone(self, worker: int, now: float) -> None:
        """A worker is no more."""
        self._ready.discard(worker)
        if self._queue and worker in self._queue[0].waits_for:
            self._missed[worker].append(self._queue[0].order)
            self._settle(worker, Outcome(refusal=_DIED), now)

    def expire(self, now: float) -> None:
        """Give up waiting for what takes too long."""
        while self.due <= now:
            for worker in sorted(self._queue[0].waits_for):
                self._settle(worker, Outcome(refusal=_SLOW), now)

    def _begin(self, now: float) -> None:
        while self._queue:
            first = self._queue[0]
            first.due = now + ROUND_SECONDS
            for worker, missed in enumerate(self._missed):
                told = worker in self._ready and self._send(worker, {"order": first.order, "round": first.number})
                if told:
                    first.waits_for.add(worker)
                else:
                    missed.append(first.order)
                    first.outcomes[worker] = Outcome((Change(first.order.version, LATER, _STARTING),))
            if first.waits_for:
                return
            self._end()

    def _settle(self, worker: int, outcome: Outcome, now: float) -> None:
        first = self._queue[0]
        first.waits_for.discard(worker)
        first.outcomes[worker] = outcome
        if not first.waits_for:
            self._end()
            self._begin(now)

    def _end(self) -> None:
        done = self._queue.popleft()
        of = len(done.outcomes)
        outcomes = [(worker, shortened(done.outcomes[worker], of=of)) for worker in sorted(done.outcomes)]
        self._send(done.asker, {"reply": done.ask, "outcomes": outcomes})
