"""What parity asks: random inputs and states for any contract, as many streams as a fair ratio needs.

Owns the drawing of samples, and how much of one is held at once. Knows no torch and no runtime.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.ranges import noted
from model.contract import Contract, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
ZERO, NON_ZERO = "zero", "non-zero"
GROUPS = 5  # independent draws: the median of their ratios counts
POOLED = 256  # elements that a ratio should rest on: fewer are noise
FEWEST = 1  # streams in a group
MANY = 100  # integers without bounds are drawn up to here
_RATES = (0.5, 0.0, 1.0, 0.1, 0.9)  # how often a flag is set, stream by stream
_ENDS = 0.2  # how often a float of a range is one of its ends
# Elements of the widest tensor, over lanes and steps, that are compared at once: about 100 bytes each at the peak,
# for the float64 answers and their differences. More only costs memory; much less makes calls of a few steps.
BUDGET = 2**20
COMPUTED = 2**23  # elements that a graph may give at once, whether or not they are all compared
WIDE = 8192  # elements of an output that are compared at every step
ALL_STEPS = 10  # the first steps, at which all elements of a wider output are compared


@dataclass(frozen=True, slots=True)
class Sample:
    """What all levels are given: inputs [B, T, *shape] and states [B, *shape], by input name."""

    steps: int
    initial: str
    inputs: Arrays
    states: Arrays


@dataclass(frozen=True, slots=True)
class Course:
    """Streams that are compared after each of these numbers of steps: `batch` of them from each initial state."""

    marks: tuple[int, ...]  # in ascending order
    initials: tuple[str, ...]
    batch: int

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.marks[-1]

    @property
    def lanes(self) -> int:
        """Streams in all, those of the first initial state first."""
        return self.batch * len(self.initials)

    def lanes_of(self, initial: str) -> slice:
        """The lanes that start from this state."""
        first = self.initials.index(initial) * self.batch
        return slice(first, first + self.batch)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some steps of some lanes: inputs [B, T, *shape], up to step `done`, and the columns of outputs to compare."""

    inputs: Arrays
    done: int
    columns: npt.NDArray[np.int64] | None  # None: all


@dataclass(frozen=True, slots=True)
class Part:
    """Some lanes of a course, from their first step on: their states, and their inputs piece by piece."""

    lanes: slice
    states: Arrays
    pieces: Iterator[Piece]  # in order of time; drawn when asked for


def lanes(contract: Contract, steps: int) -> int:
    """B: how many streams to draw, so that in each group every tensor has about POOLED elements."""
    sizes = [tensor.elements * steps for tensor in contract.outputs] + [state.elements for state in contract.states]
    return GROUPS * max(FEWEST, math.ceil(POOLED / min(sizes)))


def draw(contract: Contract, steps: int, initial: str, batch: int, seed: int) -> Sample:
    """A random sample: normal vectors, tokens from the whole vocabulary, states as an LSTM's (h within ±1)."""
    random = np.random.default_rng([seed, steps, initial == ZERO])
    inputs = _inputs(contract, (batch, steps), random)
    return Sample(steps, initial, inputs, _states(contract, initial, batch, random))


def courses(contract: Contract, steps: Sequence[int], initials: tuple[str, ...]) -> list[Course]:
    """As few courses as compare after each of `steps`: one is longer than another only where it needs fewer lanes."""
    by_lanes: dict[int, list[int]] = defaultdict(list)
    for count in sorted(steps):
        by_lanes[lanes(contract, count)].append(count)
    return [Course(tuple(marks), initials, batch) for batch, marks in by_lanes.items()]


def parts(contract: Contract, course: Course, seed: int, budget: int | None = None) -> Iterator[Part]:
    """The course's sample, no more than `budget` (BUDGET) elements of it at a time: few lanes first, then few steps.

    The same arguments give the same numbers, so a course can be gone again.
    """
    for lanes in _lanes_at_once(contract, course, budget):
        random = np.random.default_rng([seed, course.steps, len(course.initials), lanes.start])
        starts = [course.initials[lane // course.batch] for lane in range(lanes.start, lanes.stop)]
        states = [_states(contract, initial, starts.count(initial), random) for initial in dict.fromkeys(starts)]
        joined = {name: np.concatenate([state[name] for state in states]) for name in states[0]}
        yield Part(lanes, joined, _pieces(contract, course, lanes, random, seed=seed, budget=budget))


def count_pieces(contract: Contract, course: Course, budget: int | None = None) -> int:
    """How many pieces `parts` cuts the course into."""
    counted = _lanes_at_once(contract, course, budget)
    return sum(len(_spans(contract, course, lanes.stop - lanes.start, budget)) for lanes in counted)


def _lanes_at_once(contract: Contract, course: Course, budget: int | None) -> list[slice]:
    at_once = min(course.lanes, max(1, (budget or BUDGET) // _widest(contract, at_most=WIDE)))
    return [slice(first, min(first + at_once, course.lanes)) for first in range(0, course.lanes, at_once)]


def _widest(contract: Contract, *, at_most: int | None = None) -> int:
    """Elements of the widest tensor, where no more than `at_most` of an output's are compared."""
    sizes = [state.elements for state in contract.states] + [tensor.elements for tensor in contract.inputs]
    return max(sizes + [min(tensor.elements, at_most or tensor.elements) for tensor in contract.outputs])


def _spans(contract: Contract, course: Course, lanes: int, budget: int | None) -> list[int]:
    """The steps after which pieces end: at each mark, and no more elements than allowed in between."""
    widest, compared = _widest(contract), _widest(contract, at_most=WIDE)
    allowed = budget or BUDGET
    few = max(1, allowed // (widest * lanes))
    many = max(1, min(allowed // (compared * lanes), COMPUTED // (widest * lanes)))
    ends, done = [], 0
    border = [mark for mark in (*course.marks, ALL_STEPS) if mark <= course.steps]
    while done < course.steps:
        longest = few if done < ALL_STEPS else many
        done = min([done + longest, *(mark for mark in border if mark > done)])
        ends.append(done)
    return ends


def _pieces(
    contract: Contract, course: Course, lanes: slice, random: np.random.Generator, *, seed: int, budget: int | None
) -> Iterator[Piece]:
    count, width = lanes.stop - lanes.start, max(tensor.elements for tensor in contract.outputs)
    order = np.random.default_rng([seed, width]).permutation(width) if width > WIDE else None
    begun = turn = 0
    for done in _spans(contract, course, count, budget):
        columns = None
        if order is not None and done > ALL_STEPS:  # each column has its turn
            columns = np.sort(np.take(order, np.arange(turn, turn + WIDE), mode="wrap"))
            turn += WIDE
        yield Piece(_inputs(contract, (count, done - begun), random), done, columns)
        begun = done


def _states(contract: Contract, initial: str, batch: int, random: np.random.Generator) -> Arrays:
    states: Arrays = {}
    for state in contract.states:
        shape = (batch, *state.shape)
        value = np.broadcast_to(state.initial_value().reshape(state.shape), shape)
        if initial == NON_ZERO:
            value = random.standard_normal(shape)
            value = np.tanh(value) if state.input == "h" else value
        states[state.input] = value.astype(state.dtype)
    return states


def _inputs(contract: Contract, front: tuple[int, int], random: np.random.Generator) -> Arrays:
    ranges = noted(contract)
    return {t.name: values(t, (*front, *t.shape), random, ranges.get(t.name), many=1) for t in contract.inputs}


def values(
    spec: TensorSpec,
    shape: tuple[int, ...],
    random: np.random.Generator,
    between: tuple[float, float] | None = None,
    many: int = MANY,
) -> npt.NDArray[Any]:
    """Random values [B, …] that an input takes: normal floats, or floats `between` two values; integers in their range.

    Flags (bools, and integers of two values) are mixed in some streams and constant in others: a mask that resets a
    state hides what the state does, and one that doesn't hides the reset. Integers without bounds go up to `many`.
    """
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return flags(shape, random)
    if dtype.kind in "iu":
        low = spec.minimum if spec.minimum is not None else 0
        high = spec.maximum if spec.maximum is not None else low + many
        if high - low == 1:
            return (low + flags(shape, random)).astype(dtype)
        drawn = random.integers(low, high, shape, dtype=dtype, endpoint=True)
        if spec.minimum is None and spec.maximum is None:  # it may be a flag
            return np.where(random.random(shape) < 0.5, flags(shape, random).astype(dtype), drawn)
        return drawn
    if between is None:
        return random.standard_normal(shape).astype(dtype)
    return floats(shape, random, between).astype(dtype)


def flags(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Bools [B, …], True at another rate in each stream: half, never, always, seldom, mostly."""
    rates = np.resize(_RATES, shape[0] if shape else 1)
    return random.random(shape) < rates.reshape([-1, *[1] * (len(shape) - 1)][: len(shape)])


def floats(
    shape: tuple[int, ...], random: np.random.Generator, between: tuple[float, float]
) -> npt.NDArray[np.float64]:
    """Floats [B, …] between two values, the ends among them; those from 0 to 1 are flags in some streams."""
    low, high = between
    ends = np.where(flags(shape, random), high, low)
    rates = np.resize([_ENDS, 1, 1, 1, _ENDS] if (low, high) == (0, 1) else [_ENDS], shape[:1])
    at_end = random.random(shape) < rates.reshape([-1, *[1] * (len(shape) - 1)][: len(shape)])
    return np.where(at_end, ends, random.uniform(low, high, shape))
