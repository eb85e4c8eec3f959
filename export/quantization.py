"""8-bit weights as com.microsoft's MatMulNBits stores them: blocks of 32 along K, one float32 scale each.

Symmetric: a block's largest weight is ±127 steps, and the zero point is the operator's default of 128. Owns that
packing, both ways, in numpy. Knows no graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK = 32
ZERO = 128  # what MatMulNBits takes for zero where it is given no zero points
STEPS = 127  # of a block's largest value
Array = npt.NDArray[Any]


class Quantized(NamedTuple):
    """A weight [N, K]: `steps` uint8 [N, K/32, 32], rounded up to whole blocks, and `scales` float32 [N, K/32]."""

    steps: Array
    scales: Array


def quantize(weight: Array) -> Quantized:
    """A weight [N, K] in 8 bits: off by at most half a step, which is 1/254 of the block's largest."""
    blocks = _blocks(weight.astype(np.float32))
    scales = (np.abs(blocks).max(axis=2) / np.float32(STEPS)).astype(np.float32)
    steps = np.rint(blocks / np.where(scales > 0, scales, 1)[..., None].astype(np.float64))
    return Quantized((np.clip(steps, -STEPS, STEPS) + ZERO).astype(np.uint8), scales)


def dequantize(quantized: Quantized, columns: int) -> Array:
    """The weight [N, K] that 8 bits stand for, in float64."""
    blocks = (quantized.steps.astype(np.float64) - ZERO) * quantized.scales[..., None].astype(np.float64)
    return np.asarray(blocks.reshape(len(blocks), -1)[:, :columns])


def _blocks(weight: Array) -> Array:
    """[N, K] as [N, K/32, 32], zeros at the end."""
    rows, columns = weight.shape
    return np.pad(weight, ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, BLOCK)
