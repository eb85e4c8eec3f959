"""Calls of a user's module's recurrent layers, intercepted: each takes its state from outside, and gives it there.

Owns where a state is taken from and given to, and which call of which layer it belongs to. The layers stay in their
places, with their weights, hooks and attributes: only what their forward computes by is exchanged for a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from model.cell import LayerWeights
from model.recurrent import Core, Kernel, RecurrentError, Tensors, core_of, is_recurrent, layer_weights

_KERNEL = "cellstream_kernel"  # a layer's child, where its kernel is a module


@dataclass(slots=True)
class Called:
    """One call of a layer: its slot, what it was given, and what it gave; states are [B, L*D, H]."""

    slot: str
    core: Core
    x: Tensor  # [T, B, F]
    given: Tensors | None  # None: no state
    new: Tensors = ()
    returned: Tensors = ()  # as the caller got them
    weights: tuple[LayerWeights, ...] = ()

    @property
    def layer(self) -> str:
        """The layer's name."""
        return self.slot.partition("#")[0]


@dataclass(slots=True)
class Tape:
    """Where layers take their states from and give them to. A slot is a layer's name, with its n-th call in a run.

    It is no module, and so tracing takes no notice of what it holds.
    """

    carried: Mapping[str, Tensors] = field(default_factory=dict)
    calls: list[Called] = field(default_factory=list)

    def begin(self, carried: Mapping[str, Tensors]) -> None:
        """Start a run: slots among `carried` take their states from there, others what their caller gives them."""
        self.carried, self.calls = carried, []

    def take(self, name: str, core: Core, x: Tensor, given: Tensors | None) -> Tensors:
        """The states of the next call of the layer `name`."""
        number = 1 + sum(call.layer == name for call in self.calls)
        slot = name if number == 1 else f"{name}#{number}"
        self.calls.append(Called(slot, core, x, given))
        if slot in self.carried:
            return self.carried[slot]
        shape = (x.shape[1], core.rows, core.hidden_size)
        return given if given is not None else tuple(x.new_zeros(shape) for _ in core.states)

    def given(self) -> dict[str, Tensors]:
        """The new states of every slot."""
        return {call.slot: call.new for call in self.calls}


class Interception:
    """A recurrent layer's forward: the same call, its state from and to the tape."""

    def __init__(self, layer: nn.Module, core: Core, kernel: Kernel, tape: Tape, name: str) -> None:
        self.layer, self.core, self.kernel, self.tape, self.name = layer, core, kernel, tape, name

    def __call__(self, input: Tensor, hx: Any = None) -> Any:  # noqa: A002  as PyTorch calls it
        """Answer as nn.LSTM, nn.GRU, nn.RNN or one of their cells does."""
        if isinstance(input, PackedSequence):
            raise RecurrentError(
                f"{self.name} is given a packed sequence (pack_padded_sequence), which needs whole sequences and their"
                " lengths beforehand; a stream has neither, and needs no padding: leave the packing out of forward"
            )
        if input.ndim != (2 if self.core.cell else 3):
            raise RecurrentError(f"{self.name} is given an input of {input.ndim} axes, without one for the batch")
        x = input[None] if self.core.cell else input.transpose(0, 1) if self.core.batch_first else input
        states = self.tape.take(self.name, self.core, x, None if hx is None else self._batch_first(hx))
        call = self.tape.calls[-1]
        call.weights = tuple(layer_weights(self.layer))
        y, call.new = self.kernel(x, states)
        call.returned = tuple(state[:, 0] if self.core.cell else state.transpose(0, 1) for state in call.new)
        last: Any = call.returned if self.core.kind == "LSTM" else call.returned[0]
        if self.core.cell:
            return last
        return y.transpose(0, 1) if self.core.batch_first else y, last

    def _batch_first(self, hx: Any) -> Tensors:
        states = tuple(hx) if self.core.kind == "LSTM" else (hx,)
        return tuple(state[:, None] if self.core.cell else state.transpose(0, 1) for state in states)


def intercepted(module: nn.Module, make: Callable[[nn.Module, Core], Kernel], tape: Tape) -> nn.Module:
    """The module, changed in place: each of its recurrent layers computes by a kernel, with its state on the tape.

    Raises RecurrentError for layers that aren't supported.
    """
    names = {id(part): name for name, part in reversed(list(module.named_modules(remove_duplicate=False)))}
    for part in list(module.modules()):
        if is_recurrent(part):
            name = names[id(part)] or type(part).__name__.lower()
            core = core_of(part, names[id(part)])
            kernel = make(part, core)
            if isinstance(kernel, nn.Module):
                part.add_module(_KERNEL, kernel)  # tracing finds its weights there
            _exchange(part, Interception(part, core, kernel, tape, name))
    return module


def _exchange(layer: nn.Module, interception: Interception) -> None:
    """Let the layer's forward be the interception; a function set as its forward goes on calling what it wraps."""
    own = vars(layer).get("forward")
    if own is None or isinstance(own, Interception):
        layer.forward = interception
        return
    cells = [cell for cell in (own.__closure__ or ()) if _is_forward(cell.cell_contents, layer)] if _plain(own) else []
    if not cells:
        raise RecurrentError(
            f"{interception.name} has a forward of its own, set on this one layer, which can't be taken apart: let it"
            f" be an nn.Module that holds an nn.{type(layer).__name__}"
        )
    for cell in cells:
        cell.cell_contents = interception


def _plain(function: Any) -> bool:
    return isinstance(function, FunctionType)


def _is_forward(value: Any, layer: nn.Module) -> bool:
    """Whether it is the layer's forward, as its class has it or as it was exchanged before."""
    if isinstance(value, Interception):
        return value.layer is layer
    return isinstance(value, MethodType) and value.__self__ is layer and value.__func__ is type(layer).forward
