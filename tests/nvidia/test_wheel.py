"""What the CUDA wheel calls of NVIDIA's libraries for our engine, noted by stand-ins: docs/gpu.md goes by it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from serving.engine import Engine
from serving.errors import ConfigError
from serving.one_thread import OneThread

pytestmark = pytest.mark.skipif(
    "CELLSTREAM_STAND_IN" not in os.environ, reason="needs the stand-ins for NVIDIA's libraries of make cuda-stand-in"
)

Calls = Callable[[], list[str]]
UP = ["cudaMemcpy up page-locked gpu 1", "cudaStreamSynchronize default"]
DOWN = "cudaMemcpy down page-locked gpu 1"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What was called since the last time of asking."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("STAND_IN_CALLS", str(path))

    def since() -> list[str]:
        lines = path.read_text().splitlines()
        path.write_text("")
        return lines

    return since


def engine(path: Path) -> Engine:
    """On the second GPU, of which no call must stray to the first."""
    return Engine(path, rows=40, max_batch=4, slice_steps=8, max_run_steps=64, threads=1, device="cuda:1")


def run(of: Engine, *, lanes: int, steps: int) -> None:
    """Once, from the first state."""
    x = np.zeros((steps, 5), np.float32).tobytes()
    of.run([(x,)] * lanes, [steps] * lanes, [0] * lanes, list(range(1, lanes + 1)))


def test_a_replayed_batch_is_five_calls(artifacts: Path, calls: Calls) -> None:
    """One copy each way through page-locked memory, one launch, two waits: padded or not, again and again."""
    of = engine(artifacts / "vectors/1/resident.onnx")
    assert of.graphed
    for lanes in (1, 3, 4, 3):
        calls()
        run(of, lanes=lanes, steps=1)
        assert calls() == [*UP, "cudaGraphLaunch", "cudaStreamSynchronize own", DOWN]


def test_a_chunk_waits_for_its_own_stream_only(artifacts: Path, calls: Calls) -> None:
    """Kernels in the launch's place; once it has run, nothing is allocated, and nobody waits for the whole device."""
    of = engine(artifacts / "vectors/1/resident.onnx")
    run(of, lanes=2, steps=3)
    calls()
    run(of, lanes=2, steps=3)
    found = calls()
    assert [*found[:2], found[-1]] == [*UP, DOWN]
    assert "kernel" in found
    assert set(found[2:-1]) == {"kernel", "cudaStreamSynchronize own"}
    assert found[-2] == "cudaStreamSynchronize own"


def test_a_capture_is_two_runs_a_recorded_one_and_a_launch(artifacts: Path, calls: Calls) -> None:
    """For each of the three buckets, on a stream that doesn't wait for the default one, and with no wait in it."""
    of = engine(artifacts / "vectors/1/resident.onnx")
    found = calls()
    assert found.count("cudaStreamBeginCapture") == 3
    assert found.count("cudaGraphLaunch") == 6, "the capture's own, and the one that is compared"
    assert not any("while capturing" in call for call in found)
    assert {call for call in found if "StreamCreate" in call} == {"cudaStreamCreateWithFlags non-blocking"}
    recorded = found.count("kernel captured") // 3
    first = found[: found.index("cudaStreamBeginCapture")]
    begin = len(first) - first[::-1].index(UP[0])  # what comes after the last copy up
    assert first[begin:].count("kernel") == 2 * recorded
    assert of.graphed


def test_a_row_is_one_copy_on_its_gpu_whichever_thread_asks(artifacts: Path, calls: Calls) -> None:
    """And no wait for the device."""
    of = engine(artifacts / "vectors/1/resident.onnx")
    calls()
    OneThread("reader").call(lambda: of.read_state(1))
    assert calls() == ["cudaMemcpy down pageable gpu 1"]


def test_pages_are_let_go_with_the_engine(artifacts: Path, calls: Calls) -> None:
    """Both buffers'."""
    of = engine(artifacts / "vectors/1/resident.onnx")
    assert calls().count("cudaHostRegister") == 2
    del of
    assert calls().count("cudaHostUnregister") == 2


def test_a_node_that_cuda_has_no_kernel_for_is_an_error(artifacts: Path, tmp_path: Path) -> None:
    """An LSTM with a clip goes to the CPU in silence; its name is in the refusal."""
    folder = tmp_path / "clipped"
    shutil.copytree(artifacts / "vectors/1", folder)
    graph = onnx.load(folder / "resident.onnx", load_external_data=False)
    node = next(node for node in graph.graph.node if node.op_type == "LSTM")
    node.attribute.append(onnx.helper.make_attribute("clip", 1e6))
    onnx.save(graph, folder / "resident.onnx")
    with pytest.raises(
        ConfigError, match=r"not all of it runs on cuda:1: .*\(LSTM\) on CPUExecutionProvider with float"
    ):
        engine(folder / "resident.onnx")
