"""The formulas of recurrent layers against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.recurrent import Core, RecurrentError, core_of, formula, pytorch
from model.recurrent_calls import Tape, intercepted

LAYERS: list[Any] = [
    lambda: nn.LSTM(5, 6, 2, batch_first=True),
    lambda: nn.LSTM(5, 6, 2, bidirectional=True),
    lambda: nn.GRU(5, 6, 3),
    lambda: nn.GRU(5, 6, bias=False, batch_first=True),
    lambda: nn.GRU(5, 6, bidirectional=True, batch_first=True),
    lambda: nn.RNN(5, 6, 2),
    lambda: nn.RNN(5, 6, nonlinearity="relu", batch_first=True),
    lambda: nn.LSTMCell(5, 6),
    lambda: nn.GRUCell(5, 6, bias=False),
    lambda: nn.RNNCell(5, 6, nonlinearity="relu"),
]


def flat(answer: Any) -> list[Tensor]:
    """The tensors of an answer."""
    return [answer] if isinstance(answer, Tensor) else [leaf for part in answer for leaf in flat(part)]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("kernel", [formula, pytorch])
@torch.no_grad()
def test_an_intercepted_layer_answers_as_it_did(make: Any, kernel: Any) -> None:
    """Outputs and states in the layer's own form, in float64 to the last digits, from zero and from other states."""
    torch.manual_seed(0)
    layer = make().double()
    core = core_of(layer)
    untouched = type(layer).forward
    intercepted(layer, kernel, Tape())
    x = torch.randn(3, 5) if core.cell else torch.randn(3, 4, 5)
    x = x.double()
    batch = 3 if core.cell or core.batch_first else 4
    shape = (batch, 6) if core.cell else (core.rows, batch, 6)
    states = [torch.randn(shape).double() for _ in core.states]
    given = tuple(states) if core.kind == "LSTM" else states[0]
    for hx in (None, given):
        for ours, theirs in zip(flat(layer(x, hx)), flat(untouched(layer, x, hx)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_what_onnx_has_not_is_refused() -> None:
    """A projection, which ONNX's LSTM operator lacks."""
    with pytest.raises(RecurrentError, match="proj_size=1"):
        core_of(nn.LSTM(2, 3, proj_size=1))


def test_a_core_says_what_weights_do_not() -> None:
    """Kind, sizes, order of axes."""
    assert core_of(nn.RNN(2, 3, 2, nonlinearity="relu")) == Core("RNN", 3, 2, False, False, "relu")
    assert core_of(nn.GRU(2, 3, 2, bidirectional=True)).rows == 4
