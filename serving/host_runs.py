"""Runs on the CPU: the slab is a numpy array, and all is bound where it is.

Owns the session, the slab and the bindings: one for every (B, T) met, or one for every lane and T where a call of the
graph takes one lane.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS
from serving.buffers import Buffers
from serving.errors import ConfigError

_MAX_BINDINGS = 4096  # kept; each is a few KiB


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
        self._single_lane = buffers.contract.single_lane
        self._runs: dict[tuple[int, int], Callable[[], None]] = {}
        self._bindings: dict[tuple[int, int], Any] = {}  # of single lanes, by lane and T

    def prepared(self, lanes: int, steps: int) -> Callable[[], None]:
        """What runs the first `lanes` lanes of the buffers, of `steps` steps each."""
        run = self._runs.get((lanes, steps))
        if run is None:
            if len(self._runs) >= _MAX_BINDINGS:
                self._runs.clear()
            if self._single_lane:
                run = self._calls([self._lane(lane, steps) for lane in range(lanes)])
            else:
                run = functools.partial(self._session.run_with_iobinding, self._bind(0, lanes, steps))
            self._runs[lanes, steps] = run
        return run

    def read(self, row: int) -> list[npt.NDArray[Any]]:
        """A copy of one row: one [W] array per slab."""
        return [slab[row].copy() for slab in self._slabs]

    def write(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        """Change one row, which no run reads."""
        for slab, value in zip(self._slabs, values, strict=True):
            slab[row] = value

    def _calls(self, bindings: Sequence[Any]) -> Callable[[], None]:
        """What runs one lane after the other. If one fails, no stream has moved: rows to write are fresh ones."""
        call = self._session.run_with_iobinding

        def run() -> None:
            for binding in bindings:
                call(binding)

        return run

    def _lane(self, lane: int, steps: int) -> Any:
        """The binding of one lane of the buffers, kept."""
        binding = self._bindings.get((lane, steps))
        if binding is None:
            if len(self._bindings) >= _MAX_BINDINGS:
                self._bindings.clear()
            binding = self._bindings[lane, steps] = self._bind(lane, 1, steps)
        return binding

    def _bind(self, first: int, lanes: int, steps: int) -> Any:
        """A binding of `lanes` lanes of the buffers, of `steps` steps each, beginning with lane `first`."""
        binding, buffers = self._session.io_binding(), self._buffers

        def bind(to: Callable[..., None], name: str, buffer: npt.NDArray[Any], *axes: int) -> None:
            begin = first * math.prod(axes)
            to(name, "cpu", 0, buffer.dtype, [lanes, *axes], buffer.ctypes.data + begin * buffer.itemsize)

        bind(binding.bind_input, LENGTHS, buffers.lengths)
        bind(binding.bind_input, READ_ROWS, buffers.read_rows)
        bind(binding.bind_input, WRITE_ROWS, buffers.write_rows)
        for spec, buffer in zip(buffers.contract.inputs, buffers.inputs, strict=True):
            bind(binding.bind_input, spec.name, buffer, steps, *spec.shape)
        for spec, buffer in zip(buffers.contract.outputs, buffers.outputs, strict=True):
            bind(binding.bind_output, spec.name, buffer, steps, *spec.shape)
        for slab, values in zip(self._specs, self._slabs, strict=True):
            shape = slab.shape(len(values))
            binding.bind_input(slab.input, "cpu", 0, values.dtype, shape, values.ctypes.data)
            binding.bind_output(slab.output, "cpu", 0, values.dtype, shape, values.ctypes.data)
        return binding
