"""An artifact whose rows are in parts, served: the engine speaks in rows, and the bytes are those of whole ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bench.ceilings import Raw
from bench.parity_served import served
from export import artifact, effort, pipeline
from export.precision import Precision
from model.checkpoint import Checkpoint
from model.lstm import LSTM, Spec
from serving import placement
from serving.config import Batching, Limits, ServerConfig
from serving.device import Device
from serving.engine import Engine
from serving.server import Server
from tests.serving.graph_session import GraphSessions

SPEC = Spec(input_size=5, hidden_size=24, layers=2, output_size=3)  # rows of 96
PARTS = {"whole": 1, "parts": 12, "elements": 96}
ROWS, LANES, F = 40, 9, 5
WAYS: tuple[dict[str, Any], ...] = ({}, {"buckets": True}, {"graphs": True})


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One module three times: rows whole, in parts, and in single elements."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = LSTM(SPEC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "LONGEST", (1, 10))
        for name, parts in PARTS.items():
            final = root / name / "1"
            made = pipeline.export(Checkpoint(module), final, name=name, precision=Precision.FP32, row_parts=parts)
            assert made.contract.slabs()[0].parts == parts
    return root


def resident(repository: Path, name: str) -> Path:
    """Its graph."""
    return repository / name / "1" / artifact.RESIDENT


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("name", ["parts", "elements"])
def test_an_engine_gives_the_bytes_of_whole_rows(
    name: str, way: dict[str, Any], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single steps, padded or not, and ragged chunks; states read, written and run on; every row of the slab."""
    GraphSessions(monkeypatch)
    sizes: dict[str, Any] = {"rows": ROWS, "max_batch": LANES, "slice_steps": 16, "max_run_steps": 128, "threads": 1}
    whole, cut = (Engine(resident(repository, one), **sizes, **way) for one in ("whole", name))
    assert whole.row_bytes == cut.row_bytes
    random = np.random.default_rng(0)
    state = random.standard_normal(96).astype(np.float32)
    for engine in (whole, cut):
        engine.write_state(39, [state])
        engine.probe(38, lanes=2)
    assert cut.read_state(39)[0].tobytes() == state.tobytes()
    read = [39, 0, 0, 39, 0]
    for lengths in ([1] * 5, [4, 1, 3, 2, 5], [1] * 5):
        lanes = [(random.standard_normal((steps, F)).astype(np.float32).tobytes(),) for steps in lengths]
        write = [int(row) for row in random.permutation(np.arange(1, 38)) if row not in read][:5]
        assert whole.run(lanes, lengths, read, write) == cut.run(lanes, lengths, read, write)
        read = write
    assert _slab(whole) == _slab(cut)


def _slab(engine: Engine) -> list[bytes]:
    values: list[npt.NDArray[Any]] = [engine.read_state(row)[0] for row in range(ROWS)]
    assert all(value.shape == (96,) for value in values)
    return [value.tobytes() for value in values]


def test_the_trial_run_and_the_raw_graph_bind_parts(repository: Path) -> None:
    """Whatever else runs a graph gives it the shape that it declares."""
    assert placement.check(resident(repository, "parts"), Device.named("cpu"), threads=1).row_parts == {"float32": 12}
    assert Raw(repository / "parts" / "1").measure(4, 1, 0.001).us_per_step > 0


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    """A server of all three."""
    limits = Limits(max_streams=50, max_steps_per_message=100, window_steps=200)
    running = Server(ServerConfig(repository, "127.0.0.1:0", grace=0.5, limits=limits, batching=Batching(8, 4)))
    running.start()
    yield running
    assert running.drain()


def test_streams_get_the_bytes_of_model_onnx_by_hand(repository: Path, server: Server) -> None:
    """Over a real port, several streams at once in chunks of their own."""
    for name in ("parts", "elements"):
        folder = repository / name / "1"
        _, contract = artifact.read_graph(folder / artifact.MODEL, weights=False)
        records = served(server.address, name, folder, contract)
        assert [record.tensor for record in records] == ["y"]
        assert all(record.passed for record in records)
