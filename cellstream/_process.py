"""Forks: whether this process is the one that made an object, and what gRPC needs in one.

A fork inherits objects, but none of their threads.
"""

from __future__ import annotations

import _thread
import os
import threading
from pathlib import Path

from cellstream.errors import StreamClosed


class Maker:
    """The process that made something."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()

    @property
    def here(self) -> bool:
        """Whether that is this process."""
        return os.getpid() == self.pid

    def check(self) -> None:
        """Raise StreamClosed in a fork of that process."""
        if os.getpid() != self.pid:
            raise StreamClosed(
                f"process {self.pid} made this connection, and process {os.getpid()} is a fork of it, which "
                "has none of its threads; call connect() in the fork",
                code="FAILED_PRECONDITION",
                reason="forked",
            )


_MOST_STACKS = 256
_TASKS = Path("/proc/self/task")


class _Stacks:
    """How many threads the parent had, in a process that was forked from one with threads."""

    count = 0


def occupy_stacks() -> None:
    """In a fork, take the stacks of the parent's threads out of use; before gRPC is used there.

    gRPC's poller keeps the address of its parent's, and stops the process (SIGABRT) if a thread of the child's polls on
    the same stack, which glibc would hand out again. So that many threads are started that never end.
    """
    stacks, _Stacks.count = _Stacks.count, 0
    gate = threading.Lock()
    gate.acquire()
    for _ in range(stacks):
        _thread.start_new_thread(gate.acquire, ())


def _note_threads() -> None:
    try:
        _Stacks.count = min(len(list(_TASKS.iterdir())) - 1, _MOST_STACKS)
    except OSError:
        _Stacks.count = 0  # no Linux, and no such poller


def _forget_threads() -> None:
    _Stacks.count = 0


os.register_at_fork(before=_note_threads, after_in_parent=_forget_threads)
