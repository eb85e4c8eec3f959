"""What parity asks: random inputs and states for any contract, as many streams as a fair ratio needs.

Owns the drawing of samples. Knows no torch and no runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import Contract, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
ZERO, NON_ZERO = "zero", "non-zero"
GROUPS = 5  # independent draws: the median of their ratios counts
POOLED = 256  # elements that a ratio should rest on: fewer are noise
FEWEST = 2  # streams in a group


@dataclass(frozen=True, slots=True)
class Sample:
    """What all levels are given: inputs [B, T, *shape] and states [B, *shape], by input name."""

    steps: int
    initial: str
    inputs: Arrays
    states: Arrays


def lanes(contract: Contract, steps: int) -> int:
    """B: how many streams to draw, so that in each group every tensor has about POOLED elements."""
    sizes = [tensor.elements * steps for tensor in contract.outputs] + [state.elements for state in contract.states]
    return GROUPS * max(FEWEST, math.ceil(POOLED / min(sizes)))


def draw(contract: Contract, steps: int, initial: str, batch: int, seed: int) -> Sample:
    """A random sample: normal vectors, tokens from the whole vocabulary, states as an LSTM's (h within ±1)."""
    random = np.random.default_rng([seed, steps, initial == ZERO])
    inputs = {tensor.name: _input(tensor, (batch, steps), random) for tensor in contract.inputs}
    states: Arrays = {}
    for state in contract.states:
        shape = (batch, *state.shape)
        value = np.broadcast_to(state.initial_value().reshape(state.shape), shape)
        if initial == NON_ZERO:
            value = random.standard_normal(shape)
            value = np.tanh(value) if state.input == "h" else value
        states[state.input] = value.astype(state.dtype)
    return Sample(steps, initial, inputs, states)


def _input(tensor: TensorSpec, front: tuple[int, int], random: np.random.Generator) -> npt.NDArray[Any]:
    shape = (*front, *tensor.shape)
    if np.issubdtype(np.dtype(tensor.dtype), np.integer):
        low, high = tensor.minimum or 0, tensor.maximum if tensor.maximum is not None else 1
        return random.integers(low, high, shape, dtype=tensor.dtype, endpoint=True)
    return random.standard_normal(shape).astype(tensor.dtype)
