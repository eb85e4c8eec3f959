"""A contract in Triton Inference Server's words: its model configuration, as `config.pbtxt` and clients read it.

Owns Triton's names, what its implicit state asks of a model, and which contracts it can't serve. Knows no files, no
protobuf and no framework: a configuration is the plain values that `google.protobuf.json_format` takes for an
`inference.ModelConfig`, fields in snake_case, enum values by name.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from model.contract import Contract, StatePair, TensorSpec

BACKEND = "onnxruntime"
PLATFORM = "onnxruntime_onnx"
MODEL_FILE = "model.onnx"
# Triton ends a sequence in silence when nothing of it came for so long (by default one second), and the next step is
# refused: the state is gone. An hour is longer than the pauses of people, sensors and markets. The price of more is
# what clients that died without END cost: their slot is held so long.
IDLE_MICROSECONDS = 3_600_000_000
DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
_OUTSIDE_FILENAMES = re.compile(r"[^A-Za-z0-9_.-]")


class TritonError(ValueError):
    """Triton can't serve such a model; the text says why."""


def model_config(contract: Contract, *, max_batch: int, max_candidates: int, idle_microseconds: int) -> dict[str, Any]:
    """The configuration that tells what a client sends and gets, and which states stay on the server.

    It is a client's view: constants and the places of axes in `model.onnx` don't show in it. Whether Triton can load
    that file by it is asked of `check_loadable`. `max_candidates` are the sequences that may be live at once. Raises
    TritonError for a dtype that Triton doesn't have.
    """
    return {
        "name": contract.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "max_batch_size": max_batch,
        "default_model_filename": MODEL_FILE,
        "input": [_tensor(spec, contract) for spec in contract.inputs],
        "output": [_tensor(spec, contract) for spec in contract.outputs],
        # Where it was proved. On a GPU Triton would also copy every state to the host and back at each step.
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "sequence_batching": {
            "max_sequence_idle_microseconds": idle_microseconds,
            # No delay and no preferred sizes: what waits is the next batch.
            "oldest": {"max_candidate_sequences": max_candidates},
            "state": [_state(pair) for pair in contract.states],
        },
    }


def check_loadable(contract: Contract) -> None:
    """Raise TritonError, naming the first obstacle, where Triton can't serve the contract's `model.onnx`."""
    for constant in contract.constants:
        raise TritonError(
            f"side input {constant.name!r} is a constant, and Triton has none: make it an initializer of the graph"
        )
    tensors: list[TensorSpec | StatePair] = [*contract.inputs, *contract.outputs, *contract.states]
    for tensor in tensors:
        if tensor.batch_axis != 0:
            raise TritonError(f"{_name(tensor)} has its batch on axis {tensor.batch_axis}, and Triton's is axis 0")
    for spec in (*contract.inputs, *contract.outputs):
        if spec.time_axis not in (1, None):
            raise TritonError(f"{_name(spec)} has its time on axis {spec.time_axis}, and clients send it on axis 1")
    for state in contract.states:
        if not state.shape:
            raise TritonError(f"{_name(state)} is one number per stream, and Triton's states have at least one axis")
    _check_pairing(contract.states)


def initial_files(contract: Contract) -> dict[str, bytes]:
    """What must lie in the model's `initial_state/`: a new stream's states by file name, where they aren't zero.

    Names have a digest of the value, so two versions with different first states don't share a file.
    """
    return {_file(state): state.initial for state in contract.states if state.initial and any(state.initial)}


def _check_pairing(states: tuple[StatePair, ...]) -> None:
    """Triton's ONNX Runtime backend sorts inputs and outputs of states by name and pairs what stands at one place."""
    by_input = [state.output for state in sorted(states, key=lambda state: state.input)]
    if by_input != sorted(by_input):
        pairs = ", ".join(f"{state.input} -> {state.output}" for state in states)
        raise TritonError(
            f"states {pairs}: Triton pairs them by the order of their names, inputs and outputs sorted each for itself"
            f" (its issue 8586), and would swap these; rename them so that both sort alike"
        )


def _name(tensor: TensorSpec | StatePair) -> str:
    return f"state {tensor.input!r}" if isinstance(tensor, StatePair) else repr(tensor.name)


def _tensor(spec: TensorSpec, contract: Contract) -> dict[str, Any]:
    """One input or output, without the batch axis: [T, *shape], or [*shape] where a call is a step."""
    steps = [-1 if contract.ragged else 1] if spec.time_axis is not None else []
    plain: dict[str, Any] = {"name": spec.name, "data_type": _data_type(spec.name, spec.dtype)}
    if not steps and not spec.shape:  # dims must not be empty: clients send [B, 1], the graph gets [B]
        return {**plain, "dims": [1], "reshape": {"shape": []}}
    return {**plain, "dims": [*steps, *spec.shape]}


def _state(pair: StatePair) -> dict[str, Any]:
    shaped = {"data_type": _data_type(pair.input, pair.dtype), "dims": list(pair.shape) or [1]}
    zero = pair.initial is None or not any(pair.initial)
    first = {"zero_data": True} if zero else {"data_file": _file(pair)}
    return {
        "input_name": pair.input,
        "output_name": pair.output,
        **shaped,
        "initial_state": [{"name": "first", **shaped, **first}],
    }


def _file(pair: StatePair) -> str:
    digest = hashlib.sha256(pair.input.encode() + b"\0" + (pair.initial or b"")).hexdigest()
    return f"{_OUTSIDE_FILENAMES.sub('_', pair.input)}.{digest[:12]}"


def _data_type(name: str, dtype: str) -> str:
    try:
        return DATA_TYPES[dtype]
    except KeyError:
        raise TritonError(f"{name!r} is of {dtype}, a dtype that Triton doesn't have") from None
