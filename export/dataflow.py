"""The ways of values through an ONNX graph: from one tensor to all that follow, and what happens to it on the way.

Owns the kinds of ways. Branches of an If are walked as if both were taken; loops are opaque. Knows no names' meaning.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from export.subgraphs import graphs_of, used_names

_SMALL = 8  # axes of a cut
JOIN = "Join"  # of an If's two branches: then, else, condition


class Form(IntEnum):
    """What has become of a tensor's elements."""

    WHOLE = 0
    FRONT = 1  # the first of them
    BACK = 2  # others than the first
    FOLLOWED = 3  # all of them, with others behind
    PRECEDED = 4  # all of them, with others in front
    REBUILT = 5  # a part of them at its place, with others beside it
    SHIFTED = 6  # a part of them at another place, with others beside it


GROWN = frozenset({Form.FOLLOWED, Form.PRECEDED})
SAME_SIZE = frozenset({Form.WHOLE, Form.REBUILT, Form.SHIFTED})


class Change(IntEnum):
    """What has become of the elements' values."""

    COPIED = 0
    SCALED = 1  # times a factor, or masked
    WRITTEN = 2  # some overwritten at given positions
    ADDED = 3  # others added to them, or the like
    BENT = 4  # through a function that isn't linear


class Way(NamedTuple):
    """An elementwise way: each element comes from an element of the source."""

    form: Form
    change: Change
    gated: bool  # through a factor between 0 and 1 that the graph computes


@dataclass(slots=True)
class Flow:
    """All ways from the source to one tensor."""

    ways: set[Way] = field(default_factory=set)
    mixed: bool = False  # also a way through a product of matrices, a convolution, a sum over elements, an index

    def __or__(self, other: Flow) -> Flow:
        return Flow(self.ways | other.ways, self.mixed or other.mixed)


@dataclass(frozen=True, slots=True)
class Step:
    """A node with names that are its own in all of the flattened graph."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    node: NodeProto | None = None
    outer: bool = True  # not from inside a branch


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


LAYOUT = _ops(
    "Identity Cast CastLike Reshape Transpose Squeeze Unsqueeze Flatten Expand Tile Dropout QuantizeLinear"
    " DequantizeLinear Upsample Pad"
)
_CUTTING = _ops("Slice Split Gather GatherElements GatherND SplitToSequence")
_JOINING = _ops("Concat")
_SCALING = _ops("Mul Div Neg Not And")
ADDING = _ops("Add Sub Sum Mean Or Xor Max Min Mod Clip BitwiseAnd BitwiseOr BitwiseXor")
BENDING = _ops(
    "Tanh Sigmoid Relu LeakyRelu Elu Selu Celu Gelu Softplus Softsign HardSigmoid HardSwish Mish PRelu Exp Log Sqrt Abs"
    " Sign Floor Ceil Round Erf Pow Reciprocal Sin Cos Equal Greater Less GreaterOrEqual LessOrEqual ThresholdedRelu"
    " IsNaN Swish"
)
PRODUCTS = _ops("MatMul Gemm")
_SCATTERING = _ops("ScatterND ScatterElements Scatter TensorScatter")
_SHAPES = frozenset({"Shape", "Size"})  # no value flows through these
_GATES = frozenset({"Sigmoid", "HardSigmoid", "Exp", "Softmax", "Clip"})
_FACTORS = _ops("Mul MatMul")  # zero where any input is
_TERMS = _ops("Add Sub Sum Mean Concat Or Max Min")  # zero where all are
_ZERO_KEEPING = _ops(
    "Tanh Relu LeakyRelu Elu Selu Celu Gelu Softsign HardSwish Mish PRelu Sqrt Abs Sign Neg Div ReduceSum ReduceMean"
)


class Dataflow:
    """A graph, flattened, and the flows in it."""

    def __init__(self, graph: GraphProto) -> None:
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.steps = list(_flattened(graph.node, {}, [0]))
        self._constants = dict(_small_constants(graph, self.steps))
        self._takers: dict[str, list[int]] = defaultdict(list)
        for place, step in enumerate(self.steps):
            for name in dict.fromkeys(step.inputs):
                self._takers[name].append(place)
        self.makers = {name: step for step in self.steps for name in step.outputs if name}
        self._flows: dict[str, dict[str, Flow]] = {}
        self._sources: dict[str, set[str]] = {}
        self._zeros: dict[str, set[str]] = {}

    def flows(self, source: str) -> dict[str, Flow]:
        """What reaches each tensor from the source, itself included; tensors that nothing reaches are left out."""
        if source not in self._flows:
            self._flows[source] = self._walked(source)
        return self._flows[source]

    def _walked(self, source: str) -> dict[str, Flow]:
        found = {source: Flow({Way(Form.WHOLE, Change.COPIED, gated=False)})}
        waiting = list(self._takers[source])
        heapq.heapify(waiting)
        seen = set(waiting)
        while waiting:
            step = self.steps[heapq.heappop(waiting)]
            for place, name in enumerate(step.outputs):
                flow = self._through(step, found, place)
                if not name or not (flow.ways or flow.mixed):
                    continue
                found[name] = flow
                for taker in self._takers[name]:
                    if taker not in seen:
                        seen.add(taker)
                        heapq.heappush(waiting, taker)
        return found

    def stay_zero(self, source: str) -> set[str]:
        """The tensors that are zero whenever that one is, whatever the others are."""
        if source not in self._zeros:
            known = self._zeros[source] = {source}
            for step in self.steps:
                if _is_zero(step, [name in known for name in step.inputs]):
                    known.update(step.outputs)
        return self._zeros[source]

    def sources(self, name: str) -> set[str]:
        """The inputs of the graph that a tensor's values depend on."""
        if name not in self._sources:
            self._sources[name] = self._looked_for(name)
        return self._sources[name]

    def _looked_for(self, name: str) -> set[str]:
        found, waiting, seen = set[str](), [name], set[str]()
        inputs = set(self.inputs)
        while waiting:
            wanted = waiting.pop()
            if wanted in seen:
                continue
            seen.add(wanted)
            if wanted in inputs:
                found.add(wanted)
            maker = self.makers.get(wanted)
            if maker is not None and maker.op not in _SHAPES:
                waiting += maker.inputs[1:] if maker.op == "CastLike" else maker.inputs
        return found

    def _through(self, step: Step, found: dict[str, Flow], output: int) -> Flow:
        """What reaches one output of a step."""
        flow = Flow()
        for place, name in enumerate(step.inputs):
            if name in found:
                flow = flow | self._one(step, place, found[name], output)
        return flow

    def _one(self, step: Step, place: int, flow: Flow, output: int) -> Flow:
        """What a flow into one input of a step is at one of its outputs."""
        op = step.op
        if op in _SHAPES:
            return Flow()
        elementwise = (
            op in _JOINING | _SCALING | ADDING | BENDING
            or (op in LAYOUT | _CUTTING | _SCATTERING and place == 0)
            or (op == "Where" and place > 0)
            or (op == JOIN and place < len(step.inputs) - 1)
            or (op == "Gemm" and place == 2)
        )
        if not elementwise or (op == "Clip" and place > 0):
            return Flow(mixed=True)
        others = [name for at, name in enumerate(step.inputs) if at != place]
        gate = op == "Mul" and any(self._is_gate(name) for name in others)
        if op == "Concat" and not any(self.sources(name) for name in others):
            op = "Identity"  # nothing but constants beside it
        if op in _SCATTERING and not any(self.sources(name) for name in step.inputs[1:2]):
            op = "Add"  # always the same elements are overwritten
        first = place == 0
        if op in _CUTTING:
            front = output == 0 if step.op == "Split" else self._cuts_front(step)
            return Flow({_cut_way(way, front=front) for way in flow.ways}, flow.mixed)
        return Flow({_changed(way, op, gated=gate, first=first) for way in flow.ways}, flow.mixed)

    def _cuts_front(self, step: Step) -> bool:
        """Whether a Slice or Gather takes the first elements."""
        name = step.inputs[1] if len(step.inputs) > 1 else ""
        tensor = self._constants.get(name)
        return tensor is not None and tensor.size > 0 and not np.any(tensor)

    def _is_gate(self, name: str) -> bool:
        """Whether a factor is one between 0 and 1 that depends on what is computed, or 1 less such a one."""
        for _ in range(4):
            maker = self.makers.get(name)
            if maker is None:
                return False
            if maker.op in _GATES:
                return True
            if maker.op == "Sub":
                name = maker.inputs[1]
            elif maker.op in LAYOUT | _CUTTING:
                name = maker.inputs[0]
            else:
                return False
        return False


def _cut_way(way: Way, *, front: bool) -> Way:
    form = Form.FRONT if front else Form.BACK
    if way.form in GROWN:
        form = Form.REBUILT if front == (way.form == Form.FOLLOWED) else Form.SHIFTED
    elif way.form in {Form.REBUILT, Form.SHIFTED}:
        form = way.form
    return way._replace(form=form)


def _changed(way: Way, op: str, *, gated: bool, first: bool) -> Way:
    form, change = way.form, way.change
    if op in _JOINING:
        if form == Form.WHOLE:
            form = Form.FOLLOWED if first else Form.PRECEDED
        elif form in {Form.FRONT, Form.BACK}:
            form = Form.REBUILT if first == (form == Form.FRONT) else Form.SHIFTED
    elif op in _SCALING or op == "Where":
        change = max(change, Change.SCALED)
    elif op in _SCATTERING:
        change = max(change, Change.WRITTEN)
    elif op in ADDING or op == "Gemm":
        change = max(change, Change.ADDED)
    elif op in BENDING:
        change = Change.BENT
    return Way(form, change, way.gated or gated)


def _is_zero(step: Step, zeros: Sequence[bool]) -> bool:
    """Whether a step gives nothing but zeros, by which of its inputs are zero."""
    op = step.op
    if op in _FACTORS:
        return any(zeros)
    if op in _TERMS:
        return all(zeros)
    if op in {"Where", JOIN}:
        return all(zeros[1:] if op == "Where" else zeros[:-1])
    bare = op in {"Conv", "ConvTranspose"} and len(zeros) == len(("X", "W"))
    return zeros[:1] == [True] and (bare or op in LAYOUT | _CUTTING | _ZERO_KEEPING)


def _small_constants(graph: GraphProto, steps: Iterable[Step]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The integers that say where something is cut."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT64 and math.prod(tensor.dims) <= _SMALL:
            yield tensor.name, numpy_helper.to_array(tensor)
    for step in steps:
        if step.op == "Constant" and step.node is not None:
            for value in step.node.attribute:
                if value.name == "value" and value.t.data_type == TensorProto.INT64:
                    yield step.outputs[0], numpy_helper.to_array(value.t)
                elif value.name in {"value_int", "value_ints"}:
                    numbers = [value.i] if value.name == "value_int" else list(value.ints)
                    yield step.outputs[0], np.asarray(numbers)


def _flattened(
    nodes: Iterable[NodeProto], names: dict[str, str], counter: list[int], *, outer: bool = True
) -> Iterator[Step]:
    """The nodes with those of branches before the Join of their outputs."""

    def called(name: str) -> str:
        return names.get(name, name)

    for node in nodes:
        inputs = tuple(called(name) for name in node.input)
        outputs = tuple(called(name) for name in node.output)
        if node.op_type == "If":
            given: list[list[str]] = []
            for branch in graphs_of(node):
                counter[0] += 1
                inside = {name: f"{name}@{counter[0]}" for one in branch.node for name in one.output if name}
                inside |= {tensor.name: f"{tensor.name}@{counter[0]}" for tensor in branch.initializer}
                scope = names | inside
                yield from _flattened(branch.node, scope, counter, outer=False)
                given.append([scope.get(value.name, value.name) for value in branch.output])
            for place, name in enumerate(outputs):
                yield Step(JOIN, (*(branch[place] for branch in given), *inputs), (name,), outer=False)
            continue
        if any(True for _ in graphs_of(node)):
            captured = {name for graph in graphs_of(node) for name in used_names(graph.node)}
            inputs = (*inputs, *(called(name) for name in sorted(captured) if called(name) not in inputs))
        yield Step(node.op_type, inputs, outputs, node, outer)
