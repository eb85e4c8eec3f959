"""One resident graph on ONNX Runtime: its session, its slab and its buffers.

The only module that imports onnxruntime. Owns device memory. Knows rows by number and tensors by contract; knows no
stream, no clock and no gRPC. Not thread-safe: one thread owns it.

The slab is bound as input and as output of the graph, so that new states are written in place: a run's own rows are
all it touches. Inputs and outputs live in buffers made once, and a binding is kept for every (B, T) met.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS, Contract, ContractError, TensorSpec
from serving.errors import ConfigError

_MAX_BINDINGS = 4096  # (B, T) pairs kept; each is a few KiB


class EngineError(Exception):
    """The graph didn't run. Nothing has changed: every row that could be read is as it was."""


class Engine:
    """Runs steps: read rows and inputs in, outputs and written rows out."""

    def __init__(
        self, path: Path, *, rows: int, max_batch: int, slice_steps: int, max_run_steps: int, threads: int
    ) -> None:
        """Load `path` (a resident.onnx) with a slab of `rows` rows. Raises ConfigError if it can't be served.

        A run has at most `max_batch` lanes of at most `slice_steps` steps, together at most `max_run_steps`, padding
        included (or one step each).
        """
        self.device = "cpu"
        self._session = _session(path, threads)
        try:
            self.contract = Contract.from_metadata(self._session.get_modelmeta().custom_metadata_map)
        except ContractError as error:
            raise ConfigError(f"{path}: {error}") from error
        self.rows = rows
        self.max_batch = max_batch
        self.slice_steps = slice_steps if self.contract.ragged else 1
        self._room = max(max_batch, max_run_steps)  # steps in one run, padding included
        try:
            self._slabs = [np.zeros((rows, slab.width), dtype=slab.dtype) for slab in self.contract.slabs()]
        except MemoryError as error:
            raise ConfigError(f"no memory for {rows} rows of {self.row_bytes} bytes; lower --max-streams") from error
        for slab, values in zip(self.contract.slabs(), self._slabs, strict=True):
            values[0] = slab.initial_row()
        self._lengths = np.ones(max_batch, dtype=np.int32)  # [B]
        self._read_rows = np.zeros(max_batch, dtype=np.int64)  # [B]
        self._write_rows = np.zeros(max_batch, dtype=np.int64)  # [B]
        self._inputs = [self._buffer(spec) for spec in self.contract.inputs]  # flat, room for [B, T, *shape]
        self._outputs = [np.empty(self._room * spec.elements, dtype=spec.dtype) for spec in self.contract.outputs]
        self._bindings: dict[tuple[int, int], Any] = {}

    @property
    def row_bytes(self) -> int:
        """Bytes of one stream's state."""
        return sum(slab.row_bytes for slab in self.contract.slabs())

    def run(
        self,
        inputs: Sequence[Sequence[bytes | memoryview]],
        lengths: Sequence[int],
        read_rows: Sequence[int],
        write_rows: Sequence[int],
    ) -> list[tuple[bytes, ...]]:
        """Compute lengths[b] >= 1 steps of every lane b, from the state in read_rows[b] to write_rows[b].

        `inputs[b]` and the result's entry b hold one item per model input or output: lengths[b] steps as bytes.
        Rows to write must be distinct and none of the rows to read. Raises EngineError.
        """
        lanes, steps = len(lengths), max(lengths)
        self._check_rows(lanes, steps, read_rows, write_rows)
        self._lengths[:lanes] = lengths
        self._read_rows[:lanes] = read_rows
        self._write_rows[:lanes] = write_rows
        for index, spec in enumerate(self.contract.inputs):
            self._pack(self._inputs[index], spec, [lane[index] for lane in inputs], steps)
        try:
            self._session.run_with_iobinding(self._binding(lanes, steps))
        except Exception as error:  # ONNX Runtime raises types of its own making, all of them Exceptions
            raise EngineError(str(error)) from error
        unpacked = [
            self._unpack(self._outputs[index], spec, lengths, steps) for index, spec in enumerate(self.contract.outputs)
        ]
        return list(zip(*unpacked, strict=True))

    def read_state(self, row: int) -> list[npt.NDArray[Any]]:
        """A copy of one row: one [W] array per slab."""
        return [slab[row].copy() for slab in self._slabs]

    def write_state(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        """Put a state, one [W] array per slab, into a row that no run reads; never into row 0, which is everybody's."""
        assert 0 < row < self.rows, "a row to write is outside the slab, or is row 0"
        for slab, value in zip(self._slabs, values, strict=True):
            slab[row] = value

    def probe(self, scratch_row: int, *, lanes: int = 1, steps: int = 1) -> None:
        """Run lanes of all-smallest inputs from the first state, to warm up or to see that the graph still runs.

        Writes scratch_row only (so lanes beyond the first write where nobody reads: the same row). Raises EngineError.
        """
        for buffer, spec in zip(self._inputs, self.contract.inputs, strict=True):
            buffer[: lanes * steps * spec.elements] = _smallest(spec)
        self._lengths[:lanes] = steps
        self._read_rows[:lanes] = 0
        self._write_rows[:lanes] = scratch_row
        try:
            self._session.run_with_iobinding(self._binding(lanes, steps))
        except Exception as error:
            raise EngineError(str(error)) from error

    def _buffer(self, spec: TensorSpec) -> npt.NDArray[Any]:
        # Padding beyond a lane's length must be a valid value too (an embedding looks it up), so never rubbish.
        size = self._room * spec.elements
        return np.full(size, _smallest(spec), spec.dtype) if _smallest(spec) else np.zeros(size, spec.dtype)

    def _check_rows(self, lanes: int, steps: int, read_rows: Sequence[int], write_rows: Sequence[int]) -> None:
        # On the host and before every run: a device may clamp a bad row number in silence.
        assert lanes <= self.max_batch, f"{lanes} lanes, room for {self.max_batch}"
        assert lanes * steps <= self._room, f"{lanes} lanes of {steps} steps, room for {self._room} steps"
        assert 0 <= min(read_rows) <= max(read_rows) < self.rows, "a row to read is outside the slab"
        assert 0 < min(write_rows) <= max(write_rows) < self.rows, "a row to write is outside the slab, or is row 0"
        written = set(write_rows)
        assert len(written) == lanes, "two lanes write one row"
        assert written.isdisjoint(read_rows), "a row is read and written in one run"

    @staticmethod
    def _pack(buffer: npt.NDArray[Any], spec: TensorSpec, lanes: list[bytes | memoryview], steps: int) -> None:
        if steps == 1:
            flat = np.frombuffer(b"".join(lanes), dtype=spec.dtype)
            buffer[: flat.size] = flat
            return
        padded = buffer[: len(lanes) * steps * spec.elements].reshape(len(lanes), steps * spec.elements)
        for lane, data in zip(padded, lanes, strict=True):
            values = np.frombuffer(data, dtype=spec.dtype)
            lane[: values.size] = values

    @staticmethod
    def _unpack(buffer: npt.NDArray[Any], spec: TensorSpec, lengths: Sequence[int], steps: int) -> list[bytes]:
        size = spec.step_bytes
        data = buffer[: len(lengths) * steps * spec.elements].tobytes()
        stride = steps * size
        return [data[lane * stride : lane * stride + length * size] for lane, length in enumerate(lengths)]

    def _binding(self, lanes: int, steps: int) -> Any:
        binding = self._bindings.get((lanes, steps))
        if binding is None:
            if len(self._bindings) >= _MAX_BINDINGS:
                self._bindings.clear()
            binding = self._bindings[lanes, steps] = self._bind(lanes, steps)
        return binding

    def _bind(self, lanes: int, steps: int) -> Any:
        binding = self._session.io_binding()

        def bind_input(name: str, buffer: npt.NDArray[Any], shape: Sequence[int]) -> None:
            binding.bind_input(name, "cpu", 0, buffer.dtype, list(shape), buffer.ctypes.data)

        def bind_output(name: str, buffer: npt.NDArray[Any], shape: Sequence[int]) -> None:
            binding.bind_output(name, "cpu", 0, buffer.dtype, list(shape), buffer.ctypes.data)

        for name, rows in ((LENGTHS, self._lengths), (READ_ROWS, self._read_rows), (WRITE_ROWS, self._write_rows)):
            bind_input(name, rows, [lanes])
        for spec, buffer in zip(self.contract.inputs, self._inputs, strict=True):
            bind_input(spec.name, buffer, [lanes, steps, *spec.shape])
        for spec, buffer in zip(self.contract.outputs, self._outputs, strict=True):
            bind_output(spec.name, buffer, [lanes, steps, *spec.shape])
        for slab, values in zip(self.contract.slabs(), self._slabs, strict=True):
            bind_input(slab.input, values, values.shape)
            bind_output(slab.output, values, values.shape)
        return binding


def _smallest(spec: TensorSpec) -> int:
    return 0 if spec.minimum is None else spec.minimum


def _session(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; its warnings speak of its own optimisations
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"{path}: ONNX Runtime can't load it: {error}") from error
