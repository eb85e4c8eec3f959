"""Page-locked buffers: what is locked, and that it's let go again, whatever CUDA's runtime library answers."""

from __future__ import annotations

import gc
import mmap
import weakref

import numpy as np
import pytest

from serving.pinned import PageLockError, page_lock, whole_pages
from tests.serving.cuda_runtime import Runtime


@pytest.mark.parametrize("size", [1, 544, mmap.PAGESIZE, mmap.PAGESIZE + 1])
def test_buffers_have_pages_of_their_own(size: int) -> None:
    """They begin with a page, are zeros that can be written, and two of them share none."""
    first, second = whole_pages(size), whole_pages(size)
    assert first.shape == (size,)
    assert first.ctypes.data % mmap.PAGESIZE == 0
    assert abs(first.ctypes.data - second.ctypes.data) >= -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    assert not first.any()
    first[:] = 7
    assert not second.any()


def test_what_is_locked_is_unlocked() -> None:
    """Every buffer, by address and size, for the GPU that was named."""
    runtime, buffers = Runtime(), [whole_pages(100), whole_pages(9000)]
    unlock = page_lock(buffers, runtime, device=3)
    assert runtime.locked == {buffer.ctypes.data: buffer.nbytes for buffer in buffers}
    assert set(runtime.devices) == {3}
    unlock()
    assert runtime.locked == {}
    assert runtime.last_error == 0


def test_a_locked_buffer_outlives_its_owner() -> None:
    """Memory that is given back while it's locked would be a trap for whoever gets it next."""
    buffer, runtime = whole_pages(100), Runtime()
    alive, unlock = weakref.ref(buffer), page_lock([buffer], runtime, device=0)
    del buffer
    gc.collect()
    assert alive() is not None
    unlock()
    assert alive() is None


def test_all_or_none_is_locked() -> None:
    """A refusal names the size and the error, which is cleared: ONNX Runtime would take it for its own."""
    runtime = Runtime(room=1, error=2)
    with pytest.raises(PageLockError, match="cudaHostRegister answers 9000 bytes with error 2"):
        page_lock([whole_pages(100), whole_pages(9000)], runtime, device=0)
    assert runtime.locked == {}
    assert runtime.last_error == 0


def test_unlocking_goes_on_after_an_error() -> None:
    """As where the GPU's context is lost; once more does nothing."""
    runtime, buffers = Runtime(), [whole_pages(100), whole_pages(200)]
    unlock = page_lock(buffers, runtime, device=0)
    del runtime.locked[buffers[1].ctypes.data]
    unlock()
    unlock()
    assert runtime.locked == {}
    assert runtime.last_error == 0


def test_a_slice_keeps_its_pages() -> None:
    """What a parcel copies to is a part of a buffer."""
    part = whole_pages(8192)[4096:]
    gc.collect()
    part[:] = np.arange(4096) % 251
    assert part[:251].tolist() == list(range(251))
