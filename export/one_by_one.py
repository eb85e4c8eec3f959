"""The middle of a resident graph put into a Scan over its lanes, so that the model meets each of them alone.

For graphs whose batch is fixed to 1, and for those in which a lane's neighbours change its last bits. Owns that
rewriting of nodes; the gathering and scattering of rows stays outside. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import NodeProto, helper

from export.subgraphs import rename
from model.contract import LENGTHS, Contract, SlabSpec

BATCHES = "batches"  # the note of a contract that says how its graph takes them
ONE_BY_ONE = "one by one"
AS_GIVEN = "sizes"  # the note of a contract whose model.onnx keeps the fixed sizes of the given file
LANE = ".lane"  # one lane of a tensor, [1, …]
AXIS = "resident.lane_axis"  # + its number: the constant that names it
SLICE = ".slice"  # the same as Scan cuts it, […]


class Cut(NamedTuple):
    """A tensor that Scan cuts into lanes, or joins from them, along the axis."""

    name: str
    dtype: str
    axis: int


def in_scan(nodes: Sequence[NodeProto], contract: Contract, rows: Sequence[tuple[SlabSpec, str, str]]) -> NodeProto:
    """One Scan that gives what `nodes` give, lane by lane.

    `rows`: for each slab the rows [1, B, W] gathered and those to scatter, by name. Nodes are changed in place.
    """
    inputs = [Cut(tensor.name, tensor.dtype, 0) for tensor in contract.inputs]
    inputs.append(Cut(LENGTHS, "int32", 0))
    inputs += [Cut(old, slab.dtype, 1) for slab, old, _ in rows]
    outputs = [Cut(tensor.name, tensor.dtype, 0) for tensor in contract.outputs]
    outputs += [Cut(new, slab.dtype, 1) for slab, _, new in rows]
    rename(nodes, {cut.name: cut.name + LANE for cut in (*inputs, *outputs)})
    body = helper.make_graph(
        [
            *(_reshape(cut.name + SLICE, cut.name + LANE, "Unsqueeze", cut.axis) for cut in inputs),
            *nodes,
            *(_reshape(cut.name + LANE, cut.name + SLICE, "Squeeze", cut.axis) for cut in outputs),
        ],
        "lane",
        [helper.make_tensor_value_info(cut.name + SLICE, _kind(cut.dtype), None) for cut in inputs],
        [helper.make_tensor_value_info(cut.name + SLICE, _kind(cut.dtype), None) for cut in outputs],
    )
    return helper.make_node(
        "Scan",
        [cut.name for cut in inputs],
        [cut.name for cut in outputs],
        name="resident.lanes/Scan",
        body=body,
        num_scan_inputs=len(inputs),
        scan_input_axes=[cut.axis for cut in inputs],
        scan_output_axes=[cut.axis for cut in outputs],
    )


def _reshape(source: str, target: str, op: str, axis: int) -> NodeProto:
    return helper.make_node(op, [source, f"{AXIS}{axis}"], [target], name=f"{target}/{op}")


def _kind(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
