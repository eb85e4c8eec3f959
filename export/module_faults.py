"""Failing controls for a user's module: faults planted into copies of its graphs, and into how they are run.

Owns those in the graphs that need no knowledge of the model; the export's own comparisons must see each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, numpy_helper

from export import artifact, resident, wrap
from export.emulation import fewer_bits
from export.module_parity import Levels
from export.run_faults import missed_by, planted, run_faults
from export.samples import NON_ZERO
from export.subgraphs import rename
from model.contract import Contract, ParityRecord

STEPS = 10
Array = npt.NDArray[Any]
Plant = Callable[[ModelProto, Contract], None]


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


def faults_for(contract: Contract) -> dict[str, Plant]:
    """The faults in the graphs that such a model can have, by name."""
    chosen: dict[str, Plant] = {"TF32-sized noise in the weights": _round_weights}
    if _exchange(contract) is not None:
        chosen["two states exchanged in the graph"] = _exchange_states
    return chosen


def count(contract: Contract) -> int:
    """How many faults are planted."""
    return len(faults_for(contract)) + len(run_faults(contract))


def controls(levels: Levels, folder: Path) -> Iterator[tuple[str, float]]:
    """Every fault, planted into a copy of the artifact in `folder`, with by how much it misses its bar (0: unseen)."""
    contract = levels.contract
    for name, plant in faults_for(contract).items():
        with tempfile.TemporaryDirectory() as copy:
            yield name, missed_by(_planted(plant, levels, folder, Path(copy)))
    for name, records in planted(folder, contract):
        yield name, missed_by(records)


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
