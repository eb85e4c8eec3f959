"""Runs on a device with memory of its own: the slab stays there, inputs go up in one copy, outputs come down in one.

Owns the session, the slab, the device's buffers and the bindings. A single step's batch is padded to a bucket's size
(1, 2, 4, … lanes): a lane's answer then doesn't depend on how many others there are within a bucket, and a bucket's
run can be captured as a CUDA graph, which needs fixed shapes and addresses. Padding lanes start from row 0 and write
rows of their own, beyond the ones that streams have. Chunks of several steps run as they are, without a graph, and so
do graphs that take one lane a call: each lane of a batch is a call of its own.

One thread runs all: CUDA graphs belong to the thread that captured them. The device may be the CPU, with copies to
"its" memory and all: that is how the ordinary tests run this code.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS, SlabSpec
from serving.buffers import Buffers
from serving.device import UNGRAPHED, Device, Memory, cuda_runtime, graph_options
from serving.pinned import Bytes, PageLockError, page_lock, whole_pages

_ALIGNMENT = 256  # bytes; what CUDA's own allocations have, and more than any kernel asks for
_MAX_BINDINGS = 1024  # (B, T) pairs kept; each has a few KiB
_ZEROS = 1 << 24  # bytes of zeros that go up at a time

Parts = list[tuple[str, npt.NDArray[Any], list[int]]]  # tensors by name: flat in the host's memory, and their shape


def bucket_sizes(most: int) -> list[int]:
    """1, 2, 4, … lanes, up to `most`, which is one too."""
    return sorted({1 << exponent for exponent in range(most.bit_length())} | {most})


class Parcel:
    """Tensors that travel together, one behind the other: in a buffer of the host's, and in one of the device's."""

    def __init__(self, memory: Memory, address: int, parts: Parts, host: Bytes) -> None:
        """Begin at the device's `address`, and at the beginning of `host`."""
        self.tensors: list[tuple[str, npt.DTypeLike, list[int], int]] = []  # name, dtype, shape, address
        self._places: list[tuple[npt.NDArray[np.uint8], Bytes]] = []  # a tensor's bytes, and where they travel
        end = 0
        for name, values, shape in parts:
            begin = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = begin + values.nbytes
            self.tensors.append((name, values.dtype, shape, address + begin))
            self._places.append((values.view(np.uint8), host[begin:end]))
        self._there = memory.view(address, [end], np.uint8)
        self._here = host[:end]
        self._landing = memory.host(self._here)

    def send(self) -> None:
        """Copy all to the device."""
        for values, place in self._places:
            place[:] = values
        self._there.update_inplace(self._here)

    def fetch(self) -> None:
        """Copy all from the device."""
        self._landing.update_inplace(self._there)
        for values, place in self._places:
            values[:] = place


def _room(tensors: Iterable[npt.NDArray[Any]]) -> int:
    """Bytes that a parcel of such tensors takes at most."""
    return sum(values.nbytes + _ALIGNMENT for values in tensors)


class DeviceRuns:
    """A graph on a device, its slab, and its buckets."""

    def __init__(self, session: Any, device: Device, buffers: Buffers, *, rows: int, graphed: bool) -> None:
        """`rows` is what streams have. Raises ConfigError if the device has no memory for the slab."""
        self.graphed = graphed
        self.buckets = bucket_sizes(buffers.lanes)
        # Two for each lane, where no stream's state is: padding writes the first, captures and their proof both.
        self.scratch = np.arange(rows, rows + 2 * buffers.lanes).reshape(2, buffers.lanes)
        self._session = session
        self._device, self._number = device, device.number or 0
        self._memory = memory = Memory(session, device)
        self._buffers = buffers
        self._single_lane = buffers.contract.single_lane
        self._owner = threading.get_ident()
        self._specs = buffers.contract.slabs()
        every = rows + self.scratch.size
        self._slabs = [memory.allocate(slab.shape(every), slab.dtype) for slab in self._specs]
        for slab, value in zip(self._specs, self._slabs, strict=True):
            self._clear(slab, value, every)
        self.write(0, [slab.initial_row() for slab in self._specs])
        self._lengths_there = _on_device(session, LENGTHS)
        sent: list[npt.NDArray[Any]] = [buffers.lengths, buffers.read_rows, buffers.write_rows, *buffers.inputs]
        up, down = _room(sent), _room(buffers.outputs)
        self._up, self._down = (memory.allocate([size], np.uint8) for size in (up, down))
        self._staging, self._landing = whole_pages(up), whole_pages(down)
        self.pageable = self._lock_pages()  # why copies are slower than they could be; "" if they aren't
        self._runs: dict[tuple[int, int], Callable[[], None]] = {}

    def prepared(self, lanes: int, steps: int) -> Callable[[], None]:
        """What runs the first `lanes` lanes of the buffers, of `steps` steps each. For the owning thread alone."""
        assert threading.get_ident() == self._owner, "a device is run by a thread that doesn't own its session"
        run = self._runs.get((lanes, steps))
        if run is None:
            if len(self._runs) >= _MAX_BINDINGS:
                self._runs = {size: kept for size, kept in self._runs.items() if size[1] == 1}
            padded = steps == 1 and not self._single_lane  # a call of one lane has no neighbours to pad it with
            run = self._runs[lanes, steps] = self._padded(lanes) if padded else self.plain(lanes, steps)
        return run

    def plain(self, lanes: int, steps: int) -> Callable[[], None]:
        """What runs just so many lanes, without a CUDA graph."""
        return self._bound(lanes, steps, graph_options(UNGRAPHED) if self.graphed else None)

    def read(self, row: int) -> list[npt.NDArray[Any]]:
        """A copy of one row: one [W] array per slab. From any thread: a row that is referred to doesn't change."""
        if self._runtime is not None and threading.get_ident() != self._owner:
            self._runtime.cudaSetDevice(self._number)  # every thread begins with the first GPU, and would wake it
        return [
            np.array(self._row(slab, value, row).numpy()) for slab, value in zip(self._specs, self._slabs, strict=True)
        ]

    def write(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        """Change one row, which no run reads. For the owning thread alone: the copy is done when it returns, there."""
        assert threading.get_ident() == self._owner, "a row is written by a thread that doesn't own the slab"
        for slab, there, value in zip(self._specs, self._slabs, values, strict=True):
            self._row(slab, there, row).update_inplace(np.ascontiguousarray(value, dtype=slab.dtype))

    def _lock_pages(self) -> str:
        self._runtime = None
        try:
            self._runtime = cuda_runtime(self._device)
            if self._runtime is not None:
                unlock = page_lock([self._staging, self._landing], self._runtime, device=self._number)
                self._unlocking = weakref.finalize(self, unlock)
                # A thread may still be copying then, and the driver lets go of all that a process has locked.
                self._unlocking.atexit = False
        except PageLockError as error:
            return str(error)
        return ""

    def _row(self, slab: SlabSpec, there: Any, row: int) -> Any:
        return self._memory.view(there.data_ptr() + row * slab.row_bytes, [slab.width], slab.dtype)

    def _clear(self, slab: SlabSpec, there: Any, rows: int) -> None:
        at_once = max(1, _ZEROS // slab.row_bytes)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            part = self._memory.view(there.data_ptr() + first * slab.row_bytes, [count, slab.width], slab.dtype)
            part.update_inplace(np.zeros((count, slab.width), slab.dtype))

    def _padded(self, lanes: int) -> Callable[[], None]:
        """Single steps of `lanes` lanes, as a batch of the smallest bucket that has room for them."""
        size = next(size for size in self.buckets if size >= lanes)
        if size > lanes:
            whole, buffers, padding = self.prepared(size, 1), self._buffers, slice(lanes, size)
            scratch = self.scratch[0, padding]

            def run() -> None:
                buffers.lengths[padding] = 1
                buffers.read_rows[padding] = 0
                buffers.write_rows[padding] = scratch
                whole()

            return run
        return self._bound(size, 1, graph_options(size) if self.graphed else None)

    def _bound(self, lanes: int, steps: int, options: Any) -> Callable[[], None]:
        """Copy up, run, copy down; what is copied, and where to, stays the same from run to run."""
        up = Parcel(self._memory, self._up.data_ptr(), self._sent(lanes, steps), self._staging)
        down = Parcel(self._memory, self._down.data_ptr(), self._fetched(lanes, steps), self._landing)
        if self._single_lane:
            bindings = [self._binding(lane, 1, up, down) for lane in range(lanes)]
        else:
            bindings = [self._binding(0, lanes, up, down)]
        session = self._session

        def run() -> None:  # refers to no `self`: a model that is unloaded leaves the device at once
            up.send()
            for binding in bindings:
                session.run_with_iobinding(binding, options)  # returns when its stream has ended
            down.fetch()

        return run

    def _binding(self, first: int, count: int, up: Parcel, down: Parcel) -> Any:
        """A binding of `count` of the parcels' lanes, beginning with lane `first`."""
        binding, kind, number = self._session.io_binding(), self._device.kind, self._number

        def bind(to: Callable[..., None], name: str, dtype: npt.DTypeLike, shape: list[int], address: int) -> None:
            lane = math.prod(shape[1:]) * np.dtype(dtype).itemsize
            to(name, kind, number, dtype, [count, *shape[1:]], address + first * lane)

        if not self._lengths_there:
            lengths = self._buffers.lengths[first : first + count]
            binding.bind_input(LENGTHS, "cpu", 0, lengths.dtype, [count], lengths.ctypes.data)
        for tensor in up.tensors:
            bind(binding.bind_input, *tensor)
        for tensor in down.tensors:
            bind(binding.bind_output, *tensor)
        for slab, value in zip(self._specs, self._slabs, strict=True):
            binding.bind_ortvalue_input(slab.input, value)
            binding.bind_ortvalue_output(slab.output, value)
        return binding

    def _sent(self, lanes: int, steps: int) -> Parts:
        buffers = self._buffers
        parts: Parts = [
            (READ_ROWS, buffers.read_rows[:lanes], [lanes]),
            (WRITE_ROWS, buffers.write_rows[:lanes], [lanes]),
        ]
        if self._lengths_there:
            parts.append((LENGTHS, buffers.lengths[:lanes], [lanes]))
        for spec, values in zip(buffers.contract.inputs, buffers.inputs, strict=True):
            parts.append((spec.name, values[: lanes * steps * spec.elements], [lanes, steps, *spec.shape]))
        return parts

    def _fetched(self, lanes: int, steps: int) -> Parts:
        specs = zip(self._buffers.contract.outputs, self._buffers.outputs, strict=True)
        return [
            (spec.name, values[: lanes * steps * spec.elements], [lanes, steps, *spec.shape]) for spec, values in specs
        ]


def _on_device(session: Any, name: str) -> bool:
    """Whether the graph reads that input in the device's memory; what is bound elsewhere is copied in every run."""
    infos = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return any(tensor.name == name and info.name == "Cuda" for tensor, info in infos)
