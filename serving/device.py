"""Where a graph runs: what a device is called, sessions on it, and its memory.

The only module that imports onnxruntime. Owns the provider's options. Knows no slab, no row and no batch.

ONNX Runtime falls back to the CPU in silence wherever its CUDA provider can't be loaded. Here that is an error that
says what is missing and how to get it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serving.config import device_number
from serving.cuda_machine import CUDA, PROVIDER_LIBRARY, Machine, missing, runtime_name
from serving.errors import ConfigError
from serving.graph_files import WEIGHTS, GraphFiles
from serving.pinned import PageLockError

CPU = "CPUExecutionProvider"
UNGRAPHED = -1  # the graph id that asks for a run without a CUDA graph
_ERROR, _FATAL = 3, 4  # levels of ONNX Runtime's log
MOST_BYTES = 2**31 - 1  # of a tensor that a session takes from memory; weights of more may hold such a one
TF32 = "tf32"  # the precision that lets a GPU round products to TF32


@dataclass(frozen=True, slots=True)
class Device:
    """Where a graph runs: the CPU, or one GPU by its number."""

    number: int | None = None  # None: the CPU

    @staticmethod
    def named(name: str) -> Device:
        """The device called "cpu", "cuda" (the first GPU) or "cuda:N". Raises ConfigError."""
        return Device(device_number(name))

    def __str__(self) -> str:
        return "cpu" if self.number is None else f"cuda:{self.number}"

    @property
    def kind(self) -> str:
        """What ONNX Runtime calls its memory."""
        return "cpu" if self.number is None else "cuda"

    @property
    def provider(self) -> str:
        """Whose kernels compute on it."""
        return CPU if self.number is None else CUDA


def this_machine() -> Machine:
    """What this one has."""
    library = Path(ort.__file__).parent / "capi" / PROVIDER_LIBRARY
    return Machine(ort.__version__, ort.get_available_providers(), ort.cuda_version, library.exists(), ctypes.CDLL)


def check(device: Device) -> None:
    """Make the device's libraries known to ONNX Runtime. Raises ConfigError: what is missing, and how to get it."""
    if device.number is None:
        return
    with contextlib.redirect_stdout(io.StringIO()):  # what it can't find it prints; we say it ourselves
        ort.preload_dlls()
    lacks = missing(device.number, this_machine())
    if lacks:
        raise ConfigError(f"{device} can't be had on this machine. {'. '.join(lacks)}")


def cuda_runtime(device: Device) -> Any:
    """CUDA's runtime library, the one that ONNX Runtime uses; None on the CPU. Raises PageLockError."""
    if device.number is None:
        return None
    name = runtime_name(ort.cuda_version)
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise PageLockError(f"CUDA's runtime library can't be loaded: {error}") from error


def open_session(
    source: Path | GraphFiles,
    device: Device,
    *,
    threads: int,
    precision: str = "",
    graphs: bool = False,
    profile: Path | None = None,
) -> Any:
    """A session on the graph at a path, or already read; the files aren't needed any more. Raises ConfigError.

    `graphs` lets runs be captured as CUDA graphs. `profile`, the beginning of a file's name, has each node's run noted.
    """
    files = GraphFiles.read(source) if isinstance(source, Path) else source
    path = files.path
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its warnings speak of its own optimisations. Its errors are raised as well, and a step that can't be computed must
    # not let a client fill the log, nor stop the loop where the log can't be written; CUDA's say what can't be raised.
    options.log_severity_level = _FATAL if device.number is None else _ERROR
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    providers = [(CUDA, cuda_options(device.number, precision, graphs=graphs))] if device.number is not None else [CPU]
    try:
        session = _session(files, options, providers)
    except Exception as error:
        lacks = f" (there is no {WEIGHTS} beside it)" if files.weights is None else ""
        public = f"ONNX Runtime can't load its {path.name}{lacks}"
        raise ConfigError(f"{path}: ONNX Runtime can't load it{lacks}: {error}", public=public) from error
    if device.provider not in session.get_providers():
        raise ConfigError(f"{path}: ONNX Runtime didn't start its {device.provider} on {device}; its own log says why")
    return session


def _session(files: GraphFiles, options: Any, providers: Sequence[Any]) -> Any:
    """A session on bytes, or, where ONNX Runtime takes the weights from a file only, on a private copy of it."""
    if files.weights is not None and len(files.weights) > MOST_BYTES:
        with tempfile.TemporaryDirectory(prefix="cellstream-") as folder:  # what is mapped outlives its name
            copy = Path(folder) / files.path.name
            copy.write_bytes(files.graph)
            copy.with_name(WEIGHTS).write_bytes(files.weights)
            return ort.InferenceSession(copy, options, providers=providers, enable_fallback=0)
    # For the few small constants that ONNX Runtime reads before it looks at what is in memory.
    folder = str(files.path.parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if files.weights:
        options.add_external_initializers_from_files_in_memory([WEIGHTS], [files.weights], [len(files.weights)])
    return ort.InferenceSession(files.graph, options, providers=providers, enable_fallback=0)


def cuda_options(number: int, precision: str, *, graphs: bool) -> dict[str, str]:
    """The CUDA provider's options: TF32 only where the artifact says so, for ONNX Runtime's default is to use it."""
    return {
        "device_id": str(number),
        "use_tf32": str(int(precision == TF32)),
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(graphs)),
    }


def graph_options(graph: int) -> Any:
    """Run options: capture, or replay, the CUDA graph of that id (UNGRAPHED: neither)."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL  # what it has to say is raised
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


class Memory:
    """A device's memory, as a session sees it: buffers, and views of their parts."""

    def __init__(self, session: Any, device: Device) -> None:
        self._session = session
        self._device = device
        self._any_output = session.get_outputs()[0].name

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """An OrtValue with rubbish in it. Raises ConfigError if there is no room."""
        try:
            return ort.OrtValue.ortvalue_from_shape_and_type(
                list(shape), np.dtype(dtype), self._device.kind, self._device.number or 0
            )
        except Exception as error:  # ONNX Runtime raises types of its own making
            raise ConfigError(f"no memory on {self._device} for {list(shape)} of {np.dtype(dtype)}: {error}") from error

    def host(self, values: npt.NDArray[Any]) -> Any:
        """An OrtValue on an array, which it keeps: what is copied to the one stands in the other."""
        return ort.OrtValue.ortvalue_from_numpy(values)

    def view(self, address: int, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """An OrtValue on memory that somebody else keeps alive."""
        binding = self._session.io_binding()  # never run: a binding is what makes an OrtValue of an address
        binding.bind_output(
            self._any_output, self._device.kind, self._device.number or 0, np.dtype(dtype), list(shape), address
        )
        return binding.get_outputs()[0]
