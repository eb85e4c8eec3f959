"""What the computation costs by itself: ONNX Runtime on the same resident graph, nothing around it.

One session, one slab, buffers bound once for each (B, T), as the server's engine does it; the time is the thread's own,
so that other load on the machine doesn't count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS, Contract

LARGEST_BATCH = 128
LARGEST_RUN = 512  # lanes times steps: the server's own bound
ROWS = 4096 + 1 + LARGEST_BATCH  # as many as the server has by default
_AT_LEAST = 5  # runs


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Runs of B lanes of T steps, in microseconds of processor time."""

    batch: int
    steps: int
    us_per_run: float

    @property
    def us_per_step(self) -> float:
        """Of one lane."""
        return self.us_per_run / (self.batch * self.steps)


def sizes(steps: Sequence[int]) -> list[tuple[int, int]]:
    """(B, T) worth knowing: every power of two that the server would run with these T."""
    batches = [1 << exponent for exponent in range(LARGEST_BATCH.bit_length())]
    return [(batch, length) for length in steps for batch in batches if length == 1 or batch * length <= LARGEST_RUN]


class Raw:
    """A resident graph and its buffers."""

    def __init__(self, artifact: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(artifact / "resident.onnx", options, providers=["CPUExecutionProvider"])
        self._contract = Contract.from_metadata(self._session.get_modelmeta().custom_metadata_map)
        self._slabs = [np.zeros((ROWS, slab.width), slab.dtype) for slab in self._contract.slabs()]

    @property
    def row_bytes(self) -> int:
        """Bytes of one stream's state."""
        return sum(slab.row_bytes for slab in self._contract.slabs())

    def measure(self, batch: int, steps: int, seconds: float) -> Ceiling:
        """Run for about so long."""
        run = self.bound(batch, steps)
        run(0)
        count, started, begin = 0, time.perf_counter(), time.thread_time_ns()
        while count < _AT_LEAST or time.perf_counter() - started < seconds:
            run(count)
            count += 1
        return Ceiling(batch, steps, (time.thread_time_ns() - begin) / count / 1e3)

    def bound(self, batch: int, steps: int) -> Callable[[int], None]:
        """What makes one run: lanes go to and fro between two halves of the slab, which are all touched in turn."""
        binding: Any = self._session.io_binding()
        kept: list[Any] = []  # the binding knows addresses only
        generator = np.random.default_rng(0)

        def bind(name: str, values: Any, *, output: bool = False) -> Any:
            kept.append(values)
            put = binding.bind_output if output else binding.bind_input
            put(name, "cpu", 0, values.dtype, list(values.shape), values.ctypes.data)
            return values

        bind(LENGTHS, np.full(batch, steps, np.int32))
        read = bind(READ_ROWS, np.zeros(batch, np.int64))
        write = bind(WRITE_ROWS, np.zeros(batch, np.int64))
        for spec in self._contract.inputs:
            bind(spec.name, generator.standard_normal((batch, steps, *spec.shape)).astype(spec.dtype))
        for spec in self._contract.outputs:
            bind(spec.name, np.empty((batch, steps, *spec.shape), spec.dtype), output=True)
        for slab, values in zip(self._contract.slabs(), self._slabs, strict=True):
            parts = values.reshape(slab.shape(ROWS))  # a view
            bind(slab.input, parts)
            bind(slab.output, parts, output=True)
        lanes = np.arange(1, batch + 1)

        def run(number: int, _kept: list[Any] = kept) -> None:
            read[:] = lanes + batch * (number % 2)
            write[:] = lanes + batch * (1 - number % 2)
            self._session.run_with_iobinding(binding)

        return run


def at(ceilings: Sequence[Ceiling], batch: float, steps: int) -> float:
    """Microseconds per step in runs of `batch` lanes (a mean, so not whole), between the sizes measured."""
    found = {item.batch: item.us_per_step for item in ceilings if item.steps == steps}
    if not found:
        raise ValueError(f"nothing was measured at {steps} steps per run")
    known = sorted(found)
    logs = np.interp(math.log2(max(batch, 1)), [math.log2(size) for size in known], [found[size] for size in known])
    return float(logs)
