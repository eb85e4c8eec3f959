"""ONNX Runtime on the resident graph, everything on the device and nothing around it: what our engine stands on.

The engine copies each run's inputs up and its outputs down; what the device takes by itself only shows without that.
Session options are the engine's. Knows no stream: rows are read and written where they are, again and again.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bench.gpu.place import CPU
from bench.gpu.runs import Array, Runs
from export.artifact import read_graph
from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS

_DIFFERENT = 257  # rows of the slab; the others repeat them
_SPREAD = 0.5  # of the states in the slab: zeros would cost a GPU less power, and so less time


class Session:
    """One session and its slab. With `graphs`, every size is captured when it's made ready, and then replayed."""

    def __init__(self, path: Path, *, device: str, graphs: bool, max_batch: int) -> None:
        self._kind, _, number = device.partition(":")
        self._number, self._graphs = int(number or 0), graphs and device != CPU
        _, self._contract = read_graph(path, weights=False)
        self._session = self._open(path)
        random = np.random.default_rng(0)
        self._slabs = []
        for slab in self._contract.slabs():
            few = random.standard_normal((_DIFFERENT, slab.width), np.float32) * _SPREAD
            values = np.resize(few, (2 * max_batch + 1, slab.width))
            values[0] = slab.initial_row()
            self._slabs.append(self._there(values.astype(slab.dtype).reshape(slab.shape(len(values)))))
        self._ids = itertools.count(1)

    def _open(self, path: Path) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if self._kind == CPU:
            return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        cuda = {
            "device_id": str(self._number),
            "use_tf32": str(int(self._contract.precision == "tf32")),
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(self._graphs)),
        }
        ort.preload_dlls()  # cuBLAS and cuDNN out of their wheels, where torch hasn't brought them
        session = ort.InferenceSession(path, options, providers=[("CUDAExecutionProvider", cuda)])
        if "CUDAExecutionProvider" not in session.get_providers():
            raise RuntimeError("ONNX Runtime fell back to the CPU; what it printed says why")
        return session

    def _there(self, values: Array) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), self._kind, self._number)

    def ready(self, x: Array) -> Runs:
        """For inputs [B, T, F]: lanes go from the slab's first half of rows to its second."""
        batch, steps = x.shape[:2]
        (output,) = self._contract.outputs
        rows = np.arange(1, batch + 1, dtype=np.int64)
        read, write = self._there(rows.copy()), self._there(rows + batch)
        y = ort.OrtValue.ortvalue_from_shape_and_type(
            [batch, steps, *output.shape], np.dtype(output.dtype), self._kind, self._number
        )
        given = {
            self._contract.inputs[0].name: self._there(x),
            LENGTHS: self._lengths(np.full(batch, steps, np.int32)),
            READ_ROWS: read,
            WRITE_ROWS: write,
        }
        binding = self._session.io_binding()
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(output.name, y)
        for slab, values in zip(self._contract.slabs(), self._slabs, strict=True):
            binding.bind_ortvalue_input(slab.input, values)
            binding.bind_ortvalue_output(slab.output, values)
        options = ort.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(next(self._ids)))

        def run(_held: object = given) -> None:  # on the host an OrtValue doesn't hold the memory that it's made of
            self._session.run_with_iobinding(binding, options)

        def answers() -> Array:
            read.update_inplace(np.zeros_like(rows))  # a replay has to see it: the capture was of other rows
            run()
            found: Array = np.array(y.numpy())
            read.update_inplace(rows)
            return found

        run()
        return Runs(answers, run, None)

    def _lengths(self, values: Array) -> Any:
        """Where the graph reads them: recurrent nodes want lengths in the host's memory."""
        infos = zip(self._session.get_inputs(), self._session.get_input_memory_infos(), strict=True)
        on_device = any(tensor.name == LENGTHS and info.name == "Cuda" for tensor, info in infos)
        return self._there(values) if on_device else ort.OrtValue.ortvalue_from_numpy(values)
