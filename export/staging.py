"""Folders that are being written: hidden, locked by their writer, and removed by the next export if it was killed.

Owns the hidden names and their locks. Knows nothing of what is in an artifact.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model import interruption

_HIDDEN = re.compile(r"\.[1-9]\d*-[a-z0-9_]{8}")  # tempfile's names after a version's
_TRIES = 20


@contextmanager
def hidden(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, gone at the end of the block unless it was renamed; raises OSError.

    It is locked for the block, or for as long as this process lives: `remove_left` leaves it alone.
    """
    made = [folder for folder in (final.parent, *final.parent.parents) if not folder.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_left(final.parent.parent)
        folder, lock = _made(final)
    except OSError:
        _remove_empty(made)
        raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        interruption.done(folder)
        os.close(lock)
        _remove_empty([final.parent])


def _made(final: Path) -> tuple[Path, int]:
    """A hidden folder and its lock; made again where another export took it for a dead one's in between."""
    for _ in range(_TRIES):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
            interruption.writing(folder)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)
    raise OSError(errno.EBUSY, "other exports remove what this one makes; export again", str(final.parent))


def remove_left(repository: Path) -> None:
    """Remove the hidden folders of exports that were killed, of every model in the repository.

    A folder whose writer lives is locked, and stays; so does one that can't be locked or removed.
    """
    with suppress(OSError):
        for folder in repository.glob("*/.*-*"):
            if _HIDDEN.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                _remove_if_dead(folder)


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            _remove_empty([folder.parent])
        finally:
            os.close(lock)


def _remove_empty(folders: list[Path]) -> None:
    """Remove these folders, the innermost first, as far as nothing is in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
