"""Which inputs of a graph are states, and which outputs their successors: by what was asked, or by evidence and names.

Owns that decision, and the question where it is open: names and shapes only propose. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ValueInfoProto

from export.dataflow import Change
from export.state_evidence import CELLS, Evidences
from export.state_names import stem
from export.theirs import Dim, Theirs, WrapError, dims, dtype

TOLD = "as told"
SHOWN = 8
Values = dict[str, ValueInfoProto]


@dataclass(frozen=True, slots=True)
class Choice:
    """One reading of a graph: what it takes the tensors for, and the options that say so."""

    meaning: str
    options: tuple[str, ...]


class StateQuestionError(WrapError):
    """What is a state is open; `choices` are the readings, each with the options that settle it."""

    def __init__(self, message: str, choices: Sequence[Choice]) -> None:
        super().__init__(message)
        self.choices = tuple(choices)


class NoStateError(WrapError):
    """Nothing in the graph is a state, or looks like one."""


@dataclass(slots=True)
class States:
    """State input -> state output, and for each input what says so."""

    pairs: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)

    def add(self, one: str, other: str, why: str) -> None:
        """Take a pair for a state."""
        self.pairs[one], self.evidence[one] = other, why


def find_pairs(theirs: Theirs, asked: Mapping[str, str], plain: Iterable[str]) -> dict[str, str]:
    """State input -> state output in the inputs' order: what was asked, and what says whether a sequence starts.

    `plain` inputs are none. Raises WrapError for a pair that can't be.
    """
    inputs, outputs = open_tensors(theirs, plain)
    pairs = checked(asked, inputs, outputs) | theirs.starts
    return {value.name: pairs[value.name] for value in theirs.inputs if value.name in pairs}


def open_tensors(theirs: Theirs, plain: Iterable[str]) -> tuple[Values, Values]:
    """The inputs that may be states, and the outputs that may be successors."""
    excluded = {*plain, *theirs.starts}
    inputs = {value.name: value for value in theirs.inputs if value.name not in excluded}
    return inputs, {value.name: value for value in theirs.outputs if value.name not in theirs.starts.values()}


def checked(asked: Mapping[str, str], inputs: Values, outputs: Values) -> dict[str, str]:
    """The pairs that are asked; raises WrapError for one that names nothing, or tensors of two dtypes."""
    for name, successor in asked.items():
        for kind, wanted, there in (("input", name, inputs), ("output", successor, outputs)):
            if wanted not in there:
                raise WrapError(f"--state {name}={successor}: no {kind} is called {wanted!r}, only {listed(there)}")
        if dtype(inputs[name]) != dtype(outputs[successor]):
            raise WrapError(
                f"--state {name}={successor}: {dtype(inputs[name])} goes in, {dtype(outputs[successor])} comes out"
            )
    if len(set(asked.values())) < len(asked):
        raise WrapError("--state: one output can't be the successor of two inputs")
    return dict(asked)


def refuse_contradiction(evidences: Evidences, one: str, other: str) -> None:
    """Raise WrapError where an output is the last state of a node that doesn't begin from the input."""
    for cell in evidences.cells:
        if cell.step.op not in CELLS or not cell.last or evidences.flow.sources(cell.first):
            continue
        reached = evidences.flow.flows(cell.last).get(other)
        if reached is not None and not reached.mixed and any(way.change == Change.COPIED for way in reached.ways):
            raise WrapError(
                f"--state {one}={other}: {other!r} is the last state of the {cell.step.op} node {cell.name!r}, which"
                " begins anew at every call (its initial state is no input); leave --state out, and its own state is"
                " connected"
            )


def refuse_growth(evidences: Evidences, one: str, other: str) -> None:
    """Raise WrapError where the output is a longer copy of the input."""
    by = evidences.grows(one, other)
    if by is not None:
        raise WrapError(
            f"input {one!r} is a cache that grows: output {other!r} is all of it with new steps appended ({by}), and a"
            " stream's state has one size; export the model with a cache of fixed length, a window that is shifted or a"
            " buffer that is written at a position"
        )


def no_state(inputs: Iterable[str], outputs: Iterable[str]) -> str:
    """The text of a refusal where nothing is a state."""
    return (
        f"no state found: inputs {listed(list(inputs))}, outputs {listed(list(outputs))}; say which output is the"
        " successor of which input: --state IN=OUT"
    )


def _called_alike(one: str, other: str) -> bool:
    return bool(stem(one)) and stem(one) == stem(other)


def alike_shapes(one: ValueInfoProto, other: ValueInfoProto) -> bool:
    """Same dtype and rank, and no two fixed sizes that differ."""
    if one.type.tensor_type.elem_type != other.type.tensor_type.elem_type:
        return False
    if not other.type.tensor_type.HasField("shape"):
        return True
    first, second = dims(one), dims(other)
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def rank_alike(one: ValueInfoProto, other: ValueInfoProto) -> bool:
    """Same dtype and rank."""
    if one.type.tensor_type.elem_type != other.type.tensor_type.elem_type:
        return False
    return not other.type.tensor_type.HasField("shape") or len(dims(one)) == len(dims(other))


def declared(value: ValueInfoProto) -> list[Dim] | None:
    """The declared shape, if there is one."""
    return dims(value) if value.type.tensor_type.HasField("shape") else None


def listed(names: Mapping[str, object] | Sequence[str]) -> str:
    """The first names of several, quoted."""
    shown = [repr(name) for name in list(names)[:SHOWN]]
    return ", ".join(shown) + (", …" if len(names) > SHOWN else "")
