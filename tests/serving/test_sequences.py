"""Sequences by id: nobody ever gets another's state, nobody is left without an answer, and whoever is late is told why.

The model is a running sum, computed by the test on a slab of its own: an answer shows at once whose state it came of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import pytest

from serving.config import Limits
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
    ShuttingDown,
    TooLarge,
    TooManyStreams,
    Unavailable,
    WrongPhase,
)
from serving.inputs import InputCheck
from serving.live_sequence import Answer, Ask, Key, LiveSequence
from serving.sequences import REMEMBERED, Sequences
from serving.streams import Run
from tests.serving.test_streams import CONTRACT, LIMITS, Slab, make_streams, pack, settle, unpack

MUST_START = "inference request for sequence {} to model 'sum' must specify the START flag on the first request of the"


class Reply:
    """Remembers what a request was told, which must be one thing only."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.refusal: Refusal | None = None

    @property
    def told(self) -> bool:
        return self.answer is not None or self.refusal is not None

    def on_answer(self, answer: Answer) -> None:
        assert not self.told, "a second word to one request"
        self.answer = answer

    def on_refusal(self, refusal: Refusal) -> None:
        assert not self.told, "a second word to one request"
        self.refusal = refusal

    @property
    def sums(self) -> list[float]:
        """The outputs."""
        assert self.answer is not None, self.refusal
        return unpack(self.answer.outputs[0]) if self.answer.steps else []

    @property
    def state(self) -> float:
        """The state."""
        assert self.answer is not None, self.refusal
        assert self.answer.state is not None
        (value,) = unpack(self.answer.state[0])
        return value


class Rig:
    """Sequences of the running sum, and the engine's part of it."""

    def __init__(
        self, limits: Limits = LIMITS, *, idle_seconds: float = 0.0, grace: float = 60.0, idle_when_full: float = 0.0
    ) -> None:
        self.streams = make_streams(limits)
        self.slab = Slab()
        self.inputs = InputCheck(CONTRACT, limits)
        self.sequences = Sequences(
            "sum",
            self.streams,
            self.inputs,
            self,
            idle_seconds=idle_seconds,
            grace=grace,
            idle_when_full=idle_when_full,
        )
        self.now = 0.0

    def read_states(self, row: int) -> tuple[bytes, ...]:
        return tuple(pack([self.slab.sums[row]]))

    def write_states(self, row: int, states: Sequence[bytes]) -> None:
        if len(states) != 1 or len(states[0]) != 4:
            raise InvalidInput("states that don't fit")
        (self.slab.sums[row],) = unpack(states[0])

    def ask(
        self, key: Key, *values: float, owner: Hashable = "call", state: float | None = None, **asked: Any
    ) -> Reply:
        """Ask for steps of these inputs."""
        reply = Reply()
        inputs = tuple(pack(list(values))) if values else ()
        states = None if state is None else tuple(pack([state]))
        ask = Ask(key=key, steps=len(values), inputs=inputs, state=states, **asked)
        self.sequences.ask(ask, reply, owner=owner, now=self.now)
        return reply

    def start(self, key: Key, *values: float, **asked: Any) -> Reply:
        """Begin a sequence."""
        return self.ask(key, *values, start=True, **asked)

    def push(self, key: Key, value: float, owner: Hashable = "call") -> Reply:
        """Ask for a single step the short way."""
        reply = Reply()
        self.sequences.push(self.live(key), tuple(pack([value])), reply, owner=owner, now=self.now)
        return reply

    def live(self, key: Key) -> LiveSequence:
        """The live sequence of that id."""
        (found,) = [live for live in self.sequences if live.key == key and type(live.key) is type(key)]
        return found

    def compute(self) -> None:
        """Run until nothing waits."""
        while (run := self.streams.take()) is not None:
            self.settle(run)
        self.check()

    def settle(self, run: Run) -> None:
        """Compute one run, but for single steps that can't be."""
        faults: dict[int, InvalidInput] = {}
        if run.batch.steps == 1:
            slices = run.batch.slices
            inputs = [[bytes(one.chunk.inputs[0])[4 * one.offset :][:4]] for one in slices]
            faults = self.inputs.faults([one.first_step for one in slices], inputs)
        self.streams.refuse(run.of(faults), list(faults.values()))
        settle(self.streams, run.of(lane for lane in range(len(run)) if lane not in faults), self.slab)

    def expire(self, now: float) -> None:
        """Let time pass."""
        self.now = now
        self.sequences.expire(now)
        self.check()

    def check(self) -> None:
        """Assert that the books balance."""
        self.sequences.check()
        self.streams.check()

    def refused(self, kind: type[Refusal], key: Key, *values: float, text: str = "", **asked: Any) -> None:
        """A request must be refused, with just this kind of error."""
        with pytest.raises(kind) as caught:
            self.ask(key, *values, **asked)
        assert type(caught.value) is kind
        assert text in str(caught.value)
        if issubclass(kind, NoSequence):
            assert str(caught.value).startswith(MUST_START.format(key))
        self.check()


# The life of a sequence.


def test_a_sequence_goes_on_from_one_request_to_the_next() -> None:
    """START begins from the first state, later requests go on, END ends; steps come one or many to a request."""
    rig = Rig()
    replies = [rig.start("a", 1.0), rig.ask("a", 2.0, 3.0), rig.push("a", 4.0), rig.ask("a", 5.0, end=True)]
    rig.compute()
    assert [reply.sums for reply in replies] == [[1.0], [3.0, 6.0], [10.0], [15.0]]
    assert [reply.answer and reply.answer.first_step for reply in replies] == [1, 2, 4, 5]
    assert len(rig.sequences) == 0
    assert rig.streams.rows.in_use == 0
    assert rig.streams.live == 0


def test_an_integer_and_its_text_are_two_sequences() -> None:
    """5 and "5" never share a state."""
    rig = Rig()
    rig.start(5, 1.0)
    rig.start("5", 10.0)
    replies = [rig.ask(5, 1.0), rig.ask("5", 10.0)]
    rig.compute()
    assert [reply.sums for reply in replies] == [[2.0], [20.0]]


def test_a_sequence_in_one_request() -> None:
    """START and END together: computed, answered, gone."""
    rig = Rig()
    reply = rig.start("a", 1.0, 2.0, end=True)
    assert len(rig.sequences) == 0
    rig.compute()
    assert reply.sums == [1.0, 3.0]
    rig.refused(SequenceEnded, "a", 1.0, text="it has ended with the END flag")


def test_why_a_sequence_is_not_live_is_told() -> None:
    """Never started, ended, expired, evicted and lost are five kinds of error with one beginning, Triton's text."""
    rig = Rig(idle_seconds=5.0)
    rig.refused(NoSequence, "never", 1.0, text="it was never started here")
    rig.refused(NoSequence, 7, text="sequence 7 to model")
    rig.start("ended", end=True)
    rig.start("expired")
    rig.expire(5.0)
    rig.start("evicted")
    assert rig.sequences.evict(["evicted"]) == ["evicted"]
    lost = rig.start("lost", 1.0)
    run = rig.streams.take()
    assert run is not None
    rig.streams.fail(run, [ComputeFailed("no")])
    assert type(lost.refusal) is ComputeFailed
    rig.refused(SequenceEnded, "ended", 1.0, text="ended with the END flag")
    rig.refused(SequenceExpired, "expired", 1.0, text="it has expired: 5 s without a request")
    rig.refused(SequenceEvicted, "evicted", 1.0, text="it was evicted by the operator")
    rig.refused(SequenceLost, "lost", 1.0, text="it was lost: no")
    for key in ("ended", "expired", "evicted", "lost"):
        assert rig.start(key, 1.0).told is False
        rig.compute()
        assert rig.ask(key, end=True).told


def test_a_refused_request_changes_nothing() -> None:
    """Sizes, values, limits: whoever passes one is told, and the sequence goes on as if nothing had been sent."""
    rig = Rig()
    rig.start("a", 1.0)
    rig.refused(TooLarge, "a", *[1.0] * 10, text="10 steps; the limit is 9")
    rig.refused(InvalidInput, "a", 1.0, float("nan"), text="nan in the step numbered 3, element 0")
    rig.refused(InvalidInput, "b", float("inf"), start=True, text="inf in the step numbered 1")
    assert [live.key for live in rig.sequences] == ["a"]
    reply = rig.ask("a", 2.0)
    rig.compute()
    assert reply.sums == [3.0]


def test_a_usual_step_that_cannot_be_computed_is_skipped() -> None:
    """A step whose values are looked at when its turn comes: it alone is refused, whatever waits behind it."""
    rig = Rig()
    replies = [
        rig.start("a", 1.0),
        rig.push("a", float("nan")),
        rig.ask("a", read_state=True),
        rig.push("a", 2.0),
        rig.start("b", 1.0),
        rig.push("b", float("inf")),
        rig.ask("b", end=True),
        rig.push("a", float("nan")),
    ]
    rig.compute()
    assert [replies[place].sums for place in (0, 3, 4)] == [[1.0], [3.0], [1.0]]
    assert replies[2].state == 1.0
    assert [type(replies[place].refusal) for place in (1, 5, 7)] == [InvalidInput] * 3
    assert "nan in the step numbered 2" in str(replies[1].refusal)
    assert replies[6].sums == []
    assert [live.key for live in rig.sequences] == ["a"]
    assert (rig.streams.live, rig.streams.rows.in_use) == (1, 1)


def test_a_sequence_that_goes_while_a_bad_step_runs() -> None:
    """Evicted between the taking of a run and its refusal: told once, and its row is free."""
    rig = Rig()
    rig.start("a", 1.0)
    rig.compute()
    reply = rig.push("a", float("nan"))
    run = rig.streams.take()
    assert run is not None
    rig.sequences.evict(["a"])
    rig.streams.refuse(run, [InvalidInput("no")])
    assert type(reply.refusal) is SequenceEvicted
    assert rig.streams.rows.in_use == 0
    rig.check()


def test_more_steps_than_may_wait_are_refused() -> None:
    """An overloaded model takes no step, and starts no sequence whose first step it can't take."""
    rig = Rig(Limits(max_waiting_steps=3))
    rig.start("a", 1.0, 1.0, 1.0)
    rig.refused(Overloaded, "a", 1.0)
    rig.refused(Overloaded, "b", 1.0, start=True)
    assert len(rig.sequences) == 1
    assert rig.streams.live == 1


def test_a_draining_model_starts_nothing_and_goes_on() -> None:
    """While the server leaves, live sequences are answered, a restart is refused and loses nothing."""
    rig = Rig()
    rig.start("a", 1.0)
    rig.compute()
    rig.streams.close()
    rig.refused(ShuttingDown, "b", 1.0, start=True)
    rig.refused(ShuttingDown, "a", 1.0, start=True)
    reply = rig.ask("a", 1.0)
    rig.compute()
    assert reply.sums == [2.0]


# Requests without a step.


def test_a_state_is_read_behind_the_steps_that_were_sent_before() -> None:
    """A read without a step is answered in its turn, wherever it stands among requests that wait."""
    rig = Rig()
    first = rig.start("a", 1.0)
    reads = [rig.ask("a", read_state=True), rig.ask("a", read_state=True)]
    second = rig.ask("a", *[1.0] * 6, read_state=True)
    last = rig.ask("a", read_state=True)
    assert not any(reply.told for reply in (first, *reads, second, last))
    rig.compute()
    assert [first.sums, second.sums] == [[1.0], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    assert [reply.state for reply in (*reads, second, last)] == [1.0, 1.0, 7.0, 7.0]
    assert rig.ask("a", read_state=True).state == 7.0
    assert [reply.answer and reply.answer.first_step for reply in (*reads, last)] == [2, 2, 8]


def test_an_end_without_a_step_waits_for_what_was_sent_before() -> None:
    """It's answered last, its state is the last one, and the row is free only then."""
    rig = Rig()
    first = rig.start("a", 1.0, 2.0)
    last = rig.ask("a", end=True, read_state=True)
    assert not last.told
    rig.compute()
    assert (first.sums, last.state) == ([1.0, 3.0], 3.0)
    assert rig.streams.rows.in_use == 0


def test_a_state_is_put_where_a_sequence_starts() -> None:
    """Set and read give the same; steps go on from it; one that doesn't fit starts nothing."""
    rig = Rig()
    assert rig.start("a", state=40.0, read_state=True).state == 40.0
    both = rig.start("b", 1.0, state=10.0)
    reply = rig.ask("a", 2.0)
    rig.compute()
    assert (reply.sums, both.sums) == ([42.0], [11.0])
    with pytest.raises(InvalidInput):
        rig.sequences.ask(Ask("c", 0, (), start=True, state=(b"", b"")), Reply(), owner="call", now=0.0)
    assert len(rig.sequences) == 2
    assert rig.streams.rows.in_use == 2
    rig.check()


# Restarts.


def test_a_restart_answers_what_waited_and_begins_anew() -> None:
    """START of a live id: the old one's requests are answered of its own state, the new one begins at the first."""
    rig = Rig()
    old = [rig.start("a", 1.0), rig.ask("a", 1.0), rig.ask("a", read_state=True)]
    new = [rig.start("a", 100.0), rig.ask("a", 100.0)]
    assert rig.sequences.restarted == 1
    assert len(rig.sequences) == 1
    assert rig.streams.live == 2
    rig.compute()
    assert [reply.sums for reply in old] == [[1.0], [2.0], []]
    assert old[2].state == 2.0
    assert [reply.sums for reply in new] == [[100.0], [200.0]]
    assert rig.streams.live == 1
    assert rig.sequences.started == 2


def test_an_id_that_ended_with_steps_waiting_can_start_at_once() -> None:
    """END while steps wait, then START of the same id: each gets its own answers, in whatever runs."""
    rig = Rig()
    old = [rig.start("a", 1.0, 1.0), rig.ask("a", 1.0, end=True)]
    new = [rig.start("a", 100.0), rig.ask("a", 100.0)]
    rig.compute()
    assert [reply.sums for reply in old] == [[1.0, 2.0], [3.0]]
    assert [reply.sums for reply in new] == [[100.0], [200.0]]
    assert rig.ask("a", read_state=True).state == 200.0


def test_a_failure_of_the_old_does_not_touch_the_new() -> None:
    """The run of a sequence that was begun anew fails: its own requests are told, the new one's go on."""
    rig = Rig()
    old = rig.start("a", 1.0)
    run = rig.streams.take()
    assert run is not None
    new = rig.start("a", 100.0)
    rig.streams.fail(run, [ComputeFailed("no")])
    assert type(old.refusal) is ComputeFailed
    rig.compute()
    assert new.sums == [100.0]
    assert rig.ask("a", read_state=True).state == 100.0


def full_rig() -> Rig:
    """A model with every place taken: sequences 0 to 3, each in a state of its own."""
    rig = Rig()
    for key in range(LIMITS.max_streams):
        rig.start(key, 10.0 * (key + 1))
    rig.compute()
    return rig


def test_a_restart_needs_no_second_place() -> None:
    """With every place taken a new id is refused, and a live one that waits for nothing can begin anew."""
    rig = full_rig()
    rig.refused(TooManyStreams, "new", 1.0, start=True, text="4 streams are open; the limit is 4")
    reply = rig.start(0, 1.0)
    rig.compute()
    assert reply.sums == [1.0]
    assert rig.streams.live == LIMITS.max_streams
    rig.ask(1, 1.0)
    rig.refused(TooManyStreams, 1, 1.0, start=True)
    rig.compute()
    assert rig.ask(1, read_state=True).state == 21.0


def test_a_restart_that_is_refused_costs_no_state() -> None:
    """A bad first state or too many steps waiting, in a full model: the sequence that was live goes on."""
    rig = full_rig()
    with pytest.raises(InvalidInput, match="don't fit"):
        rig.sequences.ask(Ask(0, 0, (), start=True, state=(b"short",)), Reply(), owner="call", now=0.0)
    rig.check()
    for key in (1, 2, 3):
        rig.ask(key, *[0.0] * 9)
    rig.refused(Overloaded, 0, *[0.0] * 4, start=True)
    rig.compute()
    assert rig.ask(0, read_state=True).state == 10.0


def test_a_restart_in_its_own_state_keeps_it() -> None:
    """A fork of itself goes on from where it was, in a full model too."""
    rig = full_rig()
    reply = rig.start(0, 1.0, fork_of=0)
    rig.compute()
    assert reply.sums == [11.0]
    assert rig.ask(1, read_state=True).state == 20.0


# Forks.


def test_a_fork_shares_the_row_and_both_go_on_by_themselves() -> None:
    """No byte is copied: the two refer to one row until either steps, and then neither sees the other's steps."""
    rig = Rig()
    rig.start("a", 1.0, 2.0)
    rig.compute()
    written = dict(rig.slab.sums)
    assert rig.start("b", fork_of="a", read_state=True).state == 3.0
    assert rig.streams.rows.in_use == 1
    assert rig.slab.sums == written
    assert rig.live("a").stream.row == rig.live("b").stream.row
    replies = [rig.ask("b", 10.0), rig.ask("a", 100.0)]
    rig.compute()
    assert [reply.sums for reply in replies] == [[13.0], [103.0]]
    assert rig.streams.rows.in_use == 2


def test_a_fork_outlives_what_it_was_forked_from() -> None:
    """The shared row stays for as long as one of the two needs it."""
    rig = Rig()
    rig.start("a", 5.0)
    rig.compute()
    rig.start("b", fork_of="a")
    rig.ask("a", end=True)
    rig.start("c", 1.0)
    rig.compute()
    assert rig.ask("b", read_state=True).state == 5.0
    rig.ask("b", end=True)
    rig.ask("c", end=True)
    assert rig.streams.rows.in_use == 0


def test_only_what_is_live_and_waits_for_nothing_can_be_forked() -> None:
    """A fork of an unknown sequence or of one in motion is refused, and starts nothing."""
    rig = Rig()
    rig.start("a", 1.0)
    with pytest.raises(NoSequence, match=MUST_START.format("nobody")):
        rig.start("b", fork_of="nobody")
    rig.refused(WrongPhase, "b", start=True, fork_of="a", text="sequence a has requests that aren't answered")
    assert len(rig.sequences) == 1
    assert rig.streams.live == 1


# Numbered requests, which can be sent again.


def test_a_numbered_request_sent_again_is_computed_once() -> None:
    """While it waits and when it's answered: everybody who sent it gets the same answer, and the state moves once."""
    rig = Rig()
    first = [rig.start("a", 1.0, first_step=1), rig.start("a", 1.0, first_step=1, owner="other")]
    rig.compute()
    first.append(rig.start("a", 1.0, first_step=1))
    assert [reply.sums for reply in first] == [[1.0]] * 3
    assert [reply.answer and reply.answer.repeated for reply in first] == [False, False, True]
    second = [rig.ask("a", 2.0, 3.0, first_step=2, read_state=True) for _ in range(2)]
    rig.compute()
    second.append(rig.ask("a", 2.0, 3.0, first_step=2, read_state=True))
    assert [reply.sums for reply in second] == [[3.0, 6.0]] * 3
    assert [reply.state for reply in second] == [6.0] * 3
    assert rig.ask("a", read_state=True).state == 6.0
    assert rig.sequences.restarted == 0


def test_what_is_not_the_same_is_no_retry() -> None:
    """Other bytes, other wishes or an old number are refused, and tell which step comes next."""
    rig = Rig()
    rig.start("a", 1.0)
    rig.ask("a", 1.0, first_step=2)
    rig.compute()
    told = "step 2 of sequence a was taken already, and only the latest request can be sent again, just as it was; the"
    rig.refused(OutOfOrder, "a", 9.0, first_step=2, text=told)
    rig.refused(OutOfOrder, "a", 1.0, first_step=2, read_state=True, text=told)
    rig.refused(OutOfOrder, "a", 1.0, first_step=2, end=True, text="the next step is 3")
    rig.ask("a", 1.0, first_step=3)
    rig.compute()
    rig.refused(OutOfOrder, "a", 1.0, first_step=2, text="the next step is 4")
    rig.refused(OutOfOrder, "a", 1.0, first_step=5, text="a request for step 5 of sequence a; its next step is 4")
    rig.refused(OutOfOrder, "b", 1.0, start=True, first_step=2, text="a sequence starts with step 1, and the request")
    assert rig.ask("a", read_state=True).state == 3.0


def test_a_start_in_another_state_is_no_retry() -> None:
    """Two numbered STARTs that differ in the state they bring, or fork, are two starts."""
    rig = Rig()
    rig.start("a", state=1.0, first_step=1)
    rig.start("a", state=2.0, first_step=1)
    assert rig.ask("a", read_state=True).state == 2.0
    rig.start("b", fork_of="a", first_step=1)
    rig.start("c", state=7.0)
    rig.start("b", fork_of="c", first_step=1)
    assert rig.ask("b", read_state=True).state == 7.0


@pytest.mark.parametrize("computed", [False, True])
def test_an_end_can_be_sent_again(computed: bool) -> None:
    """The sequence is gone; its last request gets its answer again all the same, before and after it's computed."""
    rig = Rig()
    rig.start("a", 1.0)
    replies = [rig.ask("a", 2.0, first_step=2, end=True)]
    if computed:
        rig.compute()
    replies.append(rig.ask("a", 2.0, first_step=2, end=True, owner="other"))
    rig.compute()
    assert [reply.sums for reply in replies] == [[3.0]] * 2
    rig.refused(SequenceEnded, "a", 9.0, first_step=2, end=True)
    rig.refused(SequenceEnded, "a", 1.0, first_step=3)
    assert rig.streams.rows.in_use == 0


def test_a_whole_sequence_can_be_sent_again() -> None:
    """START and END in one numbered request: a retry gets the answer and starts nothing."""
    rig = Rig()
    replies = [rig.start("a", 1.0, first_step=1, end=True) for _ in range(2)]
    rig.compute()
    replies.append(rig.start("a", 1.0, first_step=1, end=True))
    assert [reply.sums for reply in replies] == [[1.0]] * 3
    assert rig.sequences.started == 1
    assert rig.streams.live == 0


def test_a_failed_end_is_told_as_lost() -> None:
    """The run of a numbered END fails: who sends it again learns that the sequence was lost, not that all was well."""
    rig = Rig()
    rig.start("a", 1.0, first_step=1, end=True)
    run = rig.streams.take()
    assert run is not None
    rig.streams.fail(run, [ComputeFailed("no")])
    rig.refused(SequenceLost, "a", 2.0, first_step=2, text="it was lost: no")


def test_a_retry_brings_its_client_back() -> None:
    """A client whose call was cut off sends its last request again: the sequence is its own, and stays."""
    rig = Rig(grace=10.0)
    first = rig.start("a", 1.0, first_step=1, owner="old call")
    rig.sequences.abandon("old call", 0.0, cut_off=True)
    rig.compute()
    assert first.sums == [1.0], "the call is over; its request was computed all the same"
    rig.now = 5.0
    again = rig.start("a", 1.0, first_step=1, owner="new call")
    assert again.sums == [1.0]
    assert rig.sequences.owned("new call") == 1
    rig.expire(100.0)
    assert rig.ask("a", read_state=True).state == 1.0


# Expiry, and clients that vanish.


def test_an_idle_sequence_expires() -> None:
    """Every request gives it its time anew; it goes as soon as that has passed, and its place is free."""
    rig = Rig(idle_seconds=10.0)
    rig.start("a", 1.0)
    rig.compute()
    rig.expire(9.0)
    rig.push("a", 1.0)
    rig.compute()
    rig.expire(18.9)
    assert len(rig.sequences) == 1
    rig.expire(19.0)
    assert len(rig.sequences) == 0
    assert rig.sequences.expired == 1
    assert (rig.streams.live, rig.streams.rows.in_use) == (0, 0)
    rig.refused(SequenceExpired, "a", 1.0)


def test_a_sequence_that_waits_does_not_expire() -> None:
    """Whoever waits for an answer isn't idle, however long that takes."""
    rig = Rig(idle_seconds=10.0)
    reply = rig.start("a", 1.0)
    for now in (10.0, 11.0, 50.0):
        rig.expire(now)
    rig.compute()
    assert reply.sums == [1.0]
    rig.expire(51.0)
    rig.refused(SequenceExpired, "a", 1.0)


@pytest.mark.parametrize(("model", "own", "at"), [(10.0, 3.0, 3.0), (3.0, 10.0, 10.0), (0.0, 3.0, 3.0)])
def test_a_sequence_can_have_an_idle_time_of_its_own(model: float, own: float, at: float) -> None:
    """Shorter or longer than the model's, from its start or from later on."""
    rig = Rig(idle_seconds=model)
    rig.start("a", idle_seconds=own)
    rig.start("b")
    rig.ask("b", idle_seconds=own, read_state=True)
    rig.expire(at - 0.1)
    assert len(rig.sequences) == 2
    rig.expire(at)
    assert len(rig.sequences) == 0


def test_a_sequence_can_be_kept_for_ever() -> None:
    """An idle time of 0 is none."""
    rig = Rig(idle_seconds=10.0)
    rig.start("a", idle_seconds=0.0)
    rig.expire(1e9)
    assert len(rig.sequences) == 1


def test_a_restart_has_its_full_time() -> None:
    """What was to be looked at for the old sequence doesn't end the new one of that id."""
    rig = Rig(idle_seconds=10.0, grace=5.0)
    rig.start("a", owner="old")
    rig.now = 8.0
    rig.sequences.abandon("old", 8.0, cut_off=True)
    rig.start("a", owner="new")
    rig.expire(17.9)
    assert len(rig.sequences) == 1
    rig.expire(18.0)
    assert len(rig.sequences) == 0


def test_a_client_that_vanished_has_its_grace_to_come_back() -> None:
    """Its sequences go when it's over, and say so; those that somebody asked for stay, and so do others."""
    rig = Rig(grace=10.0)
    rig.start("a", 1.0, owner="lost call")
    rig.start("b", 1.0, owner="lost call")
    rig.start("c", 1.0, owner="other call")
    rig.compute()
    rig.sequences.abandon("lost call", 1.0, cut_off=True)
    rig.check()
    rig.expire(10.9)
    reply = rig.push("b", 1.0, owner="new call")
    rig.compute()
    assert reply.sums == [2.0]
    rig.expire(11.0)
    assert sorted(str(live.key) for live in rig.sequences) == ["b", "c"]
    rig.refused(SequenceExpired, "a", 1.0, text="its client was cut off and didn't come back within 10 s")
    rig.expire(1e6)
    assert len(rig.sequences) == 2


def test_a_call_that_ended_well_takes_nothing_with_it() -> None:
    """A unary request, or a stream that was closed: the sequence is there for the next call."""
    rig = Rig(grace=1.0)
    rig.start("a", owner="call")
    rig.sequences.abandon("call", 0.0, cut_off=False)
    rig.sequences.abandon("call", 0.0, cut_off=True)
    rig.expire(100.0)
    assert len(rig.sequences) == 1


def test_without_a_grace_nothing_goes() -> None:
    """A grace of 0 is for ever."""
    rig = Rig(grace=0.0)
    rig.start("a", owner="call")
    rig.sequences.abandon("call", 0.0, cut_off=True)
    rig.expire(1e9)
    assert len(rig.sequences) == 1


def test_no_state_crosses_to_another_client() -> None:
    """After a cut-off, an expiry, an eviction or an END in flight, whoever takes id and rows starts from nothing."""
    rig = Rig(grace=1.0, idle_seconds=50.0)
    for count, part in enumerate(["cut off", "idle", "evicted", "ended", "restarted"] * 3):
        rig.start("id", 1000.0 + count, owner=part)
        rig.compute()
        rig.ask("id", 1000.0, owner=part)
        run = rig.streams.take()
        assert run is not None
        if part == "evicted":
            rig.sequences.evict(["id"])
        elif part == "ended":
            rig.ask("id", 1.0, end=True, owner=part)
        settle(rig.streams, run, rig.slab)
        rig.compute()
        if part == "cut off":
            rig.sequences.abandon(part, rig.now, cut_off=True)
            rig.expire(rig.now + 1.0)
        elif part == "idle":
            rig.expire(rig.now + 50.0)
        reply = rig.start("id", 1.0, owner="another client")
        rig.compute()
        assert reply.sums == [1.0], part
        rig.ask("id", end=True)
        assert rig.streams.rows.in_use == 0


# Eviction and failure.


def test_eviction_refuses_what_waits() -> None:
    """Each evicted sequence's requests are told, once each, whatever is listed twice or isn't there."""
    rig = Rig()
    replies = [rig.start("a", 1.0), rig.ask("a", read_state=True), rig.start("b", 1.0)]
    assert rig.sequences.evict(["a", "nobody", "a"], "it was in the way") == ["a"]
    assert rig.sequences.evicted == 1
    assert [type(reply.refusal) for reply in replies] == [SequenceEvicted, SequenceEvicted, type(None)]
    assert str(replies[0].refusal).startswith(MUST_START.format("a"))
    assert str(replies[0].refusal).endswith("it was in the way")
    rig.compute()
    assert replies[2].sums == [1.0]
    assert rig.streams.live == 1


def test_an_engine_that_is_lost_ends_every_sequence() -> None:
    """Every request that waits is refused, those of an id begun anew or ended among them; nothing is left."""
    rig = Rig()
    replies = [rig.start("a", 1.0), rig.start("a", 1.0), rig.start("b", 1.0), rig.ask("b", end=True), rig.start("c")]
    rig.streams.end_all(Unavailable("gone"))
    assert [type(reply.refusal) for reply in replies[:4]] == [Unavailable] * 4
    assert len(rig.sequences) == 0
    rig.check()
    assert (rig.streams.live, rig.streams.rows.in_use) == (0, 0)
    rig.streams.closed = None
    rig.refused(SequenceLost, "a", 1.0, text="it was lost: gone")
    rig.refused(SequenceLost, "c", 1.0)
    rig.refused(SequenceEnded, "b", 1.0)


# Bounds.


def test_the_books_stay_small() -> None:
    """After 100,000 short sequences: neither deadlines nor the memory of those that are gone have grown with them."""
    rig = Rig(idle_seconds=3600.0, grace=60.0)
    for count in range(100_000):
        key = count if count % 2 else str(count)
        rig.sequences.ask(Ask(key, 0, (), start=True), Reply(), owner=count % 7, now=float(count % 60))
        rig.sequences.ask(Ask(key, 0, (), end=True), Reply(), owner=count % 5, now=float(count % 60))
    assert len(rig.sequences._gone) == REMEMBERED
    assert len(rig.sequences._due) <= 4 * LIMITS.max_streams + REMEMBERED + 1
    assert not rig.sequences._owned
    rig.check()


def test_deadlines_of_one_long_sequence_stay_few() -> None:
    """A sequence whose calls are cut off again and again, or that names its idle time each time, is noted once."""
    rig = Rig(idle_seconds=1000.0, grace=10.0)
    rig.start("a")
    for count in range(20_000):
        rig.now = count * 0.01
        rig.ask("a", read_state=True, idle_seconds=500.0 + count % 3, owner=count)
        rig.sequences.abandon(count, rig.now, cut_off=True)
        rig.sequences.expire(rig.now)
    assert len(rig.sequences._due) < 100
    rig.check()


FULL = 3  # places, below


def crowded_rig(*, idle_when_full: float = 100.0) -> Rig:
    """Sequences 0, 1 and 2, asked for at 0, 10 and 20 s, in all places that there are."""
    rig = Rig(dataclasses.replace(LIMITS, max_streams=FULL), idle_when_full=idle_when_full)
    for key in range(FULL):
        rig.now = 10.0 * key
        rig.start(key, 1.0)
    rig.compute()
    return rig


def test_where_every_place_is_taken_the_longest_idle_makes_room() -> None:
    """Not before it is idle for long enough; then the oldest only, which is told why when it comes back."""
    rig = crowded_rig()
    rig.now = 99.0
    with pytest.raises(TooManyStreams) as refused:
        rig.start(7, 1.0)
    assert "one that is idle for 100 s makes room (in 1 s at the earliest)" in str(refused.value)
    rig.now = 105.0
    assert rig.start(7, 1.0) is not None
    rig.compute()
    assert (rig.sequences.displaced, rig.sequences.expired) == (1, 0)
    assert sorted(live.key for live in rig.sequences) == [1, 2, 7]
    with pytest.raises(
        SequenceExpired, match="105 s without a request while every place was taken, and another stream"
    ):
        rig.ask(0, 1.0)
    with pytest.raises(TooManyStreams):
        rig.start(8, 1.0)
    rig.now = 110.0
    rig.start(8, 1.0)
    rig.compute()
    assert sorted(live.key for live in rig.sequences) == [2, 7, 8]
    rig.sequences.check()


def test_who_asked_lately_waits_or_restarts_keeps_its_place() -> None:
    """A touch puts a sequence last; one with work to do, one that begins anew and a fork's source aren't let go."""
    rig = crowded_rig()
    rig.now = 101.0
    rig.ask(0, 1.0)  # and isn't computed yet
    rig.now = 115.0
    rig.start(1, 5.0)  # it has a place of its own
    assert rig.sequences.displaced == 0
    rig.now = 500.0
    with pytest.raises(TooManyStreams):
        rig.start(9, 1.0, fork_of=2)
    assert rig.sequences.displaced == 0
    rig.compute()
    rig.start(9, 1.0, fork_of=2)
    rig.compute()
    assert sorted(live.key for live in rig.sequences) == [1, 2, 9]


def test_without_the_option_nothing_makes_room() -> None:
    """0 keeps every sequence for ever, and the refusal promises nothing."""
    rig = crowded_rig(idle_when_full=0.0)
    rig.now = 1e9
    with pytest.raises(TooManyStreams, match=r"the limit is 3$"):
        rig.start(7, 1.0)


def test_with_room_nobody_is_let_go() -> None:
    """However long a sequence is idle: places that are free are taken first."""
    rig = crowded_rig()
    rig.ask(2, 1.0, end=True)
    rig.compute()
    rig.now = 1e6
    rig.start(7, 1.0)
    rig.compute()
    assert sorted(live.key for live in rig.sequences) == [0, 1, 7]
