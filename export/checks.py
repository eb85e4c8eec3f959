"""Structure checks: what must be true of the graphs before a number is computed with them.

Each check is a function that returns, or raises StructureError with what is wrong. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from export.artifact import WEIGHTS, stays
from export.portable import opsets_of
from export.precision import Precision
from export.products import MICROSOFT, NBITS
from export.resident import batch_and_time
from export.subgraphs import all_nodes
from export.time_scan import captured, is_time_scan
from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS, Contract, TensorSpec

# Control flow can't be captured as a CUDA graph, and a slice is a weight re-laid at every load. But for our own: a Scan
# over time is the one way to say what ONNX's LSTM can't, and float16 products have a row sliced off.
UNWANTED = frozenset({"If", "Loop", "Scan", "Slice"})
RECURRENT_WEIGHTS = {"LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3)}
Shape = tuple[int | str | None, ...]


class StructureError(ValueError):
    """A graph fails a structure check, which the text names."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: one graph, as read from its file without weights, and the contract it is to keep."""

    path: Path
    model: ModelProto
    contract: Contract
    inputs: dict[str, tuple[str, Shape]]  # name -> dtype and shape; a text stands for any symbolic size
    outputs: dict[str, tuple[str, Shape]]


def portable_subject(path: Path, model: ModelProto, contract: Contract) -> Subject:
    """model.onnx: the contract's tensors on the model's own axes."""
    states_in = {state.input: (state.dtype, _inserted(state.shape, state.batch_axis)) for state in contract.states}
    states_out = {state.output: (state.dtype, _inserted(state.shape, state.batch_axis)) for state in contract.states}
    constants: dict[str, tuple[str, Shape]] = {value.name: (value.dtype, value.shape) for value in contract.constants}
    return Subject(
        path,
        model,
        contract,
        {tensor.name: (tensor.dtype, _model_shape(tensor)) for tensor in contract.inputs} | states_in | constants,
        {tensor.name: (tensor.dtype, _model_shape(tensor)) for tensor in contract.outputs} | states_out,
    )


def resident_subject(path: Path, model: ModelProto, contract: Contract) -> Subject:
    """resident.onnx: [B, T, *shape], lengths, rows and slabs."""
    batch, time = batch_and_time(contract)
    inputs: dict[str, tuple[str, Shape]] = {
        tensor.name: (tensor.dtype, (batch, time, *tensor.shape)) for tensor in contract.inputs
    }
    inputs |= {LENGTHS: ("int32", (batch,)), READ_ROWS: ("int64", (batch,)), WRITE_ROWS: ("int64", (batch,))}
    inputs |= {slab.input: (slab.dtype, slab.axes) for slab in contract.slabs()}
    outputs: dict[str, tuple[str, Shape]] = {
        tensor.name: (tensor.dtype, (batch, time, *tensor.shape)) for tensor in contract.outputs
    }
    outputs |= {slab.output: (slab.dtype, slab.axes) for slab in contract.slabs()}
    return Subject(path, model, contract, inputs, outputs)


def _model_shape(tensor: TensorSpec) -> Shape:
    places: dict[int, str] = {tensor.batch_axis: "batch"}
    if tensor.time_axis is not None:
        places[tensor.time_axis] = "time"
    rest = iter(tensor.shape)
    return tuple(places[axis] if axis in places else next(rest) for axis in range(len(places) + len(tensor.shape)))


def _inserted(shape: tuple[int, ...], batch_axis: int) -> Shape:
    return (*shape[:batch_axis], "batch", *shape[batch_axis:])


def check_valid(subject: Subject) -> None:
    """ONNX's own checker, in full, with the weights file beside."""
    try:
        onnx.checker.check_model(subject.path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StructureError(f"not valid ONNX: {error}") from error


def check_opset(subject: Subject) -> None:
    """Only the standard operators, in the version that every supported runtime has kernels for; int8 has one more."""
    found = {entry.domain: entry.version for entry in subject.model.opset_import}
    wanted = opsets_of(_precision(subject))
    if found != wanted:
        raise StructureError(f"opsets {found}, and {wanted} is wanted")
    foreign = {node.op_type for node in all_nodes(subject.model.graph.node) if node.domain == MICROSOFT} - {NBITS}
    if foreign:
        raise StructureError(f"operators of {MICROSOFT} other than {NBITS}: {', '.join(sorted(foreign))}")


def check_signature(subject: Subject) -> None:
    """Inputs and outputs are the contract's: names, dtypes, sizes, and batch and time symbolic in both."""
    for kind, values, expected in (
        ("input", subject.model.graph.input, subject.inputs),
        ("output", subject.model.graph.output, subject.outputs),
    ):
        found = {value.name: _signature(value) for value in values}
        if found != expected:
            raise StructureError(f"{kind}s are {found}, and the contract wants {expected}")


def check_shapes_inferred(subject: Subject) -> None:
    """Strict shape inference agrees, and finds nothing fixed that is to be free."""
    bare = ModelProto()
    bare.CopyFrom(subject.model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise StructureError(f"shape inference: {error}") from error
    for value in inferred.graph.output:
        dtype, shape = _signature(value)
        expected_dtype, expected = subject.outputs[value.name]
        frozen = len(shape) != len(expected) or any(
            isinstance(found, int) and found != wanted for found, wanted in zip(shape, expected, strict=True)
        )
        if dtype != expected_dtype or frozen:
            raise StructureError(f"output {value.name!r} is inferred to be {dtype} {shape}, not {expected}")


def check_operators(subject: Subject) -> None:
    """No control flow but our own Scan over time, which takes only weights from outside; no slices of weights."""
    initializers = {tensor.name for tensor in subject.model.graph.initializer}
    for node in all_nodes(subject.model.graph.node):
        sliced = node.op_type == "Slice" and _precision(subject) is Precision.FP16 and node.input[0] not in initializers
        if node.op_type in UNWANTED and not sliced and not is_time_scan(node):
            raise StructureError(f"an operator that doesn't belong here: {node.op_type} ({node.name!r})")
        computed = captured(node) - initializers if is_time_scan(node) else ()
        if computed:
            raise StructureError(f"{node.name!r} takes from outside what isn't a weight: {', '.join(sorted(computed))}")


def _precision(subject: Subject) -> Precision:
    try:
        return Precision(subject.contract.precision)
    except ValueError as error:
        known = ", ".join(Precision)
        raise StructureError(f"precision {subject.contract.precision!r} is none of {known}") from error


def check_names(subject: Subject) -> None:
    """Every node has a name of its own, and every recurrent node takes its weights from named initializers."""
    names = [node.name for node in subject.model.graph.node]
    if not all(names) or len(set(names)) != len(names):
        raise StructureError(f"nodes without a name of their own: {sorted(n for n in names if names.count(n) > 1)}")
    initializers = {tensor.name for tensor in subject.model.graph.initializer}
    for node in subject.model.graph.node:
        weights = [node.input[place] for place in RECURRENT_WEIGHTS.get(node.op_type, ()) if place < len(node.input)]
        computed = [name for name in weights if name and name not in initializers]
        if computed:
            raise StructureError(f"{node.name!r} takes weights that aren't initializers: {', '.join(computed)}")


def check_weights_outside(subject: Subject) -> None:
    """All weights lie in the weights file, whose digest the contract holds; only small constants stay in the graph."""
    constants = {constant.name for constant in subject.contract.constants}
    for tensor in subject.model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            places = [entry.value for entry in tensor.external_data if entry.key == "location"]
            if places != [WEIGHTS]:
                raise StructureError(f"weight {tensor.name!r} lies in {places}, not in {WEIGHTS}")
            continue
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        small = stays(np.dtype(dtype), int(np.prod(tensor.dims)))
        if not small and tensor.name not in constants:
            raise StructureError(f"weight {tensor.name!r} lies in the graph, where no digest covers it")


def check_loads(subject: Subject) -> None:
    """ONNX Runtime loads it on this machine's CPU."""
    try:
        ort.InferenceSession(subject.path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise StructureError(f"ONNX Runtime refuses it: {error}") from error


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_valid,
    check_opset,
    check_signature,
    check_shapes_inferred,
    check_operators,
    check_names,
    check_weights_outside,
    check_loads,
)


def check_structure(subject: Subject) -> None:
    """All checks, in order; raises StructureError naming the file and the check that failed."""
    for check in CHECKS:
        try:
            check(subject)
        except StructureError as error:
            raise StructureError(f"{subject.path.name}: {check.__name__}: {error}") from error


def _signature(value: ValueInfoProto) -> tuple[str, Shape]:
    """A tensor's dtype and shape: a number where fixed, a text where symbolic, None where unknown."""
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return dtype, tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim
    )
