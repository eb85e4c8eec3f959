"""A worker's end of the socket on which orders go: from a client to all workers, and from all workers to this one.

Owns the socket and its threads. What an order does is serving.models' business; which worker gets which is the
supervisor's (serving.rounds).
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
from typing import Any, Protocol

from serving.errors import Refusal, Unavailable
from serving.orders import (
    LOAD,
    LONGEST,
    UNLOAD,
    Change,
    Order,
    Outcome,
    decode,
    encode,
    joined,
    outcome_of,
    shortened,
)

REPLY_SECONDS = 630.0  # a little longer than the supervisor waits for the workers

Replies = queue.SimpleQueue[list[tuple[int, Outcome]] | None]


class Control(Protocol):
    """What an operator can have done with models."""

    def load(self, name: str, version: int = 0) -> list[Change]:
        """Serve what the repository has of a model. Raises a Refusal."""

    def unload(self, name: str, version: int = 0) -> list[Change]:
        """Let go of a model. Raises a Refusal."""

    def served(self, name: str) -> list[int]:
        """A model's versions that are served here."""

    def check(self, name: str) -> None:
        """Raise the Refusal of an order that would be refused whatever there is."""


class Here(Control, Protocol):
    """The same in one process."""

    def identities(self) -> dict[str, str]:
        """What is served, by NAME/VERSION, and the digest of its content."""


class WorkerControl:
    """Orders to all workers, by way of the supervisor."""

    def __init__(self, descriptor: int) -> None:
        """Waits for the supervisor's first words: what the other workers serve, so that this one does the same."""
        self._end = socket.socket(fileno=descriptor)
        self._asks = itertools.count(1)
        self._waiting: dict[int, Replies] = {}
        self._orders: queue.SimpleQueue[tuple[Order, int]] = queue.SimpleQueue()
        data = self._end.recv(LONGEST)
        self.serves: dict[str, str] | None = decode(data)["serves"] if data else None  # None: there are no others
        self._here: Here | None = None
        self._lost = False

    def begin(self, here: Here) -> None:
        """Carry out orders from now on: `here` does it in this process."""
        self._here = here
        self._tell(serves=here.identities())
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        threading.Thread(target=self._carry_out, name="orders", daemon=True).start()

    def load(self, name: str, version: int = 0) -> list[Change]:
        """Have every worker load. Raises a Refusal if none did anything."""
        return self._ask(Order(LOAD, name, version))

    def unload(self, name: str, version: int = 0) -> list[Change]:
        """Have every worker unload. Raises a Refusal if none did anything."""
        return self._ask(Order(UNLOAD, name, version))

    def served(self, name: str) -> list[int]:
        """A model's versions that are served by this worker."""
        return [] if self._here is None else self._here.served(name)

    def check(self, name: str) -> None:
        """Raise the Refusal of an order that would be refused whatever there is."""
        if self._here is not None:
            self._here.check(name)

    def _ask(self, order: Order) -> list[Change]:
        self.check(order.model)
        ask, replies = next(self._asks), Replies()
        self._waiting[ask] = replies
        try:
            if self._lost or not self._tell(ask=ask, order=order):
                raise Unavailable("the server is shutting down; nothing was done")
            outcomes = replies.get(timeout=REPLY_SECONDS)
        except queue.Empty:
            raise Unavailable("the workers are too busy at the moment; some may have done it") from None
        finally:
            del self._waiting[ask]
        if outcomes is None:
            raise Unavailable("the server is shutting down; some workers may have done it")
        return joined(order, outcomes)

    def _listen(self) -> None:
        while True:
            try:
                data = self._end.recv(LONGEST)
            except OSError:
                data = b""
            if not data:
                self._lost = True
                for replies in list(self._waiting.values()):
                    replies.put(None)
                return
            message = decode(data)
            if "reply" in message and (found := self._waiting.get(message["reply"])) is not None:
                found.put(message["outcomes"])
            elif "order" in message:
                self._orders.put((message["order"], message["round"]))

    def _carry_out(self) -> None:
        assert self._here is not None
        while True:
            order, number = self._orders.get()
            work = self._here.load if order.verb == LOAD else self._here.unload
            try:
                outcome = Outcome(tuple(work(order.model, order.version)))
            except Refusal as refusal:
                outcome = outcome_of(refusal)
            outcome = shortened(outcome)
            if not self._tell(round=number, outcome=outcome, serves=self._here.identities()):
                self._tell(round=number, outcome=outcome, serves=None)  # so many that they fit no message

    def _tell(self, **message: Any) -> bool:
        with contextlib.suppress(OSError):
            self._end.send(encode(**message))
            return True
        return False
