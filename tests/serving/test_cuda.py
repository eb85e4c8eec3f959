"""What must hold on a GPU. Most of it is asked of the CPU in its place too, so that these tests are tested."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from structlog.testing import capture_logs

import cellstream
from export import pipeline
from export.precision import Precision
from model.checkpoint import Checkpoint
from model.lstm import LSTM, Spec
from serving import placement
from serving.config import Batching, Limits, ServerConfig
from serving.device import Device, cuda_options, cuda_runtime, open_session
from serving.device_runs import DeviceRuns
from serving.engine import Engine
from serving.errors import ConfigError
from serving.pinned import PageLockError
from serving.server import Server

F, LANES, ROWS, STEPS = 16, 12, 64, 100
SPEC = Spec(input_size=F, hidden_size=64, layers=2, output_size=8)
MODELS = {
    "fp32": (SPEC, Precision.FP32),
    "parts": (SPEC, Precision.FP32),  # rows of 256 in parts of 32
    "tf32": (SPEC, Precision.TF32),
    "fp16": (SPEC, Precision.FP16),
    "int8": (SPEC, Precision.INT8),
    "projected": (Spec(input_size=F, hidden_size=64, proj_size=16, output_size=8), Precision.FP32),
    "tokens": (Spec(vocabulary=50, encoder_size=F, hidden_size=64, output_size=50), Precision.FP32),
}
ROW_PARTS = {"parts": 8}
IN_A_SCAN = ("fp16", "projected")  # which ONNX Runtime captures no graph of

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Models:
    """Exported graphs, and the modules they are of."""

    folder: Path
    modules: dict[str, LSTM]

    def graph(self, name: str) -> Path:
        return self.folder / name / "resident.onnx"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """All of them, exported without a proof: what is proved here is the device."""
    folder, modules = tmp_path_factory.mktemp("models"), {}
    torch.set_num_threads(1)
    for name, (spec, precision) in MODELS.items():
        torch.manual_seed(1)
        modules[name] = LSTM(spec)
        (folder / name).mkdir()
        pipeline.write_graphs(Checkpoint(modules[name]), folder / name, name, precision, ROW_PARTS.get(name, 1))
    return Models(folder, modules)


@pytest.fixture(
    params=[
        pytest.param({"buckets": True}, id="cpu"),
        pytest.param({"device": "cuda"}, id="cuda", marks=pytest.mark.gpu),
    ]
)
def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    """An engine's options for a GPU, or for the CPU in its place."""
    options: dict[str, Any] = request.param
    return options


def engine(models: Models, name: str, **place: Any) -> Engine:
    """One with room for 12 lanes of 16 steps."""
    path = models.graph(name)
    return Engine(path, rows=ROWS, max_batch=LANES, slice_steps=16, max_run_steps=192, threads=1, **place)


def lanes_of(steps: int, lanes: int, seed: int = 1) -> Values:
    """X [B, T, F]."""
    return np.random.default_rng(seed).standard_normal((lanes, steps, F), dtype=np.float32)


def answers(of: Engine, x: Values, *, pieces: int, width: int = 8) -> Values:
    """Y [B, T, O] of lanes that go on together, `pieces` steps at a time."""
    lanes, rows, found = len(x), [0] * len(x), []
    for turn, first in enumerate(range(0, x.shape[1], pieces)):
        part, fresh = x[:, first : first + pieces], [1 + lane + lanes * (turn % 2) for lane in range(lanes)]
        outputs = of.run([(lane.tobytes(),) for lane in part], [part.shape[1]] * lanes, rows, fresh)
        found.append(np.stack([np.frombuffer(lane[0], np.float32).reshape(-1, width) for lane in outputs]))
        rows = fresh
    return np.concatenate(found, axis=1)


def errors(models: Models, name: str, x: Values, y: Values) -> tuple[float, float]:
    """The rms and the largest error against float64."""
    module = LSTM(MODELS[name][0]).double()
    module.load_state_dict(models.modules[name].double().state_dict())
    with torch.no_grad():
        truth, _ = module(torch.from_numpy(x).double())
    models.modules[name].float()
    wrong = np.abs(y - truth.numpy())
    return float(np.sqrt(np.mean(wrong**2))), float(wrong.max())


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("lanes", [1, 3, 12])
@pytest.mark.parametrize("name", ["fp32", "parts", "projected"])
def test_fp32_is_as_exact_as_on_the_cpu(
    models: Models, place: dict[str, Any], name: str, lanes: int, pieces: int
) -> None:
    """Against float64, after up to 100 steps: at most twice (rms) and four times (largest) the CPU's error."""
    x = lanes_of(STEPS, lanes)
    mine = errors(models, name, x, answers(engine(models, name, **place), x, pieces=pieces))
    yardstick = errors(models, name, x, answers(engine(models, name), x, pieces=pieces))
    assert mine[0] <= 2 * yardstick[0]
    assert mine[1] <= 4 * yardstick[1]


@pytest.mark.gpu
def test_tf32_misses_the_bar_of_fp32_and_keeps_its_own(models: Models) -> None:
    """The failing control: that fp32 passes above means that TF32 was off."""
    x = lanes_of(STEPS, 12)
    rounded = answers(engine(models, "tf32", device="cuda"), x, pieces=1)
    rms, _ = errors(models, "tf32", x, rounded)
    yardstick, _ = errors(models, "fp32", x, answers(engine(models, "fp32"), x, pieces=1))
    assert 10 * yardstick < rms
    assert rms < Precision.TF32.terms.share * float(np.sqrt(np.mean(rounded**2)))


@pytest.mark.parametrize("name", ["fp32", "tokens"])
def test_graphs_give_the_bytes_of_runs_without(models: Models, place: dict[str, Any], name: str) -> None:
    """Single steps of any number of lanes, from states that differ, and the states that they leave."""
    with_graphs, without = engine(models, name, **place, graphs=True), engine(models, name, **place, graphs=False)
    assert with_graphs.graphed
    assert not without.graphed
    for lanes in range(1, LANES + 1):
        for turn in range(2):
            x = lanes_of(1, lanes, seed=lanes)
            inputs = [
                (np.array([lane % 50]).tobytes() if name == "tokens" else x[lane].tobytes(),) for lane in range(lanes)
            ]
            read = [0] * lanes if not turn else [1 + lane for lane in range(lanes)]
            write = [1 + lane + 20 * turn for lane in range(lanes)]
            asked = inputs, [1] * lanes, read, write
            assert with_graphs.run(*asked) == without.run(*asked), f"{lanes} lanes, turn {turn}"
            for row in write:
                assert with_graphs.read_state(row)[0].tobytes() == without.read_state(row)[0].tobytes()


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", ["fp32", "tf32"])
def test_a_lane_is_the_same_bytes_within_a_bucket(
    models: Models, place: dict[str, Any], name: str, graphs: bool
) -> None:
    """Number of lanes, place and neighbours (a wild one, too) change nothing from 5 to 8 lanes; 20 steps each."""
    of, mine, found = engine(models, name, **place, graphs=graphs), lanes_of(20, 1, seed=9)[0], set()
    for lanes in (5, 6, 7, 8):
        for at in (0, lanes - 1):
            x = lanes_of(20, lanes, seed=lanes) * np.float32(1e4 if lanes == 7 else 1)
            x[at] = mine
            found.add(answers(of, x, pieces=1)[at].tobytes())
    assert len(found) == 1


def test_the_slab_is_written_in_place(models: Models, place: dict[str, Any]) -> None:
    """No row changes but those to write, and the slab's memory is the same from run to run."""
    of = engine(models, "fp32", **place)
    assert isinstance(of._runs, DeviceRuns)
    slab = of._runs._slabs[0]
    address, x = slab.data_ptr(), lanes_of(3, 5)
    of.run([(lane.tobytes(),) for lane in x], [3, 1, 2, 3, 3], [0] * 5, [1, 2, 3, 4, 5])
    before = [of.read_state(row)[0].tobytes() for row in range(ROWS)]
    of.run([(lane[:1].tobytes(),) for lane in x], [1] * 5, [5, 4, 3, 2, 1], [11, 12, 13, 14, 15])
    changed = {row for row in range(ROWS) if of.read_state(row)[0].tobytes() != before[row]}
    assert changed == {11, 12, 13, 14, 15}
    assert slab.data_ptr() == address
    assert slab.device_name() == ("cpu" if of.device == "cpu" else "cuda")


@pytest.mark.parametrize("single", [True, False])
def test_ragged_lanes_end_at_their_own_last_step(models: Models, place: dict[str, Any], single: bool) -> None:
    """A lane in ragged company gets what it gets alone, within the bar that other batch sizes have."""
    of, x, lengths = engine(models, "fp32", **place), lanes_of(16, 6), [1] * 6 if single else [16, 1, 7, 3, 12, 2]
    together = of.run(
        [(lane[:n].tobytes(),) for lane, n in zip(x, lengths, strict=True)], lengths, [0] * 6, [*range(1, 7)]
    )
    for lane, steps in enumerate(lengths):
        (alone,) = of.run([(x[lane, :steps].tobytes(),)], [steps], [0], [20])
        np.testing.assert_allclose(
            np.frombuffer(together[lane][0], np.float32), np.frombuffer(alone[0], np.float32), rtol=0, atol=2e-6
        )
        np.testing.assert_allclose(of.read_state(1 + lane)[0], of.read_state(20)[0], rtol=0, atol=2e-6)


def test_a_state_goes_to_the_host_and_back(models: Models, place: dict[str, Any]) -> None:
    """A copy of a row computes what the row does, and row 0 stays the first state."""
    of, x = engine(models, "fp32", **place), lanes_of(2, 1)[0]
    of.run([(x[:1].tobytes(),)], [1], [0], [1])
    of.write_state(9, of.read_state(1))
    original, copy = of.run([(x[1:].tobytes(),)] * 2, [1, 1], [1, 9], [2, 3])
    assert original == copy
    assert not of.read_state(0)[0].any()


def test_rows_are_read_by_another_thread_while_steps_go_on(models: Models, place: dict[str, Any]) -> None:
    """A pinned row is the same bytes at every reading."""
    of, stop, wrong = engine(models, "fp32", **place), threading.Event(), []
    of.run([(lanes_of(1, 1).tobytes(),)], [1], [0], [1])
    expected = of.read_state(1)[0].tobytes()

    def read() -> None:
        while not stop.is_set():
            if of.read_state(1)[0].tobytes() != expected:
                wrong.append(1)

    thread = threading.Thread(target=read)
    thread.start()
    for turn in range(300):
        x = lanes_of(1, 8, seed=turn)
        of.run([(lane.tobytes(),) for lane in x], [1] * 8, [1] * 8, [2 + lane + 8 * (turn % 2) for lane in range(8)])
    stop.set()
    thread.join()
    assert not wrong


@pytest.mark.gpu
def test_the_buffers_of_a_gpu_are_page_locked(models: Models) -> None:
    """CUDA itself says so of the memory that parcels go through, and no more once the engine is gone."""
    of, runtime, about = engine(models, "fp32", device="cuda"), cuda_runtime(Device(0)), (ctypes.c_int * 64)()
    assert isinstance(of._runs, DeviceRuns)
    assert of._runs.pageable == ""

    def kind(address: int) -> int:
        assert runtime.cudaPointerGetAttributes(about, ctypes.c_void_p(address)) == 0
        return about[0]  # the first field; 0: pageable, 1: page-locked

    staging, landing = of._runs._staging, of._runs._landing
    assert [kind(buffer.ctypes.data) for buffer in (staging, landing)] == [1, 1]
    del of
    assert [kind(buffer.ctypes.data) for buffer in (staging, landing)] == [0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("pieces", [1, 7])
def test_pageable_buffers_give_the_same_bytes(models: Models, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """Where pages can't be locked, copies are slower, and no different."""

    def refused(_device: Device) -> Any:
        raise PageLockError("told to")

    x = lanes_of(STEPS, 5)
    locked = answers(engine(models, "fp32", device="cuda"), x, pieces=pieces)
    monkeypatch.setattr("serving.device_runs.cuda_runtime", refused)
    of = engine(models, "fp32", device="cuda")
    assert isinstance(of._runs, DeviceRuns)
    assert of._runs.pageable == "told to"
    assert answers(of, x, pieces=pieces).tobytes() == locked.tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in MODELS if name != "int8"])
def test_every_node_is_on_the_gpu(models: Models, name: str) -> None:
    """By the rule of serving.placement, and so says ONNX Runtime's own list: nothing but bookkeeping on the CPU."""
    contract = placement.check(models.graph(name), Device(0), threads=1)
    assert contract.name == name
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    about = cuda_options(0, "", graphs=False)
    session = onnxruntime.InferenceSession(
        models.graph(name), options, providers=[("CUDAExecutionProvider", about)], enable_fallback=0
    )
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            heavy = node.op_type in {"LSTM", "MatMul", "Gemm", "FusedMatMul", "Scan", "ScatterND", "Gather", "Tanh"}
            assert part.ep_name == "CUDAExecutionProvider" or not heavy, (node.name, part.ep_name)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp32", "tf32"])
def test_an_lstm_needs_no_node_on_the_cpu(models: Models, name: str) -> None:
    """ONNX Runtime loads it with its fallback to the CPU forbidden."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [("CUDAExecutionProvider", cuda_options(0, "", graphs=True))]
    onnxruntime.InferenceSession(models.graph(name), options, providers=providers, enable_fallback=0)


@pytest.mark.gpu
def test_lengths_are_read_in_the_hosts_memory(models: Models) -> None:
    """All other inputs on the device: what ONNX Runtime says of them is what the engine goes by."""
    session = open_session(models.graph("fp32"), Device(0), threads=1)
    infos = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    where = {tensor.name: info.name for tensor, info in infos}
    assert {name for name, memory in where.items() if memory != "Cuda"} == {"lengths"}, where


@pytest.mark.gpu
def test_an_lstm_is_captured_without_a_word(models: Models) -> None:
    """All buckets are graphs, and no warning says otherwise."""
    with capture_logs() as logs:
        assert engine(models, "fp32", device="cuda").graphed
    assert logs == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", IN_A_SCAN)
def test_what_runs_in_a_scan_is_served_without_graphs(models: Models, name: str) -> None:
    """One warning, and it computes."""
    with capture_logs() as logs:
        of = engine(models, name, device="cuda")
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert not of.graphed
    assert np.isfinite(answers(of, lanes_of(20, 5), pieces=1)).all()


@pytest.mark.gpu
def test_8_bit_weights_are_refused(models: Models) -> None:
    """Their proof speaks of the CPU's kernels."""
    with pytest.raises(ConfigError, match="int8, which is proved for CPUs"):
        engine(models, "int8", device="cuda")


@pytest.mark.gpu
def test_a_gpu_that_is_not_there_is_refused_by_its_number(models: Models) -> None:
    """The error says which there are."""
    with pytest.raises(ConfigError, match=r"there is no cuda:255 here; there is: cuda:0"):
        engine(models, "fp32", device="cuda:255")


@pytest.fixture
def server(artifacts: Path) -> Iterator[Server]:
    """A whole server on the first GPU."""
    limits, batching = Limits(max_streams=50), Batching(max_batch=12, slice_steps=8)
    running = Server(ServerConfig(artifacts, "127.0.0.1:0", device="cuda", grace=0.5, limits=limits, batching=batching))
    running.start()
    yield running
    assert running.drain()


@pytest.mark.gpu
def test_a_server_on_a_gpu_answers_what_one_on_the_cpu_does(server: Server, artifacts: Path) -> None:
    """Loaded and run by one thread, so its graphs are the ones that were captured; GetModel says where it runs."""
    x = np.random.default_rng(3).standard_normal((40, 5), dtype=np.float32)
    path = artifacts / "vectors/1/resident.onnx"
    cpu = Engine(path, rows=4, max_batch=1, slice_steps=40, max_run_steps=40, threads=1)
    (expected,) = cpu.run([(x.tobytes(),)], [40], [0], [1])
    with cellstream.connect(server.address) as client:
        assert client.model("vectors", version=1).device == "cuda:0"
        with client.stream("vectors", version=1) as stream:
            found = np.concatenate([np.stack([stream.step(step) for step in x[:20]]), stream.step(x[20:])])
    np.testing.assert_allclose(found.ravel(), np.frombuffer(expected[0], np.float32), rtol=0, atol=2e-6)
