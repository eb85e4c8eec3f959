"""resident.onnx: a model's graph wrapped so that all streams' states stay in one slab, derived by rule.

Takes `model.onnx` and its contract, whatever the states are called and shaped, and gives the graph that gathers
rows of the slab, runs the model and scatters the new states. Owns that rule. Knows no torch and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from export.one_by_one import AXIS, in_scan
from export.rewriting import PREFIX, Piece, Wrapped, attribute, layers_read, layers_written
from export.subgraphs import all_nodes, used_names
from export.time_scan import is_time_scan, take_own_last_steps
from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS, Contract, SlabSpec, StatePair, TensorSpec

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
WHOLE = ".whole"  # a slab of parts as [N, W]
SEQUENCE_LENS = 4  # its place among the inputs of all three


class ResidentError(ValueError):
    """This graph can't be wrapped into a resident one; the text says why."""


class BackwardsError(ResidentError):
    """A node reads its sequence from its end, which a stream doesn't have."""


def derive(
    model: ModelProto, contract: Contract, *, one_by_one: bool = False, reads: Mapping[str, Reads] | None = None
) -> ModelProto:
    """The resident graph of `model` under `contract`; weights are referred to where the model refers to them.

    `one_by_one`: the model sees each lane alone, in a Scan over the batch, for graphs that can't keep lanes apart.
    `reads` says by name what a recurrent node's sequence is, where it isn't a stream's steps.
    Raises ResidentError where the graph has something that the contract's promises can't be kept with.
    """
    given = frozenset(tensor.name for tensor in contract.outputs) | {state.output for state in contract.states}
    wrapped = Wrapped([_copy(node) for node in model.graph.node], given)
    for constant in contract.constants:
        value = np.frombuffer(constant.value, np.dtype(constant.dtype).newbyteorder("<"))
        wrapped.constants[constant.name] = value.astype(constant.dtype).reshape(constant.shape)
    _feed_lengths(wrapped, reads or {}, ragged=contract.ragged)
    for tensor in contract.inputs:
        _take_input(wrapped, tensor)
    for tensor in contract.outputs:
        _give_output(wrapped, tensor)
    new_rows: list[tuple[SlabSpec, str]] = []
    for slab in contract.slabs():
        _read_rows(wrapped, slab)
        new_rows.append((slab, _join_rows(wrapped, slab)))
    if one_by_one:
        _part_lanes(wrapped, contract, new_rows)
    for slab, rows in new_rows:
        _scatter(wrapped, slab, rows)
    return _assemble(model, wrapped, contract)


class Reads(Enum):
    """What a recurrent node's sequence is."""

    STEPS = "a stream's steps"
    FOLDED = "a stream's steps, with more in its batch than streams"
    WITHIN = "something inside one step"


def _feed_lengths(wrapped: Wrapped, reads: Mapping[str, Reads], *, ragged: bool) -> None:
    """Give every recurrent node over time the lengths of its rows: each row's state is that of its last step."""
    outermost = {id(node) for node in wrapped.model}  # the only ones that `reads` speaks of
    for node in all_nodes(wrapped.model):
        sequence = reads.get(node.name, Reads.STEPS) if id(node) in outermost else Reads.STEPS
        if node.op_type not in RECURRENT or sequence is Reads.WITHIN:
            continue
        if attribute(node, "direction", b"forward") != b"forward":
            raise BackwardsError(
                f"node {node.name!r} reads its sequence backwards, which a stream can't: that sequence is its steps"
            )
        if sequence is Reads.FOLDED and ragged:
            raise ResidentError(f"node {node.name!r} has more in its batch than streams, whose lengths it would need")
        inputs = list(node.input) + [""] * (SEQUENCE_LENS + 1 - len(node.input))
        if inputs[SEQUENCE_LENS] and ragged:
            raise ResidentError(f"node {node.name!r} has sequence lengths of its own ({inputs[SEQUENCE_LENS]!r})")
        if ragged:
            inputs[SEQUENCE_LENS] = LENGTHS
            node.input[:] = inputs
    if ragged:
        take_own_last_steps(wrapped)


def _take_input(wrapped: Wrapped, tensor: TensorSpec) -> None:
    """Bring an input from [B, T, *shape] to the axes that the model wants."""
    axes = _axes(tensor)
    if axes == sorted(axes) and tensor.time_axis is not None:
        return
    inner = f"{PREFIX}{tensor.name}"
    wrapped.rename(tensor.name, inner)
    source = tensor.name
    if tensor.time_axis is None:
        source = f"{inner}.step"
        wrapped.before.append(_node("Squeeze", [tensor.name, wrapped.constant("time_axis", [1])], [source]))
    wrapped.before.append(_node("Transpose", [source], [inner], perm=axes))


def _give_output(wrapped: Wrapped, tensor: TensorSpec) -> None:
    """Bring an output from the model's axes to [B, T, *shape]."""
    axes = _axes(tensor)
    if axes == sorted(axes) and tensor.time_axis is not None:
        return
    inner = f"{PREFIX}{tensor.name}"
    wrapped.rename(tensor.name, inner)
    target = tensor.name if tensor.time_axis is not None else f"{inner}.step"
    wrapped.after.append(_node("Transpose", [inner], [target], perm=np.argsort(axes).tolist()))
    if tensor.time_axis is None:
        wrapped.after.append(_node("Unsqueeze", [target, wrapped.constant("time_axis", [1])], [tensor.name]))


def _axes(tensor: TensorSpec) -> list[int]:
    """For each axis of the model's tensor, its place in [B, T, *shape] (without T where the model has none)."""
    front = [tensor.batch_axis] if tensor.time_axis is None else [tensor.batch_axis, tensor.time_axis]
    rank = len(front) + len(tensor.shape)
    rest = iter(range(len(front), rank))
    return [front.index(axis) if axis in front else next(rest) for axis in range(rank)]


def _read_rows(wrapped: Wrapped, slab: SlabSpec) -> None:
    """Gather the rows [1, B, W] and cut them into the states."""
    index, rows = f"{PREFIX}read_index", f"{PREFIX}{slab.input}.rows"
    if not any(index in node.output for node in wrapped.before):
        wrapped.before.append(_node("Unsqueeze", [READ_ROWS, wrapped.constant("front", [0])], [index]))
    wrapped.before.append(_node("Gather", [_whole_rows(wrapped, slab), index], [rows], axis=0))
    pieces: list[Piece] = []
    reshapes: list[NodeProto] = []
    for state in slab.states:
        direct = layers_read(wrapped, state)
        if direct is None:
            direct = [Piece(f"{PREFIX}{state.input}", state.elements)]
            reshapes += _unflatten(wrapped, state, direct[0].name)
        pieces += direct
    if len(pieces) == 1:
        cut = _node("Identity", [rows], [pieces[0].name])
    else:
        sizes = wrapped.constant(f"{slab.input}.read_sizes", [piece.size for piece in pieces])
        cut = _node("Split", [rows, sizes], [piece.name for piece in pieces], axis=2)
    wrapped.before += [cut, *reshapes]


def _whole_rows(wrapped: Wrapped, slab: SlabSpec) -> str:
    """The slab [N, W] to gather from, where every element has a thread of its own on a GPU anyway.

    A view: ONNX Runtime gives a reshaped input the input's own memory.
    """
    if slab.parts == 1:
        return slab.input
    whole = f"{PREFIX}{slab.input}{WHOLE}"
    shape = wrapped.constant(f"{slab.input}.whole_shape", [-1, slab.width])
    wrapped.before.append(_node("Reshape", [slab.input, shape], [whole]))
    return whole


def _join_rows(wrapped: Wrapped, slab: SlabSpec) -> str:
    """Join the new states to rows [1, B, W]; their name."""
    rows = f"{PREFIX}{slab.input}.new_rows"
    pieces: list[Piece] = []
    for state in slab.states:
        direct = layers_written(wrapped, state)
        if direct is None:
            direct = [Piece(f"{PREFIX}{state.output}", state.elements)]
            wrapped.after += _flatten(wrapped, state, direct[0].name)
        pieces += direct
    if len(pieces) == 1:
        return pieces[0].name
    wrapped.after.append(_node("Concat", [piece.name for piece in pieces], [rows], axis=2))
    return rows


def _scatter(wrapped: Wrapped, slab: SlabSpec, rows: str) -> None:
    """ScatterND into the slab [N*K, W/K]: part k of row r, which CUDA's kernel gives a thread, goes to r*K + k."""
    index, axes = (f"{PREFIX}write_index", [0, 2]) if slab.parts == 1 else (f"{PREFIX}write_index_by_lane", [1, 2])
    if not any(index in node.output for node in wrapped.after):
        around = wrapped.constant("around" if slab.parts == 1 else "behind", axes)
        wrapped.after.append(_node("Unsqueeze", [WRITE_ROWS, around], [index]))
    if slab.parts > 1:
        index, rows = _in_parts(wrapped, slab, index, rows)
    wrapped.after.append(_node("ScatterND", [slab.input, index, rows], [slab.output]))


def _in_parts(wrapped: Wrapped, slab: SlabSpec, index: str, rows: str) -> tuple[str, str]:
    """Rows [1, B, W] and their index [B, 1, 1], as parts [B, K, W/K] and their index [B, K, 1]."""
    of = f"{slab.input}.part"
    count = wrapped.constant(f"{of}s", [slab.parts])
    shape = wrapped.constant(f"{of}s_shape", [-1, slab.parts, slab.width // slab.parts])
    # 0, 1, … K-1: a constant once it's loaded, and in the file no integers that might be weights.
    limits = [wrapped.scalar(f"{of}_{name}", value) for name, value in (("first", 0), ("end", slab.parts), ("step", 1))]
    numbers, first, where, parts = (f"{PREFIX}{of}{name}" for name in ("_numbers", "_zero", "_index", "_rows"))
    wrapped.after += [
        _node("Range", limits, [numbers]),
        _node("Unsqueeze", [numbers, wrapped.constant("part_axis", [1])], [f"{numbers}.column"]),
        _node("Mul", [index, count], [first]),
        _node("Add", [first, f"{numbers}.column"], [where]),
        _node("Reshape", [rows, shape], [parts]),
    ]
    return where, parts


def _unflatten(wrapped: Wrapped, state: StatePair, piece: str) -> list[NodeProto]:
    """A state's piece [1, B, elements] in the shape and axes that the model wants."""
    shape = wrapped.constant(f"{state.input}.shape", [-1, *state.shape])
    if state.batch_axis == 0:
        return [_node("Reshape", [piece, shape], [state.input])]
    batch_first = f"{piece}.batch_first"
    perm = _batch_to(state)
    return [
        _node("Reshape", [piece, shape], [batch_first]),
        _node("Transpose", [batch_first], [state.input], perm=perm),
    ]


def _flatten(wrapped: Wrapped, state: StatePair, piece: str) -> list[NodeProto]:
    """The inverse, for the new state."""
    shape = wrapped.constant(f"{state.output}.shape", [1, -1, state.elements])
    if state.batch_axis == 0:
        return [_node("Reshape", [state.output, shape], [piece])]
    batch_first = f"{piece}.batch_first"
    return [
        _node("Transpose", [state.output], [batch_first], perm=np.argsort(_batch_to(state)).tolist()),
        _node("Reshape", [batch_first, shape], [piece]),
    ]


def _batch_to(state: StatePair) -> list[int]:
    """The permutation that takes [B, *shape] to the state's own axes."""
    perm = list(range(1, len(state.shape) + 1))
    perm.insert(state.batch_axis, 0)
    return perm


def _part_lanes(wrapped: Wrapped, contract: Contract, new_rows: Sequence[tuple[SlabSpec, str]]) -> None:
    """Put everything between gathering and scattering into a Scan over the lanes."""
    rows = [(slab, f"{PREFIX}{slab.input}.rows", new) for slab, new in new_rows]
    outside = {f"{PREFIX}read_index", *(f"{PREFIX}{slab.input}{WHOLE}" for slab, _, _ in rows)}
    outside |= {old for _, old, _ in rows}
    inside = [node for node in (*wrapped.before, *wrapped.model, *wrapped.after) if node.output[0] not in outside]
    wrapped.before = [node for node in wrapped.before if node.output[0] in outside]
    wrapped.after = []
    wrapped.model = [in_scan(inside, contract, rows)]
    for axis in (0, 1):
        wrapped.constants[f"{AXIS}{axis}"] = np.array([axis], dtype=np.int64)


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"{outputs[0]}/{op}", **attributes)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _assemble(model: ModelProto, wrapped: Wrapped, contract: Contract) -> ModelProto:
    """The finished graph, with the model's opsets and weights."""
    graph = GraphProto(name=f"{model.graph.name}.resident")
    graph.node.extend([*wrapped.before, *wrapped.model, *wrapped.after])
    constants = {tensor.name for tensor in model.graph.initializer} & wrapped.constants.keys()
    assert not constants, f"names of the resident graph that the model has too: {constants}"
    used = used_names(graph.node)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    made = {name: value for name, value in wrapped.constants.items() if name in used}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())
    graph.input.extend(_inputs(contract))
    graph.output.extend(_outputs(contract))
    graph.value_info.extend(_shapes(model, wrapped))
    resident = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    resident.producer_name = model.producer_name
    resident.functions.extend(model.functions)
    return resident


def _shapes(model: ModelProto, wrapped: Wrapped) -> list[ValueInfoProto]:
    """What the model says of the shapes that our own cells' operators outside the standard give: nobody infers them."""
    if not any(is_time_scan(node) for node in wrapped.model):
        return []
    given = {name for node in wrapped.model if node.domain for name in node.output}
    return [value for value in model.graph.value_info if value.name in given]


def batch_and_time(contract: Contract) -> tuple[int | str, int | str]:
    """The sizes of B and T that a resident graph declares: a name where they are free."""
    return (1, "time" if contract.ragged else 1) if contract.single_lane else ("batch", "time")


def _inputs(contract: Contract) -> list[ValueInfoProto]:
    batch, time = batch_and_time(contract)
    return [
        *(_value(tensor.name, tensor.dtype, [batch, time, *tensor.shape]) for tensor in contract.inputs),
        _value(LENGTHS, "int32", [batch]),
        _value(READ_ROWS, "int64", [batch]),
        _value(WRITE_ROWS, "int64", [batch]),
        *(_value(slab.input, slab.dtype, list(slab.axes)) for slab in contract.slabs()),
    ]


def _outputs(contract: Contract) -> list[ValueInfoProto]:
    batch, time = batch_and_time(contract)
    return [
        *(_value(tensor.name, tensor.dtype, [batch, time, *tensor.shape]) for tensor in contract.outputs),
        *(_value(slab.output, slab.dtype, list(slab.axes)) for slab in contract.slabs()),
    ]


def _value(name: str, dtype: str, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
