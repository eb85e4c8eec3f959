"""The core of a stream: numbering, window, slices, and what a faulty server can't do to it."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cellstream import errors
from cellstream._protocol import Phase
from cellstream.v1 import stream_inference_pb2 as pb
from tests.cellstream.models import int64, opened_as, opened_core, outputs, steps_of


class StreamMachine(RuleBasedStateMachine):
    """Pushes, sends and sliced answers in any order, against lists of numbers: y = 10 x + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.core = opened_core(window=10, max_steps=4)
        self.pushed: list[int] = []
        self.requests: list[tuple[int, int, Any]] = []  # first, end, answer
        self.wire: list[int] = []  # what the server has
        self.answered = 0

    @rule(steps=st.integers(1, 15))
    def push(self, steps: int) -> None:
        """Push a chunk of numbers that go up."""
        first = len(self.pushed)
        values = list(range(first, first + steps))
        self.pushed += values
        self.requests.append((first, first + steps, self.core.push(steps_of(*values))))

    @rule()
    def send(self) -> None:
        """Send what the window lets through."""
        while (message := self.core.next_message()) is not None:
            chunk = pb.StreamRequest.FromString(message).chunk
            assert chunk.first_step == len(self.wire) + 1
            values = np.frombuffer(chunk.inputs[0], "<i8").tolist()
            assert len(values) == chunk.steps <= 4
            self.wire += values
            assert len(self.wire) - self.answered <= 10

    @precondition(lambda self: self.answered < len(self.wire))
    @rule(steps=st.integers(1, 12))
    def answer(self, steps: int) -> None:
        """Answer some steps, which may be a part of a chunk or of several."""
        values = self.wire[self.answered : self.answered + steps]
        self.core.receive(outputs(self.answered + 1, [10 * x + 1 for x in values]))
        self.answered += len(values)

    @invariant()
    def agrees(self) -> None:
        """Every answer that is complete is the concatenation of its slices; what is unanswered is kept."""
        assert self.wire == self.pushed[: len(self.wire)]
        assert self.core.answered_step == self.answered
        assert self.core.sent_step == len(self.wire)
        for first, end, answer in self.requests:
            assert answer.done == (end <= self.answered)
            if answer.done:
                value = self.core.result(answer)
                assert value.tolist() == [10 * x + 1 for x in self.pushed[first:end]]
        kept = self.core.unanswered
        assert all(piece.last_step > self.answered for piece in kept)
        if kept:
            assert kept[0].first_step <= self.answered + 1
            assert kept[-1].last_step == len(self.wire)

    def teardown(self) -> None:
        """In the end everything is answered, and half-closing comes last."""
        self.core.finish()
        while self.answered < len(self.pushed):
            self.send()
            self.answer(7)
        assert self.core.half_close_due()
        assert not self.core.half_close_due()
        self.core.end("OK", "", "")
        assert self.core.ended
        assert self.core.error is None


TestStreamMachine = StreamMachine.TestCase
TestStreamMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_only_the_answer_that_was_asked_for_is_taken(answers: list[tuple[int, int]]) -> None:
    """Outputs with a gap, a repetition, or beyond what was sent raise a typed error, and change nothing."""
    core = opened_core()
    core.push(steps_of(1, 2, 3, 4, 5, 6))
    core.next_message()
    for first, steps in answers:
        before = core.answered_step
        legal = first == before + 1 and steps >= 1 and before + steps <= 6
        message = outputs(first, [0] * steps)
        if legal:
            core.receive(message)
            assert core.answered_step == before + steps
        else:
            with pytest.raises(errors.ProtocolError, match="the server answered"):
                core.receive(message)
            assert core.answered_step == before


@given(st.binary(max_size=40))
def test_any_bytes_are_taken_or_refused_with_a_typed_error(data: bytes) -> None:
    """What isn't a message of the protocol raises ProtocolError and nothing else."""
    core = opened_core()
    with contextlib.suppress(errors.ProtocolError):
        core.receive(data)


@pytest.mark.parametrize(
    "response",
    [
        pb.Outputs(first_step=1, steps=2, outputs=[int64([1])]),
        pb.Outputs(first_step=1, steps=1, outputs=[]),
        pb.Outputs(first_step=1, steps=1, outputs=[int64([1]), int64([1])]),
        pb.Outputs(first_step=1, steps=1, outputs=[b"1234567"]),
    ],
)
def test_outputs_of_the_wrong_size_are_refused(response: pb.Outputs) -> None:
    """Bytes and tensors that don't add up to the steps they claim raise ProtocolError."""
    core = opened_core()
    core.push(steps_of(1, 2))
    core.next_message()
    with pytest.raises(errors.ProtocolError, match="the server sent"):
        core.receive(pb.StreamResponse(outputs=response).SerializeToString())


def test_a_second_opened_and_a_wrong_first_step_are_refused() -> None:
    """A server can't open a stream twice, nor start a new one in the middle."""
    core = opened_core()
    again = pb.StreamResponse(opened=opened_as()).SerializeToString()
    with pytest.raises(errors.ProtocolError, match="twice"):
        core.receive(again)
    late = pb.StreamResponse(opened=opened_as(next_step=8)).SerializeToString()
    fresh = opened_core()
    fresh.opened = None
    with pytest.raises(errors.ProtocolError, match="step 8"):
        fresh.receive(late)


def test_a_chunk_beyond_every_limit_is_cut() -> None:
    """A chunk goes out in messages within the limits on steps and bytes, and a smaller window still moves."""
    core = opened_core(window=3, max_steps=5, max_bytes=64 + 16 + 8 * 4)
    answer = core.push(steps_of(*range(9)))
    sizes = []
    while (message := core.next_message()) is not None:
        chunk = pb.StreamRequest.FromString(message).chunk
        sizes.append(chunk.steps)
        core.receive(outputs(chunk.first_step, range(chunk.steps)))
    assert sizes == [4, 4, 1]
    assert answer.done


def test_a_step_that_no_message_can_hold_is_refused_here() -> None:
    """A step above the server's limit on bytes raises LimitReached before anything is sent."""
    core = opened_core(max_bytes=87)
    with pytest.raises(errors.LimitReached, match="one step has 8 bytes; a message has 87 at most"):
        core.push(steps_of(1))
    assert core.next_message() is None


def test_a_stream_goes_on_after_go_away() -> None:
    """After GoAway steps are sent and answered as before, and the stream half-closes only when its user says so."""
    core = opened_core(window=1)
    answers = [core.push(steps_of(1))]
    core.next_message()
    core.receive(pb.StreamResponse(go_away=pb.GoAway(grace_ms=2500)).SerializeToString())
    assert core.going_away_ms == 2500
    core.receive(outputs(1, [7]))
    assert not core.half_close_due()
    answers.append(core.push(steps_of(2)))
    assert core.next_message() is not None
    core.receive(outputs(2, [8]))
    assert all(answer.done for answer in answers)
    assert not core.half_close_due()
    core.finish()
    assert core.half_close_due()
    core.end("UNAVAILABLE", "", "socket closed")  # the server was faster to leave than to say goodbye
    assert core.error is None
    with pytest.raises(errors.StreamClosed):
        core.push(steps_of(3))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (("UNAVAILABLE", "", "socket closed"), errors.StreamLost),
        (("UNAVAILABLE", "shutting_down", "bye"), errors.StreamLost),
        (("INTERNAL", "", "RST_STREAM"), errors.StreamLost),
        (("UNKNOWN", "", ""), errors.StreamLost),
        (("CANCELLED", "", ""), errors.StreamLost),
        (("OK", "", ""), errors.StreamLost),
        (("INTERNAL", "compute_failed", "boom"), errors.ComputeFailed),
        (("INVALID_ARGUMENT", "invalid_input", "input 'x' holds 613"), errors.InvalidInput),
        (("RESOURCE_EXHAUSTED", "waiting_steps_limit", ""), errors.Overloaded),
        (("RESOURCE_EXHAUSTED", "message_too_large", ""), errors.LimitReached),
        (("FAILED_PRECONDITION", "step_gap", ""), errors.OutOfOrder),
        (("DEADLINE_EXCEEDED", "", ""), errors.DeadlineExceeded),
        (("PERMISSION_DENIED", "", ""), errors.AccessDenied),
    ],
)
def test_a_status_in_the_middle_becomes_a_typed_error(
    status: tuple[str, str, str], kind: type[errors.CellstreamError]
) -> None:
    """Whatever ends the stream, what was complete can still be had and what wasn't raises the same error each time."""
    core = opened_core()
    first, second = core.push(steps_of(1)), core.push(steps_of(2, 3))
    core.next_message()
    core.next_message()
    core.receive(outputs(1, [5]))
    core.receive(outputs(2, [5]))
    core.end(*status)
    assert core.phase is Phase.ENDED
    assert core.result(first).tolist() == [5]
    for _ in range(2):
        with pytest.raises(kind) as caught:
            core.result(second)
        assert type(caught.value) is kind
        assert status[2] in caught.value.message
    if kind is errors.StreamLost:
        assert isinstance(core.error, errors.StreamLost)
        assert (core.error.answered_step, core.error.sent_step) == (2, 3)
        assert "after step 2" in str(core.error)
    with pytest.raises(kind):
        core.push(steps_of(4))


def test_durability_is_kept_for_the_user() -> None:
    """The last durable step is known from outputs and from idle messages, and never goes back."""
    core = opened_core()
    core.receive(pb.StreamResponse(durable=pb.Durable(durable_step=3)).SerializeToString())
    core.push(steps_of(1))
    core.next_message()
    message = pb.Outputs(first_step=1, steps=1, outputs=[int64([1])], durable_step=2)
    core.receive(pb.StreamResponse(outputs=message).SerializeToString())
    assert core.durable_step == 3


def test_messages_of_a_later_protocol_are_passed_over() -> None:
    """An unknown kind of message changes nothing."""
    core = opened_core()
    core.receive(bytes([0x7A, 0]))  # field 15, empty
    assert core.phase is Phase.OPEN
