"""The decision which inputs are states, where it wasn't told: by evidence that stands alone, by names with evidence.

Owns that decision, and the question where it is open. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from onnx import TensorProto

from export.dataflow import Change, Dataflow
from export.pairs import (
    SHOWN,
    TOLD,
    Choice,
    NoStateError,
    StateQuestionError,
    States,
    Values,
    alike_shapes,
    checked,
    declared,
    listed,
    no_state,
    open_tensors,
    rank_alike,
    refuse_contradiction,
    refuse_growth,
)
from export.state_evidence import Evidence, Evidences, Kind, Weight, has_time
from export.state_names import like_a_hidden_state, like_a_running_value, like_a_state, stem, stem_without_number
from export.theirs import Theirs, dims


def settle(theirs: Theirs, asked: Mapping[str, str], plain: Iterable[str]) -> States:
    """The states of a graph: all of `asked` where it isn't empty, else those that the graph has evidence for.

    Raises StateQuestionError where evidence is missing or speaks for two readings, NoStateError where there is no
    state, and WrapError for one that can't be carried.
    """
    inputs, outputs = open_tensors(theirs, plain)
    if not inputs or not outputs:
        raise NoStateError(no_state(inputs, outputs))
    evidences = Evidences(Dataflow(theirs.model.graph), inputs, outputs)
    if asked:
        checked(asked, inputs, outputs)
        for one, other in asked.items():
            refuse_contradiction(evidences, one, other)
            refuse_growth(evidences, one, other)
        return States(dict(asked), dict.fromkeys(asked, TOLD))
    return Pairing(inputs, outputs, evidences, theirs.renamed).settled()


_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


class Pairing:
    """The decision on one graph: evidence that stands alone, then names with evidence, then questions."""

    def __init__(self, inputs: Values, outputs: Values, evidences: Evidences, called: Mapping[str, str]) -> None:
        self.inputs, self.outputs, self.evidences, self.called = inputs, outputs, evidences, called
        self.found = States()
        self.known: dict[tuple[str, str], Evidence] = {}

    def settled(self) -> States:
        """The states; raises StateQuestionError, NoStateError or WrapError."""
        self._take_alone()
        self._refuse_growing()
        self._take_named()
        self._ask_named()
        self._ask_left_over()
        if not self.found.pairs:
            self._ask_without_names()
        order = {one: self.found.pairs[one] for one in self.inputs if one in self.found.pairs}
        return States(order, self.found.evidence)

    def _free(self) -> tuple[Values, Values]:
        pairs = self.found.pairs
        inputs = {name: value for name, value in self.inputs.items() if name not in pairs}
        return inputs, {name: value for name, value in self.outputs.items() if name not in pairs.values()}

    def _evidence(self, one: str, other: str) -> Evidence:
        if (one, other) not in self.known:
            self.known[one, other] = self.evidences.of(one, other)
        return self.known[one, other]

    def _alike(self, one: str, other: str) -> bool:
        return alike_shapes(self.inputs[one], self.outputs[other])

    def _stem(self, name: str) -> tuple[str, ...]:
        return stem(self.called.get(name, name))

    def _called_alike(self, one: str, other: str) -> bool:
        return bool(self._stem(one)) and self._stem(one) == self._stem(other)

    def _take_alone(self) -> None:
        """Pairs that nothing but a state explains."""
        inputs, outputs = self._free()
        pairs = [(one, other) for one in inputs for other in outputs if self._alike(one, other)]
        pairs = [pair for pair in pairs if self._stands_alone(*pair)]
        exact = [pair for pair in pairs if dims(inputs[pair[0]]) == declared(outputs[pair[1]])]
        better = {name for pair in exact for name in pair}
        pairs = [pair for pair in pairs if pair in exact or not better & set(pair)]
        for one, other in pairs:
            rivals = [pair for pair in pairs if pair != (one, other) and (pair[0] == one or pair[1] == other)]
            preferred = self._called_alike(one, other) and not any(self._called_alike(*pair) for pair in rivals)
            if rivals and not preferred:
                continue
            if self._evidence(one, other).kind != Kind.CARRIED and self._named_otherwise(one, other):
                continue
            self.found.add(one, other, str(self._evidence(one, other)))

    def _stands_alone(self, one: str, other: str) -> bool:
        """Whether a node carries it, or it is a window or cache and called so: data that is delayed is shifted, too."""
        evidence = self._evidence(one, other)
        says_so = like_a_state(one) or like_a_state(other)
        return evidence.kind == Kind.CARRIED or (evidence.weight == Weight.ALONE and says_so)

    def _named_otherwise(self, one: str, other: str) -> bool:
        """Whether names propose another partner for either."""
        if self._called_alike(one, other):
            return False
        pairs = [(one, name) for name in self.outputs] + [(name, other) for name in self.inputs]
        return any(self._called_alike(*pair) and self._alike(*pair) for pair in pairs)

    def _proposed(self) -> dict[str, str]:
        """The free pairs that names propose; raises StateQuestionError where they propose two of the same."""
        inputs, outputs = self._free()
        inputs = {name: value for name, value in inputs.items() if like_a_state(name) or not has_time(value)}
        found = self._matched(list(inputs), list(outputs), self._stem)
        rest = [name for name in inputs if name not in found]
        left = [name for name in outputs if name not in found.values()]
        return found | self._matched(rest, left, lambda name: stem_without_number(self.called.get(name, name)))

    def _matched(
        self, inputs: Sequence[str], outputs: Sequence[str], stem_of: Callable[[str], tuple[str, ...]]
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in inputs:
            alike = [other for other in outputs if stem_of(name) and stem_of(other) == stem_of(name)]
            alike = [other for other in alike if self._alike(name, other)]
            if len(alike) > 1:
                raise self._question(
                    f"the successor of {name!r} could be {listed(alike)}: say which, --state {name}=OUT",
                    [{name: other} for other in alike],
                )
            if alike and alike[0] in found.values():
                others = [other for other, successor in found.items() if successor == alike[0]]
                raise self._question(
                    f"{alike[0]!r} could be the successor of {listed([*others, name])}: say --state IN=OUT",
                    [{other: alike[0]} for other in (*others, name)],
                )
            if alike:
                found[name] = alike[0]
        return found

    def _take_named(self) -> None:
        """Pairs that names propose and the graph has evidence for, the best evidence first."""
        proposed = self._proposed()
        for one in sorted(proposed, key=lambda one: -self._evidence(one, proposed[one]).weight):
            other = proposed[one]
            evidence = self._evidence(one, other)
            if self._better_elsewhere(one, other):
                continue
            if self._convinces(one, other, evidence):
                self.found.add(one, other, str(evidence))
            elif like_a_state(one) and self._in_a_formula(one, other, proposed):
                self.found.add(one, other, str(Kind.FORMULA))

    def _convinces(self, one: str, other: str, evidence: Evidence) -> bool:
        """Whether the evidence and what the names say are enough together."""
        says_so = like_a_state(one) or like_a_state(other)
        whole_numbers = self.inputs[one].type.tensor_type.elem_type not in _FLOATS
        if self._stands_alone(one, other) or (evidence.kind == Kind.COUNTED and whole_numbers):
            return True
        if evidence.kind == Kind.UNCHANGED:
            return says_so
        if evidence.kind in {Kind.SUMMED, Kind.FUNCTION, Kind.DELAYED, Kind.COUNTED}:
            return says_so or like_a_running_value(one)
        if evidence.kind == Kind.RECURRED:
            # With another state in the file it could be stateful without this one.
            only = all(why == Kind.RECURRED for why in self.found.evidence.values())
            return only and like_a_hidden_state(one) and like_a_hidden_state(other)
        return evidence.kind in {Kind.GATED, Kind.LOOPED} and says_so

    def _in_a_formula(self, one: str, other: str, proposed: Mapping[str, str]) -> bool:
        """Whether the pair is h beside the c of an LSTM's own formula: h' = o · tanh(c'), and c' depends on h."""
        reached = self.evidences.from_inputs[one]
        for cell, successor in {**proposed, **self.found.pairs}.items():
            if cell != one and self._evidence(cell, successor).kind == Kind.GATED:
                flow = self.evidences.from_inputs[cell].get(other)
                if flow is not None and any(way.gated and way.change == Change.BENT for way in flow.ways):
                    return successor in reached and other in reached
        return False

    def _better_elsewhere(self, one: str, other: str) -> bool:
        """Whether the graph has more to say for another partner of either than for this pair."""
        weight = max(self._evidence(one, other).weight, Weight.ELEMENTWISE)
        inputs, outputs = self._free()
        rivals = [(one, name) for name in outputs if name != other] + [(name, other) for name in inputs if name != one]
        return any(
            self._alike(*pair) and like_a_state(pair[0]) and self._evidence(*pair).weight > weight for pair in rivals
        )

    def _leaves_no_input(self, one: str) -> bool:
        """Whether a stream would have nothing left to send if this were a state too."""
        return not set(self.inputs) - set(self.found.pairs) - {one}

    def _refuse_growing(self) -> None:
        inputs, outputs = self._free()
        for one, value in inputs.items():
            for other, result in outputs.items():
                if rank_alike(value, result) and (like_a_state(one) or self._called_alike(one, other)):
                    refuse_growth(self.evidences, one, other)

    def _ask_named(self) -> None:
        """Raise StateQuestionError where names propose pairs that the graph has no evidence for."""
        doubtful = {one: other for one, other in self._proposed().items() if not self._leaves_no_input(one)}
        if doubtful:
            one, other = next(iter(doubtful.items()))
            raise self._question(
                f"input {one!r} and output {other!r} are called like a state and its successor, and the graph alone"
                f" doesn't say that they are ({self._why(one, other)})",
                [self._by_evidence(doubtful)],
                plain=list(doubtful),
            )

    def _why(self, one: str, other: str) -> str:
        _, outputs = self._free()
        for name in outputs:
            if name != other and self._alike(one, name) and self._evidence(one, name).weight >= Weight.LINEAR:
                return f"its nodes make {name!r} the successor of {one!r}: {self._evidence(one, name)}"
        return str(self._evidence(one, other))

    def _by_evidence(self, proposed: dict[str, str]) -> dict[str, str]:
        """The proposal with partners exchanged where the graph's evidence speaks for others of the same."""
        better = {
            one: max(
                (name for name in proposed.values() if self._alike(one, name)),
                key=lambda name: (self._evidence(one, name).weight >= Weight.LINEAR, name == proposed[one]),
            )
            for one in proposed
        }
        left = [name for name in proposed.values() if name not in better.values()]
        twice = [one for one in better if list(better.values()).count(better[one]) > 1]
        for one in twice:  # the one without evidence takes what is left
            if left and self._evidence(one, better[one]).weight < Weight.LINEAR:
                better[one] = left.pop(0)
        return better if len(set(better.values())) == len(better) else proposed

    def _ask_left_over(self) -> None:
        """Raise StateQuestionError where an input or output is called like a state, and may have its counterpart."""
        inputs, outputs = self._free()
        for name, value in inputs.items():
            if self._leaves_no_input(name):
                continue
            cell = self.evidences.cell_after(name)
            if cell is not None:
                raise self._cut_off(name, cell.step.op, cell.name)
            alike = [other for other in outputs if self._alike(name, other)]
            moved = [other for other in alike if self._evidence(name, other).weight == Weight.ALONE]
            if moved and not has_time(value):
                raise self._question(
                    f"output {moved[0]!r} could be the next value of input {name!r} ({self._evidence(name, moved[0])}),"
                    f" or data that the graph delays or changes: say --state {name}={moved[0]} (and every other pair),"
                    f" or --input {name} if it is no state",
                    [{name: moved[0]}],
                    plain=[name],
                )
            if alike and like_a_state(name):
                raise self._question(
                    f"input {name!r} looks like a state, and its successor could be {listed(alike)}: say --state"
                    f" {name}=OUT (and every other pair), or --input {name} if it is no state",
                    [{name: other} for other in alike[:SHOWN]],
                    plain=[name],
                )
            told = [other for other in alike if like_a_state(other) and self._evidence(name, other).weight]
            if told and self.found.pairs and not has_time(value):
                raise self._question(
                    f"output {told[0]!r} looks like a state, and input {name!r} could be what it was before: say"
                    f" --state {name}={told[0]} (and every other pair), or --input {name} if it is no state",
                    [{name: told[0]}],
                    plain=[name],
                )

    def _cut_off(self, name: str, op: str, node: str) -> StateQuestionError:
        """A node begins from an input, and gives its last state to no output."""
        message = (
            f"input {name!r} is the initial state of the {op} node {node!r}, whose last state is none of the outputs:"
            f" say --connect {node} to carry it from step to step, or --input {name} to send it with every step"
        )
        choices = [Choice("carried", ("--connect", node)), Choice("sent", ("--input", name))]
        return StateQuestionError(message, choices)

    def _ask_without_names(self) -> None:
        """Raise StateQuestionError where the graph proposes pairs that no name speaks for, else NoStateError."""
        message = no_state(self.inputs, self.outputs)
        found = [
            (-self._evidence(one, other).weight, one, other)
            for one, value in self.inputs.items()
            for other in self.outputs
            if self._alike(one, other) and not has_time(value)
        ]
        proposed: dict[str, str] = {}
        for weight, one, other in sorted(found):
            free = one not in proposed and other not in proposed.values()
            if free and -weight >= Weight.LINEAR and len(proposed) + 1 < min(len(self.inputs), len(self.outputs)):
                proposed[one] = other
        if not proposed:
            raise NoStateError(message)
        readings = self._with_formulas(proposed)
        if len(readings) == 1 and all(self._speaks_alone(one, other) for one, other in readings[0].items()):
            for one, other in readings[0].items():
                self.found.add(one, other, str(self._evidence(one, other)))
            return
        raise self._question(message, readings)

    def _speaks_alone(self, one: str, other: str) -> bool:
        """Whether a gated sum is all there is to go by: the input has no name, and no other pair is possible."""
        gated = self._evidence(one, other).kind == Kind.GATED
        rivals = [name for name in self.outputs if name != other and self._alike(one, name)]
        return gated and not self._stem(one) and not rivals

    def _with_formulas(self, cells: dict[str, str]) -> list[dict[str, str]]:
        """The readings of pairs that may be the c of an LSTM's formula, each with an h that is possible."""
        free = (set(names) - {*cells, *cells.values()} for names in self._free())
        inputs, outputs = (sorted(names) for names in free)
        pairs = [
            (one, other)
            for one in inputs
            for other in outputs
            if self._alike(one, other) and self._in_a_formula(one, other, cells)
        ]
        readings = [{**cells, one: other} for one, other in pairs if len(cells) + 1 < len(self.inputs)]
        return readings[:SHOWN] or [cells]

    def _question(
        self, message: str, readings: Sequence[Mapping[str, str]], plain: Sequence[str] = ()
    ) -> StateQuestionError:
        """The question with one choice for each reading (what are states besides those found) and one for none."""
        choices = []
        for reading in readings:
            pairs = {**self.found.pairs, **reading}
            if set(self.inputs) - set(pairs):
                names = " and ".join(repr(name) for name in reading)
                options = tuple(word for one, other in pairs.items() for word in ("--state", f"{one}={other}"))
                meaning = f"{names} as state" if len(reading) == 1 else f"{names} as states"
                choices.append(Choice(meaning, options))
        if plain:
            names = " and ".join(repr(name) for name in plain)
            choices.append(Choice(f"{names} sent with every step", tuple(w for n in plain for w in ("--input", n))))
        return StateQuestionError(message, choices)
