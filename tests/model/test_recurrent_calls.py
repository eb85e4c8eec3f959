"""Calls of recurrent layers, intercepted: where their states come from, and what stays of the layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.recurrent import RecurrentError, formula, pytorch
from model.recurrent_calls import Tape, intercepted


@torch.no_grad()
def test_a_carried_state_goes_before_a_given_one() -> None:
    """What the tape carries is where a layer goes on from, and what it gives is where the next call begins."""
    torch.manual_seed(0)
    layer = nn.GRU(5, 6, batch_first=True)
    tape = Tape()
    intercepted(layer, formula, tape)
    x = torch.randn(2, 4, 5)
    tape.begin({})
    whole, _ = layer(x)
    tape.begin({})
    layer(x[:, :1])
    carried = tape.given()
    tape.begin(carried)
    rest, _ = layer(x[:, 1:], torch.ones(1, 2, 6))
    torch.testing.assert_close(rest, whole[:, 1:])


def test_a_layer_called_twice_has_two_slots() -> None:
    """And one that is there under two names is intercepted once."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.GRU(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.other(self.one(x)[0])[0]
            return y

    tape = Tape()
    module = intercepted(Twice(), pytorch, tape)
    tape.begin({})
    module(torch.randn(2, 3, 5))
    assert list(tape.given()) == ["one", "one#2"]
    assert module.one is module.other
    assert module.one.hidden_size == 5  # type: ignore[union-attr]


def test_an_intercepted_layer_stays_itself() -> None:
    """Its class, its attributes, its parameters, and the hooks that compute its weights before each call."""
    layer: nn.Module = nn.utils.spectral_norm(nn.GRU(4, 5), "weight_hh_l0").eval()
    x = torch.randn(3, 2, 4)
    before = layer(x)[0]
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0_orig").mul_(3)  # the norm stays, by vectors that eval mode keeps
        layer.get_parameter("weight_ih_l0").mul_(2)
    whole = layer(x)[0]
    names = [name for name, _ in layer.named_parameters()]
    intercepted(layer, formula, Tape())
    torch.testing.assert_close(layer(x)[0], whole)
    assert not torch.allclose(before, whole)
    assert isinstance(layer, nn.GRU)
    assert [name for name, _ in layer.named_parameters()] == names


def test_weights_that_forward_sets_are_those_that_count() -> None:
    """Weight drop as torchnlp has it: a forward set on the layer puts a weight in its place, then calls the layer's."""
    layer: Any = nn.LSTM(4, 5)
    raw = nn.Parameter(layer.weight_hh_l0.detach() * 3)
    del layer._parameters["weight_hh_l0"]
    own = layer.forward

    def forward(*given: Tensor) -> object:
        layer.weight_hh_l0 = functional.dropout(raw * 1, 0.5, layer.training)
        return own(*given)

    layer.forward = forward
    layer.eval()
    x = torch.randn(3, 2, 4)
    whole = layer(x)[0]
    tape = Tape()
    intercepted(layer, formula, tape)
    torch.testing.assert_close(layer(x)[0], whole)
    torch.testing.assert_close(tape.calls[0].weights[0].w_hh, raw)


def test_a_forward_that_cannot_be_taken_apart_is_refused() -> None:
    """One that is set on a layer and doesn't call the layer's own."""
    layer = nn.GRU(4, 5)
    layer.forward = lambda x: (x, None)  # type: ignore[assignment]
    with pytest.raises(RecurrentError, match="gru has a forward of its own, set on this one layer"):
        intercepted(layer, pytorch, Tape())
