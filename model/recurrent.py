"""Recurrent layers of any user's module: their sizes, their weights, and their formulas in any dtype.

Owns what nn.LSTM, nn.GRU, nn.RNN and their cells have in common. A kernel computes a layer with its state outside: by
the formula, or by PyTorch's own code. A kernel reads the weights at each call, as they may be computed (weight_norm,
weight drop). Knows no ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.cell import LayerWeights, cell, linear

Tensors = tuple[Tensor, ...]
Kernel = Callable[[Tensor, Tensors], tuple[Tensor, Tensors]]  # x [T, B, F], states [B, L*D, H]: y [T, B, D*H], new ones
SEQUENCES: dict[type[nn.Module], str] = {nn.LSTM: "LSTM", nn.GRU: "GRU", nn.RNN: "RNN"}
CELLS: dict[type[nn.Module], str] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU", nn.RNNCell: "RNN"}
STATES = {"LSTM": ("h", "c"), "GRU": ("h",), "RNN": ("h",)}
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class RecurrentError(ValueError):
    """A recurrent layer of a kind, or called in a way, that can't be streamed; the text says why."""


@dataclass(frozen=True, slots=True)
class Core:
    """Which recurrent layer: everything that its weights don't say by themselves."""

    kind: str  # LSTM, GRU or RNN
    hidden_size: int
    layers: int
    batch_first: bool
    cell: bool  # one step a call, no time axis
    nonlinearity: str = "tanh"  # of an RNN
    directions: int = 1  # 2 reads the sequence from its end, too

    @property
    def rows(self) -> int:
        """How many vectors a state has: one for each layer and direction."""
        return self.layers * self.directions

    @property
    def states(self) -> tuple[str, ...]:
        """What its states are called: h, and c for an LSTM."""
        return STATES[self.kind]


def is_recurrent(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's recurrent layers or cells; raises RecurrentError for a subclass of its own."""
    for base in (*SEQUENCES, *CELLS):
        if isinstance(module, base):
            if type(module).forward is not base.forward:
                raise RecurrentError(
                    f"{type(module).__name__} is an nn.{base.__name__} with a forward of its own, which can't be taken"
                    f" apart: let it be an nn.Module that holds an nn.{base.__name__}"
                )
            return True
    return False


def core_of(module: nn.Module, name: str = "") -> Core:
    """What kind of layer a recurrent module is; raises RecurrentError for one that isn't supported."""
    base = next(base for base in (*SEQUENCES, *CELLS) if isinstance(module, base))
    what = f"{name or 'the module'} (nn.{base.__name__})"
    m: Any = module
    if base in CELLS:
        return Core(CELLS[base], m.hidden_size, 1, True, True, getattr(m, "nonlinearity", "tanh"))
    if getattr(m, "proj_size", 0):
        raise RecurrentError(
            f"{what} has proj_size={m.proj_size}, which ONNX's LSTM operator has not: inside a module it isn't"
            " supported; export that LSTM by itself, by its state dict"
        )
    activation = getattr(m, "nonlinearity", "tanh")
    directions = 2 if m.bidirectional else 1
    return Core(SEQUENCES[base], m.hidden_size, m.num_layers, m.batch_first, False, activation, directions)


def layer_weights(module: nn.Module) -> list[LayerWeights]:
    """The weights of each layer and direction as they are now, gates stacked in PyTorch's order."""
    if isinstance(module, tuple(CELLS)):
        return [LayerWeights(*(getattr(module, kind) for kind in KINDS))]
    return [LayerWeights(*weights) for weights in module.all_weights]  # type: ignore[union-attr]


def gru_cell(weights: LayerWeights, x: Tensor, h: Tensor) -> Tensor:
    """One step of a GRU layer: x [B, F] and h [B, H] give the next h.

    The formula is that of torch.nn.GRU's documentation: the reset gate acts on h·W + b, which ONNX calls
    linear_before_reset=1.
    """
    r_x, z_x, n_x = linear(x, weights.w_ih, weights.b_ih).chunk(3, dim=1)
    r_h, z_h, n_h = linear(h, weights.w_hh, weights.b_hh).chunk(3, dim=1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h


def rnn_cell(weights: LayerWeights, x: Tensor, h: Tensor, nonlinearity: str) -> Tensor:
    """One step of a plain RNN layer: x [B, F] and h [B, H] give the next h (torch.nn.RNN's documentation)."""
    total = linear(x, weights.w_ih, weights.b_ih) + linear(h, weights.w_hh, weights.b_hh)
    return torch.tanh(total) if nonlinearity == "tanh" else torch.relu(total)


def _step(core: Core, weights: LayerWeights, x: Tensor, state: Tensors) -> Tensors:
    if core.kind == "LSTM":
        return cell(weights, x, state[0], state[1])
    if core.kind == "GRU":
        return (gru_cell(weights, x, state[0]),)
    return (rnn_cell(weights, x, state[0], core.nonlinearity),)


def formula(module: nn.Module, core: Core) -> Kernel:
    """The kernel that computes as the formulas read: slow, and in float64 the truth."""

    def run(x: Tensor, states: Tensors) -> tuple[Tensor, Tensors]:
        new = [tuple(state[:, row] for state in states) for row in range(core.rows)]
        for row, weights in enumerate(layer_weights(module)):
            backwards = row % core.directions == 1
            if not backwards:
                below, outputs = x, []
            steps = []
            for step in (below.flip(0) if backwards else below).unbind(0):
                new[row] = _step(core, weights, step, new[row])
                steps.append(new[row][0])
            outputs.append(torch.stack(steps[::-1] if backwards else steps))
            x = outputs[0] if core.directions == 1 else torch.cat(outputs, -1)
        return x, tuple(torch.stack(state, 1) for state in zip(*new, strict=True))

    return run


def pytorch(module: nn.Module, core: Core) -> Kernel:
    """The kernel that computes as PyTorch does."""
    forward = type(module).forward

    def run(x: Tensor, states: Tensors) -> tuple[Tensor, Tensors]:
        if core.cell:
            plain = tuple(state[:, 0] for state in states)
            answer = forward(module, x[0], plain if core.kind == "LSTM" else plain[0])
            new = answer if core.kind == "LSTM" else (answer,)
            return new[0][None], tuple(state[:, None] for state in new)
        plain = tuple(state.transpose(0, 1).contiguous() for state in states)
        x = x.transpose(0, 1) if core.batch_first else x
        y, last = forward(module, x, plain if core.kind == "LSTM" else plain[0])
        new = last if core.kind == "LSTM" else (last,)
        return y.transpose(0, 1) if core.batch_first else y, tuple(state.transpose(0, 1) for state in new)

    return run


def recurrent_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every recurrent layer in it, with its name."""
    return [(name or type(part).__name__.lower(), part) for name, part in module.named_modules() if is_recurrent(part)]


def whole_states(core: Core, answer: Any) -> Tensors:
    """The states [B, L*D, H] in what an original layer gave."""
    last = answer if core.cell else answer[1]
    states: Sequence[Tensor] = last if core.kind == "LSTM" else (last,)
    return tuple(state[:, None] if core.cell else state.transpose(0, 1) for state in states)
