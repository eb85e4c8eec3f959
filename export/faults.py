"""Failing controls: faults planted into copies of the graphs, or into how they are run, which parity must find.

A suite that passes says little unless it is known to fail. Owns the table of faults and how each is planted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, numpy_helper

from export import artifact, portable, resident
from export.parity import Levels
from export.runtime import Resident
from export.samples import NON_ZERO, Arrays
from model.contract import Contract, ParityRecord
from model.lstm import LSTM

Array = npt.NDArray[Any]
STEPS = 10
MOST_STEPS = 5  # of a chunk
TF32_BITS = 10  # of the fraction


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to be wrong: in the graphs (`plant`), or in how the resident one is run (`runs`).

    `error` in a finding is in multiples of the bar, or of float32's epsilon where the bar is equality.
    """

    name: str
    plant: Callable[[ModelProto], None] | None = None
    runs: type[Resident] = Resident
    layers: int = 1  # that a model needs to have it
    bias: bool = False  # whether it needs biases

    def fits(self, module: LSTM) -> bool:
        """Whether this model can have the fault."""
        return self.layers <= module.spec.layers and self.bias <= module.spec.bias


def _lstms(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "LSTM"]


def _edit(model: ModelProto, place: int, change: Callable[[Array], Array]) -> None:
    """Change the last LSTM's weight at this place among its inputs, [1, rows, …], where it has one."""
    name = _lstms(model)[-1].input[place]
    for tensor in model.graph.initializer:
        if name and tensor.name == name:
            changed = change(numpy_helper.to_array(tensor)[0])[None]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed, np.float32), name))


def _gates(*order: int) -> Callable[[Array], Array]:
    return lambda rows: np.concatenate([np.split(rows, 4)[gate] for gate in order])


def _swap_two_gates(model: ModelProto) -> None:
    """The output and the forget gate exchanged, in both weights."""
    for place in (1, 2):
        _edit(model, place, _gates(0, 2, 1, 3))


def _pytorch_order(model: ModelProto) -> None:
    """PyTorch's i, f, g, o where ONNX wants i, o, f, c, in weights and biases."""
    for place in (1, 2):
        _edit(model, place, _gates(0, 2, 3, 1))
    _edit(model, 3, lambda both: np.concatenate([_gates(0, 2, 3, 1)(half) for half in np.split(both, 2)]))


def _drop_bias(model: ModelProto) -> None:
    _edit(model, 3, lambda both: np.concatenate([np.split(both, 2)[0], np.zeros(len(both) // 2)]))


def _add_bias_twice(model: ModelProto) -> None:
    _edit(model, 3, lambda both: np.concatenate([np.split(both, 2)[0] * 2, np.split(both, 2)[1]]))


def _exchange_states(model: ModelProto) -> None:
    """H where c belongs, and c where h does."""
    for node in _lstms(model):
        node.input[5], node.input[6] = node.input[6], node.input[5]


def _exchange_layers(model: ModelProto) -> None:
    """The first two layers start from each other's states."""
    first, second, *_ = _lstms(model)
    for place in (5, 6):
        first.input[place], second.input[place] = second.input[place], first.input[place]


def _round_weights(model: ModelProto) -> None:
    for node in _lstms(model):
        for tensor in model.graph.initializer:
            if tensor.name in (node.input[1], node.input[2]):
                rounded = _fewer_bits(numpy_helper.to_array(tensor), TF32_BITS)
                tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def _fewer_bits(values: Array, bits: int) -> Array:
    """float32 values, rounded to so many bits of fraction."""
    fraction, exponent = np.frexp(values.astype(np.float32))
    rounded = np.round(fraction * 2 ** (bits + 1)) / 2 ** (bits + 1)
    return np.asarray(np.ldexp(rounded, exponent), np.float32)


class _Rounding(Resident):
    """Both the states and float inputs of every run lose bits on their way in, as matrix units in TF32 would do."""

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        for slab in self.slabs.values():
            slab[read] = _fewer_bits(slab[read], TF32_BITS)
        rounded = {
            name: _fewer_bits(value, TF32_BITS) if value.dtype == np.float32 else value
            for name, value in inputs.items()
        }
        return super().run(rounded, lengths, read, write)


class _HalfState(Resident):
    """The states go through half precision between runs."""

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        for slab in self.slabs.values():
            slab[read] = slab[read].astype(np.float16)
        return super().run(inputs, lengths, read, write)


class _LostStep(Resident):
    """The first chunk of several steps leaves its last one out of the state."""

    lost = False

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        answer = super().run(inputs, lengths, read, write)
        long = [place for place, length in enumerate(lengths) if length > 1]
        if long and not self.lost:
            shorter = [length - (place == long[0]) for place, length in enumerate(lengths)]
            super().run(inputs, shorter, read, write)
            self.lost = True
        return answer


class _StaleRow(Resident):
    """Once, a stream reads the row of its state before last."""

    def __init__(self, path: Path, contract: Contract, *, rows: int) -> None:
        super().__init__(path, contract, rows=rows)
        self._before: dict[int, int] = {}  # where a row's state was made from
        self._done = False

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        old = [place for place, row in enumerate(read) if row in self._before]
        rows = list(read)
        if old and not self._done:
            rows[old[0]] = self._before[read[old[0]]]
            self._done = True
        self._before.update(zip(write, read, strict=True))
        return super().run(inputs, lengths, rows, write)


FAULTS = (
    Fault("two gates swapped", _swap_two_gates),
    Fault("gate order i, f, g, o for i, o, f, c", _pytorch_order),
    Fault("a bias dropped", _drop_bias, bias=True),
    Fault("a bias added twice", _add_bias_twice, bias=True),
    Fault("h and c exchanged", _exchange_states),
    Fault("layers exchanged", _exchange_layers, layers=2),
    Fault("TF32-sized noise in the weights", _round_weights),
    Fault("TF32-sized noise in the activations", runs=_Rounding),
    Fault("a float16 rounding of the state", runs=_HalfState),
    Fault("a step lost at a chunk's border", runs=_LostStep),
    Fault("a stale row read", runs=_StaleRow),
)


def plant(fault: Fault, module: LSTM, contract: Contract, folder: Path) -> list[ParityRecord]:
    """What parity says of a copy with this fault, written into `folder`: the records of the two graphs."""
    model = portable.build(module)
    if fault.plant is not None:
        fault.plant(model)
    (folder / artifact.WEIGHTS).write_bytes(artifact.move_weights(model))
    artifact.write_graph(model, folder / artifact.MODEL, contract)
    artifact.write_graph(resident.derive(model, contract), folder / artifact.RESIDENT, contract)
    levels = Levels(module, folder, (artifact.MODEL, artifact.RESIDENT), contract, fault.runs)
    if fault.plant is None:
        return levels.bit_for_bit(0, most_steps=MOST_STEPS)
    records = levels.against_truth(STEPS, NON_ZERO)
    return [record for record in records if record.subject in (artifact.MODEL, artifact.RESIDENT)]


def found(records: list[ParityRecord]) -> float:
    """By how much the worst record misses its bar: above 1 times it, or in epsilons where the bar is equality.

    0 where every record passes: the fault isn't seen.
    """
    failed = [record for record in records if not record.passed]
    return max((max(r.rms_ratio / (r.rms_bar or 1), r.max_ratio / (r.max_bar or 1)) for r in failed), default=0.0)


def controls(module: LSTM, contract: Contract) -> Iterator[tuple[str, float]]:
    """Every fault that this model can have, planted into a copy in a temporary folder, with what was found of it."""
    for fault in FAULTS:
        if fault.fits(module):
            with tempfile.TemporaryDirectory() as folder:
                yield fault.name, found(plant(fault, module, contract, Path(folder)))
