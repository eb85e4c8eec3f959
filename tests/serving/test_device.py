"""Devices: names, what is asked of ONNX Runtime, and no silent fallback to the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from serving.config import ServerConfig, device_number
from serving.device import (
    UNGRAPHED,
    Device,
    Memory,
    check,
    cuda_options,
    cuda_runtime,
    graph_options,
    open_session,
)
from serving.errors import ConfigError
from serving.pinned import PageLockError

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "number", "text"), [("cpu", None, "cpu"), ("cuda", 0, "cuda:0"), ("cuda:3", 3, "cuda:3")]
)
def test_devices_have_names(name: str, number: int | None, text: str) -> None:
    """The CPU, the first GPU, and any by its number."""
    assert device_number(name) == number
    assert str(Device.named(name)) == text
    assert ServerConfig(Path(), device=name).device == name


@pytest.mark.parametrize(
    "name", ["", "gpu", "CUDA", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:256", "cuda:1:2", "cuda:²"]
)
def test_what_is_no_device_is_refused(name: str) -> None:
    """The error names it, and what there is."""
    with pytest.raises(ConfigError, match=r"it must be cpu, cuda or cuda:N"):
        ServerConfig(Path(), device=name)


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="this machine has a GPU")
def test_asked_for_cuda_where_there_is_none_the_answer_is_what_is_missing() -> None:
    """The real machine that this runs on lacks a driver, and its wheel is the CPU's."""
    with pytest.raises(ConfigError, match=r"cuda:1 can't be had on this machine\. Driver: .*\. Wheel: .* the CPU's"):
        check(Device(1))
    check(Device())


def test_a_runtime_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the wheel's own CUDA version; the CPU has none."""
    monkeypatch.setattr(onnxruntime, "cuda_version", "99.1")
    with pytest.raises(PageLockError, match=r"CUDA's runtime library can't be loaded: libcudart\.so\.99: "):
        cuda_runtime(Device(0))
    assert cuda_runtime(Device()) is None


def test_a_provider_that_does_not_start_is_an_error(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime gives a session on the CPU, and no error, where its CUDA provider can't be loaded."""
    asked: dict[str, Any] = {}

    class Fallen:
        def __init__(self, _path: Path, _options: Any, **about: Any) -> None:
            asked.update(about)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(ConfigError, match="didn't start its CUDAExecutionProvider on cuda:2"):
        open_session(artifacts / "vectors/1/resident.onnx", Device(2), threads=1, precision="tf32", graphs=True)
    assert asked["providers"] == [("CUDAExecutionProvider", cuda_options(2, "tf32", graphs=True))]
    assert asked["enable_fallback"] == 0


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "0"), ("tf32", "1"), ("", "0")])
def test_tf32_is_used_where_the_artifact_says_so_and_nowhere_else(precision: str, tf32: str) -> None:
    """ONNX Runtime's own default is to use it."""
    options = cuda_options(1, precision, graphs=False)
    assert options["use_tf32"] == tf32
    assert (options["device_id"], options["enable_cuda_graph"]) == ("1", "0")


def test_a_graph_is_asked_for_by_its_number() -> None:
    """What ONNX Runtime reads, -1 for no graph."""
    assert graph_options(8).get_run_config_entry("gpu_graph_id") == "8"
    assert graph_options(UNGRAPHED).get_run_config_entry("gpu_graph_id") == "-1"


def test_views_are_parts_of_a_buffer(artifacts: Path) -> None:
    """What is written through a view stands in the buffer at its place, and nowhere else."""
    session = open_session(artifacts / "vectors/1/resident.onnx", Device(), threads=1)
    memory = Memory(session, Device())
    buffer = memory.allocate([64], np.uint8)
    buffer.update_inplace(np.zeros(64, np.uint8))
    view = memory.view(buffer.data_ptr() + 16, [2, 3], np.float32)
    view.update_inplace(np.arange(1, 7, dtype=np.float32).reshape(2, 3))
    assert np.frombuffer(buffer.numpy().tobytes(), np.float32).tolist() == [0] * 4 + [1, 2, 3, 4, 5, 6] + [0] * 6
    assert memory.view(buffer.data_ptr() + 20, [2], np.float32).numpy().tolist() == [2, 3]


@pytest.mark.parametrize(("driver", "provider"), [(True, "cuda"), (False, "cpu")])
def test_make_setup_takes_the_wheel_that_fits_the_machine(tmp_path: Path, driver: bool, provider: str) -> None:
    """CUDA's where nvidia-smi answers, the CPU's elsewhere."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU 0: a GPU\n" if driver else "#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    make = ["make", "--dry-run", "--always-make", "setup", f"VENV={tmp_path}/venv"]
    plan = subprocess.run(make, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
    wheels = {name for name in ("cuda", "cpu") if f"-r requirements/{name}.txt" in plan}
    assert wheels == {provider}
    wheel = (REPOSITORY / f"requirements/{provider}.txt").read_text().splitlines()[-1]
    assert wheel.startswith({"cuda": "onnxruntime-gpu[cuda,cudnn]==", "cpu": "onnxruntime=="}[provider])
