"""A thread that does what it is told, one thing after the other.

Owns the thread. A GPU's session and its CUDA graphs belong to the thread that made them, so models are loaded by the
very thread that runs them later.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class OneThread:
    """A daemon thread; it ends when told to, or when nobody refers to this any more."""

    def __init__(self, name: str) -> None:
        work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._work = work
        self._thread = threading.Thread(target=_do, args=(work,), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, work.put, None)

    def call(self, work: Callable[[], T]) -> T:
        """Have `work` done, wait for it, and return or raise what it does."""
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  it is for the caller
                future.set_exception(error)

        self._work.put(do)
        return future.result()

    def begin(self, work: Callable[[], None]) -> None:
        """Have `work` done, and don't wait. What it raises ends the thread."""
        self._work.put(work)

    def end(self, timeout: float) -> bool:
        """Do nothing more after what was begun; whether that ended within `timeout` seconds."""
        self._work.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()


def _do(work: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (do := work.get()) is not None:
        do()
        del do  # nothing done is kept alive while waiting
