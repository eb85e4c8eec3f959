"""The formulas of recurrent layers against PyTorch's own, and stand-ins in their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.recurrent import Core, RecurrentError, StandIn, Tape, core_of, formula, pytorch, replaced

LAYERS: list[Any] = [
    lambda: nn.LSTM(5, 6, 2, batch_first=True),
    lambda: nn.GRU(5, 6, 3),
    lambda: nn.GRU(5, 6, bias=False, batch_first=True),
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
def test_a_stand_in_answers_as_the_layer_does(make: Any, kernel: Any) -> None:
    """Outputs and states in the layer's own form, in float64 to the last digits, from zero and from other states."""
    torch.manual_seed(0)
    layer = make().double()
    core = core_of(layer)
    stand_in = replaced(layer, kernel, Tape())
    assert isinstance(stand_in, StandIn)
    x = torch.randn(3, 5) if core.cell else torch.randn(3, 4, 5)
    x = x.double()
    batch = 3 if core.cell or core.batch_first else 4
    shape = (batch, 6) if core.cell else (core.layers, batch, 6)
    states = [torch.randn(shape).double() for _ in core.states]
    given = tuple(states) if core.kind == "LSTM" else states[0]
    for hx in (None, given):
        for ours, theirs in zip(flat(stand_in(x, hx)), flat(layer(x, hx)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_a_carried_state_goes_before_a_given_one() -> None:
    """What the tape carries is where a layer goes on from, and what it gives is where the next call begins."""
    torch.manual_seed(0)
    layer = nn.GRU(5, 6, batch_first=True)
    tape = Tape()
    stand_in = replaced(layer, formula, tape)
    x = torch.randn(2, 4, 5)
    tape.begin({})
    whole, _ = stand_in(x)
    tape.begin({})
    stand_in(x[:, :1])
    carried = tape.given()
    tape.begin(carried)
    rest, _ = stand_in(x[:, 1:], torch.ones(1, 2, 6))
    torch.testing.assert_close(rest, whole[:, 1:])


def test_a_layer_called_twice_has_two_slots() -> None:
    """And one that is there under two names has one stand-in."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.GRU(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.other(self.one(x)[0])[0]
            return y

    tape = Tape()
    module = replaced(Twice(), pytorch, tape)
    tape.begin({})
    module(torch.randn(2, 3, 5))
    assert list(tape.given()) == ["one", "one#2"]
    assert module.one is module.other
    assert module.one.hidden_size == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("layer", "text"),
    [(nn.LSTM(2, 3, bidirectional=True), "from its end"), (nn.LSTM(2, 3, proj_size=1), "proj_size=1")],
)
def test_what_cannot_stream_is_refused(layer: nn.Module, text: str) -> None:
    """A layer that needs the sequence's end, and one that ONNX hasn't."""
    with pytest.raises(RecurrentError, match=text):
        core_of(layer)


def test_a_core_says_what_weights_do_not() -> None:
    """Kind, sizes, order of axes."""
    assert core_of(nn.RNN(2, 3, 2, nonlinearity="relu")) == Core("RNN", 3, 2, False, False, "relu")
