"""The reference: an LSTM as its formula reads, in any float dtype; in float64 it is the truth.

Owns the formula and nothing else: no modules, no kernels, no ONNX. It is slow, and meant to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """Hidden and cell state of all layers, batch first: h [B, L, H] and c [B, L, H]."""

    h: Tensor
    c: Tensor


class LayerWeights(NamedTuple):
    """One layer's weights, gates i, f, g, o stacked in that order: [4H, F], [4H, H] and two biases [4H] or None."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None


class Activations(NamedTuple):
    """The two functions of an LSTM, for whoever wants to know what a less exact one would do."""

    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid
    tanh: Callable[[Tensor], Tensor] = torch.tanh


EXACT = Activations()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b: x [..., F], weight [O, F] and bias [O] give [..., O]."""
    product = x @ weight.T
    return product if bias is None else product + bias


def cell(
    weights: LayerWeights, x: Tensor, h: Tensor, c: Tensor, activations: Activations = EXACT
) -> tuple[Tensor, Tensor]:
    """One step of one layer: x [B, F], h [B, H] and c [B, H] give the next h and c.

    The formula is that of torch.nn.LSTM's documentation (Hochreiter and Schmidhuber 1997, with forget gates).
    """
    gates = linear(x, weights.w_ih, weights.b_ih) + linear(h, weights.w_hh, weights.b_hh)
    i, f, g, o = gates.chunk(4, dim=1)
    sigmoid, tanh = activations
    c_next = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h_next = sigmoid(o) * tanh(c_next)
    return h_next, c_next


def unroll(
    layers: Sequence[LayerWeights], x: Tensor, state: State, activations: Activations = EXACT
) -> tuple[Tensor, State]:
    """All layers over all steps: x [B, T, F] gives the last layer's h at every step, [B, T, H], and the new state."""
    h, c = list(state.h.unbind(1)), list(state.c.unbind(1))
    outputs = []
    for step in x.unbind(1):
        below = step
        for index, weights in enumerate(layers):
            h[index], c[index] = cell(weights, below, h[index], c[index], activations)
            below = h[index]
        outputs.append(below)
    return torch.stack(outputs, dim=1), State(torch.stack(h, dim=1), torch.stack(c, dim=1))
