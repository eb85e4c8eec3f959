"""Somebody else's ONNX file, read and brought to the form that wrapping expects; what it computes stays the same.

Owns that form: no functions, no defaults of inputs, all weights as initializers of the outermost graph, every node
named, no name that the resident graph needs. Refuses what can't be brought there. Runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, inliner, numpy_helper

from export.artifact import SMALL
from export.resident import RECURRENT, SEQUENCE_LENS
from export.rewriting import PREFIX
from export.subgraphs import all_graphs, all_nodes, given_names, rename, rename_values, used_names
from model.contract import LENGTHS, READ_ROWS, SLAB_PREFIX, WRITE_ROWS

OLDEST_OPSET = 13  # where Squeeze, Unsqueeze and Split take their axes as inputs
CONVERTED_OPSET = 17  # what an older graph is converted to
IR_VERSION = 8  # at least: initializers need not be inputs
_LIKE_OURS = re.compile(r"/(Transpose|Squeeze|Unsqueeze|Reshape|Gather|ScatterND|Split|Concat|Identity)$")
RESERVED = frozenset({LENGTHS, READ_ROWS, WRITE_ROWS})
Dim = int | str | None  # fixed, named, or free without a name


class WrapError(ValueError):
    """The graph can't be wrapped as asked; the text says what settles it."""


@dataclass(slots=True)
class Theirs:
    """A graph that somebody else made, in the form that wrapping expects."""

    path: Path
    model: ModelProto
    defaults: dict[str, TensorProto] = field(default_factory=dict)  # inputs that had a value of their own
    declared: dict[str, ValueInfoProto] = field(default_factory=dict)  # the same inputs
    lengths: list[str] = field(default_factory=list)  # inputs that only say how many steps each row has; left out
    renamed: dict[str, str] = field(default_factory=dict)  # our name -> theirs, where they differ
    bare: set[str] = field(default_factory=set)  # their tensors that had no batch axis and were given one
    added: dict[str, str] = field(default_factory=dict)  # outputs of ours -> the output of theirs that they repeat
    starts: dict[str, str] = field(default_factory=dict)  # inputs that say whether a sequence starts -> the successor
    start_ranks: dict[str, int] = field(default_factory=dict)  # how many axes those of theirs had that we gave more

    @property
    def inputs(self) -> list[ValueInfoProto]:
        """What it takes, defaults aside."""
        return list(self.model.graph.input)

    @property
    def outputs(self) -> list[ValueInfoProto]:
        """What it gives."""
        return list(self.model.graph.output)


def read(path: Path) -> Theirs:
    """Read an ONNX file with all its weights; raises WrapError in one line."""
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise WrapError(f"{error.filename or path} doesn't exist") from error
    except Exception as error:  # protobuf and onnx raise many kinds, none of them typed
        raise WrapError(f"{path} can't be read as ONNX: {one_line(error)}") from error
    if not model.graph.node:
        raise WrapError(f"{path} holds no graph")
    if model.graph.sparse_initializer or any(g.sparse_initializer for g in all_graphs(model.graph.node)):
        raise WrapError(f"{path} has sparse weights, which wrapping doesn't know; store them dense")
    if model.functions:
        model = inliner.inline_local_functions(model)
    theirs = Theirs(path, _newer(model, path))
    theirs.model.ir_version = max(theirs.model.ir_version, IR_VERSION)
    _lift_weights(theirs.model.graph)
    _rename_reserved(theirs)
    _take_defaults(theirs)
    _take_lengths(theirs)
    name_nodes(theirs.model.graph)
    del theirs.model.graph.value_info[:]
    return theirs


_LONGEST = 400  # letters of another library's error
# What ONNX Runtime's errors say of its own code: a number, files and lines, functions.
_INTERNAL = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S*/onnxruntime\S*:\d+ (?:(?:static )?[^()]*\([^()]*\)(?: const)? )?"
    r"|\S*onnxruntime::\S*"
)


def one_line(error: Exception) -> str:
    """An error of another library as one line, without its own source files and functions; "…" where it is cut."""
    text = " ".join(_INTERNAL.sub("", " ".join(str(error).split())).split())
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " …"


def dims(value: ValueInfoProto) -> list[Dim]:
    """The declared shape; raises WrapError where there is none."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise WrapError(f"{value.name!r} is no tensor, and only tensors can be streamed")
    if not tensor.HasField("shape"):
        raise WrapError(f"the shape of {value.name!r} isn't declared; say it with --shape {value.name}=batch,…")
    return [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim]


def dtype(value: ValueInfoProto) -> str:
    """The dtype as numpy calls it; raises WrapError where the wire has none like it."""
    kind = value.type.tensor_type.elem_type
    name = str(helper.tensor_dtype_to_np_dtype(kind).name) if kind else "undefined"
    if name not in np.sctypeDict or np.dtype(name).kind not in "biuf":
        text = TensorProto.DataType.Name(kind).lower()
        raise WrapError(f"{value.name!r} is of {text}, which a stream can't carry (booleans, integers and floats)")
    return name


def has(theirs: Theirs, name: str) -> bool:
    """Whether the graph has weights of that name."""
    return any(tensor.name == name for tensor in theirs.model.graph.initializer)


def fold(theirs: Theirs, values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Make inputs into weights."""
    graph = theirs.model.graph
    folded = [value for value in graph.input if value.name in values]
    for value in folded:
        graph.initializer.append(numpy_helper.from_array(values[value.name], value.name))
        graph.input.remove(value)


def restore(theirs: Theirs, names: Iterable[str]) -> None:
    """Make inputs again of weights that were the values of inputs, where these are states: their first values."""
    graph = theirs.model.graph
    for name in names:
        if name in theirs.defaults:
            tensor, value = theirs.defaults[name], theirs.declared[name]
            graph.initializer.remove(tensor)
            graph.input.append(value)


def _newer(model: ModelProto, path: Path) -> ModelProto:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if opset >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, CONVERTED_OPSET)
    except Exception as error:
        raise WrapError(
            f"{path} is of opset {opset}, and ONNX's converter can't bring it to {CONVERTED_OPSET}"
            f" ({one_line(error)}); export it with opset {OLDEST_OPSET} or later"
        ) from error


def _take_defaults(theirs: Theirs) -> None:
    """Inputs with a value of their own are weights to us."""
    graph = theirs.model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for value in [value for value in graph.input if value.name in tensors]:
        theirs.defaults[value.name], theirs.declared[value.name] = tensors[value.name], value
        graph.input.remove(value)


def _take_lengths(theirs: Theirs) -> None:
    """Leave out the inputs that are sequence lengths and nothing else: a run then takes all steps that it is given."""
    graph = theirs.model.graph
    for value in list(graph.input):
        takers = [node for node in all_nodes(graph.node) if value.name in node.input]
        places = [
            (node.op_type, place) for node in takers for place, name in enumerate(node.input) if name == value.name
        ]
        if places and all(op in RECURRENT and place == SEQUENCE_LENS for op, place in places):
            for node in takers:
                node.input[SEQUENCE_LENS] = ""
            graph.input.remove(value)
            theirs.lengths.append(theirs.renamed.get(value.name, value.name))


def _names(values: Iterable[ValueInfoProto]) -> set[str]:
    return {value.name for value in values}


def _lift_weights(graph: GraphProto) -> None:
    """Bring the weights of inner graphs, and those that are Constant nodes, to the outermost graph."""
    _constants_to_initializers(graph, graph, names={})
    for place, inner in enumerate(reversed(list(all_graphs(graph.node)))):  # innermost first
        names: dict[str, str] = {}
        own = list(inner.initializer)
        del inner.initializer[:]
        for tensor in own:
            if _stays(tensor):
                inner.initializer.append(tensor)
                continue
            names[tensor.name] = f"{tensor.name}.inner{place}"
            tensor.name = names[tensor.name]
            graph.initializer.append(tensor)
        _constants_to_initializers(inner, graph, names, suffix=f".inner{place}")
        rename_values(inner, names)
        rename(inner.node, names)


def _constants_to_initializers(inner: GraphProto, outer: GraphProto, names: dict[str, str], suffix: str = "") -> None:
    """Take Constant nodes that hold weights out of `inner`; small integers stay where they are."""
    given = _names(inner.output)
    kept = []
    for node in inner.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None or node.output[0] in given or _stays(value):
            kept.append(node)
            continue
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0] + suffix
        names[node.output[0]] = tensor.name
        outer.initializer.append(tensor)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del inner.node[:]
    inner.node.extend(copies)


def _stays(tensor: TensorProto) -> bool:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type).kind
    return kind not in "fV" and int(np.prod(tensor.dims)) <= SMALL


def _rename_reserved(theirs: Theirs) -> None:
    """Give another name to what the resident graph would call so too."""
    graph = theirs.model.graph
    every = _names([*graph.input, *graph.output]) | {tensor.name for tensor in graph.initializer}
    every |= given_names(graph.node) | used_names(graph.node)
    clashing = {name for name in every if name in RESERVED or name.startswith((SLAB_PREFIX, PREFIX))}
    names: dict[str, str] = {}
    for name in sorted(clashing):
        fresh = f"their_{name}"
        while fresh in every:
            fresh = f"their_{fresh}"
        names[name] = fresh
        every.add(fresh)
    rename(graph.node, names)
    rename_values(graph, names)
    theirs.renamed = {fresh: name for name, fresh in names.items()}


def name_nodes(graph: GraphProto) -> None:
    """Give every node a name of its own."""
    taken: set[str] = set()
    for place, node in enumerate(graph.node):
        if not node.name or node.name in taken or _LIKE_OURS.search(node.name):
            node.name = f"{node.op_type}_{place}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)
