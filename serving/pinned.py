"""Page-locked buffers: host memory that a GPU reads and writes by itself. Out of any other, its driver copies first.

Owns the locks. Knows no slab, no row and no session; all it needs is CUDA's runtime library, for ONNX Runtime's Python
offers no such memory.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_FLAGS = 0  # cudaHostRegisterDefault


class PageLockError(Exception):
    """Buffers can't be page-locked; they can be used as they are, more slowly."""


def whole_pages(size: int) -> Bytes:
    """So many zeros on pages of their own: locking them locks nothing else, and no other lock overlaps theirs."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8)


def page_lock(buffers: Sequence[Bytes], runtime: Any, *, device: int) -> Callable[[], None]:
    """Page-lock buffers for a GPU, by CUDA's runtime library; the result unlocks them, and keeps them until it's gone.

    Raises PageLockError, with none of them locked.
    """
    locked: list[Bytes] = []

    def unlock() -> None:
        runtime.cudaSetDevice(device)  # whichever thread this is: without, CUDA might wake the first GPU for it
        while locked:
            if runtime.cudaHostUnregister(_address(locked.pop())):
                runtime.cudaGetLastError()

    runtime.cudaSetDevice(device)
    for buffer in buffers:
        status = runtime.cudaHostRegister(_address(buffer), ctypes.c_size_t(buffer.nbytes), ctypes.c_uint(_FLAGS))
        if status:
            runtime.cudaGetLastError()  # or ONNX Runtime takes it for an error of its own
            unlock()
            raise PageLockError(f"cudaHostRegister answers {buffer.nbytes} bytes with error {status}")
        locked.append(buffer)
    return unlock


def _address(buffer: Bytes) -> ctypes.c_void_p:
    return ctypes.c_void_p(buffer.ctypes.data)
