"""Freed memory given back to the system: glibc keeps it, hundreds of megabytes after large arrays."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return what is free; does nothing where the C library has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
