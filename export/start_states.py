"""Inputs that say whether a sequence starts, made states of the graph: each gets a successor that says it doesn't.

Owns that rewriting, the shape that such an input gets ([batch, 1]: Triton's states have an axis beside the batch) and
the name of its successor. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from export.layouts import BATCH, Layout
from export.pairs import find_pairs
from export.subgraphs import given_names, rename, used_names
from export.theirs import Theirs, WrapError, dims, dtype
from export.understanding import Asked

INNER = ".of_one_step"
AXES = "start_axes"  # + how many: the constant that names them
_RANK = 2  # [batch, 1]
Array = npt.NDArray[Any]


def add_starts(theirs: Theirs, asked: Asked) -> Asked:
    """Give each input of `asked.starts` its shape and its successor; what is asked then, with its axes and first value.

    Raises WrapError where its values aren't of its dtype.
    """
    if not asked.starts:
        return asked
    values = {value.name: value for value in theirs.inputs}
    said = {name: _fitted(values[name], both) for name, both in asked.starts.items()}
    theirs.starts = dict.fromkeys(asked.starts, "")  # the names of the others' successors come first
    known = find_pairs(theirs, asked.states, (*asked.inputs, *asked.constants))
    pairs = {name: successor for name, successor in known.items() if successor}
    for name, (false, _) in said.items():
        _widen(theirs, values[name])
        pairs[name] = theirs.starts[name] = _successor(name, pairs, _taken(theirs))
        _never_again(theirs, values[name], false)
    axes: dict[str, Layout] = {name: (BATCH, *[1] * (len(dims(values[name])) - 1)) for name in said}
    firsts = {name: true for name, (_, true) in said.items()}
    return replace(asked, starts=said, shapes={**asked.shapes, **axes}, initial={**asked.initial, **firsts})


def check_starts(theirs: Theirs, asked: Asked) -> None:
    """Raise WrapError where one of `asked.starts` can't be such an input, or is asked to be something else too."""
    values = {value.name: value for value in theirs.inputs}
    for name in asked.starts:
        _check(name, values, asked)


def _fitted(value: ValueInfoProto, both: tuple[Array, Array]) -> tuple[Array, Array]:
    """What an input says for false and true in its own dtype; raises WrapError where that can't be."""
    kind = dtype(value)
    with np.errstate(all="ignore"):
        false, true = (np.asarray(one).astype(kind) for one in both)
    spelt = f"--start {value.name}={both[0]}:{both[1]}"
    for given, said in zip(both, (false, true), strict=True):
        if said.size != 1 or (said.dtype.kind != "f" and said.astype(np.float64) != np.float64(given)):
            raise WrapError(f"{spelt}: {given} is no {kind}, and {value.name!r} is of {kind}")
    if false == true:
        raise WrapError(f"{spelt}: a start must say something else than no start")
    return false, true


def _check(name: str, values: Mapping[str, ValueInfoProto], asked: Asked) -> None:
    """Such an input is there, is nothing else, and says one thing to each stream."""
    if name not in values:
        raise WrapError(f"--start {name}: no input is called so; there are {', '.join(sorted(values))}")
    for option, given in (
        ("state", asked.states),
        ("constant", asked.constants),
        ("input", asked.inputs),
        ("initial", asked.initial),
        ("range", asked.ranges),
        ("shape", asked.shapes),
    ):
        if name in given:
            raise WrapError(f"--start {name} and --{option} {name}: the first says all there is to say; leave one out")
    declared = dims(values[name])
    if any(isinstance(size, int) and size != 1 for size in declared[1:]):
        raise WrapError(f"--start {name}: its shape {declared} is more than one value a stream ([batch] or [batch, 1])")


def _widen(theirs: Theirs, value: ValueInfoProto) -> None:
    """Make it [batch, 1] where it has fewer axes; the graph's nodes still see what they saw."""
    declared = dims(value)
    missing = _RANK - len(declared)
    if missing < 1:
        return
    theirs.start_ranks[theirs.renamed.get(value.name, value.name)] = len(declared)
    graph, axes = theirs.model.graph, f"{AXES}{missing}"
    if axes not in {tensor.name for tensor in graph.initializer}:
        graph.initializer.append(numpy_helper.from_array(np.arange(_RANK - missing, _RANK), axes))
    rename(graph.node, {value.name: value.name + INNER})
    name = f"{value.name}{INNER}/Squeeze"
    graph.node.insert(0, helper.make_node("Squeeze", [value.name, axes], [value.name + INNER], name=name))
    for _ in range(missing):
        value.type.tensor_type.shape.dim.add().dim_value = 1


def _never_again(theirs: Theirs, value: ValueInfoProto, false: Array) -> None:
    """The successor: the value for false in the input's shape, whatever came in."""
    graph, successor = theirs.model.graph, theirs.starts[value.name]
    shape = f"{successor}/shape"
    kind = value.type.tensor_type.elem_type
    filled: TensorProto = numpy_helper.from_array(false.reshape(1))
    graph.node.append(helper.make_node("Shape", [value.name], [shape], name=f"{successor}/Shape"))
    graph.node.append(
        helper.make_node("ConstantOfShape", [shape], [successor], name=f"{successor}/ConstantOfShape", value=filled)
    )
    graph.output.append(helper.make_tensor_value_info(successor, kind, dims(value)))


def _successor(name: str, pairs: Mapping[str, str], taken: set[str]) -> str:
    """A fresh name; one that Triton, which pairs states by the order of their names, can pair, if there is one."""
    before = max((other for other in pairs if other < name), default=None)
    choices = [f"{name}_next", f"0_{name}" if before is None else f"{pairs[before]}_{name}"]
    for place in range(len(choices)):
        while choices[place] in taken:
            choices[place] += "_"
    return next((choice for choice in choices if _sort_alike({**pairs, name: choice})), choices[0])


def _sort_alike(pairs: Mapping[str, str]) -> bool:
    return [pairs[name] for name in sorted(pairs)] == sorted(pairs.values())


def _taken(theirs: Theirs) -> set[str]:
    graph = theirs.model.graph
    declared = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    return declared | given_names(graph.node) | used_names(graph.node)
