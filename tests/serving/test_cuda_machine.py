"""What a machine lacks for CUDA: each thing by its name, with how to get it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serving.cuda_machine import CUDA, Machine, missing


class Driver:
    """NVIDIA's driver library, as far as it is asked."""

    def __init__(self, *, status: int = 0, gpus: int = 2, version: int = 13010) -> None:
        self.status, self.gpus, self.version = status, gpus, version

    def cuInit(self, _flags: int) -> int:  # noqa: N802  NVIDIA's name
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0


def loading(driver: Driver | None, *lacks: str) -> Callable[[str], Any]:
    """How libraries are loaded on a machine with that driver, where some aren't found."""

    def load(name: str) -> Any:
        if (name == "libcuda.so.1" and driver is None) or name in lacks:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return driver

    return load


SOUND = Machine("1.31.1", ["TensorrtExecutionProvider", CUDA, "CPUExecutionProvider"], "13.0", True, loading(Driver()))


@pytest.mark.parametrize(
    ("machine", "texts"),
    [
        (SOUND, []),
        (replace(SOUND, load=loading(None)), ["Driver: libcuda.so.1: cannot open .* install NVIDIA's driver"]),
        (replace(SOUND, load=loading(Driver(status=100))), ["Driver: .* cuInit with error 100 .* nvidia-smi"]),
        (replace(SOUND, load=loading(Driver(gpus=1))), ["GPU: there is no cuda:1 here; there is: cuda:0$"]),
        (replace(SOUND, load=loading(Driver(gpus=0))), ["GPU: there is no cuda:1 here; there is: none$"]),
        (replace(SOUND, load=loading(Driver(version=12040))), ["Driver: it is for CUDA 12.4, .* needs 13.0; .* newer"]),
        (replace(SOUND, has_provider_library=False), ["Provider library: .*_cuda.so isn't there; .*==1.31.1"]),
        (replace(SOUND, load=loading(Driver(), "libcudnn.so.9")), ["cuDNN: can't load libcudnn.so.9; .*cuda,cudnn"]),
        (
            replace(SOUND, load=loading(Driver(), "libcublas.so.13", "libcurand.so.10")),
            ["CUDA: can't load libcublas.so.13, libcurand.so.10; .*onnxruntime-gpu"],
        ),
        (
            Machine("1.31.1", ["CPUExecutionProvider"], "", False, loading(None)),
            ["Driver: ", r"Wheel: .* 1.31.1 .* the CPU's, .* onnxruntime-gpu\[cuda,cudnn\]==1.31.1 .*make clean setup"],
        ),
    ],
)
def test_each_thing_that_is_missing_is_named(machine: Machine, texts: list[str]) -> None:
    """All that is missing at once, and nothing else, each with what to do."""
    found = missing(1, machine)
    assert len(found) == len(texts)
    for line, text in zip(found, texts, strict=True):
        assert re.search(text, line), line
