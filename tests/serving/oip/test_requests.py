"""What a request may say: every breach is refused in the words that tools look for, every kind of tensor is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract import Contract, StatePair, TensorSpec
from serving.config import Batching
from serving.errors import InvalidInput, Refusal, TooLarge, UnknownModel, Unsupported
from serving.lane import Lane
from serving.oip.requests import Parsed, find_lane, parse
from serving.oip.tensors import contents, datatype, steps_of
from serving.oip.v1 import inference_pb2 as pb
from tests.serving.oip.calls import LIMITS, House, pair_request, parameter, request
from tests.serving.test_fuzz import with_damage
from tests.serving.test_lane import Clock, SumEngine
from tests.serving.test_streams import pack

HOUSE = House()
DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]
BATCH = "inference request to model 'sum' must specify batch-size 1 due to requirements of sequence batcher"
CORRELATION = "inference request to model 'sum' must specify a non-zero or non-empty correlation ID"


def parsed(message: pb.ModelInferRequest, *, streamed: bool = False) -> Parsed:
    """A request as it's understood."""
    lane = find_lane(HOUSE.front, message.model_name, message.model_version)
    return parse(lane, message, streamed=streamed)


def with_parameter(name: str, **value: Any) -> pb.ModelInferRequest:
    """A sound request with one parameter more, of any kind."""
    message = request(5, 1.0)
    message.parameters[name].CopyFrom(pb.InferParameter(**value))
    return message


def shaped(shape: list[int], dtype: str = "FP32") -> pb.ModelInferRequest:
    """A request whose input says it has this shape and type."""
    message = request(5, 1.0)
    del message.inputs[0].shape[:]
    message.inputs[0].shape.extend(shape)
    message.inputs[0].datatype = dtype
    return message


def of_version(version: str) -> pb.ModelInferRequest:
    """A request for one version of the sum."""
    message = request(5, 1.0)
    message.model_version = version
    return message


def changed(change: Callable[[pb.ModelInferRequest], Any], message: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """The request, changed."""
    change(message)
    return message


def test_a_request_says_what_is_asked() -> None:
    """Id, flags, steps, bytes, number, wishes: everything arrives, and what isn't said is as usual."""
    plain = parsed(request("x", 1.0, 2.0)).ask
    assert (plain.key, plain.steps, plain.inputs) == ("x", 2, tuple(pack([1.0, 2.0])))
    assert (plain.start, plain.end, plain.read_state) == (False, False, False)
    assert (plain.first_step, plain.state, plain.fork_of, plain.idle_seconds) == (None, None, None, None)
    full = parsed(
        request(5, 1.0, start=True, end=True, cellstream_step=1, cellstream_read_state=True, cellstream_fork_of=6)
    ).ask
    assert (full.start, full.end, full.read_state, full.first_step, full.fork_of) == (True, True, True, 1, 6)
    assert parsed(request(5, 1.0, cellstream_idle_seconds=0.5)).ask.idle_seconds == 0.5
    assert parsed(request(5, 1.0, cellstream_idle_seconds=3)).ask.idle_seconds == 3.0
    assert parsed(with_parameter("cellstream_step", uint64_param=7)).ask.first_step == 7


def test_what_is_said_for_others_is_passed_over() -> None:
    """Priority, timeout and whatever a client calls its own change nothing."""
    message = request(5, 1.0, timeout=1000, mine="x", other=2.5)
    message.parameters["priority"].uint64_param = 3
    assert parsed(message).ask == parsed(request(5, 1.0)).ask


def test_requests_that_need_no_step() -> None:
    """Reading a state, ending, and starting in a given state take no tensors; anything else does."""
    asked: dict[str, Any]
    for asked in ({"end": True}, {"cellstream_read_state": True}, {"start": True, "cellstream_fork_of": 6}):
        ask = parsed(request(5, **asked)).ask
        assert (ask.steps, ask.inputs) == (0, ())
    stepped: list[dict[str, Any]] = [{}, {"start": True}]
    for more in stepped:
        with pytest.raises(InvalidInput, match="expected 1 inputs but got 0 inputs for model 'sum'"):
            parsed(request(5, **more))


def state_request(**asked: Any) -> pb.ModelInferRequest:
    """A request that brings the pair's state, s and c, in the other order."""
    message = pb.ModelInferRequest(model_name="pair")
    for name, value in {"sequence_id": 5, "sequence_start": True, "cellstream_set_state": True, **asked}.items():
        parameter(message, name, value)
    message.inputs.add(name="c", datatype="INT64", shape=[1, 2])
    message.inputs.add(name="s", datatype="FP32", shape=[1])
    message.raw_input_contents.extend([np.array([3, 4], "<i8").tobytes(), pack([2.0])[0]])
    return message


def test_a_state_travels_among_the_inputs() -> None:
    """Each of the model's states by its name, in any order, with a step or without."""
    ask = parsed(state_request()).ask
    assert ask.steps == 0
    assert ask.state == (pack([2.0])[0], np.array([3, 4], "<i8").tobytes())
    message = state_request()
    step = pair_request(5, 1.0)
    message.inputs.extend(step.inputs)
    message.raw_input_contents.extend(step.raw_input_contents)
    assert parsed(message).ask.steps == 1


REFUSED: list[tuple[pb.ModelInferRequest, type[Refusal], str]] = [
    (request(None, 1.0), InvalidInput, CORRELATION),
    (request(0, 1.0), InvalidInput, CORRELATION),
    (request("", 1.0), InvalidInput, CORRELATION),
    (request("x" * 257, 1.0), TooLarge, "a 'sequence_id' of 257 characters; the limit is 256"),
    *(
        (
            with_parameter("sequence_id", **value),
            InvalidInput,
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
        )
        for value in ({"uint64_param": 5}, {"bool_param": True}, {"double_param": 1.0}, {})
    ),
    *(
        (
            with_parameter(name, int64_param=1),
            InvalidInput,
            f"invalid value type for '{name}' parameter, expected bool_param.",
        )
        for name in ("sequence_start", "sequence_end", "cellstream_read_state", "cellstream_set_state")
    ),
    (
        with_parameter("cellstream_step", string_param="1"),
        InvalidInput,
        "invalid value type for 'cellstream_step' parameter, expected int64_param or uint64_param.",
    ),
    (request(5, 1.0, cellstream_step=0), InvalidInput, "'cellstream_step' is 0; steps are numbered from 1"),
    (request(5, 1.0, cellstream_step=-3), InvalidInput, "'cellstream_step' is -3; steps are numbered from 1"),
    (request(5, 1.0, cellstream_idle_seconds=-0.1), InvalidInput, "is -0.1; it must be from 0 (for ever) to 31622400"),
    (request(5, 1.0, cellstream_idle_seconds=float("nan")), InvalidInput, "is nan; it must be from 0"),
    (request(5, 1.0, cellstream_idle_seconds=4e7), InvalidInput, "it must be from 0"),
    (request(5, 1.0, triton_priority=1), InvalidInput, "parameter 'triton_priority' isn't known, and names that begin"),
    (request(5, 1.0, cellstream_new=1), InvalidInput, "parameter 'cellstream_new' isn't known"),
    (request(5, 1.0, cellstream_fork_of=6), InvalidInput, "'cellstream_fork_of' says where a sequence starts; it goes"),
    (state_request(sequence_start=False), InvalidInput, "'cellstream_set_state' says where a sequence starts; it goes"),
    (state_request(cellstream_fork_of=6), InvalidInput, "both say where the sequence starts; send one of them"),
    (state_request(cellstream_set_state=False), InvalidInput, "unexpected inference input 'c' for model 'pair'"),
    (request(5, 1.0, start=True, cellstream_set_state=True), InvalidInput, "state 's' is missing from a request with"),
    (
        changed(lambda message: message.inputs[1].shape.append(1), state_request()),
        InvalidInput,
        "unexpected shape for state 's' for model 'pair'. Expected [1], got [1,1]",
    ),
    (
        changed(lambda message: setattr(message.inputs[0], "datatype", "INT32"), state_request()),
        InvalidInput,
        "inference input 'c' data-type is 'INT32', but model 'pair' expects 'INT64'",
    ),
    # Models and versions.
    (request(5, 1.0, model="nope"), UnknownModel, "Request for unknown model: 'nope' is not found"),
    (request(5, 1.0, model="x" * 257), TooLarge, "a model name of 257 characters; the limit is 256"),
    *(
        (
            of_version(version),
            InvalidInput,
            f"failed to get model version from specified version string '{version[:256]}'",
        )
        for version in ("0", "-1", "v1", "1.0", "\u0661", "9" * 20, "x" * 3000)
    ),
    (
        of_version("2"),
        UnknownModel,
        "Request for unknown model: 'sum' version 2 is not found; no model 'sum' version 2; served: pair/1, sum/1",
    ),
    # Shapes and types.
    (shaped([2]), InvalidInput, f"{BATCH}; input 'x' has 2"),
    (shaped([0, 1]), InvalidInput, f"{BATCH}; input 'x' has 0"),
    (shaped([3, 7]), InvalidInput, f"{BATCH}; input 'x' has 3"),
    (shaped([]), InvalidInput, "unexpected shape for input 'x' for model 'sum'. Expected [1,-1] or [1], got []"),
    (shaped([1, 1, 1]), InvalidInput, "Expected [1,-1] or [1], got [1,1,1]"),
    (shaped([1, 0]), InvalidInput, "Expected [1,-1] or [1], got [1,0]"),
    (shaped([1, -1]), InvalidInput, "Expected [1,-1] or [1], got [1,-1]"),
    (shaped([1] * 900), InvalidInput, "Expected [1,-1] or [1], got [1,1,1,1,1,1,1,1,1,1,..."),
    (shaped([1], "FP64"), InvalidInput, "inference input 'x' data-type is 'FP64', but model 'sum' expects 'FP32'"),
    (shaped([1], "y" * 3000), InvalidInput, f"data-type is '{'y' * 10}', but model"),
    # Tensors.
    (
        changed(lambda message: message.inputs.add(name="q"), request(5, 1.0)),
        InvalidInput,
        "1 raw_input_contents for 2",
    ),
    (
        changed(lambda message: message.raw_input_contents.append(b""), request(5, 1.0)),
        InvalidInput,
        "2 raw_input_contents for 1 inputs in a request to model 'sum'; they come for every input or for none",
    ),
    (
        changed(lambda message: message.inputs[0].contents.fp32_contents.append(1.0), request(5, 1.0)),
        InvalidInput,
        "contents field must not be specified when using raw_input_contents, and input 'x' has it",
    ),
    (
        changed(lambda message: setattr(message.inputs[0], "name", "w"), request(5, 1.0)),
        InvalidInput,
        "unexpected inference input 'w' for model 'sum'",
    ),
    (
        changed(lambda message: setattr(message.inputs[1], "name", "x"), pair_request(5, 1.0)),
        InvalidInput,
        "input 'x' stands twice in a request to model 'pair'",
    ),
    (
        request(5, 1.0, model="pair"),
        InvalidInput,
        "expected 2 inputs but got 1 inputs for model 'pair' (it takes x, k)",
    ),
    (
        changed(lambda message: message.inputs[1].shape.__setitem__(1, 3), pair_request(5, 1.0)),
        InvalidInput,
        "inputs of [1, 3] steps in one request; give all as many",
    ),
    (
        changed(lambda message: parameter(message.inputs[0], "shared_memory_region", "r"), request(5, 1.0)),
        Unsupported,
        "tensor 'x' is said to be in shared memory, which this server doesn't offer; send it",
    ),
    # Outputs.
    (
        changed(lambda message: message.outputs.add(name="s_out"), request(5, 1.0)),
        InvalidInput,
        "unexpected inference output 's_out' for model 'sum'",
    ),
    (
        changed(lambda message: parameter(message.outputs.add(name="y"), "classification", 3), request(5, 1.0)),
        Unsupported,
        "output 'y' is asked for as a classification, which isn't offered here",
    ),
    (
        changed(lambda message: parameter(message.outputs.add(name="y"), "shared_memory_region", "r"), request(5, 1.0)),
        Unsupported,
        "tensor 'y' is said to be in shared memory",
    ),
]


@pytest.mark.parametrize(("message", "kind", "text"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_and_how(message: pb.ModelInferRequest, kind: type[Refusal], text: str) -> None:
    """The error names what is wrong, in a line that fits a status."""
    for streamed in (False, True):
        with pytest.raises(kind) as caught:
            parsed(message, streamed=streamed)
        assert type(caught.value) is kind
        assert text in str(caught.value)
        assert len(str(caught.value)) < 1500


def test_versions_are_numbers() -> None:
    """None is the highest; leading zeros are no matter."""
    for version in ("", "1", "01"):
        assert find_lane(HOUSE.front, "sum", version) is HOUSE.sum


def test_outputs_come_as_asked_for() -> None:
    """All of them by default; else those named, in that order, each once."""
    message = pair_request(5, 1.0)
    assert parsed(message).form.wanted == (0, 1)
    for name in ("z", "y", "z"):
        message.outputs.add(name=name)
    assert parsed(message).form.wanted == (1, 0)


def test_inputs_may_come_in_any_order() -> None:
    """They are known by name."""
    message = pair_request(5, 1.0, 2.0)
    other = pb.ModelInferRequest()
    other.CopyFrom(message)
    for field in ("inputs", "raw_input_contents"):
        other.ClearField(field)
    other.inputs.extend(reversed(message.inputs))
    other.raw_input_contents.extend(reversed(message.raw_input_contents))
    assert parsed(other).ask == parsed(message).ask


# Typed contents.


def typed(dtype: str, values: list[Any]) -> pb.ModelInferRequest.InferInputTensor:
    """A tensor with typed contents."""
    field = {
        "bool": "bool_contents",
        "int64": "int64_contents",
        "uint64": "uint64_contents",
        "float32": "fp32_contents",
        "float64": "fp64_contents",
    }.get(dtype, "uint_contents" if dtype.startswith("u") else "int_contents")
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype(dtype), shape=[1, len(values)])
    getattr(tensor.contents, field).extend(values)
    return tensor


def values_of(dtype: str) -> st.SearchStrategy[Any]:
    """Every value that a dtype has."""
    if dtype == "bool":
        return st.booleans()
    if dtype.startswith("float"):
        return st.floats(width=int(dtype[5:]))  # type: ignore[arg-type]
    info = np.iinfo(dtype)
    return st.integers(int(info.min), int(info.max))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_typed_contents_are_the_same_bytes_as_raw_ones(data: st.DataObject, dtype: str) -> None:
    """Every value of every type, its extremes and what isn't a number among them."""
    values = data.draw(st.lists(values_of(dtype), max_size=6))
    expected = np.array(values, dtype=np.dtype(dtype).newbyteorder("<"))
    assert contents(typed(dtype, values), dtype) == expected.tobytes()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int8", 128), ("int8", -129), ("int16", 2**15), ("uint8", 256), ("uint16", 2**16), ("int16", -(2**15) - 1)],
)
def test_a_value_that_does_not_fit_its_type_is_refused(dtype: str, value: int) -> None:
    """It isn't wrapped around: the small types travel in larger fields."""
    with pytest.raises(InvalidInput, match=f"input 'x' holds a value outside {datatype(dtype)}'s range"):
        contents(typed(dtype, [0, value]), dtype)


def test_half_precision_travels_as_bytes_only() -> None:
    """The protocol has no typed contents for it."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP16", shape=[1])
    with pytest.raises(InvalidInput, match="input 'x': FP16 travels as raw_input_contents only"):
        contents(tensor, "float16")


def test_contents_of_the_wrong_field_or_number_are_refused_by_their_size() -> None:
    """What isn't there counts as no bytes; nothing is padded or cut."""
    call_sizes = []
    for tensor in (typed("float64", [1.0]), typed("float32", [1.0, 2.0])):
        tensor.datatype = "FP32"
        del tensor.shape[:]
        tensor.shape.extend([1])
        message = request(5)
        message.inputs.append(tensor)
        unary = HOUSE.infer(changed(lambda message: parameter(message, "sequence_start", True), message))
        assert unary.wire.trailing == {"cellstream-reason": "invalid_input"}
        call_sizes.append(unary.wire.status and unary.wire.status[1])
    assert call_sizes == [f"input 'x' has {size} bytes; 1 steps of float32[] are 4 bytes" for size in (0, 8)]


@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_every_type_and_shape_has_its_forms(dtype: str, shape: tuple[int, ...]) -> None:
    """[1, T, …] with a time axis, and [1, …] or, where a step has axes, […] for a single step."""
    spec = TensorSpec("x", dtype, shape)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype(dtype))
    tensor.shape.extend([1, *shape])
    assert steps_of("m", spec, tensor) == (1, 1)
    tensor.shape.insert(1, 7)
    assert steps_of("m", spec, tensor) == (7, 2)
    del tensor.shape[:2]
    if shape:
        assert steps_of("m", spec, tensor) == (1, 0)


def test_a_contract_of_every_type_can_be_asked_for() -> None:
    """A model with an input of each type takes typed contents of all of them at once."""
    specs = tuple(TensorSpec(f"in_{dtype}", dtype, (2,)) for dtype in DTYPES)
    engine = SumEngine()
    engine.contract = Contract(
        "all", specs, (TensorSpec("y", "float32", ()),), (StatePair("s", "s_out", "float32", ()),), ""
    )
    house = House()
    house.front.lanes.add(Lane("all", 1, engine, limits=LIMITS, batching=Batching(), clock=Clock()))
    message = request(5, model="all")
    for spec in specs:
        tensor = typed(spec.dtype, [1, 0])
        tensor.name = spec.name
        del tensor.shape[:]
        tensor.shape.extend([1, 2])
        message.inputs.append(tensor)
    ask = parse(find_lane(house.front, "all", ""), message, streamed=True).ask
    assert ask.inputs == tuple(np.array([1, 0], dtype=dtype).tobytes() for dtype in DTYPES)


# Whatever comes.


@settings(max_examples=400, deadline=None)
@given(data=with_damage(st.sampled_from([message for message, _, _ in REFUSED] + [pair_request(5, 1.0, 2.0)])))
def test_damage_is_refused_and_never_raised(data: bytes) -> None:
    """A damaged request is a sound one or a Refusal."""
    try:
        message = pb.ModelInferRequest.FromString(data)
    except Exception:  # noqa: BLE001  protobuf's own error is the desk's business
        return
    text = ""
    try:
        assert parsed(message).ask.key
    except Refusal as refusal:
        text = str(refusal)
    assert len(text) < 1500
