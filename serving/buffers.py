"""What goes into a run and comes out of it, in the host's memory.

Owns these buffers. Whoever runs a graph binds them, or copies them to where it binds; the engine fills and empties
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import Contract, TensorSpec


class Buffers:
    """Room for the largest run: `lanes` lanes, and `steps` steps of all lanes together, padding included."""

    __slots__ = ("contract", "inputs", "lanes", "lengths", "outputs", "read_rows", "steps", "write_rows")

    def __init__(self, contract: Contract, *, lanes: int, steps: int) -> None:
        self.contract = contract
        self.lanes = lanes
        self.steps = steps
        self.lengths = np.ones(lanes, dtype=np.int32)  # [B]
        self.read_rows = np.zeros(lanes, dtype=np.int64)  # [B]
        self.write_rows = np.zeros(lanes, dtype=np.int64)  # [B]
        self.inputs = [_valid(spec, steps) for spec in contract.inputs]  # flat, room for [B, T, *shape]
        self.outputs = [np.empty(steps * spec.elements, dtype=spec.dtype) for spec in contract.outputs]

    def fill_smallest(self, steps: int) -> None:
        """Make so many steps' inputs the smallest values that the model takes."""
        for buffer, spec in zip(self.inputs, self.contract.inputs, strict=True):
            buffer[: steps * spec.elements] = smallest(spec)


def smallest(spec: TensorSpec) -> int:
    """The smallest value that an input takes; 0 where the contract names none."""
    return 0 if spec.minimum is None else spec.minimum


def _valid(spec: TensorSpec, steps: int) -> npt.NDArray[Any]:
    # Padding beyond a lane's length must be a valid value too (an embedding looks it up), so never rubbish.
    size = steps * spec.elements
    return np.full(size, smallest(spec), spec.dtype) if smallest(spec) else np.zeros(size, spec.dtype)
