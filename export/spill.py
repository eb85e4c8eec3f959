"""Arrays kept in order, in memory while they are few and in a temporary file when they are many."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

IN_MEMORY = 2**26  # bytes
Arrays = dict[str, npt.NDArray[Any]]


class Spill:
    """Named arrays, written in order and read by their place in it; they go with the object."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  closed below
        weakref.finalize(self, self._file.close)
        self._places: list[list[tuple[str, int, np.dtype[Any], tuple[int, ...]]]] = []
        self._end = 0

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Append one set of arrays."""
        self._file.seek(self._end)
        placed = []
        for name, array in arrays.items():
            placed.append((name, self._end, array.dtype, array.shape))
            self._end += self._file.write(array.tobytes())
        self._places.append(placed)

    def read(self, place: int) -> Arrays:
        """The set at this place, counted from 0."""
        found: Arrays = {}
        for name, begin, dtype, shape in self._places[place]:
            self._file.seek(begin)
            size = int(np.prod(shape)) * dtype.itemsize
            found[name] = np.frombuffer(self._file.read(size), dtype).reshape(shape)
        return found
