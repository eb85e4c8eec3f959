"""Recurrent layers of any user's module: their formulas in any dtype, and stand-ins whose state comes from outside.

Owns what nn.LSTM, nn.GRU, nn.RNN and their cells have in common: sizes, weights, the order of axes, where a state is
taken from and given to. A stand-in computes by a kernel: the formula, PyTorch's own, or an exporter's. Knows no ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from model.cell import LayerWeights, cell, linear

Tensors = tuple[Tensor, ...]
Kernel = Callable[[Tensor, Tensors], tuple[Tensor, Tensors]]  # x [T, B, F], states [B, L, H]: y [T, B, H], new states
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
    """What kind of layer a recurrent module is; raises RecurrentError for one that can't stream, or isn't supported."""
    base = next(base for base in (*SEQUENCES, *CELLS) if isinstance(module, base))
    what = f"{name or 'the module'} (nn.{base.__name__})"
    m: Any = module
    if base in CELLS:
        return Core(CELLS[base], m.hidden_size, 1, True, True, getattr(m, "nonlinearity", "tanh"))
    if m.bidirectional:
        raise RecurrentError(
            f"{what} is bidirectional: it reads a sequence from its end too, which a stream doesn't have yet when its"
            " first step is to be answered; train a unidirectional one"
        )
    if getattr(m, "proj_size", 0):
        raise RecurrentError(
            f"{what} has proj_size={m.proj_size}, which ONNX's LSTM operator has not: inside a module it isn't"
            " supported; export that LSTM by itself, by its state dict"
        )
    return Core(SEQUENCES[base], m.hidden_size, m.num_layers, m.batch_first, False, getattr(m, "nonlinearity", "tanh"))


def layer_weights(module: nn.Module) -> list[LayerWeights]:
    """Each layer's weights, gates stacked in PyTorch's order."""
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
    weights = layer_weights(module)

    def run(x: Tensor, states: Tensors) -> tuple[Tensor, Tensors]:
        layers = [tuple(state[:, layer] for state in states) for layer in range(core.layers)]
        outputs = []
        for below in x.unbind(0):
            step = below
            for index, layer in enumerate(weights):
                layers[index] = _step(core, layer, step, layers[index])
                step = layers[index][0]
            outputs.append(step)
        return torch.stack(outputs), tuple(torch.stack(state, 1) for state in zip(*layers, strict=True))

    return run


def pytorch(module: nn.Module, core: Core) -> Kernel:
    """The kernel that computes as PyTorch does."""

    def run(x: Tensor, states: Tensors) -> tuple[Tensor, Tensors]:
        if core.cell:
            plain = tuple(state[:, 0] for state in states)
            answer = module(x[0], plain if core.kind == "LSTM" else plain[0])
            new = answer if core.kind == "LSTM" else (answer,)
            return new[0][None], tuple(state[:, None] for state in new)
        plain = tuple(state.transpose(0, 1).contiguous() for state in states)
        y, last = module(x.transpose(0, 1) if core.batch_first else x, plain if core.kind == "LSTM" else plain[0])
        new = last if core.kind == "LSTM" else (last,)
        return y.transpose(0, 1) if core.batch_first else y, tuple(state.transpose(0, 1) for state in new)

    return run


@dataclass(slots=True)
class Called:
    """One call of a stand-in: its slot, what it was given as state (None: nothing), and what it gave, [B, L, H]."""

    slot: str
    core: Core
    given: Tensors | None
    new: Tensors = ()
    returned: Tensors = ()  # as the caller got them


@dataclass(slots=True)
class Tape:
    """Where stand-ins take their states from and give them to. A slot is a layer's name, with its n-th call in a run.

    It is no module, and so tracing takes no notice of what it holds.
    """

    carried: Mapping[str, Tensors] = field(default_factory=dict)
    calls: list[Called] = field(default_factory=list)

    def begin(self, carried: Mapping[str, Tensors]) -> None:
        """Start a run: slots among `carried` take their states from there, others what their caller gives them."""
        self.carried, self.calls = carried, []

    def take(self, name: str, core: Core, given: Tensors | None, zero: Callable[[], Tensor]) -> Tensors:
        """The states of the next call of the layer `name`."""
        number = 1 + sum(call.slot.partition("#")[0] == name for call in self.calls)
        slot = name if number == 1 else f"{name}#{number}"
        self.calls.append(Called(slot, core, given))
        if slot in self.carried:
            return self.carried[slot]
        return given if given is not None else tuple(zero() for _ in core.states)

    def given(self) -> dict[str, Tensors]:
        """The new states of every slot."""
        return {call.slot: call.new for call in self.calls}


class StandIn(nn.Module):
    """In the place of a recurrent layer: the same call, its state from and to the tape."""

    def __init__(self, original: nn.Module, core: Core, kernel: Kernel, tape: Tape, name: str) -> None:
        super().__init__()
        self.core, self.kernel, self.tape, self.name = core, kernel, tape, name
        self._held = (original,)  # a tuple hides it from the module's own list of weights

    def __getattr__(self, name: str) -> Any:
        """Give whatever else a user's code asks of the layer: hidden_size, flatten_parameters and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_held"][0], name)

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # noqa: A002  as PyTorch calls it
        """Answer as nn.LSTM, nn.GRU, nn.RNN or a cell of theirs does."""
        if isinstance(input, PackedSequence):
            raise RecurrentError(
                f"{self.name} is given a packed sequence (pack_padded_sequence), which needs whole sequences and their"
                " lengths beforehand; a stream has neither, and needs no padding: leave the packing out of forward"
            )
        if input.ndim != (2 if self.core.cell else 3):
            raise RecurrentError(f"{self.name} is given an input of {input.ndim} axes, without one for the batch")
        x = input[None] if self.core.cell else input.transpose(0, 1) if self.core.batch_first else input
        shape = (x.shape[1], self.core.layers, self.core.hidden_size)
        given = None if hx is None else self._batch_first(hx)
        states = self.tape.take(self.name, self.core, given, lambda: x.new_zeros(shape))
        call = self.tape.calls[-1]
        y, call.new = self.kernel(x, states)
        call.returned = tuple(state[:, 0] if self.core.cell else state.transpose(0, 1) for state in call.new)
        last: Any = call.returned if self.core.kind == "LSTM" else call.returned[0]
        if self.core.cell:
            return last
        return y.transpose(0, 1) if self.core.batch_first else y, last

    def _batch_first(self, hx: Any) -> Tensors:
        states = tuple(hx) if self.core.kind == "LSTM" else (hx,)
        return tuple(state[:, None] if self.core.cell else state.transpose(0, 1) for state in states)


def replaced(module: nn.Module, make: Callable[[nn.Module, Core], Kernel], tape: Tape) -> nn.Module:
    """The module with a stand-in for each recurrent layer; changed in place, unless it is itself one.

    Raises RecurrentError for layers that can't stream.
    """
    names = {id(part): name for name, part in reversed(list(module.named_modules(remove_duplicate=False)))}
    done: dict[int, StandIn] = {}

    def stand_in(part: nn.Module) -> StandIn:
        if id(part) not in done:
            name = names[id(part)] or type(part).__name__.lower()
            core = core_of(part, names[id(part)])
            done[id(part)] = StandIn(part, core, make(part, core), tape, name)
        return done[id(part)]

    if is_recurrent(module):
        return stand_in(module)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # noqa: SLF001  named_children leaves out what is there twice
            if child is not None and is_recurrent(child):
                setattr(parent, name, stand_in(child))
    return module


def recurrent_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every recurrent layer in it, with its name."""
    return [(name or type(part).__name__.lower(), part) for name, part in module.named_modules() if is_recurrent(part)]


def whole_states(core: Core, answer: Any) -> Tensors:
    """The states [B, L, H] in what an original layer gave."""
    last = answer if core.cell else answer[1]
    states: Sequence[Tensor] = last if core.kind == "LSTM" else (last,)
    return tuple(state[:, None] if core.cell else state.transpose(0, 1) for state in states)
