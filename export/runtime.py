"""ONNX Runtime as parity needs it: model.onnx with states carried by hand, resident.onnx on a slab in place.

Owns sessions and the slab of a proof. Serving has an engine of its own; this one is written to be checked by eye.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS, Contract

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


FOLDER = "session.model_external_initializers_file_folder_path"  # where a graph that isn't in a file has its weights


@dataclass(frozen=True, slots=True)
class Planted:
    """A graph in memory, in place of the one in a file beside the same weights; `changed` has those that differ."""

    graph: bytes
    changed: Mapping[str, Array]


def _session(path: Path, threads: int, planted: Planted | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    given: Path | bytes = path
    if planted is not None:
        given = planted.graph
        options.add_session_config_entry(FOLDER, str(path.parent))
        values = [ort.OrtValue.ortvalue_from_numpy(value) for value in planted.changed.values()]
        options.add_external_initializers(list(planted.changed), values)
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


class Portable:
    """model.onnx: every call takes the states and gives their successors."""

    def __init__(self, path: Path, contract: Contract, *, threads: int = 0) -> None:
        self._session = _session(path, threads)
        self._names = [tensor.name for tensor in contract.outputs] + [state.output for state in contract.states]
        self._constants = {
            value.name: np.frombuffer(value.value, value.dtype).reshape(value.shape) for value in contract.constants
        }

    def run(self, inputs: Mapping[str, Array], states: Mapping[str, Array]) -> Arrays:
        """Inputs and states under their input names; outputs and new states under their output names."""
        answer = self._session.run(self._names, {**inputs, **states, **self._constants})
        return dict(zip(self._names, answer, strict=True))


class Resident:
    """resident.onnx on slabs [N, W] of its own; row 0 is a new stream's state. `threads` 0: one per core."""

    def __init__(
        self, path: Path, contract: Contract, *, rows: int, threads: int = 0, planted: Planted | None = None
    ) -> None:
        self._planted = planted  # its arrays must outlive the session
        self._session = _session(path, threads, planted)
        self._contract = contract
        self.slabs: Arrays = {}
        self._values: dict[str, Any] = {}
        self.reset(rows=rows)

    def reset(self, *, rows: int) -> None:
        """New slabs, of so many rows, all zeros but for row 0."""
        for slab in self._contract.slabs():
            self.slabs[slab.dtype] = np.zeros((rows, slab.width), slab.dtype)
            self.slabs[slab.dtype][0] = slab.initial_row()
            parts = self.slabs[slab.dtype].reshape(slab.shape(rows))
            self._values[slab.dtype] = ort.OrtValue.ortvalue_from_numpy(parts)  # shares the memory

    def write_states(self, row: int, states: Mapping[str, Array]) -> None:
        """Put one stream's states, by input name and without the batch axis, into a row."""
        for slab in self._contract.slabs():
            self.slabs[slab.dtype][row] = np.concatenate([states[state.input].ravel() for state in slab.states])

    def read_states(self, row: int) -> Arrays:
        """One stream's states, by output name and without the batch axis."""
        found: Arrays = {}
        for slab in self._contract.slabs():
            ends = np.cumsum([state.elements for state in slab.states])[:-1]
            for state, piece in zip(slab.states, np.split(self.slabs[slab.dtype][row], ends), strict=True):
                found[state.output] = piece.reshape(state.shape).copy()
        return found

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """One run of B lanes [B, T, *shape], lane b going `lengths[b]` steps from row to row; outputs by name."""
        if not self._contract.single_lane:
            return self._call(inputs, lengths, read, write)
        calls = [
            self._call(
                {name: value[b : b + 1] for name, value in inputs.items()}, lengths[b : b + 1], [row], [write[b]]
            )
            for b, row in enumerate(read)
        ]
        return {tensor.name: np.concatenate([call[tensor.name] for call in calls]) for tensor in self._contract.outputs}

    def _call(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        binding.bind_cpu_input(LENGTHS, np.array(lengths, np.int32))
        binding.bind_cpu_input(READ_ROWS, np.array(read, np.int64))
        binding.bind_cpu_input(WRITE_ROWS, np.array(write, np.int64))
        for tensor in self._contract.outputs:
            binding.bind_output(tensor.name, "cpu")
        for slab in self._contract.slabs():
            binding.bind_ortvalue_input(slab.input, self._values[slab.dtype])
            binding.bind_ortvalue_output(slab.output, self._values[slab.dtype])
        self._session.run_with_iobinding(binding)
        answers = binding.copy_outputs_to_cpu()
        return {tensor.name: answers[place] for place, tensor in enumerate(self._contract.outputs)}
