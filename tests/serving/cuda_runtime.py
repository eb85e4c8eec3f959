"""CUDA's runtime library, as far as it is asked to lock pages: it remembers, and refuses what it is told to."""

from __future__ import annotations

from typing import Any


class Runtime:
    """Stands in for the library that ctypes loads."""

    def __init__(self, *, room: int = 9, error: int = 2) -> None:
        """Lock `room` buffers, and answer all others with `error`."""
        self.room, self.error = room, error
        self.locked: dict[int, int] = {}  # bytes by address
        self.last_error = 0
        self.devices: list[int] = []

    def cudaSetDevice(self, device: int) -> int:  # noqa: N802  NVIDIA's name
        self.devices.append(device)
        return 0

    def cudaHostRegister(self, address: Any, size: Any, _flags: Any) -> int:  # noqa: N802
        overlaps = any(begin < address.value + size.value and address.value < begin + self.locked[begin]
                       for begin in self.locked)  # fmt: skip
        if len(self.locked) == self.room or overlaps:
            self.last_error = self.error
            return self.error
        self.locked[address.value] = size.value
        return 0

    def cudaHostUnregister(self, address: Any) -> int:  # noqa: N802
        if address.value not in self.locked:
            self.last_error = 713
            return 713
        del self.locked[address.value]
        return 0

    def cudaGetLastError(self) -> int:  # noqa: N802
        found, self.last_error = self.last_error, 0
        return found
