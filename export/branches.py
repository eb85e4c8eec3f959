"""Branches that a constant decides: an If whose condition never changes becomes the branch that it takes.

A side input (a sampling rate, say) often chooses between two models in one file. What isn't taken would only be in the
way: its shapes needn't fit, and control flow can't be captured. Owns finding and inlining them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.rewriting import attribute
from export.subgraphs import graphs_of, rename, used_names
from model.contract import Constant

Array = npt.NDArray[Any]
M = TypeVar("M", NodeProto, TensorProto)


def decide(model: ModelProto, constants: Iterable[Constant]) -> int:
    """Put the taken branch in the place of every If of the outermost graph that `constants` decide; how many."""
    known = {value.name: np.frombuffer(value.value, value.dtype).reshape(value.shape) for value in constants}
    weights = {tensor.name: _copy(tensor) for tensor in model.graph.initializer}
    nodes = [_copy(node) for node in model.graph.node]
    decided, open_ones = 0, set[str]()
    while (place := _next_if(nodes, open_ones)) is not None:
        node = nodes[place]
        condition = _value(node.input[0], nodes, weights, known, model)
        if condition is None or condition.size != 1:
            open_ones.add(node.output[0])
            continue
        decided += 1
        branch = attribute(node, "then_branch" if condition.reshape(-1)[0] else "else_branch", None)
        weights |= {tensor.name: _copy(tensor) for tensor in branch.initializer}
        nodes[place : place + 1] = _taken(branch, node)
    if decided:
        _replace(model, nodes, weights)
    return decided


def _next_if(nodes: list[NodeProto], but: set[str]) -> int | None:
    return next((place for place, node in enumerate(nodes) if node.op_type == "If" and node.output[0] not in but), None)


def _value(
    name: str,
    nodes: list[NodeProto],
    weights: Mapping[str, TensorProto],
    known: Mapping[str, Array],
    model: ModelProto,
) -> Array | None:
    """What a tensor always is; None where it depends on more than constants and weights."""
    makers = {output: place for place, node in enumerate(nodes) for output in node.output}
    places: set[int] = set()
    needed: dict[str, TensorProto] = {}
    waiting, seen = [name], {""}
    while waiting:
        wanted = waiting.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        if wanted in known:
            needed[wanted] = numpy_helper.from_array(known[wanted], wanted)
        elif wanted in weights:
            needed[wanted] = weights[wanted]
        elif wanted in makers and not list(graphs_of(nodes[makers[wanted]])):
            places.add(makers[wanted])
            waiting += nodes[makers[wanted]].input
        else:
            return None
    result = helper.make_empty_tensor_value_info(name)
    graph = helper.make_graph([nodes[place] for place in sorted(places)], "c", [], [result], list(needed.values()))
    small = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    try:
        (found,) = ReferenceEvaluator(small).run(None, {})
    except Exception:  # noqa: BLE001  an operator that onnx's own evaluator doesn't know: then it stays open
        return None
    return np.asarray(found)


def _taken(branch: GraphProto, node: NodeProto) -> list[NodeProto]:
    """The nodes of a branch, giving the outputs of the If; ONNX Runtime takes no branch that gives an outer value."""
    inner = [_copy(one) for one in branch.node]
    rename(inner, {value.name: outer for value, outer in zip(branch.output, node.output, strict=True) if outer})
    return inner


def _replace(model: ModelProto, nodes: list[NodeProto], weights: Mapping[str, TensorProto]) -> None:
    """Give the graph these nodes and weights, but for those that only the other branches needed."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    while True:
        used = used_names(nodes) | outputs
        kept = [node for node in nodes if any(output in used for output in node.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)


def _copy(message: M) -> M:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
