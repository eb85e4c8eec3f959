"""A GRU or plain RNN as a module, built from its weights alone: an optional encoder in front, a linear head behind.

Owns that architecture, which is `model.lstm`'s for the other recurrent layers. Knows no files and no ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from model.weights import CORE, WeightsError, check_shapes

LAYERS: dict[str, Any] = {"GRU": nn.GRU, "RNN": nn.RNN}
NONLINEARITIES = ("tanh", "relu")


class Stack(nn.Module):
    """`forward(x) -> y`: x [B, T, F] or tokens [B, T] give y [B, T, O]."""

    def __init__(self, encoder: nn.Module | None, lstm: nn.RNNBase, head: nn.Linear | None) -> None:
        super().__init__()
        self.encoder, self.lstm, self.head = encoder, lstm, head

    def forward(self, x: Tensor) -> Tensor:
        """All steps, from the zero state."""
        y, _ = self.lstm(x if self.encoder is None else self.encoder(x))
        return y if self.head is None else self.head(y)  # type: ignore[no-any-return]


def stack(kind: str, weights: Mapping[str, Tensor], nonlinearity: str | None = None) -> Stack:
    """Build it from normalized weights; `nonlinearity` is an RNN's. Raises WeightsError where they don't fit."""
    if kind == "RNN" and nonlinearity not in NONLINEARITIES:
        raise WeightsError(
            "these are a plain RNN's, and whether it computes with tanh (PyTorch's default) or relu isn't in its"
            " weights: say --nonlinearity tanh or relu"
        )
    layers = 1 + max(int(name.rpartition("_l")[2]) for name in weights if name.startswith(f"{CORE}weight_hh_l"))
    w_hh = weights[f"{CORE}weight_hh_l0"]
    w_ih = weights.get(f"{CORE}weight_ih_l0", w_hh)  # where it is missing, check_shapes says so
    options: dict[str, Any] = {"nonlinearity": nonlinearity} if kind == "RNN" else {}
    bias = f"{CORE}bias_hh_l0" in weights
    rnn = LAYERS[kind](w_ih.shape[1], w_hh.shape[1], layers, bias=bias, batch_first=True, **options)
    module = Stack(_encoder(weights), rnn, _linear(weights, "head"))
    check_shapes(weights, {name: tuple(value.shape) for name, value in module.state_dict().items()})
    module.load_state_dict({name: value.contiguous() for name, value in weights.items()})
    return module.requires_grad_(requires_grad=False)


def _encoder(weights: Mapping[str, Tensor]) -> nn.Module | None:
    weight = weights.get("encoder.weight")
    if weight is None or weight.ndim != 2 or "encoder.bias" in weights:
        return _linear(weights, "encoder")
    if weight.shape[0] == weight.shape[1]:
        raise WeightsError(
            f"encoder.weight has shape {tuple(weight.shape)} and no bias: it may be an embedding's or a linear map's;"
            " `python -m export module FILE.py:CLASS` takes the module that says which"
        )
    return nn.Embedding(weight.shape[0], weight.shape[1])


def _linear(weights: Mapping[str, Tensor], name: str) -> nn.Linear | None:
    weight = weights.get(f"{name}.weight")
    if weight is None or weight.ndim != 2:
        return None
    return nn.Linear(weight.shape[1], weight.shape[0], bias=f"{name}.bias" in weights)
