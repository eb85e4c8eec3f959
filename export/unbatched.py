"""Graphs without any batch axis (x [F], h [H]): given one of size 1, so that the rest need not know.

Owns that rewriting. Such a graph then runs its streams one by one.
"""

from __future__ import annotations

import numpy as np
from onnx import ValueInfoProto, helper, numpy_helper

from export.pairs import find_pairs
from export.subgraphs import rename
from export.theirs import Theirs, dims
from export.understanding import Asked

AXIS = "their_batch_axis"
INNER = ".unbatched"


def add_batch(theirs: Theirs, asked: Asked) -> None:
    """Put an axis of size 1 in front of every input and output, where no state has one for the batch."""
    graph = theirs.model.graph
    found = find_pairs(theirs, asked.states, (*asked.inputs, *asked.constants))
    pairs = {name: successor for name, successor in found.items() if name not in theirs.starts}  # these have an axis
    plain = [value for value in graph.input if value.name not in (*asked.constants, *theirs.starts)]
    inputs = [value for value in plain if _bare(value, asked)]
    if not set(pairs or [value.name for value in plain]) <= {value.name for value in inputs}:
        return
    outputs = [value for value in graph.output if _bare(value, asked) or value.name in pairs.values()]
    graph.initializer.append(numpy_helper.from_array(np.array([0]), AXIS))
    rename(graph.node, {value.name: value.name + INNER for value in (*inputs, *outputs)})
    for value in inputs:
        name = f"{value.name}{INNER}/Squeeze"
        graph.node.insert(0, helper.make_node("Squeeze", [value.name, AXIS], [value.name + INNER], name=name))
    for value in outputs:
        name = f"{value.name}{INNER}/Unsqueeze"
        graph.node.append(helper.make_node("Unsqueeze", [value.name + INNER, AXIS], [value.name], name=name))
    for value in (*inputs, *outputs):
        shape = value.type.tensor_type.shape
        sizes = [dim.dim_value for dim in shape.dim]
        del shape.dim[:]
        for size in (1, *sizes):
            shape.dim.add().dim_value = size
        theirs.bare.add(theirs.renamed.get(value.name, value.name))


def _bare(value: ValueInfoProto, asked: Asked) -> bool:
    """Whether no axis of it can be a batch: all sizes are fixed, and none is 1."""
    return value.name not in asked.shapes and all(isinstance(size, int) and size != 1 for size in dims(value))
