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
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import inf

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
from serving.live_sequence import PLAIN, Ask, Key, LiveSequence, Reply, States
from serving.streams import Phase, Streams

REMEMBERED = 4096  # sequences that are gone, of which a late request is told why


@dataclass(slots=True)
class _Gone:
    """Why a sequence isn't live any more, and what can still be asked of it."""

    kind: type[NoSequence]
    why: str
    last: LiveSequence | None = None  # itself, if it ended with a numbered request, which can be sent again


def _waits_for_its_check(ask: Ask) -> bool:
    """Whether the values are looked at when the turn comes: then all sequences' together, and a step has its number."""
    return ask.steps == 1 and ask.first_step is None and not (ask.start or ask.end)


class Sequences:
    """The sequences of one model."""

    def __init__(
        self,
        model: str,
        streams: Streams,
        check: InputCheck,
        states: States,
        *,
        idle_seconds: float,
        grace: float,
        idle_when_full: float = 0.0,
    ) -> None:
        """`idle_seconds`, `grace` (for one whose call was cut off) and `idle_when_full`: 0 is for ever."""
        self.states = states
        self.answered = 0  # requests
        self.failed = 0  # requests for this model that were refused; counted by whoever refuses
        self.queue_us = 0  # of all runs, together
        self.compute_us = 0
        self.started = 0
        self.restarted = 0
        self.expired = 0
        self.evicted = 0
        self.displaced = 0
        self.idle_seconds = idle_seconds
        self._model = model
        self._grace = grace
        self._idle_when_full = idle_when_full
        self._no_room_until = -inf  # nothing is idle for long enough sooner
        self._streams = streams
        self._check = check
        self._live: dict[Key, LiveSequence] = {}
        self._gone: OrderedDict[Key, _Gone] = OrderedDict()
        self._owned: dict[Hashable, set[LiveSequence]] = {}
        self._due: list[tuple[float, int, LiveSequence]] = []  # a heap of when to look whether one has expired
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: Key) -> bool:
        """Whether that one is live."""
        return key in self._live

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
            self._check_inputs(ask, live)
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
        if live.owner is not owner:  # nobody owns one that has vanished
            self.touch(live, owner, now)
        live.add(PLAIN, reply)

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

    def make_room(self, now: float, *, keep: LiveSequence | None = None) -> str:
        """If every place is taken, end the sequence that is idle for longest, but `keep`, if that is for long enough.

        Returns what a client that finds no place should know besides.
        """
        if not self._streams.full or not self._idle_when_full or not self._live:
            return ""
        if now >= self._no_room_until:
            oldest = min((one for one in self._live.values() if not one.waiting and one is not keep),
                         key=lambda one: one.touched, default=None)  # fmt: skip
            if oldest is not None and now - oldest.touched >= self._idle_when_full:
                self.displaced += 1
                idle = f"{now - oldest.touched:.0f} s without a request while every place was taken"
                why = f"it has expired: {idle}, and another stream needed its place"
                self._remove(oldest, _Gone(SequenceExpired, why))
                return ""
            self._no_room_until = min(one.touched for one in self._live.values()) + self._idle_when_full
        return (
            f"; {len(self._live)} of them are sequences, and one that is idle for {self._idle_when_full:g} s makes room"
            f" (in {max(0.0, self._no_room_until - now):.0f} s at the earliest)"
        )

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

    def inherit(self, other: Sequences) -> None:
        """Remember why the sequences of another version are gone, whose requests now come here."""
        for key, gone in other._gone.items():
            if key not in self._live:
                self._remember(key, _Gone(gone.kind, gone.why))

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

    def _check_inputs(self, ask: Ask, live: LiveSequence | None) -> None:
        self._check.sizes(ask.steps, ask.inputs)
        if not _waits_for_its_check(ask):
            first_step = 1 if ask.start or live is None else live.stream.accepted_step + 1
            self._check.values(first_step, ask.inputs)

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
        note = "" if place is not None else self.make_room(now, keep=source)
        live.stream = self._streams.open(str(live.key), live, instead_of=place, note=note)
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
        self._remember(live.key, gone)

    def _remember(self, key: Key, gone: _Gone) -> None:
        self._gone[key] = gone
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
