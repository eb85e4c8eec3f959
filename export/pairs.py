"""Which inputs of a graph are states, and which outputs their successors: by what was asked, by names, by shapes.

Owns the guess and its refusal where two guesses are as good. Runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from onnx import ValueInfoProto

from export.resident import RECURRENT
from export.theirs import Theirs, WrapError, dims, dtype

# Words that tell before from after, or say nothing.
_SIDES = frozenset(
    re.findall(
        r"\w+",
        "in out input output next new prev previous old past present initial init final last current cur updated"
        " x y o i",
    )
)
_WEAK_SIDES = frozenset({"n", "t"})  # likewise, but a name of their own where nothing else is left
_LETTER_AND_SIDE = re.compile(r"([hcs])[ntxyio]")  # hn, cx, …
_LIKE_A_STATE = re.compile(r"(^|[^a-z])(h|c|hidden|cell|state|cache|memory|carry)($|[^a-z])")
_RECURRENT_STATES = {5: 1, 6: 2}  # initial_h -> Y_h, initial_c -> Y_c: places among inputs and outputs
_SHOWN = 8


def find_pairs(theirs: Theirs, asked: Mapping[str, str], plain: Sequence[str]) -> dict[str, str]:
    """State input -> state output; `asked` is all of them where it isn't empty, `plain` inputs are none.

    What says whether a sequence starts is a state besides those.

    Raises WrapError where names and shapes leave a choice, naming the option that settles it.
    """
    inputs = {value.name: value for value in theirs.inputs if value.name not in (*plain, *theirs.starts)}
    outputs = {value.name: value for value in theirs.outputs if value.name not in theirs.starts.values()}
    pairs = _checked(asked, inputs, outputs) if asked else _guessed(theirs, inputs, outputs)
    if not pairs and not theirs.starts:
        raise WrapError(
            f"no state found: inputs {_listed(inputs)}, outputs {_listed(outputs)}; say which output is the successor"
            " of which input: --state IN=OUT"
        )
    doubtful = [name for name in inputs if name not in pairs and _LIKE_A_STATE.search(name.lower())]
    free = {name: value for name, value in outputs.items() if name not in pairs.values()}
    for name in doubtful:
        alike = [other for other, value in free.items() if _alike(inputs[name], value)]
        if alike and not asked:
            raise WrapError(
                f"input {name!r} looks like a state, and its successor could be {_listed(alike)}: say --state"
                f" {name}=OUT (and every other pair), or --input {name} if it is no state"
            )
    pairs = pairs | theirs.starts
    return {value.name: pairs[value.name] for value in theirs.inputs if value.name in pairs}


def _checked(
    asked: Mapping[str, str], inputs: Mapping[str, ValueInfoProto], outputs: Mapping[str, ValueInfoProto]
) -> dict[str, str]:
    for name, successor in asked.items():
        for kind, wanted, there in (("input", name, inputs), ("output", successor, outputs)):
            if wanted not in there:
                raise WrapError(f"--state {name}={successor}: no {kind} is called {wanted!r}, only {_listed(there)}")
        if dtype(inputs[name]) != dtype(outputs[successor]):
            raise WrapError(
                f"--state {name}={successor}: {dtype(inputs[name])} goes in, {dtype(outputs[successor])} comes out"
            )
    if len(set(asked.values())) < len(asked):
        raise WrapError("--state: one output can't be the successor of two inputs")
    return dict(asked)


def _guessed(
    theirs: Theirs, inputs: Mapping[str, ValueInfoProto], outputs: Mapping[str, ValueInfoProto]
) -> dict[str, str]:
    pairs = _wired(theirs)
    for stem in (_stem, _stem_without_number):
        pairs |= _by_names(inputs, outputs, pairs, stem)
    return pairs or _by_shapes(inputs, outputs)


def _wired(theirs: Theirs) -> dict[str, str]:
    """States that a recurrent node takes and gives itself."""
    inputs = {value.name for value in theirs.inputs}
    outputs = {value.name for value in theirs.outputs}
    found = {}
    for node in theirs.model.graph.node:
        if node.op_type in RECURRENT:
            for taken, given in _RECURRENT_STATES.items():
                if taken < len(node.input) and given < len(node.output):
                    name, successor = node.input[taken], node.output[given]
                    if name in inputs and successor in outputs:
                        found[name] = successor
    return found


def _by_names(
    inputs: Mapping[str, ValueInfoProto],
    outputs: Mapping[str, ValueInfoProto],
    known: Mapping[str, str],
    stem: Callable[[str], tuple[str, ...]],
) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in inputs.items():
        if name in known or not stem(name) or _has_time(value):
            continue
        alike = [
            other
            for other, result in outputs.items()
            if other not in known.values() and stem(other) == stem(name) and _alike(value, result)
        ]
        if len(alike) > 1:
            raise WrapError(f"the successor of {name!r} could be {_listed(alike)}: say which, --state {name}=OUT")
        if alike and alike[0] in found.values():
            others = [other for other, successor in found.items() if successor == alike[0]]
            raise WrapError(f"{alike[0]!r} could be the successor of {_listed([*others, name])}: say --state IN=OUT")
        if alike:
            found[name] = alike[0]
    return found


def _by_shapes(inputs: Mapping[str, ValueInfoProto], outputs: Mapping[str, ValueInfoProto]) -> dict[str, str]:
    """Where no name helps: the pairs that dtypes and shapes leave no choice about, if something else remains."""
    found = {}
    for name, value in inputs.items():
        alike = [other for other, result in outputs.items() if _alike(value, result) and not _has_time(value)]
        if len(alike) == 1:
            found[name] = alike[0]
        elif alike:
            return {}
    once = len(set(found.values())) == len(found)
    return found if once and len(found) < min(len(inputs), len(outputs)) else {}


def _alike(one: ValueInfoProto, other: ValueInfoProto) -> bool:
    """Same dtype and rank, and no two fixed sizes that differ."""
    if one.type.tensor_type.elem_type != other.type.tensor_type.elem_type:
        return False
    if not other.type.tensor_type.HasField("shape"):
        return True
    first, second = dims(one), dims(other)
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _has_time(value: ValueInfoProto) -> bool:
    """Two free axes are more than a state has."""
    return sum(not isinstance(size, int) for size in dims(value)) > 1


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z]+|\d+", spaced.lower())


def _stem(name: str) -> tuple[str, ...]:
    """What is left of a name without the words that tell before from after: h_in, h_out and hn are all h."""
    plain = [_LETTER_AND_SIDE.sub(r"\1", word) if len(word) == len("hn") else word for word in _words(name)]
    left = tuple(word for word in plain if word not in _SIDES)
    return tuple(word for word in left if word not in _WEAK_SIDES) or left


def _stem_without_number(name: str) -> tuple[str, ...]:
    """h0 and hn are both h."""
    return tuple(word for word in _stem(name) if not word.isdecimal())


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    shown = [repr(name) for name in list(names)[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(names) > _SHOWN else "")
