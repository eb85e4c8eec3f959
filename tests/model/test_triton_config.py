"""Triton's configuration of a contract: it fits the published schema, and what Triton can't serve is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from tritonclient.grpc import model_config_pb2

from model.contract import Constant, Contract, StatePair, TensorSpec
from model.triton_config import DATA_TYPES, IDLE_MICROSECONDS, TritonError, check_loadable, initial_files, model_config

FIRST = np.arange(6, dtype="<f4").tobytes()
CONTRACT = Contract(
    name="net",
    inputs=(TensorSpec("x", "int64", (), minimum=0, maximum=10), TensorSpec("z", "float16", (3, 2))),
    outputs=(TensorSpec("y", "float32", (4,)),),
    states=(
        StatePair("h", "h_out", "float32", (2, 3), initial=FIRST),
        StatePair("c", "c_out", "float64", (5,)),
        StatePair("n", "n_out", "int32", (1,), initial=b"\0" * 4),
    ),
    weights_digest="sha256:0",
)


def configured(contract: Contract) -> dict[str, Any]:
    """Its configuration with small numbers."""
    return model_config(contract, max_batch=8, max_candidates=32, idle_microseconds=IDLE_MICROSECONDS)


def parsed(contract: Contract) -> Any:
    """The same as the message that Triton's own client has."""
    return ParseDict(configured(contract), model_config_pb2.ModelConfig())


def test_every_field_is_one_of_tritons() -> None:
    """The whole configuration parses as the published message, and nothing of it is lost there."""
    back = MessageToDict(parsed(CONTRACT), preserving_proto_field_name=True)
    expected = configured(CONTRACT)
    assert back.keys() == expected.keys()
    assert back["input"] == [
        {"name": "x", "data_type": "TYPE_INT64", "dims": ["-1"]},
        {"name": "z", "data_type": "TYPE_FP16", "dims": ["-1", "3", "2"]},
    ]
    assert back["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": ["-1", "4"]}]
    assert back["sequence_batching"]["oldest"] == {"max_candidate_sequences": 32}
    assert back["sequence_batching"]["max_sequence_idle_microseconds"] == str(IDLE_MICROSECONDS)
    assert (back["platform"], back["backend"]) == ("onnxruntime_onnx", "onnxruntime")
    assert (back["max_batch_size"], back["default_model_filename"]) == (8, "model.onnx")


def test_states_begin_where_the_contract_says() -> None:
    """Zeros are said in the configuration, anything else lies in a file named after its value."""
    states = parsed(CONTRACT).sequence_batching.state
    assert [(state.input_name, state.output_name, list(state.dims)) for state in states] == [
        ("h", "h_out", [2, 3]),
        ("c", "c_out", [5]),
        ("n", "n_out", [1]),
    ]
    first = [state.initial_state[0] for state in states]
    assert [value.WhichOneof("state_data") for value in first] == ["data_file", "zero_data", "zero_data"]
    for value, state in zip(first, states, strict=True):
        assert (value.data_type, value.dims) == (state.data_type, state.dims)
    assert initial_files(CONTRACT) == {first[0].data_file: FIRST}
    other = replace(CONTRACT, states=(replace(CONTRACT.states[0], initial=FIRST[::-1]),))
    assert initial_files(other).keys() != initial_files(CONTRACT).keys()


def test_names_of_states_make_names_of_files() -> None:
    """Whatever an ONNX name has in it, the file stays in its folder, and two such names don't meet."""
    states = tuple(StatePair(name, name + "_out", "float32", (2, 3), initial=FIRST) for name in ("../a", ".._a"))
    names = initial_files(replace(CONTRACT, states=states))
    assert len(names) == 2
    assert not any("/" in name for name in names)


def test_single_steps_and_single_numbers() -> None:
    """Time is 1 where chunks aren't taken; a call that is a step has no time; a number has dims, as Triton asks."""
    contract = replace(
        CONTRACT,
        ragged=False,
        inputs=(TensorSpec("x", "int64", (), time_axis=None), TensorSpec("z", "float32", (3,), time_axis=None)),
    )
    check_loadable(contract)
    message = parsed(contract)
    assert [list(tensor.dims) for tensor in message.input] == [[1], [3]]
    assert [tensor.HasField("reshape") for tensor in message.input] == [True, False]
    assert list(message.input[0].reshape.shape) == []
    assert list(message.output[0].dims) == [1, 4]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"constants": (Constant("sr", "int64", (), b"\0" * 8),)}, "side input 'sr' is a constant"),
        ({"inputs": (TensorSpec("x", "float32", (4,), 1, 0),)}, "'x' has its batch on axis 1"),
        ({"outputs": (TensorSpec("y", "float32", (4,), 0, 2),)}, "'y' has its time on axis 2"),
        ({"states": (StatePair("h", "h_out", "float32", (2, 3), batch_axis=1),)}, "state 'h' has its batch on axis 1"),
        ({"states": (StatePair("n", "n_out", "int64", ()),)}, "state 'n' is one number per stream"),
        (
            {"states": (StatePair("a", "z", "float32", (2,)), StatePair("b", "y", "float32", (2,)))},
            "a -> z, b -> y: Triton pairs them by the order of their names",
        ),
    ],
)
def test_what_triton_cannot_serve_is_named(changes: dict[str, Any], why: str) -> None:
    """The obstacle is named, and a client's view of the model is there all the same."""
    contract = replace(CONTRACT, **changes)
    with pytest.raises(TritonError, match=why):
        check_loadable(contract)
    parsed(contract)


def test_the_contract_of_an_lstm_is_loadable() -> None:
    """Names that sort alike are no obstacle, in whatever order they stand."""
    check_loadable(CONTRACT)
    check_loadable(replace(CONTRACT, states=CONTRACT.states[::-1]))


def test_dtypes_are_tritons_or_refused() -> None:
    """Every dtype of the table is a value of Triton's enum; another one is refused by name."""
    for dtype, name in DATA_TYPES.items():
        message = parsed(replace(CONTRACT, outputs=(TensorSpec("y", dtype, (4,)),)))
        assert model_config_pb2.DataType.Name(message.output[0].data_type) == name
    with pytest.raises(TritonError, match="'y' is of complex64"):
        configured(replace(CONTRACT, outputs=(TensorSpec("y", "complex64", (4,)),)))
