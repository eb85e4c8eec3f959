"""The reference: an LSTM as its formula reads, in any float dtype; in float64 it is the truth.

Owns the formula and nothing else: no modules, no kernels, no ONNX. It is slow, and meant to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """Hidden and cell state of all layers, batch first: h [B, L, H] (with a projection [B, L, P]) and c [B, L, H]."""

    h: Tensor
    c: Tensor


class LayerWeights(NamedTuple):
    """One layer's weights, gates i, f, g, o stacked in that order: [4H, F], [4H, H] and two biases [4H] or None.

    With a projection, `w_hr` is [P, H], and P takes the place of H in `w_hh`.
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x·Wᵀ: x [..., F] and weight [O, F] give [..., O]."""
    return x @ weight.T


class Arithmetic(NamedTuple):
    """What an LSTM computes with, for whoever wants to know what less exact functions or products would do."""

    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid
    tanh: Callable[[Tensor], Tensor] = torch.tanh
    product: Callable[[Tensor, Tensor], Tensor] = multiply


EXACT = Arithmetic()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, arithmetic: Arithmetic = EXACT) -> Tensor:
    """x·Wᵀ + b: x [..., F], weight [O, F] and bias [O] give [..., O]."""
    product = arithmetic.product(x, weight)
    return product if bias is None else product + bias


def cell(
    weights: LayerWeights, x: Tensor, h: Tensor, c: Tensor, arithmetic: Arithmetic = EXACT
) -> tuple[Tensor, Tensor]:
    """One step of one layer: x [B, F], h [B, H] (or [B, P]) and c [B, H] give the next h and c.

    The formula is that of torch.nn.LSTM's documentation (Hochreiter and Schmidhuber 1997, with forget gates; the
    projection is Sak and others 2014).
    """
    gates = linear(x, weights.w_ih, weights.b_ih, arithmetic) + linear(h, weights.w_hh, weights.b_hh, arithmetic)
    i, f, g, o = gates.chunk(4, dim=1)
    sigmoid, tanh, product = arithmetic
    c_next = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h_next = sigmoid(o) * tanh(c_next)
    return h_next if weights.w_hr is None else product(h_next, weights.w_hr), c_next


def unroll(
    layers: Sequence[LayerWeights], x: Tensor, state: State, arithmetic: Arithmetic = EXACT
) -> tuple[Tensor, State]:
    """All layers over all steps: x [B, T, F] gives the last layer's h at every step and the new state."""
    h, c = list(state.h.unbind(1)), list(state.c.unbind(1))
    outputs = []
    for step in x.unbind(1):
        below = step
        for index, weights in enumerate(layers):
            h[index], c[index] = cell(weights, below, h[index], c[index], arithmetic)
            below = h[index]
        outputs.append(below)
    return torch.stack(outputs, dim=1), State(torch.stack(h, dim=1), torch.stack(c, dim=1))
