"""The reference cell against PyTorch and against the formula by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cell import LayerWeights, State, cell, unroll


def layers_of(lstm: torch.nn.LSTM) -> list[LayerWeights]:
    """The weights of torch's module, layer by layer."""
    return [LayerWeights(*weights) for weights in lstm.all_weights]


def test_one_unit_by_hand() -> None:
    """A cell of one unit gives what the formula gives when it is worked out with ordinary numbers."""
    w_ih, w_hh = torch.tensor([[0.1], [0.2], [0.3], [0.4]]), torch.tensor([[0.5], [0.6], [0.7], [0.8]])
    b_ih, b_hh = torch.tensor([0.01, 0.02, 0.03, 0.04]), torch.tensor([0.05, 0.06, 0.07, 0.08])
    weights = LayerWeights(*(tensor.double() for tensor in (w_ih, w_hh, b_ih, b_hh)))
    x, h, c = (torch.tensor([[value]], dtype=torch.float64) for value in (2.0, -0.5, 0.25))
    h, c = cell(weights, x, h, c)

    def gate(row: int) -> float:
        return float(w_ih[row] * 2.0 + b_ih[row] + w_hh[row] * -0.5 + b_hh[row])

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    expected_c = sigmoid(gate(1)) * 0.25 + sigmoid(gate(0)) * math.tanh(gate(2))
    assert float(c) == pytest.approx(expected_c, rel=1e-6)
    assert float(h) == pytest.approx(sigmoid(gate(3)) * math.tanh(expected_c), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    features=st.integers(1, 9),
    hidden=st.integers(1, 9),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    steps=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_unroll_is_torchs_lstm(features: int, hidden: int, layers: int, *, bias: bool, steps: int, seed: int) -> None:
    """In float64 the unrolled formula and torch.nn.LSTM agree to the last digits, from any state."""
    torch.manual_seed(seed)
    lstm = torch.nn.LSTM(features, hidden, layers, bias=bias, batch_first=True).double()
    x = torch.randn(2, steps, features, dtype=torch.float64)
    h, c = torch.randn(2, layers, hidden, dtype=torch.float64), torch.randn(2, layers, hidden, dtype=torch.float64)
    y, state = unroll(layers_of(lstm), x, State(h, c))
    exact, (h_n, c_n) = lstm(x, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))
    torch.testing.assert_close(y, exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.h, h_n.transpose(0, 1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.c, c_n.transpose(0, 1), rtol=1e-12, atol=1e-14)


def test_whole_is_pieces() -> None:
    """Going on from the state of the first half gives what one pass over the whole gives."""
    torch.manual_seed(1)
    layers = layers_of(torch.nn.LSTM(3, 5, 2).double())
    x, zero = torch.randn(4, 9, 3, dtype=torch.float64), torch.zeros(4, 2, 5, dtype=torch.float64)
    whole, last = unroll(layers, x, State(zero, zero))
    first, middle = unroll(layers, x[:, :4], State(zero, zero))
    second, end = unroll(layers, x[:, 4:], middle)

    torch.testing.assert_close(whole, torch.cat([first, second], dim=1), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(last, end, rtol=1e-13, atol=1e-15)
