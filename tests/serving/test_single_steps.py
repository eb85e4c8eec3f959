"""The hot messages laid out by hand are those that the generated classes make and read, for any model and step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstream.v1 import stream_inference_pb2 as pb
from model.contract import Contract, TensorSpec
from serving.single_steps import Layout, SingleSteps, varint

UINT32 = 2**32 - 1
STEPS = st.one_of(
    st.integers(1, 300), st.sampled_from([127, 128, 16383, 16384, 2**21, 2**63]), st.integers(1, 2**64 - 1)
)
TIMES = st.one_of(st.integers(0, 300), st.sampled_from([127, 128, 16383, 16384, UINT32]), st.integers(0, UINT32))
TENSORS = st.lists(st.sampled_from([(), (1,), (7,), (300,), (5000,)]), min_size=1, max_size=3)


def tensors(shapes: list[tuple[int, ...]], name: str) -> tuple[TensorSpec, ...]:
    """Specs of these shapes."""
    return tuple(TensorSpec(f"{name}{place}", "float32", shape) for place, shape in enumerate(shapes))


def made(inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> tuple[Contract, SingleSteps]:
    """A model, and one stream of it."""
    contract = Contract("m", tensors(inputs, "x"), tensors(outputs, "y"), (), "")
    return contract, SingleSteps(Layout(contract))


def filled(specs: tuple[TensorSpec, ...], seed: int) -> list[bytes]:
    """One step of each tensor."""
    return [bytes([(seed + place) % 256]) * spec.step_bytes for place, spec in enumerate(specs)]


def chunk(first_step: int, inputs: list[bytes], steps: int = 1) -> bytes:
    """A chunk as the generated classes write it."""
    return pb.StreamRequest(chunk=pb.Chunk(first_step=first_step, steps=steps, inputs=inputs)).SerializeToString()


@given(inputs=TENSORS, outputs=TENSORS, steps=st.lists(STEPS, min_size=1, max_size=5), seed=st.integers(0, 255))
def test_reading_is_what_parsing_is(
    inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]], steps: list[int], seed: int
) -> None:
    """A chunk of one step gives its tensors, whatever the step's number and the model's sizes."""
    contract, singles = made(inputs, outputs)
    values = filled(contract.inputs, seed)
    for step in steps:
        assert singles.read(chunk(step, values), step) == tuple(values)


@given(
    inputs=TENSORS,
    outputs=TENSORS,
    steps=st.lists(STEPS, min_size=1, max_size=5),
    queue=TIMES,
    compute=TIMES,
    seed=st.integers(0, 255),
)
def test_writing_is_what_serialising_is(
    inputs: list[tuple[int, ...]],
    outputs: list[tuple[int, ...]],
    steps: list[int],
    queue: int,
    compute: int,
    seed: int,
) -> None:
    """Every answer parses to what was meant, and has nothing besides."""
    contract, singles = made(inputs, outputs)
    values = filled(contract.outputs, seed)
    for step in steps:
        expected = pb.Outputs(first_step=step, steps=1, outputs=values, queue_us=queue, compute_us=compute)
        answer = pb.StreamResponse.FromString(singles.write(step, values, queue, compute))
        assert answer == pb.StreamResponse(outputs=expected)


@given(
    inputs=TENSORS,
    step=STEPS,
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_whatever_is_read_means_the_same_to_the_generated_classes(
    inputs: list[tuple[int, ...]], step: int, flips: list[tuple[int, int]]
) -> None:
    """A damaged message is left to them, unless only tensors' bytes differ; it is never read as something else."""
    contract, singles = made(inputs, [()])
    data = bytearray(chunk(step, filled(contract.inputs, 3)))
    for place, change in flips:
        data[place % len(data)] ^= change
    found = singles.read(bytes(data), step)
    if found is not None:
        request = pb.StreamRequest.FromString(bytes(data))
        assert request.WhichOneof("message") == "chunk"
        assert (request.chunk.first_step, request.chunk.steps) == (step, 1)
        assert tuple(request.chunk.inputs) == found


@pytest.mark.parametrize(
    "data",
    [
        b"",
        chunk(6, [bytes(12), bytes(4)]),
        chunk(4, [bytes(12), bytes(4)]),
        chunk(5, [bytes(12), bytes(4)], steps=2),
        chunk(5, [bytes(24), bytes(8)], steps=2),
        chunk(5, [bytes(12)]),
        chunk(5, [bytes(4), bytes(12)]),
        chunk(5, [bytes(12), bytes(4)]) + b"\x00",
        chunk(5, [bytes(12), bytes(4)])[:-1],
        pb.StreamRequest(open=pb.Open(model="m")).SerializeToString(),
    ],
)
def test_anything_else_is_left_to_the_generated_classes(data: bytes) -> None:
    """Another step, another number of steps, other tensors, an Open, rubbish."""
    _contract, singles = made([(3,), ()], [()])
    assert singles.read(data, 5) is None
    assert singles.read(chunk(5, [bytes(12), bytes(4)]), 5) == (bytes(12), bytes(4))


@pytest.mark.parametrize(("value", "data"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")])
def test_varints(value: int, data: bytes) -> None:
    """As protobuf's encoding has them."""
    assert varint(value) == data
