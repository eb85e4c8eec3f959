"""What a machine needs to compute on an NVIDIA GPU, and what is missing where it can't.

Owns the list, and the words: each thing that is missing comes with how to get it. Looks at the machine through
`Machine` alone, and imports nothing that could be missing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CUDA = "CUDAExecutionProvider"
PROVIDER_LIBRARY = "libonnxruntime_providers_cuda.so"

_DRIVER = "libcuda.so.1"
_CUDNN = "libcudnn.so.9"
_SETUP = "`make clean setup` installs it where nvidia-smi answers"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine and its installed wheel have, as far as CUDA needs it."""

    version: str  # of onnxruntime
    providers: Sequence[str]  # that the wheel has
    cuda: str  # the CUDA version that the wheel was built for; "" for the CPU's wheel
    has_provider_library: bool
    load: Callable[[str], Any]  # a shared library by name; raises OSError


def missing(number: int, machine: Machine) -> list[str]:
    """What `machine` lacks to compute on its GPU of that number, each with how to get it."""
    return [*_missing_driver(number, machine), *_missing_wheel(machine), *_missing_libraries(machine)]


def runtime_name(cuda: str) -> str:
    """The file of CUDA's runtime library, for a wheel that was built for that version."""
    return f"libcudart.so.{cuda.partition('.')[0]}"


def _missing_wheel(machine: Machine) -> list[str]:
    if CUDA not in machine.providers:
        what = f"Wheel: onnxruntime {machine.version} as installed is the CPU's, without {CUDA}; install in its place"
        return [f"{what} {_wheel(machine)}"]
    if not machine.has_provider_library:
        return [f"Provider library: the wheel's {PROVIDER_LIBRARY} isn't there; install anew {_wheel(machine)}"]
    return []


def _wheel(machine: Machine) -> str:
    return f"onnxruntime-gpu[cuda,cudnn]=={machine.version} ({_SETUP})"


def _missing_driver(number: int, machine: Machine) -> list[str]:
    try:
        driver = machine.load(_DRIVER)
    except OSError as error:
        how = "install NVIDIA's driver, so that nvidia-smi answers (a container needs --gpus all and NVIDIA's toolkit)"
        return [f"Driver: {error}; {how}"]
    status = driver.cuInit(0)
    if status:
        return [f"Driver: it is there, and answers cuInit with error {status} (100: it finds no GPU); see nvidia-smi"]
    count, version = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    driver.cuDriverGetVersion(ctypes.byref(version))
    found = []
    if number >= count.value:
        numbers = ", ".join(f"cuda:{index}" for index in range(count.value)) or "none"
        found.append(f"GPU: there is no cuda:{number} here; there is: {numbers}")
    if machine.cuda and version.value // 1000 < int(machine.cuda.split(".")[0]):
        has = f"{version.value // 1000}.{version.value % 1000 // 10}"
        found.append(f"Driver: it is for CUDA {has}, and the wheel needs {machine.cuda}; install a newer driver")
    return found


def _missing_libraries(machine: Machine) -> list[str]:
    if not machine.cuda:
        return []  # the CPU's wheel needs none
    major = machine.cuda.split(".")[0]
    libraries = {
        "CUDA": [runtime_name(machine.cuda), f"libcublasLt.so.{major}", f"libcublas.so.{major}", "libcurand.so.10"],
        "cuDNN": [_CUDNN],  # loaded when first needed, and ONNX Runtime's LSTM needs it
    }
    found = []
    for what, names in libraries.items():
        lacks = [name for name in names if not _loads(machine, name)]
        if lacks:
            found.append(f"{what}: can't load {', '.join(lacks)}; they come with {_wheel(machine)}")
    return found


def _loads(machine: Machine, name: str) -> bool:
    try:
        machine.load(name)
    except OSError:
        return False
    return True
