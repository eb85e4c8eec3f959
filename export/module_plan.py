"""What a user's module is as a stream: inputs, outputs, states and where each comes from, on which axes.

Owns that description. How it is found out is `module_find_plan`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export import ranges
from export.layouts import BATCH, TIME, Layout
from export.module_calls import Convention, ModuleError
from export.understanding import Asked
from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS, Contract, StatePair, TensorSpec

Array = npt.NDArray[Any]
FLOATS = frozenset({"float32", "float64"})  # float64 inputs are taken as float32: that is what is served
_SPEC = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<axes>[^\[\]]*)\]")
_RESERVED = frozenset({LENGTHS, READ_ROWS, WRITE_ROWS})
SUCCESSOR = "_next"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output as the module's forward has it: per axis a size, 'batch' or 'time'."""

    name: str
    dtype: str
    layout: Layout
    bounds: tuple[float, float] | None = None  # whole numbers for integers

    @property
    def timed(self) -> bool:
        """Whether it has a time axis."""
        return TIME in self.layout


@dataclass(frozen=True, slots=True)
class Lanes:
    """How a recurrent layer's batch is made of streams: each has `count` places in it (1: it is the streams).

    `streams_first`: a stream's places are neighbours, as in `x.reshape(B * F, T, C)`.
    """

    count: int = 1
    streams_first: bool = True

    def folded(self, state: torch.Tensor) -> torch.Tensor:
        """Streams' states [B, N, L, H] as the layer's [B*N, L, H]; as they are, [B, L, H], where N is 1."""
        if self.count == 1:
            return state
        return (state if self.streams_first else state.transpose(0, 1)).flatten(0, 1)

    def unfolded(self, state: torch.Tensor) -> torch.Tensor:
        """The inverse."""
        if self.count == 1:
            return state
        if self.streams_first:
            return state.reshape(-1, self.count, *state.shape[1:])
        return state.reshape(self.count, -1, *state.shape[1:]).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class State:
    """A state tensor: a layer's own (`slot`, and which of its states), or a leaf of forward's argument."""

    name: str
    origin: str  # for people
    dtype: str
    layout: Layout
    initial: Array | None  # of one stream, without the batch axis; None is zeros
    slot: str | None = None
    place: int = 0
    lanes: Lanes = Lanes()

    def new_of(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """This state among those that its layer gave."""
        return self.lanes.unfolded(states[self.place])

    @property
    def successor(self) -> str:
        """What the graph calls its new value."""
        return self.name + SUCCESSOR


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it. `stepwise`: the graph takes single steps; `bare`: so does forward, which has no time axis."""

    convention: Convention
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[State, ...]
    stepwise: bool
    begins: bool  # the module begins by itself where it is given no state
    remarks: tuple[str, ...] = ()

    @property
    def bare(self) -> bool:
        """Whether a call of forward is one step."""
        return not any(tensor.timed for tensor in self.inputs)

    def layout(self, tensor: Tensor) -> Layout:
        """Its axes in the graph."""
        return tuple(size for size in tensor.layout if size != TIME) if self.stepwise else tensor.layout

    def asked(self) -> Asked:
        """What a wrapping of the graph is told."""
        tensors = {tensor.name: self.layout(tensor) for tensor in self.inputs}
        return Asked(
            states={state.name: state.successor for state in self.states},
            inputs=tuple(tensor.name for tensor in self.inputs),
            initial={
                state.name: np.expand_dims(state.initial, state.layout.index(BATCH))
                for state in self.states
                if state.initial is not None
            },
            shapes=tensors | {state.name: state.layout for state in self.states},
            ranges={tensor.name: tensor.bounds for tensor in self.inputs if tensor.bounds is not None},
        )

    def contract(self) -> Contract:
        """A contract to draw and compare by before there is a graph; unknown integers are 0 or 1."""
        return Contract(
            name="",
            inputs=tuple(self._spec(tensor) for tensor in self.inputs),
            outputs=tuple(self._spec(tensor) for tensor in self.outputs),
            states=tuple(_pair(state) for state in self.states),
            weights_digest="",
            ragged=not self.stepwise,
            notes=ranges.note({t.name: t.bounds for t in self.inputs if t.dtype in FLOATS and t.bounds is not None}),
        )

    def _spec(self, tensor: Tensor) -> TensorSpec:
        layout = self.layout(tensor)
        low, high = whole(tensor) or ((0, 1) if np.dtype(tensor.dtype).kind in "iu" else (None, None))
        return TensorSpec(
            tensor.name,
            tensor.dtype,
            tuple(size for size in layout if isinstance(size, int)),
            batch_axis=layout.index(BATCH),
            time_axis=layout.index(TIME) if TIME in layout else None,
            minimum=low,
            maximum=high,
        )


def _pair(state: State) -> StatePair:
    shape = tuple(size for size in state.layout if isinstance(size, int))
    initial = None if state.initial is None else np.ascontiguousarray(state.initial).tobytes()
    axis = state.layout.index(BATCH)
    return StatePair(state.name, state.successor, state.dtype, shape, batch_axis=axis, initial=initial)


def whole(tensor: Tensor) -> tuple[int, int] | None:
    """The bounds of an integer input; None for one without, and for floats."""
    if tensor.bounds is None or np.dtype(tensor.dtype).kind not in "iu":
        return None
    return int(tensor.bounds[0]), int(tensor.bounds[1])


def bounded(tensor: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The input with these bounds; raises ModuleError where it can't have them."""
    kind = np.dtype(tensor.dtype).kind
    if kind == "b":
        raise ModuleError(f"--range {tensor.name}: it is a bool, and has both values anyway")
    if kind in "iu" and any(value != int(value) for value in bounds):
        raise ModuleError(f"--range {tensor.name}: it is {tensor.dtype}, and its bounds are whole numbers")
    return replace(tensor, bounds=bounds)


def parse_input(text: str) -> Tensor:
    """An option's text, `x=float32[batch,time,5]`; raises ModuleError where it doesn't read."""
    name, sign, form = text.partition("=")
    if not (sign and all(part.isidentifier() for part in name.split("."))):
        raise ModuleError(f"--input {text}: it has the form x=float32[batch,time,5]")
    if name in _RESERVED:
        raise ModuleError(f"--input {name}: the served graph has an input of that name; call forward's another")
    dtype, layout = parse_form(f"--input {text}", form)
    if layout.count(TIME) > 1:
        raise ModuleError(f"--input {text}: it has 'time' more than once")
    return Tensor(name, "float32" if dtype in FLOATS else dtype, layout)


def parse_form(option: str, form: str) -> tuple[str, Layout]:
    """A dtype and axes, `float32[batch,time,5]`."""
    match = _SPEC.fullmatch(form.strip())
    parts = [part.strip() for part in match["axes"].split(",")] if match else []
    if match is None or not all(part in (BATCH, TIME) or (part.isdecimal() and int(part) > 0) for part in parts):
        raise ModuleError(f"{option}: a dtype and axes, each a size, 'batch' or 'time', as in float32[batch,time,5]")
    if match["dtype"] not in np.sctypeDict or np.dtype(match["dtype"]).kind not in "biuf":
        raise ModuleError(f"{option}: {match['dtype']} is no dtype that a stream carries (float32, int64, bool, …)")
    if parts.count(BATCH) != 1:
        raise ModuleError(f"{option}: exactly one axis is 'batch', for the streams that are computed together")
    return match["dtype"], tuple(part if part in (BATCH, TIME) else int(part) for part in parts)
