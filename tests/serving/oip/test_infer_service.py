"""ModelInfer and ModelStreamInfer without a network: who is answered what, in which order, and who waits for whom."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import Limits
from serving.errors import Unavailable
from serving.oip.infer_service import StreamInferCall
from serving.oip.v1 import inference_pb2 as pb
from serving.single_steps import varint
from tests.serving.oip.calls import (
    LIMITS,
    House,
    Streamed,
    Unary,
    WireCall,
    first_output,
    pair_request,
    parameter,
    raw,
    request,
)
from tests.serving.test_fuzz import with_damage
from tests.serving.test_streams import pack, unpack

MUST_START = "inference request for sequence 5 to model 'sum' must specify the START flag on the first request of the"


# ModelInfer.


def test_a_sequence_by_single_calls() -> None:
    """START, a step and END, each a call of its own: the state goes from one to the next, and is gone at the end."""
    house = House()
    sums = []
    for message in (request(5, 1.0, start=True), request(5, 2.0, 3.0), request(5, 4.0, end=True)):
        unary = house.infer(message)
        sums.append(first_output(unary.answer))
        unary.close(cancelled=False)
    assert sums == [[1.0], [3.0, 6.0], [10.0]]
    assert house.sum.streams.live == 0
    assert house.front.stats.messages_in == house.front.stats.messages_out == 3


def test_a_refused_call_ends_with_the_code_and_the_reason() -> None:
    """What can't be computed ends its call, and says why in words and for programs."""
    house = House()
    unary = house.infer(request(5, 1.0))
    assert unary.wire.status is not None
    assert unary.wire.status[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert unary.wire.status[1].startswith(MUST_START)
    assert unary.wire.trailing == {"cellstream-reason": "sequence_not_started"}
    assert house.sum.sequences.failed == 1
    assert house.front.stats.refusals["sequence_not_started"] == 1


def test_a_call_of_two_requests_is_refused() -> None:
    """ModelInfer takes one request: a second one ends the call, and the first one's answer harms nobody."""
    house = House()
    unary = Unary(house, pair_request("p", 1.0, start=True))
    unary.handler.on_message(raw(request(5, 1.0, start=True)))
    assert unary.wire.code is grpc.StatusCode.INVALID_ARGUMENT
    house.turn(3)
    unary.close(cancelled=False)
    assert first_output(house.infer(pair_request("p", 1.0)).answer) == [2.0]
    assert house.sum.streams.live == 0


def test_a_call_without_a_request_ends() -> None:
    """Who sends no more, and has sent nothing, gets a status and not silence."""
    house = House()
    unary_wire = WireCall()
    handler = type(Unary(house, request(5, 1.0, start=True)).handler)(house.desk, unary_wire)  # type: ignore[arg-type]
    handler.on_half_close()
    assert unary_wire.code is grpc.StatusCode.INVALID_ARGUMENT
    handler.on_closed(cancelled=False)


def test_a_call_that_waits_survives_its_half_close() -> None:
    """Every client closes its side behind the request; the answer comes all the same."""
    house = House()
    unary = Unary(house, request(5, 1.0, start=True))
    unary.handler.on_half_close()
    house.turn()
    assert first_output(unary.answer) == [1.0]


@pytest.mark.parametrize("retried", [False, True])
def test_a_call_that_is_cancelled_leaves_its_sequence_for_a_while(retried: bool) -> None:
    """Its request is computed; a numbered one can be had again by another call; nobody else sees the state."""
    house = House(grace=10.0)
    unary = Unary(house, request(5, 1.0, start=True, cellstream_step=1))
    unary.close(cancelled=True)
    house.clock.now = 9.0
    house.turn(2)
    assert unary.wire.sent == []
    if retried:
        again = house.infer(request(5, 1.0, start=True, cellstream_step=1))
        assert first_output(again.answer) == [1.0]
        assert again.answer.parameters["cellstream_repeated"].bool_param
        again.close(cancelled=False)
    house.clock.now = 10.0
    house.turn()
    after = house.infer(request(5, 1.0))
    if retried:
        assert first_output(after.answer) == [2.0]
    else:
        assert after.wire.trailing == {"cellstream-reason": "sequence_expired"}
    assert first_output(house.infer(request(5, 7.0, start=True)).answer) == [7.0]


def test_a_retry_while_the_cancelled_call_waits() -> None:
    """The first call is over before its request is computed: the second gets the answer, the state moves once."""
    house = House()
    first = Unary(house, request(5, 1.0, start=True, cellstream_step=1))
    first.close(cancelled=True)
    second = Unary(house, request(5, 1.0, start=True, cellstream_step=1))
    house.turn()
    assert first.wire.sent == []
    assert first_output(second.answer) == [1.0]
    assert first_output(house.infer(request(5, 1.0)).answer) == [2.0]


# ModelStreamInfer: order.


def test_answers_leave_in_the_order_of_their_requests() -> None:
    """A long request of one sequence in front of short ones of others: those are computed sooner and sent later."""
    house = House(Limits(max_streams=6, max_steps_per_message=9))
    call = Streamed(house)
    call.send(request("long", *[1.0] * 9, start=True))
    call.send(request("short", 5.0, start=True))
    call.send(request("short", cellstream_read_state=True))
    call.send(request("nobody", 1.0))
    call.send(request("empty", start=True, cellstream_read_state=True))
    assert call.told == []
    house.turn(2)
    assert house.sum.sequences.answered >= 2
    assert call.told == []
    house.turn(3)
    assert call.told == [[float(step) for step in range(1, 10)], [5.0], [5.0], "sequence_not_started", [0.0]]


def test_sequences_of_one_call_keep_their_states_apart() -> None:
    """Several sequences of two models, mixed: each goes on from its own state."""
    house = House()
    call = Streamed(house)
    for key in (1, "1", 2):
        call.send(request(key, float(len(str(key))), start=True))
    call.send(pair_request(1, 9.0, start=True))
    for _ in range(2):
        house.turn(2)
        call.send(request(1, 10.0))
        call.send(request("1", 20.0))
        call.send(request(2, 30.0))
        call.send(pair_request(1, 9.0))
    house.turn(2)
    assert call.told[4:] == [[11.0], [21.0], [31.0], [18.0], [21.0], [41.0], [61.0], [27.0]]
    last = call.answers[-1].infer_response
    assert [output.name for output in last.outputs] == ["y", "z"]
    assert last.raw_output_contents[1] == b"".join(value.to_bytes(8, "little", signed=True) for value in (27, -27))


def test_a_sequence_moves_between_calls() -> None:
    """Step by step through a stream, a unary call, and another stream after the first was cut off."""
    house = House()
    one, two = Streamed(house), Streamed(house)
    one.send(request(5, 1.0, start=True))
    house.turn()
    assert first_output(house.infer(request(5, 1.0)).answer) == [2.0]
    one.send(request(5, 1.0))
    one.close(cancelled=True)
    house.turn()
    two.send(request(5, 1.0))
    house.turn()
    assert two.told == [[4.0]]


# Errors.


def test_an_error_is_told_in_the_stream_and_the_stream_goes_on() -> None:
    """The text, the request's id, the reason; and, where asked for, that it's the last word on that request."""
    house = House()
    call = Streamed(house)
    call.send(request(5, 1.0, id="first"))
    call.send(request(5, 1.0, id="second", start=True, triton_enable_empty_final_response=True))
    call.send(request(6, 1.0, id="third", triton_enable_empty_final_response=True))
    call.send(b"\xff\xff")
    house.turn()
    first, second, third, damaged = call.answers
    assert first.error_message.startswith(MUST_START)
    assert [answer.infer_response.id for answer in call.answers] == ["first", "second", "third", ""]
    assert "triton_final_response" not in first.infer_response.parameters
    assert second.infer_response.parameters["triton_final_response"].bool_param
    assert third.infer_response.parameters["triton_final_response"].bool_param
    assert damaged.error_message == "the message isn't an inference.ModelInferRequest"
    assert call.status() is None
    assert call.is_read()


def test_an_error_ends_the_stream_where_the_client_asks_for_that() -> None:
    """With triton_grpc_error a refusal is the call's status, behind the answers that come before it."""
    house = House()
    call = Streamed(house, metadata=[("triton_grpc_error", "true")])
    call.send(request(5, 1.0, start=True))
    call.send(request(6, 1.0))
    call.send(request(5, 1.0))
    assert call.status() is None
    house.turn(2)
    assert call.told == [[1.0]]
    assert call.wire.code is grpc.StatusCode.INVALID_ARGUMENT
    assert call.wire.trailing == {"cellstream-reason": "sequence_not_started"}
    assert house.front.stats.messages_out == 1
    call.close(cancelled=False)
    house.turn()
    assert first_output(house.infer(request(5, 1.0)).answer) == [3.0]


def test_a_lost_engine_is_told_to_every_request() -> None:
    """Everything that waits is refused in its order, in every call."""
    house = House()
    call, other = Streamed(house), Streamed(house)
    call.send(request(5, 1.0, start=True))
    call.send(request(6, 1.0, start=True))
    call.send(pair_request(5, 1.0, start=True))
    call.send(request(5, cellstream_read_state=True))
    other.send(request(7, 1.0, start=True))
    engine: Any = house.sum.engine
    engine.broken = True
    house.turn()
    assert call.told == ["unavailable", "unavailable", [1.0], "unavailable"]
    assert other.told == ["unavailable"]
    other.send(request(7, 1.0))
    other.send(request(8, 1.0, start=True))
    assert other.told[1:] == ["sequence_lost", "unavailable"]
    assert house.sum.sequences.failed == 6


# Flow control.


def test_a_call_with_a_window_full_of_steps_is_not_read() -> None:
    """Its next request is asked for when answers have gone out; other calls don't notice."""
    house = House()
    call, other = Streamed(house), Streamed(house)
    call.send(request(5, *[1.0] * 5, start=True))
    call.send(request(5, *[1.0] * 4))
    assert not call.is_read()
    other.send(request(6, 1.0, start=True))
    assert other.is_read()
    house.turn(4)
    assert call.is_read()
    assert (call.told[-1][-1], other.told) == (9.0, [[1.0]])


def test_a_client_that_does_not_read_stalls_itself_alone() -> None:
    """Its outbox fills up to the limit and one request; then nothing of it is taken, until it reads."""
    house = House()
    call, other = Streamed(house, reads=False), Streamed(house)
    call.send(request(5, 1.0, start=True))
    count = 1
    while call.is_read():
        house.turn()
        call.send(request(5, 1.0))
        count += 1
        assert count < 100, "nothing stops it"
    house.turn()
    assert call.wire.unsent_bytes < LIMITS.max_unsent_bytes + 2 * len(call.wire.sent[-1])
    assert call.wire.tells_sent
    other.send(request(6, 1.0, start=True))
    house.turn()
    assert other.told == [[1.0]]
    call.handler.on_sent()
    assert not call.is_read()
    call.wire.unsent_bytes = 0
    call.handler.on_sent()
    assert call.is_read()
    assert call.told == [[float(step)] for step in range(1, count + 1)]


def test_what_is_answered_at_once_does_not_upset_the_window() -> None:
    """Retries, reads and refusals are answered while they are taken: no step of them is counted as waiting."""
    house = House()
    call = Streamed(house)
    call.send(request(5, *[1.0] * 4, start=True, cellstream_step=1))
    house.turn(2)
    for _ in range(20):
        call.send(request(5, *[1.0] * 4, start=True, cellstream_step=1))
        call.send(request(5, cellstream_read_state=True))
        call.send(request(9, *[1.0] * 4))
    assert call.handler._steps == 0
    call.send(request(5, *[1.0] * 9))
    assert not call.is_read()
    house.turn(4)
    assert call.handler._steps == 0
    assert call.told[-1][-1] == 13.0
    call.send(request(6, *[1.0] * 4, start=True))
    call.send(request(5, cellstream_read_state=True))  # waits for its turn to leave
    call.send(request(9, *[1.0] * 4))
    assert call.handler._steps == 4
    house.turn(2)
    assert call.handler._steps == 0


# The end of a call.


def test_a_half_closed_call_ends_when_all_is_answered() -> None:
    """OK, behind the last answer; its sequences stay."""
    house = House()
    call = Streamed(house)
    call.send(request(5, 1.0, start=True))
    call.handler.on_half_close()
    assert call.status() is None
    house.turn()
    assert call.told == [[1.0]]
    assert call.status() == (grpc.StatusCode.OK, "")
    call.close(cancelled=False)
    assert call.handler not in house.front.calls
    house.clock.now = 1e6
    house.turn()
    assert len(house.sum.sequences) == 1
    empty = Streamed(house)
    empty.handler.on_half_close()
    assert empty.wire.status == (grpc.StatusCode.OK, "")


def test_a_call_that_was_cut_off_is_told_nothing_more() -> None:
    """What is computed for it goes nowhere, its sequences expire after their grace, and nothing of it is kept."""
    house = House(grace=5.0)
    call = Streamed(house)
    call.send(request(5, 1.0, start=True))
    call.send(pair_request("p", 1.0, start=True))
    call.close(cancelled=True)
    house.turn()
    assert call.wire.sent == []
    assert call.handler not in house.front.calls
    house.clock.now = 5.0
    house.turn()
    assert house.sum.streams.live == house.pair.streams.live == 0
    assert house.sum.streams.rows.in_use == 0


def test_going_away_ends_calls_without_a_sequence_and_waits_for_the_others() -> None:
    """A client with a live sequence can end it; then its call is told too. Nothing is cut off in the middle."""
    house = House()
    idle, busy, waiting = Streamed(house), Streamed(house), Streamed(house)
    busy.send(request(5, 1.0, start=True))
    house.turn()
    waiting.send(request(6, 1.0, start=True, end=True))
    for lane in house.front.lanes:
        lane.streams.close()
    house.front.go_away(1.0)
    assert idle.wire.code is grpc.StatusCode.UNAVAILABLE
    assert idle.wire.trailing == {"cellstream-reason": "shutting_down"}
    assert busy.status() is None
    assert waiting.status() is None
    busy.send(request(7, 1.0, start=True))
    busy.send(request(5, 1.0))
    house.turn()
    assert waiting.told == [[1.0]]
    assert waiting.wire.code is grpc.StatusCode.UNAVAILABLE
    busy.send(request(5, 1.0, end=True))
    house.turn()
    assert busy.told == [[1.0], "shutting_down", [2.0], [3.0]]
    assert busy.wire.code is grpc.StatusCode.UNAVAILABLE


# Plans: requests that are never taken apart.


def plans(house: House) -> int:
    """How many are kept."""
    return len(house.desk._plans)


def test_usual_requests_follow_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its second step on a sequence's requests are looked up, not parsed: nothing else is asked of the parser."""
    house = House()
    call = Streamed(house)
    call.send(request(5, 1.0, start=True))
    call.send(request(5, 1.0))
    call.send(pair_request(5, 1.0, start=True))
    call.send(pair_request(5, 1.0))
    assert plans(house) == 2
    monkeypatch.setattr("serving.oip.desk.parse", None)
    for id_ in ("", "7", "another id"):
        for make in (request, pair_request):
            message = make(5, 1.0)
            message.id = id_
            call.send(message)
        house.turn(2)
    assert call.told == [[1.0], [2.0], [1.0], [2.0], [3.0], [3.0], [4.0], [4.0], [5.0], [5.0]]


@pytest.mark.parametrize("how", ["end", "restart", "evict", "expire", "lose"])
def test_a_plan_is_not_followed_to_a_sequence_that_is_gone(how: str) -> None:
    """The next request of the very same bytes is judged anew: refused, or a step of whoever has the id now."""
    house = House()
    call = Streamed(house)
    usual = request(5, 1.0)
    call.send(request(5, 1.0, start=True, cellstream_idle_seconds=5.0))
    call.send(usual)
    house.turn(2)
    expected: list[float] | str = "sequence_not_started"
    if how == "end":
        call.send(request(5, 1.0))
        call.send(request(5, end=True))
        expected = "sequence_ended"
    elif how == "restart":
        call.send(request(5, 1.0))
        call.send(request(5, 100.0, start=True))
        expected = [101.0]
    elif how == "evict":
        house.sum.sequences.evict([5])
        expected = "sequence_evicted"
    elif how == "expire":
        house.clock.now = 6.0
        house.turn()
        expected = "sequence_expired"
    else:
        house.sum.streams.end_all(Unavailable("gone"))
        expected = "sequence_lost"
    call.send(usual)
    house.turn(3)
    assert call.told[-1] == expected


def test_bad_values_are_refused_on_the_short_way_too() -> None:
    """NaN in a usual request: refused with its step's number, the state untouched, and counted."""
    house = House()
    call = Streamed(house)
    call.send(request(5, 1.0, start=True))
    house.turn()
    for value in (1.0, float("nan"), 1.0):
        call.send(request(5, value))
        house.turn()
    assert call.told == [[1.0], [2.0], "invalid_input", [3.0]]
    assert "nan in the step numbered 3" in call.answers[2].error_message
    assert house.sum.sequences.failed == 1


def test_plans_are_few_and_short() -> None:
    """However many ids come by, and whatever clients put into their requests."""
    house = House()
    call = Streamed(house)
    for key in range(1, 100):
        call.send(request(key, 1.0, start=True))
        house.turn()
        call.send(request(key, 1.0))
        house.turn()
        call.send(request(key, end=True))
        assert plans(house) <= 2 * LIMITS.max_streams
    assert len(house.desk._tails) == 1
    house.desk.forget()
    call.send(request(5, 1.0, start=True))
    call.send(request(5, 1.0, note="x" * 3000))
    assert plans(house) == 0


def test_bytes_that_only_look_like_a_tensor_make_no_plan() -> None:
    """A field that nobody knows ends like the tensor: what is computed is the tensor, the next time too."""
    house = House()
    call = Streamed(house)
    call.send(request(5, 0.0, start=True))
    house.turn()
    for decoy in (1.0, 20.0):
        tensor = b"\x3a\x04" + pack([decoy])[0]
        call.send(raw(request(5, 1.0)) + b"\x92\x3f" + varint(len(tensor)) + tensor)
        house.turn()
    assert call.told == [[0.0], [1.0], [2.0]]


def typed(message: pb.ModelInferRequest) -> None:
    """Give the tensors as typed contents."""
    for tensor, data in zip(message.inputs, message.raw_input_contents, strict=True):
        if tensor.datatype == "FP32":
            tensor.contents.fp32_contents.extend(unpack(data))
        else:
            tensor.contents.int_contents.extend(struct.unpack(f"<{len(data) // 4}i", data))
    message.ClearField("raw_input_contents")


def untimed(message: pb.ModelInferRequest) -> None:
    """Leave out the time axis of single steps."""
    for tensor in message.inputs:
        if tensor.shape[1] == 1:
            del tensor.shape[1]


def bare(message: pb.ModelInferRequest) -> None:
    """Leave out the batch's axis too, where a step has one of its own."""
    for tensor in message.inputs:
        if len(tensor.shape) == 3 and tensor.shape[1] == 1:
            del tensor.shape[:2]


def inputs_reversed(message: pb.ModelInferRequest) -> None:
    """Give the tensors in another order."""
    fields: tuple[Any, ...] = (message.inputs, message.raw_input_contents)
    for field in fields:
        items = list(field)[::-1]
        del field[:]
        field.extend(items)


CHANGES: dict[str, Callable[[pb.ModelInferRequest], Any]] = {
    "": lambda _message: None,
    "id": lambda message: setattr(message, "id", "some id"),
    "other id": lambda message: setattr(message, "id", "another"),
    "long id": lambda message: setattr(message, "id", "x" * 127),
    "longer id": lambda message: setattr(message, "id", "x" * 128),
    "id of letters": lambda message: setattr(message, "id", "ä" * 9),
    "two ids": lambda message: setattr(message, "id", "first"),
    "an id behind": lambda message: setattr(message, "id", "first"),
    "outputs": lambda message: message.outputs.add(name="y"),
    "custom": lambda message: parameter(message, "mine", 7),
    "final": lambda message: parameter(message, "triton_enable_empty_final_response", True),
    "named": lambda message: setattr(message, "model_version", "1"),
    "typed": typed,
    "untimed": untimed,
    "bare": bare,
    "inputs reversed": inputs_reversed,
    "fields reversed": lambda _message: None,
}


def variant(message: pb.ModelInferRequest, how: str) -> bytes:
    """The same request in other bytes."""
    CHANGES[how](message)
    if how != "fields reversed":
        data, second = message.SerializeToString(deterministic=True), b"\x1a\x06second"
        if how == "two ids":
            return data.replace(b"\x1a\x05first", b"\x1a\x05first" + second)
        return data + second if how == "an id behind" else data
    parts = []
    for descriptor, _ in message.ListFields():
        part = pb.ModelInferRequest()
        part.CopyFrom(message)
        for other, _ in message.ListFields():
            if other.name != descriptor.name:
                part.ClearField(other.name)
        parts.append(part.SerializeToString(deterministic=True))
    return b"".join(reversed(parts))


FLAGS: list[dict[str, Any]] = [
    {},
    {},
    {},
    {},
    {},
    {"start": True},
    {"end": True},
    {"cellstream_read_state": True},
    {"cellstream_step": 2},
]


shapes_of_requests = st.tuples(
    st.sampled_from([request, pair_request]),
    st.sampled_from([5, "5"]),
    st.sampled_from(FLAGS),
    st.sampled_from(["", "", *CHANGES]),
    st.sampled_from(["stream", "other stream", "unary"]),
)


@settings(max_examples=200, deadline=None)
@given(
    kinds=st.lists(shapes_of_requests, min_size=1, max_size=3),
    asked=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.sampled_from([1.0, 2.0, -9.0, 99.0]), min_size=1, max_size=2)),
        max_size=20,
    ),
)
def test_a_followed_plan_gives_the_bytes_that_parsing_gives(kinds: list[Any], asked: list[Any]) -> None:
    """The same requests at two desks, one of which never plans: not a byte of any answer differs; 99 is refused."""
    sent = []
    for planning in (True, False):
        house = House(planning=planning)
        streams = {"stream": Streamed(house), "other stream": Streamed(house)}
        told: list[bytes] = []
        for beginning in (request, pair_request):
            for id_ in (5, "5"):
                streams["stream"].send(beginning(id_, 0.0, start=True))
                house.turn()
        for place, values in asked:
            make, key, flags, how, where = kinds[place % len(kinds)]
            data = variant(make(key, *values, **flags), how)
            if where == "unary":
                unary = house.infer(data)
                told += [*unary.wire.sent, repr(unary.wire.status).encode()]
            else:
                streams[where].send(data)
                house.turn()
        told += [data for call in streams.values() for data in call.wire.sent]
        sent.append(told)
    assert sent[0] == sent[1]


@pytest.mark.parametrize("how", CHANGES)
def test_every_way_to_ask_gives_the_same_sums_again_and_again(how: str) -> None:
    """However a client writes its requests, the fifth of them is understood as the first is."""
    house = House()
    call = Streamed(house)
    call.send(pair_request(5, 1.0, start=True))
    for _ in range(5):
        house.turn()
        call.send(variant(pair_request(5, 1.0), how))
    house.turn()
    assert call.told == [[float(step)] for step in range(1, 7)]


def test_a_refusal_carries_the_id_of_its_request_every_time() -> None:
    """A client that gives all its requests one id gets it back with every error too."""
    house = House()
    call = Streamed(house)
    call.send(request(5, 1.0, start=True))
    for value in (1.0, 1.0, float("nan"), float("nan")):
        call.send(request(5, value, id="mine"))
        house.turn(2)
    assert [answer.infer_response.id for answer in call.answers] == ["", "mine", "mine", "mine", "mine"]
    assert call.told[3:] == ["invalid_input"] * 2


def test_a_tensor_that_is_another_field_is_not_taken_for_one() -> None:
    """The same beginning and length as ever, and a field that nobody knows where the second tensor was."""
    house = House()
    call = Streamed(house)
    usual = pair_request(5, 1.0).SerializeToString(deterministic=True)
    call.send(pair_request(5, 1.0, start=True))
    call.send(usual)
    house.turn(2)
    assert usual[-10:-8] == b"\x3a\x08"
    call.send(usual[:-10] + b"\x42\x08" + usual[-8:])
    house.turn(2)
    assert call.told == [[1.0], [2.0], "invalid_input"]
    assert "1 raw_input_contents for 2 inputs" in call.answers[2].error_message


# Whatever comes.

keys = st.one_of(st.sampled_from([5, "5", 6]), st.integers(-(2**63), 2**63 - 1), st.text(max_size=300))
ours = [
    "cellstream_step",
    "cellstream_read_state",
    "cellstream_set_state",
    "cellstream_fork_of",
    "cellstream_idle_seconds",
]
names = st.one_of(
    st.sampled_from(["sequence_start", "sequence_end", "sequence_id", "timeout", "triton_x", *ours]),
    st.sampled_from(ours),
    st.just("triton_enable_empty_final_response"),
)
parameters = st.one_of(
    st.builds(lambda value: pb.InferParameter(bool_param=value), st.booleans()),
    st.builds(lambda value: pb.InferParameter(int64_param=value), st.integers(-3, 2**63 - 1)),
    st.builds(lambda value: pb.InferParameter(string_param=value), st.text(max_size=10)),
    st.builds(lambda value: pb.InferParameter(double_param=value), st.floats()),
    st.builds(lambda value: pb.InferParameter(uint64_param=value), st.integers(0, 2**64 - 1)),
    st.just(pb.InferParameter()),
)
shapes = st.one_of(
    st.integers(1, 3).map(lambda steps: [1, steps]),
    st.just([1]),
    st.just([1, 1, 2]),
    st.lists(st.integers(-1, 2**40), max_size=4),
)
inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["x", "k", "s", "c", "s_out", ""]),
    datatype=st.sampled_from(["FP32", "FP32", "INT32", "INT64", "BYTES", "x" * 3500]),
    shape=shapes,
    contents=st.one_of(
        st.none(),
        st.builds(pb.InferTensorContents, fp32_contents=st.lists(st.floats(width=32), max_size=3)),
        st.builds(pb.InferTensorContents, int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4)),
    ),
)
tensors = st.one_of(
    st.lists(st.floats(-9, 9, width=32), max_size=3).map(lambda values: pack(values)[0]), st.binary(max_size=9)
)
requests = st.builds(
    pb.ModelInferRequest,
    model_name=st.one_of(st.sampled_from(["sum", "pair"]), st.text(max_size=300)),
    model_version=st.sampled_from(["", "1", "2", "-1", "x" * 500]),
    id=st.text(max_size=5),
    parameters=st.dictionaries(names, parameters, max_size=4),
    inputs=st.lists(inputs, max_size=3),
    outputs=st.lists(
        st.builds(
            pb.ModelInferRequest.InferRequestedOutputTensor, name=st.sampled_from(["y", "z", "s_out", "q" * 999])
        ),
        max_size=2,
    ),
    raw_input_contents=st.lists(tensors, max_size=3),
)
good = st.builds(
    lambda make, key, values, flags, more: make(key, *values, **flags, **more),
    st.sampled_from([request, pair_request]),
    st.sampled_from([5, "5", 6]),
    st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=9),
    st.sampled_from([*FLAGS, {"start": True, "end": True}, {"start": True}, {"start": True, "cellstream_step": 1}]),
    st.sampled_from([{}, {}, {"id": "x"}, {"mine": 1.0}, {"triton_enable_empty_final_response": True}]),
)
messages = st.lists(st.one_of(with_damage(requests), with_damage(good), good.map(raw)), max_size=10)


@settings(max_examples=400, deadline=None)
@given(
    messages=messages,
    ends=st.sampled_from(["half-close", "cancel", "go away"]),
    reads=st.booleans(),
    by_status=st.booleans(),
    puts_off=st.booleans(),
)
def test_a_stream_takes_whatever_comes(
    messages: list[bytes], ends: str, reads: bool, by_status: bool, puts_off: bool
) -> None:
    """Any messages: each gets one answer or one error, nothing is raised, and a neighbour's sums are right."""
    house = House(grace=5.0)
    metadata = [("triton_grpc_error", "true")] if by_status else []
    call, neighbour = Streamed(house, reads=reads, metadata=metadata), Streamed(house)
    call.wire.puts_off = puts_off
    neighbour.send(request("neighbour", 0.0, start=True))
    taken = 0
    for data in messages:
        if call.is_read() and call.status() is None:
            call.send(data)
            taken += 1
        neighbour.send(request("neighbour", 1.0))
        house.turn()
    house.turn(30)
    if call.status() is None:
        assert len(call.wire.sent) == taken
        assert call.is_read() or not reads, "all is answered, and the next request isn't asked for"
        assert call.handler._steps == 0
        if ends == "half-close":
            call.handler.on_half_close()
            assert call.wire.code is grpc.StatusCode.OK
        elif ends == "go away":
            call.handler.go_away(1)
    call.close(cancelled=call.status() is None)
    house.turn()
    assert neighbour.told == [[float(step)] for step in range(len(messages) + 1)]


@settings(max_examples=300, deadline=None)
@given(messages=messages, cut_off=st.booleans())
def test_single_calls_take_whatever_comes(messages: list[bytes], cut_off: bool) -> None:
    """Any message as a call of its own: an answer or a status, and a neighbour's sums are right."""
    house = House()
    neighbour = Streamed(house)
    neighbour.send(request("neighbour", 0.0, start=True))
    house.turn()
    for data in messages:
        unary = Unary(house, data)
        if cut_off:
            unary.close(cancelled=True)
        neighbour.send(request("neighbour", 1.0))
        house.turn(6)
        if not cut_off:
            assert unary.wire.status is not None
            assert len(unary.wire.sent) == (unary.wire.code is grpc.StatusCode.OK)
            unary.close(cancelled=False)
    assert neighbour.told == [[float(step)] for step in range(len(messages) + 1)]
    assert all(
        not isinstance(owner, StreamInferCall) or owner is neighbour.handler for owner in house.sum.sequences._owned
    )
