"""Answers are byte for byte what protobuf writes, whatever was asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.oip.answers import Form, error_response
from serving.oip.tensors import datatype
from serving.oip.v1 import inference_pb2 as pb
from serving.sequences import Answer
from tests.serving.oip.calls import House
from tests.serving.test_streams import pack

HOUSE = House()


def by_protobuf(form: Form, answer: Answer, id_: str) -> pb.ModelInferResponse:
    """The same answer, put together field by field."""
    contract = form.lane.contract
    response = pb.ModelInferResponse(model_name=form.lane.name, model_version="1", id=id_)
    for place in form.wanted if answer.steps else ():
        spec = contract.outputs[place]
        shape = [*[1, answer.steps][: form.axes], *spec.shape]
        response.outputs.add(name=spec.name, datatype=datatype(spec.dtype), shape=shape)
        response.raw_output_contents.append(answer.outputs[place])
    for state, data in zip(contract.states, answer.state or (), strict=False):
        response.outputs.add(name=state.output, datatype=datatype(state.dtype), shape=[1, *state.shape])
        response.raw_output_contents.append(data)
    if form.final:
        response.parameters["triton_final_response"].bool_param = True
    if form.numbered:
        response.parameters["cellstream_step"].int64_param = answer.first_step
        response.parameters["cellstream_repeated"].bool_param = answer.repeated
    return response


def expected(form: Form, answer: Answer, id_: str) -> bytes:
    """Its bytes, in the frame that the call has."""
    response = by_protobuf(form, answer, id_)
    if form.streamed:
        return pb.ModelStreamInferResponse(infer_response=response).SerializeToString(deterministic=True)
    return response.SerializeToString(deterministic=True)


def canonical(form: Form, data: bytes) -> bytes:
    """The bytes with parameters in protobuf's order: of a map of several it promises none."""
    if not form.numbered:
        return data
    kind = pb.ModelStreamInferResponse if form.streamed else pb.ModelInferResponse
    message = kind.FromString(data)
    assert len(data) == message.ByteSize()
    return bytes(message.SerializeToString(deterministic=True))


@settings(max_examples=300, deadline=None)
@given(
    model=st.sampled_from(["sum", "pair"]),
    steps=st.lists(st.sampled_from([0, 1, 1, 1, 2, 9, 50]), min_size=1, max_size=4),
    streamed=st.booleans(),
    final=st.booleans(),
    numbered=st.booleans(),
    axes=st.integers(0, 2),
    reads=st.booleans(),
    id_=st.sampled_from(["", "request 7", "ä" * 200]),
    order=st.permutations([0, 1]),
    count=st.integers(1, 2),
)
def test_answers_are_what_protobuf_writes(
    model: str,
    steps: list[int],
    streamed: bool,
    final: bool,
    numbered: bool,
    axes: int,
    reads: bool,
    id_: str,
    order: list[int],
    count: int,
) -> None:
    """One form answers again and again: of one step or many or none, of some outputs or all, with states or without."""
    lane = HOUSE.pair if model == "pair" else HOUSE.sum
    wanted = tuple(order[:count]) if model == "pair" else (0,)
    form = Form(lane, wanted, axes=axes, streamed=streamed, final=final, numbered=numbered)
    for number, length in enumerate(steps):
        if length > 1 and axes < 2:
            continue
        outputs = [
            pack([float(number + step) for step in range(length)])[0],
            np.arange(2 * length, dtype="<i8").tobytes(),
        ][: len(lane.contract.outputs)]
        state = [pack([3.0])[0], np.array([4, 5], "<i8").tobytes()][: len(lane.contract.states)]
        answer = Answer(
            300 * number + 1, length, outputs if length else (), tuple(state) if reads else None, bool(number)
        )
        assert canonical(form, form.encode(answer, id_.encode())) == expected(form, answer, id_)


@pytest.mark.parametrize("final", [False, True])
def test_an_error_carries_text_id_and_reason(final: bool) -> None:
    """On a stream an error is a message: its text where clients look for it, its id in the answer that isn't one."""
    message = pb.ModelStreamInferResponse.FromString(error_response("id 1", "no", "some_reason", final=final))
    assert message.error_message == "no"
    assert message.infer_response.id == "id 1"
    assert message.infer_response.parameters["cellstream_reason"].string_param == "some_reason"
    assert ("triton_final_response" in message.infer_response.parameters) == final
    assert not message.infer_response.outputs
