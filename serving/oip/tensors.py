"""Tensors as the Open Inference Protocol writes them: names of types, shapes with a batch in front, typed contents.

Owns what stands between such a tensor and the bytes of T steps that the rest of the server knows. Knows no sequence.
"""

from __future__ import annotations

import numpy as np

from model.contract import TensorSpec
from serving.errors import InvalidInput, Unsupported
from serving.oip.v1 import inference_pb2 as pb

_DATATYPES = {
    "bool": ("BOOL", "bool_contents"),
    "int8": ("INT8", "int_contents"),
    "int16": ("INT16", "int_contents"),
    "int32": ("INT32", "int_contents"),
    "int64": ("INT64", "int64_contents"),
    "uint8": ("UINT8", "uint_contents"),
    "uint16": ("UINT16", "uint_contents"),
    "uint32": ("UINT32", "uint_contents"),
    "uint64": ("UINT64", "uint64_contents"),
    "float16": ("FP16", ""),  # the protocol has no typed contents for it
    "float32": ("FP32", "fp32_contents"),
    "float64": ("FP64", "fp64_contents"),
}

_NAMED = 10  # sizes of a shape, and characters of a datatype, that a refusal repeats

Tensor = pb.ModelInferRequest.InferInputTensor


def datatype(dtype: str) -> str:
    """What the protocol calls a dtype."""
    return _DATATYPES[dtype][0]


def steps_of(model: str, spec: TensorSpec, tensor: Tensor) -> tuple[int, int]:
    """T, and how many axes stand before a step's own: [1, T, *shape] or, for one step, [1, *shape] or [*shape].

    Raises InvalidInput.
    """
    shape, step = tuple(tensor.shape), spec.shape
    _check_datatype(model, spec.name, spec.dtype, tensor)
    if len(shape) == len(step) + 2 and shape[2:] == step and shape[1] >= 1:
        steps, axes = shape[1], 2
    elif len(shape) == len(step) + 1 and shape[1:] == step:
        steps, axes = 1, 1
    elif step and shape == step:
        return 1, 0
    else:
        raise InvalidInput(
            f"unexpected shape for input '{spec.name}' for model '{model}'. Expected {_text((1, -1, *step))} or "
            f"{_text((1, *step))}, got {_text(shape)}"
        )
    if shape[0] != 1:
        raise InvalidInput(
            f"inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher; "
            f"input '{spec.name}' has {shape[0]}"
        )
    return steps, axes


def check_state(model: str, name: str, dtype: str, shape: tuple[int, ...], tensor: Tensor) -> None:
    """Raise InvalidInput unless the tensor is one stream's state: [1, *shape]."""
    _check_datatype(model, name, dtype, tensor)
    if tuple(tensor.shape) != (1, *shape):
        raise InvalidInput(
            f"unexpected shape for state '{name}' for model '{model}'. Expected {_text((1, *shape))}, got "
            f"{_text(tuple(tensor.shape))}"
        )


def contents(tensor: Tensor, dtype: str) -> bytes:
    """A tensor's typed contents as little-endian bytes. Raises InvalidInput where a value doesn't fit its type."""
    field = _DATATYPES[dtype][1]
    if not field:
        raise InvalidInput(f"input '{tensor.name}': {datatype(dtype)} travels as raw_input_contents only")
    values = list(getattr(tensor.contents, field))  # NumPy wraps what is out of range in any array but not in a list
    try:
        return np.array(values, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()
    except OverflowError:
        raise InvalidInput(f"input '{tensor.name}' holds a value outside {datatype(dtype)}'s range") from None


def refuse_shared_memory(name: str, parameters: object) -> None:
    """Raise Unsupported where a tensor is said to lie in shared memory."""
    if parameters and "shared_memory_region" in parameters:  # type: ignore[operator]
        raise Unsupported(f"tensor '{name}' is said to be in shared memory, which this server doesn't offer; send it")


def _text(shape: tuple[int, ...]) -> str:
    sizes = [str(size) for size in shape[:_NAMED]] + (["..."] if len(shape) > _NAMED else [])
    return f"[{','.join(sizes)}]"


def _check_datatype(model: str, name: str, dtype: str, tensor: Tensor) -> None:
    expected, found = datatype(dtype), tensor.datatype
    if found != expected:
        raise InvalidInput(
            f"inference input '{name}' data-type is '{found[:_NAMED]}', but model '{model}' expects '{expected}'"
        )
