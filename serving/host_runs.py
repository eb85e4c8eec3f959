"""Runs on the CPU: the slab is a numpy array, and all is bound where it is.

Owns the session, the slab and the bindings, one for every (B, T) met.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS
from serving.buffers import Buffers
from serving.errors import ConfigError

_MAX_BINDINGS = 4096  # (B, T) pairs kept; each is a few KiB


class HostRuns:
    """A graph on the CPU and its slab."""

    graphed = False

    def __init__(self, session: Any, buffers: Buffers, *, rows: int) -> None:
        """Raises ConfigError if there is no memory for so many rows."""
        self._session = session
        self._buffers = buffers
        self._specs = buffers.contract.slabs()
        try:
            self._slabs = [np.zeros((rows, slab.width), dtype=slab.dtype) for slab in self._specs]
        except MemoryError as error:
            row_bytes = sum(slab.row_bytes for slab in self._specs)
            raise ConfigError(f"no memory for {rows} rows of {row_bytes} bytes; lower --max-streams") from error
        for slab, values in zip(self._specs, self._slabs, strict=True):
            values[0] = slab.initial_row()
        self._runs: dict[tuple[int, int], Callable[[], None]] = {}

    def prepared(self, lanes: int, steps: int) -> Callable[[], None]:
        """What runs the first `lanes` lanes of the buffers, of `steps` steps each."""
        run = self._runs.get((lanes, steps))
        if run is None:
            if len(self._runs) >= _MAX_BINDINGS:
                self._runs.clear()
            run = functools.partial(self._session.run_with_iobinding, self._bind(lanes, steps))
            self._runs[lanes, steps] = run
        return run

    def read(self, row: int) -> list[npt.NDArray[Any]]:
        """A copy of one row: one [W] array per slab."""
        return [slab[row].copy() for slab in self._slabs]

    def write(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        """Change one row, which no run reads."""
        for slab, value in zip(self._slabs, values, strict=True):
            slab[row] = value

    def _bind(self, lanes: int, steps: int) -> Any:
        binding, buffers = self._session.io_binding(), self._buffers

        def bind_input(name: str, buffer: npt.NDArray[Any], shape: Sequence[int]) -> None:
            binding.bind_input(name, "cpu", 0, buffer.dtype, list(shape), buffer.ctypes.data)

        def bind_output(name: str, buffer: npt.NDArray[Any], shape: Sequence[int]) -> None:
            binding.bind_output(name, "cpu", 0, buffer.dtype, list(shape), buffer.ctypes.data)

        bind_input(LENGTHS, buffers.lengths, [lanes])
        bind_input(READ_ROWS, buffers.read_rows, [lanes])
        bind_input(WRITE_ROWS, buffers.write_rows, [lanes])
        for spec, buffer in zip(buffers.contract.inputs, buffers.inputs, strict=True):
            bind_input(spec.name, buffer, [lanes, steps, *spec.shape])
        for spec, buffer in zip(buffers.contract.outputs, buffers.outputs, strict=True):
            bind_output(spec.name, buffer, [lanes, steps, *spec.shape])
        for slab, values in zip(self._specs, self._slabs, strict=True):
            shape = slab.shape(len(values))
            bind_input(slab.input, values, shape)
            bind_output(slab.output, values, shape)
        return binding
