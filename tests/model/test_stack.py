"""Modules of weights alone: GRUs and plain RNNs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model.stack import stack
from model.weights import WeightsError, kind_of, normalize


@pytest.mark.parametrize(
    ("layer", "kind", "option"),
    [
        (nn.GRU(5, 6, 2, batch_first=True), "GRU", None),
        (nn.RNN(5, 6, bias=False, batch_first=True), "RNN", "tanh"),
        (nn.RNN(5, 6, nonlinearity="relu", batch_first=True), "RNN", "relu"),
    ],
)
@torch.no_grad()
def test_a_layer_is_built_from_its_weights(layer: Any, kind: str, option: str | None) -> None:
    """The same outputs as the layer that the weights are of; its kind is read from their shapes."""
    weights = normalize(layer.state_dict())
    assert kind_of(weights) == kind
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(stack(kind, weights, option)(x), layer(x)[0])


@torch.no_grad()
def test_cells_embeddings_and_heads() -> None:
    """A GRU cell's weights are a layer's; a table in front and a linear map behind come along."""
    cell = nn.GRUCell(5, 6)
    parts = {"encoder.weight": torch.randn(9, 5), "head.weight": torch.randn(2, 6), "head.bias": torch.randn(2)}
    made = stack("GRU", normalize({**cell.state_dict(), **parts}))
    tokens = torch.tensor([[3]])
    wanted = cell(parts["encoder.weight"][3][None]) @ parts["head.weight"].T + parts["head.bias"]
    torch.testing.assert_close(made(tokens)[:, 0], wanted)


def test_an_rnn_needs_to_be_told_its_nonlinearity() -> None:
    """It isn't in the weights."""
    with pytest.raises(WeightsError, match=r"--nonlinearity tanh or relu"):
        stack("RNN", normalize(nn.RNN(5, 6).state_dict()))


def test_weights_of_wrong_shapes_are_refused() -> None:
    """By the name of the weight."""
    weights = normalize(nn.GRU(5, 6).state_dict())
    with pytest.raises(WeightsError, match=r"lstm.bias_ih_l0 has shape"):
        stack("GRU", weights | {"lstm.bias_ih_l0": torch.zeros(17)})
