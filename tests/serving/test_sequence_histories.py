"""Sequences by histories that hypothesis invents, beside a model that knows what each request must be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.errors import (
    ComputeFailed,
    InvalidInput,
    NoSequence,
    OutOfOrder,
    Overloaded,
    Refusal,
    SequenceEnded,
    SequenceEvicted,
    SequenceExpired,
    SequenceLost,
    TooManyStreams,
    Unavailable,
    WrongPhase,
)
from serving.live_sequence import Key, LiveSequence
from serving.streams import Run
from tests.serving.test_sequences import MUST_START, Reply, Rig
from tests.serving.test_streams import LIMITS

GRACE = 5.0
KEYS: list[Key] = [5, "5", 6, "x", -1, "y"]
BAD = float("inf")  # an input that can't be computed; unlike NaN it equals itself
OWNERS = ["stream", "other stream", "unary"]


@dataclass
class Entry:
    """One request that was accepted, and what it must be told."""

    values: tuple[float, ...]
    asked: dict[str, Any]
    first_step: int
    sums: list[float]
    state: float
    replies: list[Reply]
    repeats: list[Reply] = field(default_factory=list)
    bad: bool = False  # a step that can't be computed, and is refused when its turn comes
    refused: type[Refusal] | None = None

    @property
    def told(self) -> bool:
        return self.replies[0].told


@dataclass
class Life:
    """One sequence from its START on, as it must be."""

    total: float
    idle: float
    handle: LiveSequence | None = None
    owner: str | None = None
    touched: float = 0.0
    vanished: float | None = None
    waited_at: float = -1e9  # when it was last found waiting, as time passed
    steps: int = 0
    entries: list[Entry] = field(default_factory=list)

    @property
    def waiting(self) -> bool:
        return any(not entry.told for entry in self.entries)

    @property
    def due(self) -> float:
        idle = self.touched + self.idle if self.idle else float("inf")
        return idle if self.vanished is None else min(idle, self.vanished + GRACE)

    def retry_of(self, values: tuple[float, ...], asked: dict[str, Any]) -> Entry | None:
        """The numbered request that is this one again, if it can still be had: it waits, or is the last answered."""
        numbered = [entry for entry in self.entries if "first_step" in entry.asked]
        told = [entry for entry in numbered if entry.told]
        for entry in [entry for entry in numbered if not entry.told] + told[-1:]:
            if (entry.values, entry.asked) == (values, asked):
                return entry
        return None

    def refuse(self, kind: type[Refusal]) -> None:
        """Whatever waits must be told this."""
        for entry in self.entries:
            if not entry.told:
                entry.refused = kind


class SequencesMachine(RuleBasedStateMachine):
    """Whatever happens, in whatever order: each request is told one thing, of its own sequence's state, in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(idle_seconds=20.0, grace=GRACE)
        self.live: dict[Key, Life] = {}
        self.leaving: list[Life] = []  # ended or begun anew
        self.gone: dict[Key, tuple[type[NoSequence], Life | None]] = {}
        self.everybody: list[Life] = []
        self.run: Run | None = None
        self.counts = {"started": 0, "restarted": 0, "expired": 0, "evicted": 0}

    # What a request must be told.

    def expected(self, key: Key, values: tuple[float, ...], asked: dict[str, Any]) -> type[Refusal] | Entry | None:
        """Its kind of refusal, the request it repeats, or None: it's new, and accepted."""
        life, start, number = self.live.get(key), asked.get("start", False), asked.get("first_step")
        if number is not None:
            for candidate in (life, self.gone.get(key, (None, None))[1]):
                if candidate is not None and (entry := candidate.retry_of(values, asked)) is not None:
                    return entry
            if number != 1 if start else life is not None and number != life.steps + 1:
                return OutOfOrder
        if start:
            return self.expected_of_start(life, values, asked)
        if life is None:
            return self.gone.get(key, (NoSequence, None))[0]
        return self.expected_of_steps(values)

    def expected_of_start(
        self, old: Life | None, values: tuple[float, ...], asked: dict[str, Any]
    ) -> type[Refusal] | None:
        if "fork_of" in asked:
            source = self.live.get(asked["fork_of"])
            if source is None:
                return self.gone.get(asked["fork_of"], (NoSequence, None))[0]
            if source.waiting:
                return WrongPhase
        places = len(self.live) + sum(life.waiting for life in self.leaving)
        if places - (old is not None and not old.waiting) >= LIMITS.max_streams:
            return TooManyStreams
        return self.expected_of_steps(values)

    def expected_of_steps(self, values: tuple[float, ...]) -> type[Refusal] | None:
        waiting = self.rig.streams.batcher.waiting_steps
        return Overloaded if values and waiting + len(values) > LIMITS.max_waiting_steps else None

    def request(self, key: Key, values: tuple[float, ...], owner: str, **asked: Any) -> None:
        """Ask, and see that what must happen does."""
        expected = self.expected(key, values, asked)
        if isinstance(expected, type):
            self.must_be_refused(expected, key, values, owner, asked)
            return
        before = set(self.rig.streams._live)
        reply = self.rig.ask(key, *values, owner=owner, **asked)
        if isinstance(expected, Entry):
            (expected.repeats if expected.told else expected.replies).append(reply)
            if (life := self.live.get(key)) is not None:
                self.touch(life, owner)
            return
        if asked.get("start"):
            opened = set(self.rig.streams._live) - before
            self.begin(key, asked, opened.pop().sink if opened else None)  # type: ignore[arg-type]
        life = self.live[key]
        self.touch(life, owner)
        life.idle = asked.get("idle_seconds", life.idle)
        self.note(life, values, asked, reply)
        if asked.get("end"):
            self.leave(key, SequenceEnded, life if "first_step" in asked else None)

    def must_be_refused(
        self, kind: type[Refusal], key: Key, values: tuple[float, ...], owner: str, asked: dict[str, Any]
    ) -> None:
        with pytest.raises(kind) as caught:
            self.rig.ask(key, *values, owner=owner, **asked)
        assert type(caught.value) is kind
        told = str(caught.value).startswith(MUST_START.format(asked.get("fork_of", key)))
        assert told == issubclass(kind, NoSequence)

    def begin(self, key: Key, asked: dict[str, Any], handle: LiveSequence | None) -> None:
        total = asked.get("state", 0.0)
        if "fork_of" in asked:
            total = self.live[asked["fork_of"]].total
        if (old := self.live.pop(key, None)) is not None:
            self.counts["restarted"] += 1
            self.leaving.append(old)
        self.counts["started"] += 1
        self.gone.pop(key, None)
        self.live[key] = Life(total, 20.0, handle)
        self.everybody.append(self.live[key])

    def touch(self, life: Life, owner: str) -> None:
        life.owner, life.touched, life.vanished = owner, self.rig.now, None

    def note(self, life: Life, values: tuple[float, ...], asked: dict[str, Any], reply: Reply) -> None:
        first_step, sums, bad = life.steps + 1, [], values == (BAD,)
        for value in values if not bad else ():
            life.total += value
            sums.append(life.total)
        life.steps += len(values)
        must_wait = bool(values) or life.waiting
        assert reply.told != must_wait, "a request without a step is answered when all before it are"
        life.entries.append(Entry(values, asked, first_step, sums, life.total, [reply], bad=bad))

    def leave(self, key: Key, kind: type[NoSequence], last: Life | None = None) -> Life:
        life = self.live.pop(key)
        self.gone[key] = kind, last
        if kind is SequenceEnded:
            self.leaving.append(life)
        return life

    # What may happen.

    keys = st.sampled_from(KEYS)
    owners = st.sampled_from(OWNERS)
    values = st.lists(st.integers(-9, 9).map(float), max_size=9).map(tuple)
    some = st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=5).map(tuple)

    @rule(key=keys, owner=owners, values=values, end=st.booleans(), numbered=st.booleans(), data=st.data())
    def start(
        self, key: Key, owner: str, values: tuple[float, ...], end: bool, numbered: bool, data: st.DataObject
    ) -> None:
        kinds = ["plain", "fork"] if self.run is not None else ["plain", "fork", "state"]
        kind = data.draw(st.sampled_from(kinds))
        asked: dict[str, Any] = {"start": True}
        if kind == "fork":
            asked["fork_of"] = data.draw(self.keys)
        elif kind == "state":
            asked["state"] = data.draw(st.integers(100, 900).map(float))
        if end:
            asked["end"] = True
        if numbered:
            asked["first_step"] = data.draw(st.sampled_from([1, 1, 1, 2]))
        self.request(key, values, owner, **asked)

    @initialize()
    def begin_with_two(self) -> None:
        self.request(5, (1.0,), "stream", start=True)
        self.request("5", (2.0, 3.0), "unary", start=True, first_step=1)

    def some_key(self, data: st.DataObject) -> Key:
        """Mostly one that is live."""
        key: Key = data.draw(st.sampled_from([*self.live, *self.live, *self.live, *KEYS]))
        return key

    @rule(data=st.data(), owner=owners, values=some, read=st.booleans(), end=st.sampled_from([False, False, True]))
    def step(self, data: st.DataObject, owner: str, values: tuple[float, ...], read: bool, end: bool) -> None:
        key = self.some_key(data)
        self.request(key, values, owner, **({"read_state": True} if read else {}), **({"end": True} if end else {}))

    @rule(data=st.data(), owner=owners)
    def read(self, data: st.DataObject, owner: str) -> None:
        key = self.some_key(data)
        self.request(key, (), owner, read_state=True)

    @rule(data=st.data(), owner=owners, read=st.booleans())
    def end(self, data: st.DataObject, owner: str, read: bool) -> None:
        key = self.some_key(data)
        self.request(key, (), owner, end=True, **({"read_state": True} if read else {}))

    @rule(data=st.data(), owner=owners, idle=st.sampled_from([0.0, 3.0, 8.0, 30.0]))
    def change_the_idle_time(self, data: st.DataObject, owner: str, idle: float) -> None:
        key = self.some_key(data)
        self.request(key, (), owner, read_state=True, idle_seconds=idle)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), owner=owners, value=st.integers(-9, 9).map(float))
    def push(self, data: st.DataObject, owner: str, value: float) -> None:
        key = data.draw(st.sampled_from(list(self.live)))
        if self.expected_of_steps((value,)):
            return
        reply = self.rig.push(key, value, owner)
        self.touch(self.live[key], owner)
        self.note(self.live[key], (value,), {}, reply)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), owner=owners, values=some, off=st.sampled_from([0, 0, 0, 0, -1, 1]), end=st.booleans())
    def numbered_step(self, data: st.DataObject, owner: str, values: tuple[float, ...], off: int, end: bool) -> None:
        key = data.draw(st.sampled_from(list(self.live)))
        number = max(1, self.live[key].steps + 1 + off)
        self.request(key, values, owner, first_step=number, **({"end": True} if end else {}))

    @rule(data=st.data(), owner=owners)
    def retry(self, data: st.DataObject, owner: str) -> None:
        """Send a numbered request again, whatever has become of it and its sequence."""
        lives: list[tuple[Key, Life | None]] = [
            *self.live.items(),
            *((key, last) for key, (_, last) in self.gone.items()),
        ]
        known = [(key, entry) for key, life in lives if life for entry in life.entries if "first_step" in entry.asked]
        if known:
            key, entry = data.draw(st.sampled_from(known))
            self.request(key, entry.values, owner, **entry.asked)

    @rule(key=keys, flag=st.sampled_from(["start", "end"]))
    def not_a_number(self, key: Key, flag: str) -> None:
        self.rig.refused(InvalidInput, key, BAD, text="inf in the step", **{flag: True})
        self.rig.refused(InvalidInput, key, 1.0, BAD, text="inf in the step")

    @precondition(lambda self: self.live)
    @rule(data=st.data(), owner=owners, short=st.booleans(), read=st.booleans())
    def not_a_number_in_its_turn(self, data: st.DataObject, owner: str, short: bool, read: bool) -> None:
        key = data.draw(st.sampled_from(list(self.live)))
        if self.expected_of_steps((BAD,)):
            return
        asked = {"read_state": True} if read and not short else {}
        reply = self.rig.push(key, BAD, owner) if short else self.rig.ask(key, BAD, owner=owner, **asked)
        self.touch(self.live[key], owner)
        self.note(self.live[key], (BAD,), asked, reply)

    @rule(owner=owners, cut_off=st.booleans())
    def abandon(self, owner: str, cut_off: bool) -> None:
        self.rig.sequences.abandon(owner, self.rig.now, cut_off=cut_off)
        for life in self.live.values():
            if life.owner == owner:
                life.owner = None
                life.vanished = self.rig.now if cut_off else life.vanished

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.expire(now := self.rig.now + seconds)
        left = {(type(live.key), live.key) for live in self.rig.sequences}
        for key, life in list(self.live.items()):
            expired = (type(key), key) not in left
            if life.waiting or life.due > now:
                assert not expired, "too soon"
            elif now - life.waited_at > 1.0:
                assert expired, "overdue"
            if life.waiting:
                life.waited_at = now
            if expired:
                self.counts["expired"] += 1
                self.leave(key, SequenceExpired)

    @rule(keys=st.lists(keys, max_size=2))
    def evict(self, keys: list[Key]) -> None:
        expected = [key for key in dict.fromkeys(keys) if key in self.live]
        for key in expected:
            self.counts["evicted"] += 1
            self.leave(key, SequenceEvicted).refuse(SequenceEvicted)
        assert self.rig.sequences.evict(keys) == expected

    @precondition(lambda self: self.run is None)
    @rule()
    def take(self) -> None:
        self.run = self.rig.streams.take()

    @rule()
    def compute(self) -> None:
        self.settle_run()
        self.rig.compute()

    @rule()
    def settle_run(self) -> None:
        run, self.run = self.run, None
        if run is not None:
            self.rig.settle(run)

    @precondition(lambda self: self.run is not None)
    @rule()
    def fail(self) -> None:
        assert self.run is not None
        run, self.run = self.run, None
        members = [piece.stream.sink for piece in run.batch.slices]
        for key, life in list(self.live.items()):
            if life.handle in members:
                self.leave(key, SequenceLost).refuse(ComputeFailed)
        for life in self.leaving:
            if life.handle in members and life.waiting:
                life.refuse(ComputeFailed)
                self.forget_last(life)
        self.rig.streams.fail(run, [ComputeFailed("no")] * len(run))

    @rule()
    def lose_the_engine(self) -> None:
        for key in list(self.live):
            self.leave(key, SequenceLost).refuse(Unavailable)
        for life in self.leaving:
            if life.waiting:
                life.refuse(Unavailable)
                self.forget_last(life)
        self.rig.streams.end_all(Unavailable("gone"))
        run, self.run = self.run, None
        if run is not None:
            self.rig.streams.fail(run, [Unavailable("gone")] * len(run))
        self.rig.streams.closed = None

    def forget_last(self, life: Life) -> None:
        for key, (_, last) in list(self.gone.items()):
            if last is life:
                self.gone[key] = SequenceLost, None

    # What holds at all times.

    @invariant()
    def everybody_is_told_what_is_true(self) -> None:
        for life in self.everybody:
            for entry in life.entries:
                for reply in entry.replies:
                    self.see(entry, reply)
                for reply in entry.repeats:
                    assert reply.answer is not None
                    assert reply.answer.repeated
                    self.see(entry, reply)

    def see(self, entry: Entry, reply: Reply) -> None:
        if entry.refused is not None:
            assert type(reply.refusal) is entry.refused
        elif entry.bad:
            assert reply.answer is None
            assert type(reply.refusal) in (InvalidInput, type(None))
        elif reply.answer is not None:
            assert (reply.answer.first_step, reply.answer.steps) == (entry.first_step, len(entry.values))
            assert reply.sums == entry.sums
            assert (reply.answer.state is not None) == entry.asked.get("read_state", False)
            if reply.answer.state is not None:
                assert reply.state == entry.state
        else:
            assert reply.refusal is None, reply.refusal

    @invariant()
    def the_books_balance(self) -> None:
        rig = self.rig
        rig.check()
        self.leaving = [life for life in self.leaving if life.waiting]
        assert {(type(live.key), live.key) for live in rig.sequences} == {(type(key), key) for key in self.live}
        assert rig.streams.live == len(self.live) + len(self.leaving)
        for owner in OWNERS:
            assert rig.sequences.owned(owner) == sum(life.owner == owner for life in self.live.values())
        assert {name: getattr(rig.sequences, name) for name in self.counts} == self.counts
        told = [reply for life in self.everybody for entry in life.entries for reply in entry.replies if reply.answer]
        assert rig.sequences.answered == len(told)

    def teardown(self) -> None:
        """When all have ended, everybody is told and nothing is left."""
        self.compute()
        for key in list(self.live):
            self.request(key, (), "unary", end=True)
        self.rig.compute()
        self.everybody_is_told_what_is_true()
        assert all(reply.told for reply in self.all_replies())
        assert self.rig.streams.rows.in_use == 0
        assert self.rig.streams.live == 0
        assert not self.rig.sequences._owned

    def all_replies(self) -> Iterator[Reply]:
        for life in self.everybody:
            for entry in life.entries:
                yield from (*entry.replies, *entry.repeats)


TestSequencesMachine = SequencesMachine.TestCase
TestSequencesMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
