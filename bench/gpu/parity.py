"""Parity on the device: the resident graph by our engine there, asked and judged as in `make parity`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.desk import Desk
from bench.gpu.models import artifact_of, module_of
from bench.gpu.ours import engine
from bench.gpu.place import CPU
from bench.gpu.plan import Job
from bench.gpu.records import Parity
from export.artifact import MODEL, RESIDENT, read_graph
from export.parity import Levels
from export.runtime import Array, Arrays, Resident
from export.samples import NON_ZERO, ZERO
from model.contract import Contract, TensorSpec

_SLICE = 32  # steps in one run, as the server cuts chunks


class OnDevice(Resident):
    """The resident graph as parity's levels run it, by the engine: chunks in slices, states from row to row."""

    device = CPU

    def __init__(self, path: Path, contract: Contract, *, rows: int, threads: int = 0) -> None:
        """Makes no session of its own, unlike what it stands in for."""
        del threads
        self._path, self._of = path, contract
        self._make(rows)

    def _make(self, rows: int) -> None:
        """Room for so many rows, and as many spare ones."""
        sizes = {"max_batch": rows, "slice_steps": _SLICE, "room": rows * _SLICE}
        self._rows = rows
        self._engine = engine(self._path, device=self.device, graphs=None, rows=2 * rows, **sizes)

    def reset(self, *, rows: int) -> None:
        """Whatever was in a row is written before it's read."""
        if rows > self._rows:
            self._make(rows)

    def write_states(self, row: int, states: Mapping[str, Array]) -> None:
        """Put one stream's states, by input name, into a row."""
        slabs = self._of.slabs()
        values = [np.concatenate([states[state.input].ravel() for state in slab.states]) for slab in slabs]
        self._engine.write_state(row, values)

    def read_states(self, row: int) -> Arrays:
        """One stream's states, by output name."""
        found: Arrays = {}
        for slab, values in zip(self._of.slabs(), self._engine.read_state(row), strict=True):
            ends = np.cumsum([state.elements for state in slab.states])[:-1]
            for state, piece in zip(slab.states, np.split(values, ends), strict=True):
                found[state.output] = piece.reshape(state.shape).copy()
        return found

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """All lanes the same number of steps; outputs by name."""
        lanes, steps = len(lengths), lengths[0]
        assert lengths == [steps] * lanes, "a proof's lanes have the same number of steps"
        spare = [row + self._rows - 1 for row in write]
        slices = [slice(begin, min(begin + _SLICE, steps)) for begin in range(0, steps, _SLICE)]
        pieces = []
        for place, span in enumerate(slices):
            last_but = len(slices) - 1 - place
            target = spare if last_but % 2 else write  # so that the last slice writes where it was asked to
            given = [[_bytes(inputs[spec.name][lane, span]) for spec in self._of.inputs] for lane in range(lanes)]
            pieces.append(self._engine.run(given, [span.stop - span.start] * lanes, read, target))
            read = target
        return {
            spec.name: np.stack([_joined([piece[lane][place] for piece in pieces], spec) for lane in range(lanes)])
            for place, spec in enumerate(self._of.outputs)
        }


def _bytes(values: Array) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def _joined(pieces: list[bytes], spec: TensorSpec) -> Array:
    """One lane's output [T, *shape] from all slices."""
    joined: np.ndarray[Any, Any] = np.frombuffer(b"".join(pieces), spec.dtype)
    return joined.reshape(-1, *spec.shape)


def resident_on(device: str) -> type[Resident]:
    """What runs the resident graph on that device."""
    return type("OnDevice", (OnDevice,), {"device": device})


def parity(job: Job, desk: Desk) -> Iterator[Parity]:
    """The worst of outputs and states, from zero and other states, for each number of steps."""
    desk.note(f"{job.name}: loading", "")
    folder = artifact_of(job, desk.models)
    _, contract = read_graph(folder / RESIDENT, weights=False)
    levels = Levels(module_of(job), folder, (MODEL, RESIDENT), contract, resident_on(desk.device))
    for steps in job.steps:
        if desk.over:
            return
        desk.note(f"{job.name}: {steps} steps", "")
        records = [
            record
            for initial in (ZERO, NON_ZERO)
            for record in levels.against_truth(steps, initial)
            if record.subject == RESIDENT
        ]
        yield Parity(
            job.precision,
            f"F{job.features} H{job.hidden} L{job.layers}" + (f" gain {job.gain:g}" if job.gain != 1 else ""),
            steps,
            max(record.rms_ratio for record in records),
            max(record.max_ratio for record in records),
            records[0].rms_bar,
            records[0].max_bar,
            max(record.share for record in records),
            all(record.passed for record in records),
        )
