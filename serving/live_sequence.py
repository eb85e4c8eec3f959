"""One sequence: a stream that is known by an id, and the requests that wait for it.

Owns what a request is, in which order a sequence's are answered, and the one that can be sent again. Values in, values
out: no gRPC, no clock, no thread. Which sequences there are is serving.sequences' business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from serving.errors import OutOfOrder, Refusal
from serving.streams import Stream

Key = int | str  # an integer and its decimal text are two sequences


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: `steps` steps of a sequence, or 0 to read its state or to end it without a step."""

    key: Key
    steps: int
    inputs: tuple[bytes | memoryview, ...]
    start: bool = False
    end: bool = False
    first_step: int | None = None  # what the client says is the number of the first step; such a request can be retried
    read_state: bool = False
    state: tuple[bytes, ...] | None = None  # the state to start in, one item per state of the contract
    fork_of: Key | None = None  # the sequence in whose state to start
    idle_seconds: float | None = None  # how long the sequence may be idle; 0: for ever


PLAIN = Ask(key=0, steps=1, inputs=())  # any request for the next single step that asks for nothing more


@dataclass(slots=True)
class Answer:
    """What came of a request: one item per model output, and, if asked for, one per state of the contract."""

    first_step: int
    steps: int
    outputs: Sequence[bytes]
    state: tuple[bytes, ...] | None
    repeated: bool = False  # it was computed for an earlier request


class Reply(Protocol):
    """Where a request's answer goes; one of the two is called, once."""

    def on_answer(self, answer: Answer) -> None:
        """The request is computed."""

    def on_refusal(self, refusal: Refusal) -> None:
        """The request can't be computed."""


class States(Protocol):
    """How states are read and put into rows (see serving.lane)."""

    def read_states(self, row: int) -> tuple[bytes, ...]:
        """A row's states."""

    def write_states(self, row: int, states: Sequence[bytes]) -> None:
        """Put states into a row. Raises InvalidInput."""


class Table(Protocol):
    """What a sequence asks of the table it stands in."""

    states: States
    answered: int
    queue_us: int
    compute_us: int

    def lost(self, live: LiveSequence, refusal: Refusal) -> None:
        """The sequence's stream has failed."""


class _Pending:
    """A request that isn't answered."""

    __slots__ = ("ask", "first_step", "last_step", "outputs", "parts", "replies")

    def __init__(self, ask: Ask, first_step: int, reply: Reply) -> None:
        self.ask = ask
        self.first_step = first_step
        self.last_step = first_step + ask.steps - 1
        self.replies = [reply]
        self.outputs: Sequence[bytes] = ()
        self.parts: list[Sequence[bytes]] | None = None


class LiveSequence:
    """One sequence: its stream, and the requests that wait for it."""

    __slots__ = (
        "_pending", "_retried", "_table", "due", "idle_seconds", "key", "owner", "stream", "touched", "vanished",
    )  # fmt: skip

    def __init__(self, table: Table, key: Key, idle_seconds: float) -> None:
        self.key = key
        self.stream = Stream("", self)  # until it's opened
        self.idle_seconds = idle_seconds
        self.touched = 0.0
        self.due = inf  # when to look whether it has expired
        self.vanished: float | None = None  # when its owner's call was cut off
        self.owner: Hashable = None
        self._table = table
        self._pending: deque[_Pending] = deque()
        self._retried: tuple[Ask, Answer] | None = None  # the latest numbered request that is answered

    @property
    def waiting(self) -> bool:
        """Whether a request of it isn't answered."""
        return bool(self._pending)

    def add(self, ask: Ask, reply: Reply) -> None:
        """Note a request whose steps the stream has accepted."""
        pending = _Pending(ask, self.stream.accepted_step - ask.steps + 1, reply)
        self._pending.append(pending)
        if not ask.steps and len(self._pending) == 1:
            self._complete()

    def repeat(self, ask: Ask, reply: Reply) -> bool:
        """Answer a numbered request if it has been sent before, the very same."""
        for pending in self._pending:
            if pending.ask == ask:
                pending.replies.append(reply)
                return True
        if self._retried is None or self._retried[0] != ask:
            return False
        reply.on_answer(replace(self._retried[1], repeated=True))
        return True

    def check_number(self, first_step: int) -> None:
        """Raise OutOfOrder unless this is the number of the sequence's next step."""
        expected = self.stream.accepted_step + 1
        if 0 < first_step < expected:
            raise OutOfOrder(
                f"step {first_step} of sequence {self.key} was taken already, and only the latest request can be sent "
                f"again, just as it was; the next step is {expected}"
            )
        if first_step != expected:
            raise OutOfOrder(f"a request for step {first_step} of sequence {self.key}; its next step is {expected}")

    # From the stream.

    def on_outputs(self, first_step: int, steps: int, outputs: Sequence[bytes], queue_us: int, compute_us: int) -> None:
        """Some steps are computed."""
        table, pending = self._table, self._pending[0]
        table.queue_us += queue_us
        table.compute_us += compute_us
        if steps == pending.ask.steps:
            pending.outputs = outputs
        else:
            if pending.parts is None:
                pending.parts = []
            pending.parts.append(outputs)
            if first_step + steps <= pending.last_step:
                return
            pending.outputs = [b"".join(parts) for parts in zip(*pending.parts, strict=True)]
        self._complete()

    def on_refused(self, refusal: Refusal) -> None:
        """The first request's only step can't be computed for its values; the sequence goes on without it."""
        for reply in self._pending.popleft().replies:
            reply.on_refusal(refusal)
        if self._pending and not self._pending[0].ask.steps:
            self._complete()

    def on_end(self, refusal: Refusal | None) -> None:
        """The stream has ended: everything is answered, or it can't go on."""
        if refusal is not None:
            self._table.lost(self, refusal)
            self.refuse(refusal)

    def refuse(self, refusal: Refusal) -> None:
        """Refuse whatever waits."""
        while self._pending:
            for reply in self._pending.popleft().replies:
                reply.on_refusal(refusal)

    def _complete(self) -> None:
        """Answer the first request, and those behind it that have no steps."""
        table = self._table
        while True:
            pending = self._pending.popleft()
            ask = pending.ask
            state = table.states.read_states(self.stream.row) if ask.read_state else None
            answer = Answer(pending.first_step, ask.steps, pending.outputs, state)
            if ask.first_step is not None:
                self._retried = ask, answer
            for reply in pending.replies:
                table.answered += 1
                reply.on_answer(answer)
            if not self._pending or self._pending[0].ask.steps:
                return
