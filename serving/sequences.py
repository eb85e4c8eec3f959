"""Sequences: streams that are known by an id, whichever call their requests come through.

Owns which id is live in one model, what each of its requests waits for, when a sequence expires, and why one that is
gone is gone. Values in, values out: no gRPC, no ONNX Runtime, no clock, no thread. What a sequence computes with, and
its state's row, is serving.streams' business.

A sequence lives from a request with START to one with END. It goes sooner by expiry (idle for longer than it may be,
or its call was cut off and nobody came back for it), by eviction, by a START that begins it anew, or when the model
fails. The latest ones that are gone are remembered, so that a late request is told why.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from serving.errors import (
    NoSequence,
    OutOfOrder,
    Refusal,
    SequenceEnded,
    SequenceEvicted,
    SequenceExpired,
    SequenceLost,
    WrongPhase,
)
from serving.inputs import InputCheck
from serving.streams import Phase, Stream, Streams

REMEMBERED = 4096  # sequences that are gone, of which a late request is told why

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


_PLAIN = Ask(key=0, steps=1, inputs=())  # any request for the next single step that asks for nothing more


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
        "_pending", "_retried", "_sequences", "due", "idle_seconds", "key", "owner", "stream", "touched", "vanished",
    )  # fmt: skip

    def __init__(self, sequences: Sequences, key: Key, idle_seconds: float) -> None:
        self.key = key
        self.stream = Stream("", self)  # until it's opened
        self.idle_seconds = idle_seconds
        self.touched = 0.0
        self.due = inf  # when to look whether it has expired
        self.vanished: float | None = None  # when its owner's call was cut off
        self.owner: Hashable = None
        self._sequences = sequences
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
        sequences, pending = self._sequences, self._pending[0]
        sequences.queue_us += queue_us
        sequences.compute_us += compute_us
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
            self._sequences.lost(self, refusal)
            self.refuse(refusal)

    def refuse(self, refusal: Refusal) -> None:
        """Refuse whatever waits."""
        while self._pending:
            for reply in self._pending.popleft().replies:
                reply.on_refusal(refusal)

    def _complete(self) -> None:
        """Answer the first request, and those behind it that have no steps."""
        sequences = self._sequences
        while True:
            pending = self._pending.popleft()
            ask = pending.ask
            state = sequences.states.read_states(self.stream.row) if ask.read_state else None
            answer = Answer(pending.first_step, ask.steps, pending.outputs, state)
            if ask.first_step is not None:
                self._retried = ask, answer
            for reply in pending.replies:
                sequences.answered += 1
                reply.on_answer(answer)
            if not self._pending or self._pending[0].ask.steps:
                return


@dataclass(slots=True)
class _Gone:
    """Why a sequence isn't live any more, and what can still be asked of it."""

    kind: type[NoSequence]
    why: str
    last: LiveSequence | None = None  # itself, if it ended with a numbered request, which can be sent again


class Sequences:
    """The sequences of one model."""

    def __init__(
        self, model: str, streams: Streams, check: InputCheck, states: States, *, idle_seconds: float, grace: float
    ) -> None:
        """`idle_seconds` and `grace` (after which a sequence whose call was cut off goes): 0 is for ever."""
        self.states = states
        self.answered = 0  # requests
        self.failed = 0  # requests for this model that were refused; counted by whoever refuses
        self.queue_us = 0  # of all runs, together
        self.compute_us = 0
        self.started = 0
        self.restarted = 0
        self.expired = 0
        self.evicted = 0
        self.idle_seconds = idle_seconds
        self._model = model
        self._grace = grace
        self._streams = streams
        self._check = check
        self._live: dict[Key, LiveSequence] = {}
        self._gone: OrderedDict[Key, _Gone] = OrderedDict()
        self._owned: dict[Hashable, set[LiveSequence]] = {}
        self._due: list[tuple[float, int, LiveSequence]] = []  # a heap of when to look whether one has expired
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveSequence]:
        return iter(list(self._live.values()))

    def ask(self, ask: Ask, reply: Reply, *, owner: Hashable, now: float) -> LiveSequence | None:
        """Take a request; the sequence, if it lives on. Raises the Refusal to answer; then nothing has changed.

        `owner` stands for the call it came through: see abandon().
        """
        live = self._live.get(ask.key)
        if ask.first_step is not None and self._repeat(live, ask, reply):
            if live is not None:
                self.touch(live, owner, now)
            return live
        if ask.steps:
            self._check.sizes(ask.steps, ask.inputs)
            first_step = 1 if ask.start or live is None else live.stream.accepted_step + 1
            self._check.values(first_step, ask.inputs)
        if ask.start:
            live = self._start(ask, live, now)
        elif live is None:
            raise self._not_live(ask.key)
        elif ask.steps:
            self._streams.push_next(live.stream, ask.steps, ask.inputs, now)
        self.touch(live, owner, now)
        if ask.idle_seconds is not None:
            live.idle_seconds = ask.idle_seconds
            self._look_at(live, self._ends(live)[0])
        if ask.end:
            last = None if ask.first_step is None else live
            self._forget(live, _Gone(SequenceEnded, "it has ended with the END flag", last))
        live.add(ask, reply)
        if ask.end:
            self._streams.finish(live.stream)
            return None
        return live

    def push(
        self, live: LiveSequence, inputs: tuple[bytes | memoryview, ...], reply: Reply, *, owner: Hashable, now: float
    ) -> None:
        """Take the next single step of a sequence that is live; its sizes are known to fit, its values aren't.

        Raises as ask() does, but for values, which are looked at when the step's turn comes.
        """
        self._streams.push_next(live.stream, 1, inputs, now)
        live.touched = now
        if live.owner is not owner or live.vanished is not None:
            self.touch(live, owner, now)
        live.add(_PLAIN, reply)

    def touch(self, live: LiveSequence, owner: Hashable, now: float) -> None:
        """Note that a sequence was asked for now, by this owner."""
        live.touched = now
        live.vanished = None
        if live.owner is not owner:
            self._disown(live)
            live.owner = owner
            self._owned.setdefault(owner, set()).add(live)

    def abandon(self, owner: Hashable, now: float, *, cut_off: bool) -> None:
        """The owner's call is over. If it was cut off, its sequences go unless somebody asks for them in time."""
        for live in self._owned.pop(owner, ()):
            live.owner = None
            if cut_off and self._grace:
                live.vanished = now
                self._look_at(live, now + self._grace)

    def expire(self, now: float) -> None:
        """Let go of what has been idle, or without its client, for too long."""
        while self._due and self._due[0][0] <= now:
            due, _, live = heapq.heappop(self._due)
            if not self._is_due(live, due):
                continue
            live.due = inf
            end, why = self._ends(live)
            if live.waiting:
                end = max(end, now + 1.0)
            if end > now:
                self._look_at(live, end)
                continue
            self.expired += 1
            self._remove(live, _Gone(SequenceExpired, why))

    def idle_for(self, seconds: float, now: float) -> list[LiveSequence]:
        """Those that nobody has asked for in so long, the longest first."""
        found = [live for live in self._live.values() if now - live.touched >= seconds]
        return sorted(found, key=lambda live: live.touched)

    def owned(self, owner: Hashable) -> int:
        """How many sequences were last asked for by this owner."""
        return len(self._owned.get(owner, ()))

    def evict(self, keys: Iterable[Key], why: str = "it was evicted by the operator") -> list[Key]:
        """Let go of sequences, whatever waits of them; returns those that were live."""
        found = [live for key in dict.fromkeys(keys) if (live := self._live.get(key)) is not None]
        for live in found:
            self.evicted += 1
            gone = _Gone(SequenceEvicted, why)
            self._remove(live, gone)
            live.refuse(self._explain(live.key, gone))
        return [live.key for live in found]

    def lost(self, live: LiveSequence, refusal: Refusal) -> None:
        """A sequence's stream has failed. For sequences alone."""
        gone, ended = _Gone(SequenceLost, f"it was lost: {refusal}"), self._gone.get(live.key)
        if self._live.get(live.key) is live:
            self._forget(live, gone)
        elif ended is not None and ended.last is live:
            self._gone[live.key] = gone

    def check(self) -> None:
        """Assert that the books balance."""
        for key, live in self._live.items():
            assert live.key == key
            assert live.stream.phase is Phase.OPEN, "a live sequence's stream has ended"
            assert key not in self._gone, "a sequence is live and gone"
        owned = [live for lives in self._owned.values() for live in lives]
        assert len(owned) == len(set(owned)), "a sequence has two owners"
        assert all(self._live.get(live.key) is live for live in owned), "a sequence that is gone has an owner"
        assert len(self._gone) <= REMEMBERED

    def _repeat(self, live: LiveSequence | None, ask: Ask, reply: Reply) -> bool:
        """Whether a numbered request was sent before, and is answered so. Raises OutOfOrder where it's out of turn."""
        assert ask.first_step is not None
        if live is not None and live.repeat(ask, reply):
            return True
        gone = self._gone.get(ask.key)
        if gone is not None and gone.last is not None and gone.last.repeat(ask, reply):
            return True
        if ask.start and ask.first_step != 1:
            raise OutOfOrder(f"a sequence starts with step 1, and the request says {ask.first_step}")
        if not ask.start and live is not None:
            live.check_number(ask.first_step)
        return False

    def _start(self, ask: Ask, old: LiveSequence | None, now: float) -> LiveSequence:
        source = None if ask.fork_of is None else self._source(ask.fork_of)
        live = LiveSequence(self, ask.key, self.idle_seconds)
        place = None if old is None or old.waiting else old.stream  # a restart takes the place it had
        live.stream = self._streams.open(str(live.key), live, instead_of=place)
        live.stream.on_refused = live.on_refused
        try:
            if source is not None:
                self._streams.fork(live.stream, source.stream)
            elif ask.state is not None:
                self.states.write_states(self._streams.seed(live.stream), ask.state)
            if ask.steps:
                self._streams.push_next(live.stream, ask.steps, ask.inputs, now)
        except Refusal:
            self._streams.end(live.stream)
            raise
        if old is not None:
            self.restarted += 1
            self._disown(old)
            self._streams.finish(old.stream)  # what waits of it is computed and answered
        self.started += 1
        self._gone.pop(ask.key, None)
        self._live[ask.key] = live
        live.touched = now
        self._look_at(live, self._ends(live)[0])
        return live

    def _source(self, key: Key) -> LiveSequence:
        source = self._live.get(key)
        if source is None:
            raise self._not_live(key)
        if source.waiting:
            raise WrongPhase(f"sequence {key} has requests that aren't answered; fork it when they are")
        return source

    def _ends(self, live: LiveSequence) -> tuple[float, str]:
        """When a sequence will have expired, as things are, and why."""
        idle = live.touched + live.idle_seconds if live.idle_seconds else inf
        gone = live.vanished + self._grace if live.vanished is not None else inf
        if idle <= gone:
            return idle, f"it has expired: {live.idle_seconds:g} s without a request"
        return gone, f"it has expired: its client was cut off and didn't come back within {self._grace:g} s"

    def _look_at(self, live: LiveSequence, when: float) -> None:
        """Look whether a sequence has expired at `when`, or sooner if that is due anyway."""
        if when >= live.due:
            return
        if len(self._due) > 4 * len(self._live) + REMEMBERED:  # most are of sequences long gone
            self._due = [due for due in self._due if self._is_due(due[2], due[0])]
            heapq.heapify(self._due)
        live.due = when
        heapq.heappush(self._due, (when, next(self._count), live))

    def _is_due(self, live: LiveSequence, when: float) -> bool:
        return when == live.due and self._live.get(live.key) is live

    def _remove(self, live: LiveSequence, gone: _Gone) -> None:
        self._forget(live, gone)
        self._streams.end(live.stream)

    def _forget(self, live: LiveSequence, gone: _Gone) -> None:
        del self._live[live.key]
        self._disown(live)
        self._gone[live.key] = gone
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def _disown(self, live: LiveSequence) -> None:
        mine = self._owned.get(live.owner)
        if mine is not None:
            mine.discard(live)
            if not mine:
                del self._owned[live.owner]
        live.owner = None

    def _not_live(self, key: Key) -> NoSequence:
        return self._explain(key, self._gone.get(key))

    def _explain(self, key: Key, gone: _Gone | None) -> NoSequence:
        kind, why = (NoSequence, "it was never started here") if gone is None else (gone.kind, gone.why)
        return kind(
            f"inference request for sequence {key} to model '{self._model}' must specify the START flag on the first "
            f"request of the sequence: {why}"
        )
