"""CUDA graphs for the buckets: captured before anybody is served, and used only if they are shown to compute the same.

A graph is a recording: whatever its kernels took from the host while it was captured stays as it was. That is so for
`lengths`, all of them 1 here, and must not be so for anything else. ONNX Runtime runs what it captures several times,
which rows that are read and never written make harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import TensorSpec
from serving.buffers import Buffers, smallest
from serving.device_runs import DeviceRuns


class CaptureError(Exception):
    """The graph can't be captured, or its replay computes something else; it is run without CUDA graphs then."""


def capture(runs: DeviceRuns, buffers: Buffers) -> None:
    """Capture every bucket, on scratch rows, and compare it with a plain run. Raises CaptureError.

    The largest comes first, so that the device's arena has grown before the others are captured.
    """
    for size in reversed(runs.buckets):
        try:
            _first_states(runs, buffers, size)
            _capture(runs, buffers, size)
            same = _replayed(runs, buffers, size) == _run(runs, buffers, size, runs.plain(size, 1))
        except AssertionError:
            raise
        except Exception as error:  # ONNX Runtime raises types of its own making
            raise CaptureError(f"a batch of {size} can't be captured: {error}") from error
        if not same:
            raise CaptureError(f"a batch of {size} gives other bytes from its graph than without")


def _first_states(runs: DeviceRuns, buffers: Buffers, size: int) -> None:
    """Leave a state of its own in each lane's second scratch row, for the replay to start from."""
    _fill(buffers, size, seed=1)
    buffers.read_rows[:size] = 0
    buffers.write_rows[:size] = runs.scratch[1, :size]
    runs.plain(size, 1)()


def _capture(runs: DeviceRuns, buffers: Buffers, size: int) -> None:
    """Capture with other inputs and other rows than those that come."""
    buffers.fill_smallest(size)
    buffers.lengths[:size] = 1
    buffers.read_rows[:size] = 0
    buffers.write_rows[:size] = runs.scratch[0, :size]
    runs.prepared(size, 1)()


def _replayed(runs: DeviceRuns, buffers: Buffers, size: int) -> list[bytes]:
    return _run(runs, buffers, size, runs.prepared(size, 1))


def _run(runs: DeviceRuns, buffers: Buffers, size: int, run: Callable[[], None]) -> list[bytes]:
    """Outputs and new states of a run from the second scratch rows to the first, in turned order."""
    rows = runs.scratch[0, :size][::-1]
    _fill(buffers, size, seed=2)
    buffers.read_rows[:size] = runs.scratch[1, :size]
    buffers.write_rows[:size] = rows
    run()
    outputs = [
        values[: size * spec.elements].tobytes()
        for values, spec in zip(buffers.outputs, buffers.contract.outputs, strict=True)
    ]
    return outputs + [state.tobytes() for row in rows for state in runs.read(int(row))]


def _fill(buffers: Buffers, size: int, *, seed: int) -> None:
    """Inputs that differ from lane to lane and from seed to seed, all of them values that the model takes."""
    buffers.lengths[:size] = 1
    for values, spec in zip(buffers.inputs, buffers.contract.inputs, strict=True):
        values[: size * spec.elements] = _various(spec, size * spec.elements, seed)


def _various(spec: TensorSpec, count: int, seed: int) -> npt.NDArray[Any]:
    index = np.arange(count) * 7 + seed
    if np.dtype(spec.dtype).kind == "f":
        return np.sin(index).astype(spec.dtype)
    low = smallest(spec)
    high = low + 1 if spec.maximum is None else spec.maximum
    return (low + index % (high - low + 1)).astype(spec.dtype)
