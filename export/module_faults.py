"""Failing controls for a user's module: faults planted into copies of its graphs, and into how they are run.

Owns those in the graphs that need no knowledge of the model; the export's own comparisons must see each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper

from export import artifact, recurrent_axes, resident
from export.emulation import fewer_bits_of
from export.module_parity import Levels
from export.one_by_one import BATCHES, ONE_BY_ONE
from export.run_faults import alike, missed_by, planted, run_faults
from export.samples import NON_ZERO
from export.subgraphs import rename
from model.contract import Contract, ParityRecord

STEPS = 10
Plant = Callable[[ModelProto, Contract], None]


def _exchange_states(model: ModelProto, contract: Contract) -> None:
    found = alike(contract)
    assert found is not None
    _, first, second = found
    rename(model.graph.node, {first.input: second.input, second.input: first.input})


def _round_weights(model: ModelProto, _contract: Contract) -> None:
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim:
            tensor.CopyFrom(numpy_helper.from_array(fewer_bits_of(value), tensor.name))


def faults_for(contract: Contract) -> dict[str, Plant]:
    """The faults in the graphs that such a model can have, by name."""
    chosen: dict[str, Plant] = {"TF32-sized noise in the weights": _round_weights}
    if alike(contract) is not None:
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
    artifact.write_weights(model, copy / artifact.WEIGHTS)
    artifact.write_graph(model, copy / artifact.MODEL, contract)
    one_by_one = contract.notes.get(BATCHES) == ONE_BY_ONE
    reads = recurrent_axes.reads(model, contract, copy, together=not one_by_one)
    made = resident.derive(model, contract, one_by_one=one_by_one and not contract.single_lane, reads=reads)
    artifact.write_graph(made, copy / artifact.RESIDENT, contract)
    levels.open(copy)
    try:
        records = levels.against_truth(STEPS, NON_ZERO)
    finally:
        levels.open(folder)
    return [record for record in records if record.subject in (artifact.MODEL, artifact.RESIDENT)]
