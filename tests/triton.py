"""Triton's implicit state, driven by a model's folder alone (`config.pbtxt` and its files); Triton's load generator."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from model.triton_config import DATA_TYPES

PERF_ANALYZER = Path(sys.prefix, "perf", "bin", "perf_analyzer")  # where `make test` puts it
Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def perf_analyzer() -> Path:
    """Triton's load generator; the test is skipped where it isn't."""
    if not PERF_ANALYZER.is_file():
        pytest.skip(f"no {PERF_ANALYZER}: `make test` puts it there on Linux x86-64")
    return PERF_ANALYZER


def read_config(folder: Path) -> Any:
    """The configuration in a model's folder, by the schema that Triton publishes."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def dtype(data_type: int) -> np.dtype[Any]:
    """Numpy's name for one of Triton's."""
    name = model_config_pb2.DataType.Name(data_type)
    return np.dtype({triton: ours for ours, triton in DATA_TYPES.items()}[name])


class Sequences:
    """Live sequences of one model version and their states; every batch is one run of its model file."""

    def __init__(self, folder: Path, version: str) -> None:
        self.config = read_config(folder)
        self.states: dict[int, Arrays] = {}
        self._folder = folder
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = folder / version / (self.config.default_model_filename or "model.onnx")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def infer(self, batch: Mapping[int, Arrays], start: bool = False) -> dict[int, Arrays]:
        """One request of each sequence, inputs [1, *dims]; their outputs."""
        assert len(batch) <= self.config.max_batch_size
        states = self.config.sequence_batching.state
        for sequence in batch if start else ():
            self.states[sequence] = {state.input_name: self._first(state) for state in states}
        feeds = {spec.name: self._joined(spec, [batch[one][spec.name] for one in batch]) for spec in self.config.input}
        for control in self.config.sequence_batching.control_input:
            feeds[control.name] = np.concatenate([_said(control, start=start)] * len(batch))
        for state in states:
            feeds[state.input_name] = np.concatenate([self.states[one][state.input_name] for one in batch])
        outputs = [spec.name for spec in self.config.output]
        found = self._session.run([*outputs, *(state.output_name for state in states)], feeds)
        for row, sequence in enumerate(batch):
            news = zip(states, found[len(outputs) :], strict=True)
            self.states[sequence] = {state.input_name: new[row : row + 1] for state, new in news}
        return {
            one: {name: value[row : row + 1] for name, value in zip(outputs, found, strict=False)}
            for row, one in enumerate(batch)
        }

    def _first(self, state: Any) -> Array:
        if not state.initial_state:
            return np.full([1, *state.dims], 77, dtype(state.data_type))  # undefined
        (first,) = state.initial_state
        assert (first.data_type, first.dims) == (state.data_type, state.dims)
        if first.WhichOneof("state_data") == "zero_data":
            return np.zeros([1, *first.dims], dtype(first.data_type))
        data = (self._folder / "initial_state" / first.data_file).read_bytes()
        return np.frombuffer(data, dtype(first.data_type)).reshape(1, *first.dims)

    def _joined(self, spec: Any, requests: list[Array]) -> Array:
        for request in requests:
            sizes = zip(request.shape, [1, *spec.dims], strict=True)
            assert all(want in (-1, size) for size, want in sizes), (spec.name, request.shape, spec.dims)
            assert request.dtype == dtype(spec.data_type)
        joined = np.concatenate(requests)
        return joined.reshape(len(requests), *spec.reshape.shape) if spec.HasField("reshape") else joined


def _said(control: Any, *, start: bool) -> Array:
    """What a control input gets for one request in the middle of a sequence, or at its start: [1, 1]."""
    (said,) = control.control
    kind = model_config_pb2.ModelSequenceBatching.Control.Kind.Name(said.kind)
    true = {"CONTROL_SEQUENCE_START": start, "CONTROL_SEQUENCE_READY": True, "CONTROL_SEQUENCE_END": False}[kind]
    values = {np.float32: said.fp32_false_true, np.int32: said.int32_false_true, np.bool_: said.bool_false_true}
    ((scalar, pair),) = [(scalar, pair) for scalar, pair in values.items() if pair]
    return np.array([[pair[true]]], scalar)
