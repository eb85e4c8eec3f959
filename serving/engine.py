"""One resident graph: what goes into a run, and what comes out of it.

Owns the choice of device, of CUDA graphs and of what is loaded. Knows rows by number and tensors by contract; knows no
stream, no clock and no gRPC. Not thread-safe: one thread makes it, and runs it.

The slab is bound as input and as output of the graph, so that new states are written in place: a run's own rows are
all it touches. Where runs happen is `serving.host_runs` on the CPU and `serving.device_runs` on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from model.contract import Contract, TensorSpec
from serving import placement
from serving.buckets import CaptureError, capture
from serving.buffers import Buffers
from serving.device import Device, check, open_session
from serving.device_runs import DeviceRuns
from serving.errors import ConfigError
from serving.graph_files import GraphFiles
from serving.host_runs import HostRuns

_PAGEABLE = "buffers aren't page-locked: inputs and outputs take longer to the device and back, large batches most"
_CPU_ONLY = "int8"  # a precision whose activations are rounded by the CPU's kernels alone

log = structlog.get_logger(__name__)


class EngineError(Exception):
    """The graph didn't run. Nothing has changed: every row that could be read is as it was."""


class Engine:
    """Runs steps: read rows and inputs in, outputs and written rows out."""

    def __init__(
        self,
        source: Path | GraphFiles,
        *,
        rows: int,
        max_batch: int,
        slice_steps: int,
        max_run_steps: int,
        threads: int,
        device: str = "cpu",
        graphs: bool | None = None,
        buckets: bool = False,
    ) -> None:
        """Load a resident graph, from its path or as it was read, with a slab of `rows` rows. Raises ConfigError.

        A run has at most `max_batch` lanes of at most `slice_steps` steps, together at most `max_run_steps`, padding
        included (or one step each). On "cuda" or "cuda:N", batches of single steps are padded to `buckets` and, if
        possible, replayed from CUDA `graphs`; on "cpu" both can be asked for, where they gain nothing and test much.
        """
        place = Device.named(device)
        check(place)
        self.device = str(place)
        files = GraphFiles.read(source) if isinstance(source, Path) else source
        self._path, self._place, self._threads = files.path, place, threads
        session, self.contract = _load(files, place, threads)
        self.rows = rows
        self.max_batch = max_batch
        self.slice_steps = min(slice_steps, self.contract.run_steps)  # no run is longer than what was proved
        self._room = max(max_batch, max_run_steps)  # steps in one run, padding included
        self._buffers = Buffers(self.contract, lanes=max_batch, steps=self._room)
        on_gpu = place.number is not None
        self._runs: HostRuns | DeviceRuns
        if on_gpu or buckets or graphs:
            graphs = (on_gpu if graphs is None else graphs) and not self.contract.single_lane
            self._runs = runs = self._start(files, graphs=graphs)
            if runs.pageable:
                log.warning(_PAGEABLE, path=str(files.path), reason=runs.pageable)
        else:
            self._runs = HostRuns(session, self._buffers, rows=rows)
        self._inputs, self._outputs = self._buffers.inputs, self._buffers.outputs
        self._lengths = self._buffers.lengths
        self._read_rows, self._write_rows = self._buffers.read_rows, self._buffers.write_rows
        self._prepared = self._runs.prepared

    @property
    def row_bytes(self) -> int:
        """Bytes of one stream's state."""
        return sum(slab.row_bytes for slab in self.contract.slabs())

    @property
    def graphed(self) -> bool:
        """Whether batches of single steps are replayed from CUDA graphs."""
        return self._runs.graphed

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
        run = self._prepared(lanes, steps)
        try:
            run()
        except Exception as error:  # ONNX Runtime raises types of its own making, all of them Exceptions
            self._buffers.fill_smallest(self._room)  # nothing of what failed pads another run
            raise EngineError(str(error)) from error
        unpacked = [
            self._unpack(self._outputs[index], spec, lengths, steps) for index, spec in enumerate(self.contract.outputs)
        ]
        return list(zip(*unpacked, strict=True))

    def read_state(self, row: int) -> list[npt.NDArray[Any]]:
        """A copy of one row: one [W] array per slab. A row that is referred to may be read while others are written."""
        assert 0 <= row < self.rows, "a row to read is outside the slab"
        return self._runs.read(row)

    def write_state(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        """Put a state, one [W] array per slab, into a row that no run reads; never into row 0, which is everybody's."""
        assert 0 < row < self.rows, "a row to write is outside the slab, or is row 0"
        self._runs.write(row, values)

    def probe(self, scratch_row: int, *, lanes: int = 1, steps: int = 1) -> None:
        """Run lanes of all-smallest inputs from the first state, to warm up or to see that the graph still runs.

        Writes scratch_row only (so lanes beyond the first write where nobody reads: the same row). Raises EngineError.
        """
        assert 0 < scratch_row < self.rows, "a row to write is outside the slab, or is row 0"
        self._buffers.fill_smallest(lanes * steps)
        self._lengths[:lanes] = steps
        self._read_rows[:lanes] = 0
        self._write_rows[:lanes] = scratch_row
        run = self._prepared(lanes, steps)
        try:
            run()
        except Exception as error:
            raise EngineError(str(error)) from error

    def _start(self, files: GraphFiles, *, graphs: bool) -> DeviceRuns:
        """Make all that lives on the device; without CUDA graphs, if it can't be had with them."""
        if graphs:
            try:
                return self._captured(files)
            except (CaptureError, ConfigError) as error:
                reason = str(error)
            log.warning("no CUDA graphs for this model: it runs without", path=str(self._path), reason=reason)
        return self._device_runs(files, graphs=False)

    def _captured(self, files: GraphFiles) -> DeviceRuns:
        runs = self._device_runs(files, graphs=True)
        capture(runs, self._buffers)
        return runs

    def _device_runs(self, files: GraphFiles, *, graphs: bool) -> DeviceRuns:
        session = open_session(
            files, self._place, threads=self._threads, precision=self.contract.precision, graphs=graphs
        )
        try:
            return DeviceRuns(session, self._place, self._buffers, rows=self.rows, graphed=graphs)
        except (ConfigError, AssertionError):
            raise
        except Exception as error:  # ONNX Runtime raises types of its own making
            raise ConfigError(f"{self._path}: its slab can't be set up on {self._place}: {error}") from error

    def _check_rows(self, lanes: int, steps: int, read_rows: Sequence[int], write_rows: Sequence[int]) -> None:
        # On the host and before every run: a device may clamp a bad row number in silence.
        assert lanes <= self.max_batch, f"{lanes} lanes, room for {self.max_batch}"
        assert steps <= self.slice_steps, f"{steps} steps of a lane, and {self.slice_steps} were asked for or proved"
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


def _load(files: GraphFiles, place: Device, threads: int) -> tuple[Any, Contract]:
    """The contract, and on the CPU the session. A GPU's is opened when it is known what the contract asks of it."""
    if place.number is None:
        session = open_session(files, place, threads=threads)
        return session, placement.read_contract(session, files.path)
    contract = placement.check(files, place, threads=threads)
    if contract.precision == _CPU_ONLY:
        how = "serve it with --device cpu, or export it as fp32, tf32 or fp16"
        raise ConfigError(f"{files.path}: its precision is {_CPU_ONLY}, which is proved for CPUs; {how}")
    return None, contract
