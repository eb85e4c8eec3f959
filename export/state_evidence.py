"""What a graph itself says of its states: which output is the next value of which input, and how that shows.

Owns the kinds of evidence, and which of them stand alone. Knows no names' meaning: `pairs` has that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from onnx import ValueInfoProto

from export.dataflow import ADDING, BENDING, GROWN, LAYOUT, PRODUCTS, SAME_SIZE, Change, Dataflow, Flow, Form, Step, Way
from export.resident import RECURRENT
from export.rewriting import attribute
from export.theirs import Dim, dims

CELLS = RECURRENT | {"DynamicQuantizeLSTM", "AttnLSTM"}  # all have their states at the same places
LOOP = "Loop"  # may also refine a value within one step, so its own is less evidence than a Scan's over a sequence
CELL_STATES = {5: 1, 6: 2}  # initial_h -> Y_h, initial_c -> Y_c: places among inputs and outputs
# Operators that append to a cache themselves: places of caches among inputs, and of their successors among outputs.
_GROWING = {
    ("Attention", ""): {4: 1, 5: 2},
    ("Attention", "com.microsoft"): {4: 1},
    ("MultiHeadAttention", "com.microsoft"): {6: 1, 7: 2},
    ("GroupQueryAttention", "com.microsoft"): {3: 1, 4: 2},
}


class Weight(IntEnum):
    """How much a piece of evidence says."""

    NONE = 0
    DEPENDS = 1  # the output depends on the input, as it may on any
    ELEMENTWISE = 2  # element by element, but as a mask, a correction or an unchanged copy would too
    BENT = 3  # element by element through a function that isn't linear: for the next two, a name must say state too
    LINEAR = 4  # what states do, and what other tensors may do
    ALONE = 5  # carried by a node; or shifted or overwritten, as delayed data are, too: a name must say state


class Kind(StrEnum):
    """What the graph does with the input."""

    NOTHING = "the output doesn't depend on the input"
    MIXED = "the output depends on the input, as it may on any"
    FACTOR = "the input times a factor: a state that is zero once would be zero for ever"
    CORRECTED = "the input plus what is computed from it"
    UNCHANGED = "the input, handed on as it is"
    COUNTED = "a count that depends on itself alone"
    DELAYED = "a delay: a copy from another input"
    FUNCTION = "a function of it, element by element, and of what the other inputs give"
    SUMMED = "a sum of it, element by element, and of what the other inputs give"
    GATED = "a gated sum: a share of it, element by element, and new values"
    RECURRED = "a plain RNN's formula: a function of a product of it, plus what other inputs give"
    FORMULA = "an LSTM's formula: a gate times a function of the next cell state, which depends on it"
    SHIFTED = "a window that is shifted: a part of it beside new values"
    WRITTEN = "a cache of which some elements are overwritten"
    LOOPED = "a loop's value that is carried through it"
    CARRIED = "carried by a recurrent node"


_WEIGHTS = {
    Kind.NOTHING: Weight.NONE,
    Kind.MIXED: Weight.DEPENDS,
    **dict.fromkeys((Kind.FUNCTION, Kind.RECURRED), Weight.BENT),
    **dict.fromkeys((Kind.COUNTED, Kind.DELAYED, Kind.SUMMED, Kind.GATED, Kind.FORMULA, Kind.LOOPED), Weight.LINEAR),
    **dict.fromkeys((Kind.SHIFTED, Kind.WRITTEN, Kind.CARRIED), Weight.ALONE),
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a pair; `by` is the node that carries it."""

    kind: Kind
    by: str = ""

    @property
    def weight(self) -> Weight:
        """How much it says."""
        return _WEIGHTS.get(self.kind, Weight.ELEMENTWISE)

    def __str__(self) -> str:
        return self.by or str(self.kind)


@dataclass(frozen=True, slots=True)
class Cell:
    """A node that carries a state through its sequence: where that comes in and goes out."""

    step: Step
    first: str  # "" where it begins by itself
    last: str  # "" where it isn't given
    what: str

    @property
    def name(self) -> str:
        """The node's name."""
        return self.step.node.name if self.step.node is not None else ""


class Evidences:
    """The evidence for every pair of an input and an output of a graph."""

    def __init__(self, flow: Dataflow, inputs: Mapping[str, ValueInfoProto], outputs: Iterable[str]) -> None:
        self.flow = flow
        self.values = inputs
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.from_inputs = {name: flow.flows(name) for name in self.inputs}
        self.cells = list(_cells(flow))
        self.carried = self._carried(cell for cell in self.cells if cell.step.op != LOOP)
        self.looped = self._carried(cell for cell in self.cells if cell.step.op == LOOP)

    def of(self, one: str, other: str) -> Evidence:
        """What says that the output `other` is the next value of the input `one`."""
        if (one, other) in self.carried:
            return Evidence(Kind.CARRIED, self.carried[one, other])
        flow = self.from_inputs[one].get(other)
        return Evidence(self._delay(one, other) if flow is None else self._elementwise(one, other, flow))

    def grows(self, one: str, other: str) -> str | None:
        """What makes the output a longer copy of the input; None where nothing does."""
        flow = self.from_inputs[one].get(other)
        ways = set() if flow is None or flow.mixed else flow.ways
        if ways and all(way.form in GROWN and way.change <= Change.SCALED for way in ways):
            return "Concat"
        for step in self.flow.steps:
            domain = step.node.domain if step.node is not None else ""
            for taken, given in _GROWING.get((step.op, "" if domain == "ai.onnx" else domain), {}).items():
                if taken < len(step.inputs) and given < len(step.outputs) and self._shares_no_buffer(step):
                    into, out = self._into(one, step.inputs[taken]), self.flow.flows(step.outputs[given]).get(other)
                    if into and out is not None and _carries(out) is not None:
                        return step.op
        return None

    def cell_after(self, one: str) -> Cell | None:
        """The recurrent node that begins from the input, if its last state is none of the outputs."""
        for cell in self.cells:
            if self._into(one, cell.first) == 1 and not any(
                _carries(self.flow.flows(cell.last).get(other)) for other in self.outputs
            ):
                return cell
        return None

    def _shares_no_buffer(self, step: Step) -> bool:
        return step.node is None or not attribute(step.node, "past_present_share_buffer", 0)

    def _into(self, one: str, name: str) -> int | None:
        """How directly an input becomes that tensor: 1 unchanged, 2 scaled or masked; None where it doesn't."""
        return _carries(self.from_inputs[one].get(name)) if name else None

    def _carried(self, cells: Iterable[Cell]) -> dict[tuple[str, str], str]:
        """The pairs that a recurrent node or a loop takes and gives, but for those that a better one excludes."""
        found: dict[tuple[str, str], tuple[int, str]] = {}
        for cell in cells:
            firsts = {one: rank for one in self.inputs if (rank := self._into(one, cell.first))}
            if not firsts or not cell.last:
                continue
            reached = self.flow.flows(cell.last)
            for other in self.outputs:
                rank = _carries(reached.get(other))
                for one, own in firsts.items():
                    if rank and (one, other) not in found:
                        found[one, other] = (rank + own, cell.what)
        return {
            pair: what
            for pair, (rank, what) in found.items()
            if not any(
                better < rank and (other[0] == pair[0] or other[1] == pair[1])
                for other, (better, _) in found.items()
                if other != pair
            )
        }

    def _delay(self, one: str, other: str) -> Kind:
        """What speaks for a pair whose input doesn't reach the output: that this is a piece of another input."""
        for name in self.inputs:
            flow = self.from_inputs[name].get(other)
            ways = set() if name == one or flow is None or flow.mixed else flow.ways
            if ways and all(way.change == Change.COPIED for way in ways):
                return Kind.DELAYED
        return Kind.NOTHING

    def _elementwise(self, one: str, other: str, flow: Flow) -> Kind:
        """What speaks for a pair whose input reaches the output."""
        # A sum may be over all of a chunk's steps, of which the last is cut out.
        ways = {way for way in flow.ways if way.form in SAME_SIZE or way.change >= Change.ADDED}
        if not ways and (one, other) in self.looped:
            return Kind.LOOPED
        if not ways:
            return Kind.RECURRED if self._recurs(one, other) else Kind.MIXED
        if any(w.form == Form.SHIFTED and w.change <= Change.SCALED for w in ways) and not self._packed(one):
            return Kind.SHIFTED
        if any(way.change == Change.WRITTEN for way in ways):
            return Kind.WRITTEN
        if self.flow.sources(other) == {one} and not flow.mixed and all(w.change <= Change.ADDED for w in ways):
            return Kind.COUNTED if any(way.change > Change.SCALED for way in ways) else Kind.UNCHANGED
        return Kind.FACTOR if other in self.flow.stay_zero(one) else _sum_of(ways, mixed=flow.mixed)

    def _recurs(self, one: str, other: str) -> bool:
        """Whether the output is f(W x + R h + b), with the input for h: one product deep, and what it gives itself."""
        bent, step = False, self.flow.makers.get(other)
        while step is not None and (step.op in LAYOUT or step.op in BENDING):
            bent = bent or step.op in BENDING
            step = self.flow.makers.get(step.inputs[0])
        if step is None or not bent or not self.flow.sources(other) - {one}:
            return False
        terms = [step]
        while terms:
            term = terms.pop()
            if term.op in PRODUCTS and self._into(one, term.inputs[0]) == 1:
                return True
            if term.op in ADDING or term.op in LAYOUT:
                terms += [self.flow.makers[name] for name in term.inputs if name in self.flow.makers]
        return False

    def _packed(self, one: str) -> bool:
        """Whether its parts are states of recurrent nodes: what else is copied from it says little then."""
        return any(first == one for first, _ in self.carried)


def _sum_of(ways: Iterable[Way], *, mixed: bool) -> Kind:
    """What an output is that has terms without the input."""
    added = {way for way in ways if way.change == Change.ADDED}
    if any(way.gated for way in added):
        return Kind.GATED
    if mixed:
        return Kind.CORRECTED
    return Kind.SUMMED if added else Kind.FUNCTION


def has_time(value: ValueInfoProto) -> bool:
    """Two free axes are more than a state has."""
    return sum(not isinstance(size, int) for size in _sizes(value)) > 1


def _sizes(value: ValueInfoProto) -> Sequence[Dim]:
    return dims(value) if value.type.tensor_type.HasField("shape") else []


def _carries(flow: Flow | None) -> int | None:
    if flow is None:
        return None
    for most in (Change.COPIED, Change.SCALED):
        if any(way.change <= most for way in flow.ways):
            return 1 + most
    return None


def _cells(flow: Dataflow) -> Iterable[Cell]:
    """The states of recurrent nodes, and what loops carry."""
    for step in flow.steps:
        label = f"{step.op} node {step.node.name!r}" if step.node is not None else step.op
        if step.op in CELLS:
            for taken, given in CELL_STATES.items():
                if taken - 4 < len(step.outputs) or taken < len(step.inputs):
                    if taken == 6 and step.op in {"GRU", "RNN"}:
                        continue
                    first, last = _at(step.inputs, taken), _at(step.outputs, given)
                    name = "h" if given == 1 else "c"
                    yield Cell(step, first, last, f"{label}: initial_{name} and Y_{name}")
        elif step.op in {LOOP, "Scan"} and step.node is not None:
            skipped = 2 if step.op == LOOP else 0
            scanned = attribute(step.node, "num_scan_inputs", 0) if step.op == "Scan" else 0
            for place in range(len(step.node.input) - skipped - scanned):
                yield Cell(step, step.inputs[skipped + place], _at(step.outputs, place), f"{label} carries it")


def _at(names: Sequence[str], place: int) -> str:
    return names[place] if place < len(names) else ""
