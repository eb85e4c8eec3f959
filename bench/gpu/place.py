"""Where this runs: what a GPU run needs, what is there, and what to say of it. Imports neither torch nor ONNX Runtime.

Asking a library about the GPU makes a context on it, so whoever asks here does so in a process that ends.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from export import machine

CPU = "cpu"
_SECONDS = 60.0
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "triton", "onnx", "numpy", "grpcio")
_CUDA_IN = {
    "torch": "import torch; print(torch.cuda.is_available())",
    "onnxruntime": "import onnxruntime; print('CUDAExecutionProvider' in onnxruntime.get_available_providers())",
}


def missing(device: str) -> str | None:
    """One sentence on why nothing can be measured on this device here; None if something can."""
    if device == CPU:
        return None
    name = gpu_name()
    if name is None:
        return (
            "no NVIDIA GPU answers here (nvidia-smi is missing or finds none), and `make bench-gpu` measures one;"
            " `python -m bench.gpu --device cpu --quick` rehearses it without"
        )
    if without_torch(device) is not None and without_onnxruntime(device) is not None:
        return (
            f"{name} is here, but neither onnxruntime nor torch can use it: install requirements/cuda.txt"
            " (`make clean setup` does); `--device cpu --quick` rehearses without"
        )
    return None


def gpu_name() -> str | None:
    """The first GPU's name and driver; None where none answers."""
    found = _nvidia_smi("name,driver_version")
    return None if found is None else ", driver ".join(found[:2])


def _nvidia_smi(fields: str) -> list[str] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return [value.strip() for value in lines[0].split(",")] if lines else None


def without_torch(device: str) -> str | None:
    """Why PyTorch can't be asked; None if it can."""
    return _without("torch", device)


def without_onnxruntime(device: str) -> str | None:
    """The same of ONNX Runtime."""
    return _without("onnxruntime", device)


@functools.cache
def _without(name: str, device: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"{name} isn't installed"
    if device == CPU:
        return None
    command = [sys.executable, "-c", _CUDA_IN[name]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{name} didn't say within {_SECONDS:.0f} s whether it can use CUDA"
    if done.stdout.strip().endswith("True"):
        return None
    said = done.stderr.strip().splitlines()
    return f"{name} can't use CUDA here" + (f" ({said[-1]:.200})" if said else "")


def versions() -> dict[str, str]:
    """Of the packages that matter, those that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe(device: str) -> str:
    """The device in words."""
    return f"{device}: {gpu_name() or 'no GPU'}" if device != CPU else "cpu (a rehearsal: its figures mean nothing)"


def host() -> str:
    """The machine in words."""
    return machine.describe()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))
