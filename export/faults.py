"""Failing controls: faults planted into copies of the graphs, or into how they are run, which parity must find.

A suite that passes says little unless it is known to fail. Owns the table of faults and how each is planted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

from export import artifact, portable, resident
from export.emulation import fewer_bits, fewer_bits_of
from export.parity import Levels
from export.precision import Precision
from export.products import SCALES
from export.run_faults import HalfState, LostChunkEnd, StaleRow, missed_by
from export.runtime import Planted, Resident
from export.samples import Arrays
from export.time_scan import is_time_scan
from model.contract import Contract, ParityRecord
from model.lstm import LSTM, Spec

Array = npt.NDArray[Any]
STEPS = 10
MOST_STEPS = 5  # of a chunk
MATRICES, BIASES = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh")
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to be wrong: in the graphs (`plant`), their weights (`weights`), or how the resident one is run (`runs`).

    `error` in a finding is in multiples of the bar, or of float32's epsilon where the bar is equality.
    """

    name: str
    plant: Callable[[ModelProto, Copied], None] | None = None
    runs: type[Resident] = Resident
    weights: Callable[[Weights], None] | None = None
    layers: int = 1  # that a model needs to have it
    bias: bool = False  # whether it needs biases
    projected: bool | None = None  # whether it needs a projection (None: it doesn't matter)
    within: frozenset[Precision] = frozenset(Precision)  # the precisions whose own roundings don't hide it

    @property
    def in_graphs(self) -> bool:
        """Whether it is in the graphs, and not in how they are run."""
        return self.plant is not None or self.weights is not None

    def fits(self, spec: Spec, precision: Precision = Precision.FP32) -> bool:
        """Whether such a model can have the fault, and the precision can show it."""
        fits = self.layers <= spec.layers and self.bias <= spec.bias and precision in self.within
        return fits and self.projected in (None, spec.proj_size is not None)


def _cells(model: ModelProto) -> list[tuple[NodeProto, int]]:
    """The nodes that are layers, and the place of h among each one's inputs; c stands behind it."""
    found = []
    for node in model.graph.node:
        if node.op_type == "LSTM":
            found.append((node, 5))
        elif is_time_scan(node):
            found.append((node, 0))
    return found


def _edit(weights: Weights, kinds: Sequence[str], change: Callable[[Tensor], Tensor]) -> None:
    """Change the last layer's weights of these kinds, where it has them."""
    last = max(int(name.rpartition("_l")[2]) for name in weights if name.startswith("lstm."))
    for name in (f"lstm.{kind}_l{last}" for kind in kinds):
        if name in weights:
            weights[name] = change(weights[name])


def _gates(*order: int) -> Callable[[Tensor], Tensor]:
    return lambda rows: torch.cat([rows.chunk(4)[gate] for gate in order])


def _swap_two_gates(weights: Weights) -> None:
    """The output and the forget gate exchanged, in both weights."""
    _edit(weights, MATRICES, _gates(0, 3, 2, 1))


def _other_order(weights: Weights) -> None:
    """The rows of one order where the other is wanted: PyTorch has i, f, g, o, and ONNX i, o, f, c."""
    _edit(weights, (*MATRICES, *BIASES), _gates(0, 2, 3, 1))


def _drop_bias(weights: Weights) -> None:
    _edit(weights, BIASES[1:], torch.zeros_like)


def _add_bias_twice(weights: Weights) -> None:
    _edit(weights, BIASES[:1], lambda bias: bias * 2)


def _roll_projection(weights: Weights) -> None:
    """Each unit projected by its neighbour's weights."""
    _edit(weights, ("weight_hr",), lambda weight: weight.roll(1, dims=1))


def _round_weights(weights: Weights) -> None:
    _edit(weights, (*MATRICES, "weight_hr"), fewer_bits)


def _exchange_states(model: ModelProto, _weights: Copied) -> None:
    """H where c belongs, and c where h does."""
    for node, h in _cells(model):
        node.input[h], node.input[h + 1] = node.input[h + 1], node.input[h]


def _exchange_layers(model: ModelProto, _weights: Copied) -> None:
    """The first two layers start from each other's states."""
    (first, h), (second, _), *_ = _cells(model)
    for place in (h, h + 1):
        first.input[place], second.input[place] = second.input[place], first.input[place]


def _shift_scales(model: ModelProto, weights: Copied) -> None:
    """Each row of 8-bit weights with its neighbour's scales."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith(SCALES):
            weights.change(tensor.name, lambda scales: np.roll(scales, 1, axis=0))


class _Rounding(Resident):
    """Both the states and float inputs of every run lose bits on their way in, as matrix units in TF32 would do."""

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        for slab in self.slabs.values():
            slab[read] = fewer_bits_of(slab[read])
        rounded = {name: fewer_bits_of(value) if value.dtype == np.float32 else value for name, value in inputs.items()}
        return super().run(rounded, lengths, read, write)


FAULTS = (
    Fault("two gates swapped", weights=_swap_two_gates),
    Fault("gate order i, f, g, o for i, o, f, c", weights=_other_order),
    Fault("a bias dropped", weights=_drop_bias, bias=True),
    Fault("a bias added twice", weights=_add_bias_twice, bias=True),
    Fault("units of the projection shifted", weights=_roll_projection, projected=True),
    Fault("h and c exchanged", _exchange_states, projected=False),  # with a projection they differ in size
    Fault("layers exchanged", _exchange_layers, layers=2),
    Fault("TF32-sized noise in the weights", weights=_round_weights, within=frozenset({Precision.FP32})),
    Fault("8-bit weights with their neighbours' scales", _shift_scales, within=frozenset({Precision.INT8})),
    Fault("TF32-sized noise in the activations", runs=_Rounding),
    Fault("a float16 rounding of the state", runs=HalfState),
    Fault("a step lost at a chunk's border", runs=LostChunkEnd),
    Fault("a stale row read", runs=StaleRow),
)


def find(fault: Fault, levels: Levels) -> list[ParityRecord]:
    """What parity says of the resident graph with this fault in it, in its weights or in how it is run."""
    if not fault.in_graphs:
        return levels.bit_for_bit(0, most_steps=MOST_STEPS, runs=fault.runs)
    return levels.of_planted(lambda: _planted(fault, levels), STEPS)


def _planted(fault: Fault, levels: Levels) -> Planted:
    """The resident graph with this fault in it, and the weights that it changes."""
    base, _ = artifact.read_graph(levels.folder / artifact.MODEL, weights=False)
    copied = Copied(base, artifact.read_weights(base, levels.folder), levels.module.spec.layers)
    model = portable.build(_faulty(fault, levels.module), Precision(levels.contract.precision), copied.keep)
    if fault.plant is not None:
        fault.plant(model, copied)
    return Planted(resident.derive(model, levels.contract).SerializeToString(), copied.changed)


class Copied:
    """The weights of a copy: those that a fault changed in memory, and for all others the file that is there."""

    def __init__(self, base: ModelProto, arrays: Mapping[str, Array], layers: int) -> None:
        self.arrays = dict(arrays)
        self.changed: dict[str, Array] = {}
        self._tensors = {tensor.name: tensor for tensor in base.graph.initializer}
        self._last = f"lstm.{layers - 1}."  # the one layer whose weights are changed

    def keep(self, name: str, array: Array) -> TensorProto:
        """The tensor that the copy's graph has of a weight."""
        if artifact.stays(array.dtype, array.size):
            return numpy_helper.from_array(array, name)
        if name.startswith(self._last) and not np.array_equal(self.arrays[name], array):
            self.changed[name] = np.ascontiguousarray(array)
        return self._tensors[name]

    def change(self, name: str, change: Callable[[Array], Array]) -> None:
        """Change a weight of the copy."""
        self.changed[name] = np.ascontiguousarray(change(self.arrays[name]))


def plant(fault: Fault, module: LSTM, contract: Contract, folder: Path) -> list[ParityRecord]:
    """The same for a module alone, whose graphs are written into `folder` first."""
    with (folder / artifact.WEIGHTS).open("wb") as file:
        model = portable.build(module, Precision(contract.precision), artifact.WeightsWriter(file).keep)
    artifact.write_graph(model, folder / artifact.MODEL, contract)
    artifact.write_graph(resident.derive(model, contract), folder / artifact.RESIDENT, contract)
    return find(fault, Levels(module, folder, (artifact.MODEL, artifact.RESIDENT), contract))


def _faulty(fault: Fault, module: LSTM) -> LSTM:
    """The module with the fault in its weights, or itself."""
    if fault.weights is None:
        return module
    weights = dict(module.state_dict())
    fault.weights(weights)
    return LSTM.from_state_dict(weights, module.spec)


def controls(levels: Levels) -> Iterator[tuple[str, float]]:
    """Every fault that this model can have, planted into a copy, with what was found of it."""
    for fault in FAULTS:
        if fault.fits(levels.module.spec, Precision(levels.contract.precision)):
            yield fault.name, missed_by(find(fault, levels))
