"""ONNX Runtime on the resident graph, and the engine on it, as contestants; CUDA's part with a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from bench.gpu.models import artifact_of, module_of
from bench.gpu.ours import Ours
from bench.gpu.plan import Job, Work
from bench.gpu.session import Session

JOB = Job(work=Work.STEPS, limit=1, layers=2)


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one."""
    return artifact_of(JOB, tmp_path_factory.mktemp("models")) / "resident.onnx"


def _right(x: Any) -> Any:
    import torch  # noqa: PLC0415  most of this needs none

    y, _ = module_of(JOB)(torch.from_numpy(x))
    return y.numpy()


@pytest.mark.parametrize("steps", [1, 3])
def test_answers_are_from_the_first_state_whatever_ran_before(resident: Path, steps: int) -> None:
    """Of both; runs in between go from other states and change nothing of it."""
    x = np.random.default_rng(0).standard_normal((4, steps, JOB.features)).astype(np.float32)
    session = Session(resident, device="cpu", graphs=True, max_batch=6).ready(x)
    ours = Ours(resident, device="cpu", max_batch=6, slice_steps=3, room=18).ready(x)
    assert session.device is not None
    assert ours.host is not None
    for _ in range(2):
        np.testing.assert_allclose(session.answers(), _right(x), atol=1e-6)
        np.testing.assert_allclose(ours.answers(), _right(x), atol=1e-6)
        session.device()
        ours.host()


def test_timed_runs_have_states_that_are_no_zeros(resident: Path) -> None:
    """The session's rows hold random states, which its timed runs read."""
    x = np.zeros((2, 1, JOB.features), np.float32)
    session = Session(resident, device="cpu", graphs=False, max_batch=2)
    before = session._slabs[0].numpy().copy()
    runs = session.ready(x)
    assert runs.device is not None
    runs.device()
    after = session._slabs[0].numpy()
    assert not before[0].any()
    assert np.all(np.abs(before[1:]).sum(axis=1) > 1)
    assert np.array_equal(before[:3], after[:3])
    assert not np.allclose(before[3:], after[3:])


class Cuda:
    """Takes ONNX Runtime's place: remembers how sessions are opened, and computes on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, falls_back: bool = False) -> None:
        self.options: list[dict[str, str]] = []
        self.graphs: list[str] = []
        opened, told = ort.InferenceSession, self

        class Opened(opened):  # type: ignore[misc, valid-type]
            def __init__(self, path: Path, options: Any, providers: list[Any]) -> None:
                ((name, values),) = providers
                assert name == "CUDAExecutionProvider"
                told.options.append(values)
                super().__init__(path, options, providers=["CPUExecutionProvider"])

            def get_providers(self) -> list[str]:
                return ["CPUExecutionProvider"] if falls_back else ["CUDAExecutionProvider", "CPUExecutionProvider"]

            def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
                try:
                    told.graphs.append(options.get_run_config_entry("gpu_graph_id"))
                except RuntimeError:
                    told.graphs.append("none")
                super().run_with_iobinding(binding)

        monkeypatch.setattr(ort, "InferenceSession", Opened)
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)
        on_host = ort.OrtValue.ortvalue_from_numpy
        of_shape = ort.OrtValue.ortvalue_from_shape_and_type
        self._held: list[Any] = []

        def from_numpy(values: Any, _kind: str = "cpu", _number: int = 0) -> Any:
            self._held.append(values)
            return on_host(values)

        def from_shape(shape: Any, dtype: Any, _kind: str = "cpu", _number: int = 0) -> Any:
            return of_shape(shape, dtype)

        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", staticmethod(from_numpy))
        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", staticmethod(from_shape))


def test_each_size_has_a_cuda_graph_of_its_own(resident: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured with some rows, replayed with others; without graphs no id is given."""
    cuda = Cuda(monkeypatch)
    session = Session(resident, device="cuda:1", graphs=True, max_batch=4)
    x = np.random.default_rng(0).standard_normal((4, 1, JOB.features)).astype(np.float32)
    np.testing.assert_allclose(session.ready(x).answers(), _right(x), atol=1e-6)
    session.ready(x[:2])
    assert cuda.graphs == ["1", "1", "2"]
    Session(resident, device="cuda:1", graphs=False, max_batch=4).ready(x)
    assert cuda.graphs[3:] == ["none"]
    assert [(one["device_id"], one["enable_cuda_graph"], one["use_tf32"]) for one in cuda.options] == [
        ("1", "1", "0"),
        ("1", "0", "0"),
    ]


def test_a_session_that_fell_back_is_refused(resident: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures would be the CPU's."""
    Cuda(monkeypatch, falls_back=True)
    with pytest.raises(RuntimeError, match="fell back to the CPU"):
        Session(resident, device="cuda:0", graphs=True, max_batch=4)
