"""What a precision costs, emulated in float64: the same model with its products' operands rounded the same way.

The error of this is the yardstick of a reduced precision: an export may make it, and hardly more. Owns the roundings.
Knows no graph and no runtime.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.precision import Precision
from export.quantization import BLOCK, STEPS, dequantize, quantize
from model.cell import Arithmetic, multiply
from model.lstm import LSTM

TF32_BITS = 10  # of the fraction
MOST_HALF = torch.finfo(torch.float16).max


class Emulation(NamedTuple):
    """A module in float64 whose weights are rounded, and the arithmetic that rounds what they are multiplied with."""

    module: LSTM
    arithmetic: Arithmetic


def emulate(module: LSTM, precision: Precision) -> Emulation:
    """The module as the precision computes it, but for float32's own roundings."""
    rounded = copy.deepcopy(module).double()
    products = [name for name in rounded.state_dict() if _is_product(name, module)]
    for name in products:
        weight = rounded.state_dict()[name]
        weight.copy_(_ROUND_WEIGHT[precision](weight))
    return Emulation(rounded, Arithmetic(product=_PRODUCT[precision]))


def _is_product(name: str, module: LSTM) -> bool:
    """Whether a weight is multiplied with: biases aren't, and an embedding is looked up."""
    embedding = name == "encoder.weight" and module.spec.vocabulary is not None
    return "weight" in name and not embedding


def fewer_bits(values: Tensor, bits: int = TF32_BITS) -> Tensor:
    """Rounded to so many bits of fraction, to the nearest, ties to even."""
    fraction, exponent = torch.frexp(values)
    scale = 2.0 ** (bits + 1)
    return torch.ldexp(torch.round(fraction * scale) / scale, exponent)


def fewer_bits_of(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same of an array of numpy's, in its own dtype; the array given is left as it is."""
    return np.asarray(fewer_bits(torch.tensor(values)).numpy())


def half(values: Tensor) -> Tensor:
    """Rounded to float16, and within its range."""
    return values.clamp(-MOST_HALF, MOST_HALF).half().to(values.dtype)


def eight_bits(values: Tensor) -> Tensor:
    """Rounded in blocks of 32 along the last axis, to 127 steps of each block's largest value."""
    columns = values.shape[-1]
    blocks = torch.nn.functional.pad(values, (0, -columns % BLOCK)).reshape(*values.shape[:-1], -1, BLOCK)
    scales = blocks.abs().amax(dim=-1, keepdim=True) / STEPS
    steps = torch.round(blocks / torch.where(scales > 0, scales, 1))
    return (steps * scales).flatten(-2)[..., :columns]


def _eight_bit_weight(weight: Tensor) -> Tensor:
    """As the graph's own weights are."""
    array = weight.numpy().astype(np.float32)
    return torch.from_numpy(dequantize(quantize(array), array.shape[1]))


_ROUND_WEIGHT: Mapping[Precision, Callable[[Tensor], Tensor]] = {
    Precision.FP32: lambda weight: weight,
    Precision.INT8: _eight_bit_weight,
    Precision.TF32: fewer_bits,
    Precision.FP16: half,
}
_PRODUCT: Mapping[Precision, Callable[[Tensor, Tensor], Tensor]] = {
    Precision.FP32: multiply,
    Precision.INT8: lambda x, weight: multiply(eight_bits(x), weight),
    Precision.TF32: lambda x, weight: multiply(fewer_bits(x), weight),
    Precision.FP16: lambda x, weight: half(multiply(half(x), weight)),
}
