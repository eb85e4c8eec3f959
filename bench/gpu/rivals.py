"""PyTorch's contestants: nn.LSTM as anybody calls it, and a cell as somebody would tune it. States on the device.

They need no rows gathered and scattered, as they always have the same streams in the same batch: an advantage.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.gpu.runs import Array, Runs
from bench.gpu.torch_device import TorchDevice
from model.lstm import LSTM


def _time_first(x: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.swapaxes(0, 1)))


def _batch_first(y: Tensor) -> Array:
    return y.float().cpu().numpy().swapaxes(0, 1)


class Eager:
    """torch.nn.LSTM (cuDNN's on a GPU), time first, which it likes best."""

    def __init__(self, at: TorchDevice, module: LSTM, precision: str) -> None:
        self._at, self._dtype = at, at.set_precision(precision)
        own = module.lstm
        self._lstm = torch.nn.LSTM(own.input_size, own.hidden_size, own.num_layers)
        self._lstm.load_state_dict(own.state_dict())
        self._lstm = self._lstm.requires_grad_(requires_grad=False).to(at.device, self._dtype).eval()
        self._lstm.flatten_parameters()

    def ready(self, x: Array) -> Runs:
        """For inputs [B, T, F]."""
        at, lstm = self._at, self._lstm
        given = _time_first(x)
        source = at.on_host(*given.shape).copy_(given)
        landed = source.to(at.device)
        there = landed.to(self._dtype)
        zeros = torch.zeros(lstm.num_layers, given.shape[1], lstm.hidden_size, device=at.device, dtype=self._dtype)
        target = at.on_host(*given.shape[:2], lstm.hidden_size)
        state = (zeros, zeros)

        def answers() -> Array:
            y, _ = lstm(there, (zeros, zeros))
            return _batch_first(y)

        def device() -> None:
            nonlocal state
            _, state = lstm(there, state)
            at.wait()

        def host() -> None:
            nonlocal state
            landed.copy_(source, non_blocking=True)
            y, state = lstm(landed.to(self._dtype), state)
            target.copy_(y.float(), non_blocking=True)  # on the device: PyTorch would change dtypes on the host
            at.wait()

        return Runs(answers, device, host)


Gates = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def activate(gates: Tensor, h: Tensor, c: Tensor, y: Tensor) -> None:
    """The next h and c, in place, and h into y, from gates [B, 4H] before activation: one kernel when compiled."""
    i, f, g, o = gates.float().chunk(4, dim=1)
    c.copy_(f.sigmoid() * c + i.sigmoid() * g.tanh())
    new = o.sigmoid() * c.tanh()
    h.copy_(new)
    y.copy_(new)


@functools.cache
def compiled(device: torch.device) -> Gates:
    """`activate` by torch.compile, once for all sizes; on the CPU without its compiler, which takes half a minute."""
    made: Gates = torch.compile(activate, dynamic=True, backend="inductor" if device.type == "cuda" else "eager")
    few, size = 2, 4
    one = [torch.zeros(few, size, device=device) for _ in range(3)]
    made(torch.zeros(few, 4 * size, device=device), *one)  # so that what keeps it from compiling is met here
    return made


class Cell:
    """A cell of matrix products and one compiled kernel, all layers and steps in one CUDA graph."""

    def __init__(self, at: TorchDevice, module: LSTM, precision: str) -> None:
        self._at, self._dtype, self._gates = at, at.set_precision(precision), compiled(at.device)
        self._precision, self._hidden = precision, module.spec.hidden_size
        self._layers = []
        for weights in module.layer_weights():
            assert weights.b_ih is not None
            assert weights.b_hh is not None
            parts = (weights.w_ih.T, weights.w_hh.T, weights.b_ih + weights.b_hh)
            self._layers.append(tuple(part.to(at.device, self._dtype).contiguous() for part in parts))

    def ready(self, x: Array) -> Runs:
        """For inputs [B, T, F]: captures a graph."""
        at, batch = self._at, x.shape[0]
        there = _time_first(x).to(at.device, self._dtype)
        h, c = (
            [torch.zeros(batch, self._hidden, device=at.device, dtype=dtype) for _ in self._layers]
            for dtype in (self._dtype, torch.float32)
        )
        y = torch.zeros(*there.shape[:2], self._hidden, device=at.device, dtype=self._dtype)
        at.set_precision(self._precision)
        replay = at.graph(lambda: self._run(there, h, c, y))

        def answers() -> Array:
            for state in (*h, *c):
                state.zero_()
            replay()
            at.wait()
            return _batch_first(y)

        def device() -> None:
            replay()
            at.wait()

        return Runs(answers, device, None)

    def _run(self, x: Tensor, h: list[Tensor], c: list[Tensor], y: Tensor) -> None:
        """All layers over x [T, B, F] into y [T, B, H]; inputs' share of the gates in one product for all steps."""
        top = x
        for place, (w_ih, w_hh, bias) in enumerate(self._layers):
            share = torch.addmm(bias, top.reshape(-1, top.shape[2]), w_ih).view(*top.shape[:2], -1)
            for step in range(len(top)):
                self._gates(torch.addmm(share[step], h[place], w_hh), h[place], c[place], y[step])
            top = y  # its share of the gates is computed before the next layer overwrites it


class Reference:
    """The reference cell in float64 on the device: the truth for every contestant."""

    def __init__(self, at: TorchDevice, module: LSTM) -> None:
        self._at = at
        self._module = copy.deepcopy(module).to(at.device).double()

    def answers(self, x: Array) -> Array:
        """Outputs [B, T, O] in float64, from the first state."""
        given = torch.from_numpy(x).double().to(self._at.device)
        y, _ = self._module.reference(given, self._module.zero_state(len(x)))
        found: Array = y.cpu().numpy()
        return found
