"""Calling a copy of a user's module with small random inputs, its recurrent layers watched.

Owns the copy, what it is given, and what a call gave. Concludes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from export.layouts import BATCH, TIME
from export.module_calls import Convention, ModuleError
from export.module_copies import copied
from export.module_errors import told
from export.module_plan import FLOATS, Tensor, whole
from export.samples import values
from model.contract import TensorSpec
from model.recurrent import RecurrentError, core_of, pytorch, recurrent_layers
from model.recurrent_calls import Called, Tape, intercepted

STREAMS, STEPS = 3, 5  # of a probe: sizes that nothing else is likely to have
_SAME = 1e-5  # of the largest value: what two calls of float32 may differ by
Begin = Callable[[int], Any]  # a batch size to a nested state
Values = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one call of the module gave."""

    answer: Any
    outputs: dict[str, torch.Tensor]
    states: list[torch.Tensor]
    calls: list[Called]


class ForwardError(ModuleError):
    """The user's forward raises; `reason` says what, and the text what it could be given instead."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(f"{reason}; if that isn't what it takes, say it, as in --input {name}=float32[batch,time,5]")
        self.reason = reason


class Probe:
    """A copy of the module in which every recurrent layer says how it is called."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        self.tape = Tape()
        try:
            self.cores = [core_of(layer, name) for name, layer in recurrent_layers(module)]
            self.module = intercepted(copied(module, share=True), pytorch, self.tape)
        except RecurrentError as error:
            raise ModuleError(str(error)) from error

    def values(self, seed: int = 0, streams: int = STREAMS, steps: int = 1) -> Values:
        """Inputs: normal floats and integers of 0 and 1, or what their range says."""
        random = np.random.default_rng(seed)
        return {tensor.name: torch.from_numpy(_drawn(tensor, streams, steps, random)) for tensor in self.inputs}

    @torch.no_grad()
    def see(self, convention: Convention, values: Values, states: Sequence[torch.Tensor] | None) -> Seen:
        """Call it; raises ModuleError in one line where it fails."""
        self.tape.begin({})
        try:
            answer = convention.call(self.module, values, states)
            outputs, new = convention.outputs(answer), list(convention.state(answer))
        except (RecurrentError, ModuleError) as error:
            raise ModuleError(str(error)) from error
        except Exception as error:  # whatever a user's code raises
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise ForwardError(f"forward fails with {shapes}: {told(error)}", self.inputs[0].name) from error
        return Seen(answer, outputs, new, list(self.tape.calls))


def _drawn(tensor: Tensor, streams: int, steps: int, random: np.random.Generator) -> npt.NDArray[Any]:
    """Values for an input on forward's own axes."""
    low, high = whole(tensor) or (None, None)
    sizes = tuple(size for size in tensor.layout if isinstance(size, int))
    spec = TensorSpec(tensor.name, tensor.dtype, sizes, minimum=low, maximum=high)
    between = tensor.bounds if tensor.dtype in FLOATS else None
    value = values(spec, (streams, *[steps] * tensor.timed, *sizes), random, between, many=1)
    axes = [tensor.layout.index(axis) for axis in (BATCH, TIME) if axis in tensor.layout]
    return np.ascontiguousarray(np.moveaxis(value, range(len(axes)), axes))


@dataclass(frozen=True, slots=True)
class Caller:
    """A probe called by one convention, from one first state (None: forward takes none, or begins by itself)."""

    probe: Probe
    convention: Convention
    first: list[torch.Tensor] | None

    def see(self, seed: int = 0, steps: int = 1) -> Seen:
        """Call it for STREAMS streams."""
        return self.probe.see(self.convention, self.probe.values(seed, steps=steps), self.first)

    def see_from(self, states: Sequence[torch.Tensor] | None, streams: int = STREAMS, steps: int = 1) -> Seen:
        """Call it from other states."""
        return self.probe.see(self.convention, self.probe.values(streams=streams, steps=steps), states)


def alike(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    """Whether tensors have the same shapes and dtypes."""
    return [(a.shape, a.dtype) for a in first] == [(b.shape, b.dtype) for b in second]


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have the same values, up to roundings of float32."""
    if first.shape != second.shape:
        return False
    a, b = first.detach().double(), second.detach().double()
    return bool((a - b).abs().max() <= _SAME * max(1e-30, float(a.abs().max()))) if a.numel() else True


def moved(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The states with a random number added to each float."""
    generator = torch.Generator().manual_seed(0)
    return [
        state + torch.rand(state.shape, generator=generator, dtype=state.dtype) if state.is_floating_point() else state
        for state in states
    ]
