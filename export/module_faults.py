"""Failing controls for a user's module: faults planted into copies of its graphs, or into how they are run.

Owns the faults that need no knowledge of the model; each must be seen by the comparisons that the export makes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, numpy_helper

from export import artifact, resident, wrap
from export.emulation import fewer_bits
from export.faults import FAULTS as OURS
from export.faults import found
from export.module_parity import Levels
from export.runtime import Resident
from export.samples import NON_ZERO, Arrays
from export.subgraphs import rename
from export.wrap_parity import ByHand, draw, in_changing_batches
from export.yardstick import compare_bits
from model.contract import Contract, ParityRecord

STEPS = 10
STREAMS, MOST_STEPS = 5, 5
Array = npt.NDArray[Any]
Plant = Callable[[ModelProto, Contract], None]


class _Dropped(Resident):
    """The first state isn't carried: every run finds it as a new stream's."""

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        state = self._contract.states[0]
        slab = self._contract.slabs()[0]
        self.slabs[slab.dtype][read, : state.elements] = self.slabs[slab.dtype][0, : state.elements]
        return super().run(inputs, lengths, read, write)


class _LostStep(Resident):
    """Once, a step's new state isn't written: for graphs whose runs are single steps."""

    lost = False

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        answer = super().run(inputs, lengths, read, write)
        if not self.lost:
            for slab in self.slabs.values():
                slab[write[0]] = slab[read[0]]
            self.lost = True
        return answer


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to be wrong: in the graphs (`plant`), or in how the resident one is run (`runs`)."""

    name: str
    plant: Plant | None = None
    runs: type[Resident] = Resident


def _exchange(contract: Contract) -> tuple[str, str] | None:
    """Two states of the same shape and dtype."""
    states = contract.states
    pairs = ((a, b) for place, a in enumerate(states) for b in states[place + 1 :])
    return next(((a.input, b.input) for a, b in pairs if (a.dtype, a.shape) == (b.dtype, b.shape)), None)


def _exchange_states(model: ModelProto, contract: Contract) -> None:
    both = _exchange(contract)
    assert both is not None
    rename(model.graph.node, {both[0]: both[1], both[1]: both[0]})


def _round_weights(model: ModelProto, _contract: Contract) -> None:
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim:
            tensor.CopyFrom(numpy_helper.from_array(_rounded(value), tensor.name))


def _rounded(value: Array) -> Array:
    """float32 values with the fraction that TF32 has."""
    return np.asarray(fewer_bits(torch.from_numpy(value.copy())).numpy())


def faults_for(contract: Contract) -> list[Fault]:
    """The faults that such a model can have."""
    runs = {fault.name: fault.runs for fault in OURS if not fault.in_graphs}
    floats = any(np.dtype(state.dtype).kind == "f" for state in contract.states)
    chosen = [Fault("TF32-sized noise in the weights", _round_weights), Fault("a state not carried", runs=_Dropped)]
    if _exchange(contract) is not None:
        chosen.insert(0, Fault("two states exchanged", _exchange_states))
    names = ["a float16 rounding of the state", "a stale row read"]
    chosen += [Fault(name, runs=runs[name]) for name in names if floats]
    lost = "a step lost at a chunk's border"
    chosen.append(Fault(lost, runs=runs[lost]) if contract.ragged else Fault("a step lost", runs=_LostStep))
    return chosen


def controls(levels: Levels, folder: Path) -> Iterator[tuple[str, float]]:
    """Every fault, planted into a copy of the artifact in `folder`, with by how much it misses its bar (0: unseen)."""
    contract = levels.contract
    sample = draw(contract, STREAMS, STEPS, NON_ZERO, seed=5)
    truth = ByHand(folder / artifact.MODEL, contract).run(sample)
    for fault in faults_for(contract):
        if fault.plant is None:
            most = MOST_STEPS if contract.ragged else 1
            answer = in_changing_batches(folder / artifact.RESIDENT, contract, sample, most, 0, runs=fault.runs)
            yield fault.name, found(compare_bits(subject="", sample=sample, answer=answer, truth_name="", truth=truth))
        else:
            with tempfile.TemporaryDirectory() as copy:
                yield fault.name, found(_planted(fault.plant, levels, folder, Path(copy)))


def _planted(plant: Plant, levels: Levels, folder: Path, copy: Path) -> list[ParityRecord]:
    """What parity says of both graphs with a fault, written into `copy`."""
    contract = levels.contract
    model, _ = artifact.read_graph(folder / artifact.MODEL, weights=True)
    plant(model, contract)
    (copy / artifact.WEIGHTS).write_bytes(artifact.move_weights(model))
    artifact.write_graph(model, copy / artifact.MODEL, contract)
    one_by_one = contract.notes.get(wrap.BATCHES) == "one by one"
    made = resident.derive(model, contract, one_by_one=one_by_one)
    artifact.write_graph(made, copy / artifact.RESIDENT, contract)
    levels.open(copy)
    try:
        records = levels.against_truth(STEPS, NON_ZERO)
    finally:
        levels.open(folder)
    return [record for record in records if record.subject in (artifact.MODEL, artifact.RESIDENT)]
