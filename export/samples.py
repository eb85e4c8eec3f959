"""What parity asks: random inputs and states for any contract, as many streams as a fair ratio needs.

Owns the drawing of samples, and how much of one is held at once. Knows no torch and no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
# Elements of the widest tensor, over lanes and steps, that are computed at once: about 100 bytes each at the peak,
# for the float64 answers and their differences. More only costs memory; much less makes calls of a few steps.
BUDGET = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """What all levels are given: inputs [B, T, *shape] and states [B, *shape], by input name."""

    steps: int
    initial: str
    inputs: Arrays
    states: Arrays


@dataclass(frozen=True, slots=True)
class Part:
    """Some lanes of a sample, from their first step on: their states, and their inputs slice of time by slice."""

    lanes: slice
    states: Arrays
    slices: Iterator[Arrays]  # inputs [B, T, *shape], in order of time; drawn when asked for


def lanes(contract: Contract, steps: int) -> int:
    """B: how many streams to draw, so that in each group every tensor has about POOLED elements."""
    sizes = [tensor.elements * steps for tensor in contract.outputs] + [state.elements for state in contract.states]
    return GROUPS * max(FEWEST, math.ceil(POOLED / min(sizes)))


def draw(contract: Contract, steps: int, initial: str, batch: int, seed: int) -> Sample:
    """A random sample: normal vectors, tokens from the whole vocabulary, states as an LSTM's (h within ±1)."""
    random = np.random.default_rng([seed, steps, initial == ZERO])
    inputs = _inputs(contract, (batch, steps), random)
    return Sample(steps, initial, inputs, _states(contract, initial, batch, random))


def parts(contract: Contract, steps: int, initial: str, batch: int, seed: int) -> Iterator[Part]:
    """The same kind of sample, no more than BUDGET of it at a time: first few lanes, then few steps."""
    sizes = [tensor.elements for tensor in (*contract.inputs, *contract.outputs)]
    widest = max(sizes + [state.elements for state in contract.states])
    at_once = min(batch, max(1, BUDGET // widest))
    longest = min(steps, max(1, BUDGET // (widest * at_once)))
    for first in range(0, batch, at_once):
        count = min(at_once, batch - first)
        random = np.random.default_rng([seed, steps, initial == ZERO, first])
        states = _states(contract, initial, count, random)
        spans = [min(longest, steps - begun) for begun in range(0, steps, longest)]
        slices = (_inputs(contract, (count, span), random) for span in spans)
        yield Part(slice(first, first + count), states, slices)


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
