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

from model.contract import Contract, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
ZERO, NON_ZERO = "zero", "non-zero"
GROUPS = 5  # independent draws: the median of their ratios counts
POOLED = 256  # elements that a ratio should rest on: fewer are noise
FEWEST = 1  # streams in a group
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
    return {tensor.name: _input(tensor, front, random) for tensor in contract.inputs}


def _input(tensor: TensorSpec, front: tuple[int, int], random: np.random.Generator) -> npt.NDArray[Any]:
    shape = (*front, *tensor.shape)
    if np.issubdtype(np.dtype(tensor.dtype), np.integer):
        low, high = tensor.minimum or 0, tensor.maximum if tensor.maximum is not None else 1
        return random.integers(low, high, shape, dtype=tensor.dtype, endpoint=True)
    return random.standard_normal(shape).astype(tensor.dtype)
