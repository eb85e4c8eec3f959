"""The demo model's real input: the source text of Python's own standard library, which lies on every machine.

Owns which files are read and which of them are held out. Knows no torch, so that a demo can read the same files.
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

SYMBOLS = 256  # a byte is a token
HELD_OUT_ONE_IN = 8
# Tests quote odd bytes on purpose, encodings are tables, and the rest isn't the library's own text.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
)


class CorpusError(RuntimeError):
    """This Python has no standard library in source form."""


def library_root() -> Path:
    """The folder of this Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


@cache
def library_files() -> tuple[Path, ...]:
    """All source files of the standard library, in the order of their names; raises CorpusError without any."""
    root = library_root()
    files = [path for path in root.rglob("*.py") if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)]
    files = [path for path in files if path.is_file() and path.stat().st_size > 0]
    if not files:
        raise CorpusError(f"no Python source under {root}: this Python was installed without its library's text")
    return tuple(sorted(files, key=library_name))


def library_name(path: Path) -> str:
    """A file's name within the library, the same on every machine: `asyncio/log.py`."""
    return path.relative_to(library_root()).as_posix()


def is_held_out(path: Path) -> bool:
    """Whether a file is kept from training: by a checksum of its name, so the same on every machine."""
    return zlib.crc32(library_name(path).encode()) % HELD_OUT_ONE_IN == 0


def training_files() -> list[Path]:
    """The files that the demo model learns from, in the order of their names."""
    return [path for path in library_files() if not is_held_out(path)]


def held_out_files(*, min_bytes: int = 1) -> list[Path]:
    """The files that the demo model never sees, in the order of their names, those of at least `min_bytes`."""
    return [path for path in library_files() if is_held_out(path) and path.stat().st_size >= min_bytes]


def read_tokens(path: Path, *, max_bytes: int | None = None) -> npt.NDArray[np.int64]:
    """The first `max_bytes` of a file (None: all of it) as tokens, one per byte: int64 [T]."""
    with path.open("rb") as file:
        data = file.read(-1 if max_bytes is None else max_bytes)
    return np.frombuffer(data, dtype=np.uint8).astype(np.int64)


def read_all(paths: Iterable[Path]) -> npt.NDArray[np.uint8]:
    """All bytes of the files, one after another: uint8 [T]."""
    return np.frombuffer(b"".join(path.read_bytes() for path in paths), dtype=np.uint8)


def byte_frequencies(data: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """How often each byte occurs, plus one, as a share of the whole (add-one smoothing): [256]."""
    counts = np.bincount(data.ravel(), minlength=SYMBOLS) + 1.0
    return np.asarray(counts / counts.sum())


def bits_per_byte(data: npt.NDArray[np.integer], frequencies: npt.NDArray[np.float64]) -> float:
    """Bits that a code made for `frequencies` [256] spends on a byte of `data`: its cross-entropy of order 0."""
    return float(-np.log2(frequencies)[data.ravel()].mean())
