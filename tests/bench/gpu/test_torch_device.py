"""PyTorch's side of a GPU, as far as it can be tried without one: CUDA's functions are stand-ins here."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from bench.gpu.models import module_of
from bench.gpu.plan import Job, Work
from bench.gpu.rivals import Cell, Reference, activate
from bench.gpu.torch_device import TorchDevice, usable


class Stream:
    """Waits for others."""

    def __init__(self, _device: torch.device) -> None:
        self.waited: list[object] = []

    def wait_stream(self, other: object) -> None:
        """In order."""
        self.waited.append(other)


class Graph:
    """Counts its replays."""

    replays = 0

    def replay(self) -> None:
        """Once more."""
        self.replays += 1


class Counted:
    """Counts its calls."""

    calls = 0

    def __call__(self) -> None:
        self.calls += 1


def test_a_graph_is_warmed_up_captured_and_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls on a stream aside, one for the capture, none in a replay; memory of the work outlives the caller."""
    captures: list[tuple[Graph, str]] = []
    used: list[str] = []

    @contextmanager
    def capture(graph: Graph, *, capture_error_mode: str) -> Iterator[None]:
        captures.append((graph, capture_error_mode))
        yield

    @contextmanager
    def on(_stream: Stream) -> Iterator[None]:
        yield

    current = Stream(torch.device("cpu"))
    for name, value in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "stream": on,
        "current_stream": lambda _device: current,
        "set_device": lambda device: used.append(str(device)),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    work = Counted()
    held = weakref.ref(work)
    replay = TorchDevice("cuda:1").graph(work)
    assert used == ["cuda:1"]
    assert work.calls == 4
    ((graph, mode),) = captures
    assert mode == "thread_local"
    assert len(current.waited) == 1
    del work
    gc.collect()
    replay()
    replay()
    assert graph.replays == 2
    assert held() is not None
    del replay
    gc.collect()
    assert held() is None


def test_a_device_that_answers_no_more_is_seen() -> None:
    """There is none here, so it doesn't answer; the CPU does."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert not usable("cuda:0")
    assert usable("cpu")
    assert TorchDevice("cpu").healthy()
    assert not TorchDevice("cuda:0").healthy()


def test_precisions_are_what_the_flags_say() -> None:
    """TF32 is allowed in its own precision only."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for precision, dtype in (("tf32", torch.float32), ("fp16", torch.float16), ("fp32", torch.float32)):
            assert TorchDevice("cpu").set_precision(precision) is dtype
            allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert allowed == (precision == "tf32",) * 2
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_the_cell_is_pytorchs_own() -> None:
    """Gates in place give what nn.LSTMCell gives."""
    torch.manual_seed(0)
    cell = torch.nn.LSTMCell(3, 5)
    x, h, c, y = torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 5), torch.empty(4, 5)
    with torch.no_grad():
        right_h, right_c = cell(x, (h, c))
        activate(x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh, h, c, y)
    torch.testing.assert_close((h, c, y), (right_h, right_c, right_h))


def test_a_cell_answers_from_the_first_state_whatever_ran_before() -> None:
    """Its capture runs it several times, and each run goes on from the last."""
    job = Job(work=Work.STEPS, limit=1, layers=2)
    x = np.random.default_rng(0).standard_normal((3, 2, job.features)).astype(np.float32)
    module, at = module_of(job), TorchDevice("cpu")
    runs = Cell(at, module, "fp32").ready(x)
    right = Reference(at, module).answers(x)
    assert runs.device is not None
    for _ in range(2):
        runs.device()
        np.testing.assert_allclose(runs.answers(), right, atol=1e-6)
