"""Projections and reduced precisions served over a real port: the bytes of model.onnx, run by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cellstream
from bench.parity_served import served
from export import artifact, effort, pipeline
from export.precision import Precision
from model.checkpoint import Checkpoint
from model.lstm import LSTM, Spec
from serving.config import Batching, Limits, ServerConfig
from serving.server import Server

MODELS = {
    "projected": (Spec(input_size=5, hidden_size=7, layers=2, proj_size=3), Precision.FP32),
    "eight-bit": (Spec(input_size=5, hidden_size=40, layers=2, output_size=1), Precision.INT8),
    "both": (Spec(vocabulary=11, encoder_size=3, hidden_size=6, proj_size=1, output_size=4), Precision.INT8),
    "tensor-cores": (Spec(input_size=3, hidden_size=8), Precision.TF32),
    "half": (Spec(input_size=3, hidden_size=8), Precision.FP16),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them exported and proved, over fewer steps than usual."""
    root = tmp_path_factory.mktemp("precisions")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "LONGEST", (1, 10))
        for name, (spec, precision) in MODELS.items():
            pipeline.export(Checkpoint(LSTM(spec)), root / name / "1", name=name, precision=precision)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    """A server of all of them, which batches up to 8 lanes of up to 4 steps."""
    limits = Limits(max_streams=50, max_steps_per_message=100, window_steps=200)
    config = ServerConfig(repository, "127.0.0.1:0", grace=0.5, limits=limits, batching=Batching(8, 4))
    running = Server(config)
    running.start()
    yield running
    assert running.drain()


@pytest.mark.parametrize("name", MODELS)
def test_streams_get_the_bytes_of_model_onnx_by_hand(name: str, repository: Path, server: Server) -> None:
    """Several streams at once, in chunks of their own, against each alone and step by step in model.onnx."""
    folder = repository / name / "1"
    _, contract = artifact.read_graph(folder / artifact.MODEL, weights=False)
    records = served(server.address, name, folder, contract)
    assert [record.tensor for record in records] == ["y"]
    assert all(record.passed for record in records)


def test_clients_are_told_the_precision(server: Server) -> None:
    """A model's description has its precision, states of float32, and what was never run."""
    with cellstream.connect(server.address) as client:
        for name, (_, precision) in MODELS.items():
            model = client.model(name)
            assert model.precision == precision
            assert {state.dtype for state in model.states} == {"float32"}
            assert model.certificate is not None
            assert set(precision.terms.not_checked) < set(model.certificate["not_checked"])
        h, c = client.model("projected").states
    assert (h.shape, c.shape) == ((2, 3), (2, 7))


def test_models_for_gpus_are_named_in_the_log(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server on the CPU says plainly which of its models gain nothing there."""
    config = ServerConfig(repository, "127.0.0.1:0", grace=0.1, limits=Limits(max_streams=5), batching=Batching(8, 4))
    running = Server(config)
    running.start()
    assert running.drain()
    lines = [line for line in capsys.readouterr().out.splitlines() if "a model for GPUs runs on the CPU" in line]
    assert len(lines) == 2
    assert any("tensor-cores" in line and "tf32" in line for line in lines)
    assert any("half" in line and "fp16" in line for line in lines)
