"""Recurrent nodes whose state is no input: given one, with its successor as an output, so that a stream carries it.

Owns that rewriting and the names of what it adds. Refuses nodes whose state can't be carried. Runs only what makes a
node's first state.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper

from export.dataflow import Dataflow
from export.pairs import Choice, StateQuestionError, States
from export.rewriting import attribute
from export.state_evidence import CELL_STATES, CELLS
from export.subgraphs import all_nodes, given_names, used_names
from export.theirs import Theirs, WrapError, dims, one_line

ALL = "all"
_LETTERS = {5: "h", 6: "c"}
_HIDDEN = 2  # the axis of R [directions, gates, hidden] and of a state [directions, batch, hidden]
Array = npt.NDArray[Any]


@dataclass(slots=True)
class Connected:
    """What was connected: states with what says so, first values that aren't zero, and the nodes' names."""

    states: States = field(default_factory=States)
    first: dict[str, Array] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)


def recurrent(theirs: Theirs) -> bool:
    """Whether the graph has a recurrent node, at any depth."""
    return any(node.op_type in CELLS for node in all_nodes(theirs.model.graph.node))


def begins_anew(theirs: Theirs) -> list[NodeProto]:
    """The outermost recurrent nodes that no input gives a first state."""
    flow = Dataflow(theirs.model.graph)
    return [
        node
        for node in theirs.model.graph.node
        if node.op_type in CELLS and not any(flow.sources(name) for name in _firsts(node).values())
    ]


def begun_by(theirs: Theirs, wanted: Container[str]) -> list[str]:
    """The inputs that are the first states of nodes that are wanted by name."""
    inputs = {value.name for value in theirs.inputs}
    nodes = [node for node in theirs.model.graph.node if node.op_type in CELLS and node.name in wanted]
    return [name for node in nodes for name in _firsts(node).values() if name in inputs]


def connect(theirs: Theirs, wanted: Container[str], known: Mapping[str, str]) -> Connected:
    """Give the wanted recurrent nodes (ALL: all without one) their states as inputs and outputs.

    `known` are the states that there are. Raises WrapError where a node's state can't be carried.
    """
    _check(theirs, wanted)
    flow, made = Dataflow(theirs.model.graph), Connected()
    every = list(theirs.model.graph.node)
    for node in every:
        if node.op_type not in CELLS or not (ALL in wanted or node.name in wanted):
            continue
        firsts = {place: name for place, name in _firsts(node).items() if name not in known}
        computed = any(flow.sources(name) for name in firsts.values())
        if not firsts or (computed and node.name not in wanted and _others(theirs, flow)):
            continue
        _check_direction(node)
        for place, first in firsts.items():
            _connect_one(theirs, node, place, first, made)
        made.nodes.append(node.name)
    if not made.nodes:
        raise WrapError("--connect: no recurrent node of the graph begins anew at every call")
    _drop_unused(theirs)
    return made


def _others(theirs: Theirs, flow: Dataflow) -> bool:
    """Whether some recurrent node begins from nothing that is computed."""
    cells = [node for node in theirs.model.graph.node if node.op_type in CELLS]
    return any(not any(flow.sources(name) for name in _firsts(node).values()) for node in cells)


def offer(nodes: Iterable[NodeProto], reason: str) -> StateQuestionError:
    """The refusal to connect without being told."""
    names = ", ".join(f"{node.op_type} node {node.name!r}" for node in nodes)
    return StateQuestionError(
        f"no state is an input: {names} begins anew at every call (its initial state is no input), and {reason}; say"
        " --connect all to carry it from step to step all the same",
        [Choice("carried", ("--connect", ALL))],
    )


def _firsts(node: NodeProto) -> dict[int, str]:
    """By place, the names of a node's first states; "" where it has none."""
    cell = node.op_type not in {"GRU", "RNN"}
    places = [place for place in CELL_STATES if cell or place == min(CELL_STATES)]
    return {place: node.input[place] if place < len(node.input) else "" for place in places}


def _check(theirs: Theirs, wanted: Container[str]) -> None:
    outer = [node.name for node in theirs.model.graph.node if node.op_type in CELLS]
    every = [node for node in all_nodes(theirs.model.graph.node) if node.op_type in CELLS]
    if not every:
        raise WrapError("--connect: the graph has no recurrent node (LSTM, GRU or RNN)")
    if isinstance(wanted, tuple):
        for name in wanted:
            if name != ALL and name not in outer:
                raise WrapError(f"--connect {name}: no recurrent node is called so; there are {', '.join(outer)}")
    if len(every) > len(outer):
        inner = next(node for node in every if node.name not in outer)
        raise WrapError(
            f"the {inner.op_type} node {inner.name!r} is inside a branch or loop of the graph, and its state can't be"
            " connected from there; export the model with its states as inputs and outputs"
        )


def is_forward(node: NodeProto) -> bool:
    """Whether a recurrent node reads its sequence from its start only."""
    return bool(attribute(node, "direction", b"forward") == b"forward")


def _check_direction(node: NodeProto) -> None:
    direction = attribute(node, "direction", b"forward").decode()
    if not is_forward(node):
        raise WrapError(
            f"the {node.op_type} node {node.name!r} is {direction}: it reads its sequence backwards, so what it gives"
            " at a step depends on later ones, which a stream doesn't have yet; train and export the model with forward"
            " layers"
        )


def _connect_one(theirs: Theirs, node: NodeProto, place: int, first: str, made: Connected) -> None:
    """Connect one state of a node."""
    graph, letter = theirs.model.graph, _LETTERS[place]
    sources = Dataflow(graph).sources(first)
    inputs = {value.name for value in graph.input}
    if sources and first not in inputs:
        raise WrapError(
            f"the {node.op_type} node {node.name!r} begins from what is computed from {', '.join(sorted(sources))}, so"
            " its state can't be connected; export the model with its state as an input and an output"
        )
    taken = inputs | given_names(graph.node) | used_names(graph.node) | {value.name for value in graph.output}
    base = re.sub(r"\W+", "_", node.name).strip("_").lower() or node.op_type.lower()
    name = first if first in inputs else _fresh(f"{base}_{letter}", taken)
    successor = _fresh(f"{name}_next", taken)
    size = _hidden_size(theirs, node)
    if first not in inputs:
        value = _first_value(theirs, node, first) if first else None
        if value is not None and np.any(value):
            made.first[name] = value.reshape(1, 1, size)
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = name
        graph.input.append(helper.make_tensor_value_info(name, _kind(theirs, node), [1, "batch", size]))
    given = CELL_STATES[place]
    node.output.extend([""] * (given + 1 - len(node.output)))
    if node.output[given]:
        graph.node.append(
            helper.make_node("Identity", [node.output[given]], [successor], name=f"{successor}/Connected")
        )
    else:
        node.output[given] = successor
    graph.output.append(helper.make_tensor_value_info(successor, _kind(theirs, node), [1, "batch", size]))
    text = f"{node.op_type} node {node.name!r}: "
    if first in inputs:
        text += f"begins from it, and its Y_{letter} is connected"
    else:
        began = "a value of its own" if name in made.first else "zero"
        text += f"began from {began} at every call; its initial_{letter} and Y_{letter} are connected"
    made.states.add(name, successor, text)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _weights(theirs: Theirs, node: NodeProto) -> list[TensorProto]:
    names = list(node.input)[1:3]
    return [tensor for tensor in theirs.model.graph.initializer if tensor.name in names]


def _hidden_size(theirs: Theirs, node: NodeProto) -> int:
    size = attribute(node, "hidden_size", 0)
    for tensor in _weights(theirs, node):
        if not size and tensor.name == node.input[2]:
            size = tensor.dims[_HIDDEN]
    if not size:
        raise WrapError(f"the {node.op_type} node {node.name!r} doesn't say its hidden_size")
    return int(size)


def _kind(theirs: Theirs, node: NodeProto) -> int:
    """The dtype of a node's states, as ONNX numbers it: its weights', if they aren't quantised."""
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
    return next((t.data_type for t in _weights(theirs, node) if t.data_type in floats), TensorProto.FLOAT)


def _first_value(theirs: Theirs, node: NodeProto, name: str) -> Array:
    """What a node begins from, [1, 1, H], computed as the file has it; raises WrapError where streams differ in it."""
    for streams in (2, 1):
        try:
            value = _computed(theirs, name, streams)
            break
        except Exception as error:
            if streams == 1:
                raise WrapError(
                    f"the {node.op_type} node {node.name!r} begins from {name!r}, which can't be computed:"
                    f" {one_line(error)}"
                ) from error
    if value.ndim != _HIDDEN + 1 or np.any(value != value[:, :1]):
        raise WrapError(
            f"the {node.op_type} node {node.name!r} begins from another value for each row of a batch, so a new stream"
            " has no one first state; export the model with a batch of 1"
        )
    return np.asarray(value[:, :1])


def _computed(theirs: Theirs, name: str, streams: int) -> Array:
    """A tensor that depends on no input's values, with all free axes of the inputs of size `streams`."""
    model = onnx.ModelProto()
    model.CopyFrom(theirs.model)
    graph = model.graph
    del graph.output[:]
    graph.output.append(helper.make_empty_tensor_value_info(name))
    _prune(graph)
    used = used_names(graph.node)
    for value in [value for value in graph.input if value.name not in used]:
        graph.input.remove(value)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {
        value.name: np.zeros(
            [size if isinstance(size, int) else streams for size in dims(value)],
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in graph.input
    }
    return np.asarray(session.run([name], feeds)[0])


def _drop_unused(theirs: Theirs) -> None:
    _prune(theirs.model.graph)


def _prune(graph: onnx.GraphProto) -> None:
    """Leave out the nodes and weights that no output needs any more."""
    outputs = {value.name for value in graph.output}
    nodes = list(graph.node)
    while True:
        used = used_names(nodes) | outputs
        kept = [node for node in nodes if any(name in used for name in node.output if name)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
