"""A client's thread for everything that takes gRPC's locks.

Owns the thread and its queue. An interrupt (Ctrl-C) is raised between any two steps of the main thread's Python code,
and one inside gRPC's leaves its locks taken for good; Python's collector may call a finalizer while a lock is held. So
neither calls gRPC: both put what is to be done here, which never blocks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

R = TypeVar("R")
_Job = Callable[[], Any]

log = logging.getLogger("cellstream")


class Worker:
    """Runs what is put, one after the other."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        # A function of the queue alone: the thread must not keep its client alive.
        threading.Thread(target=_serve, args=(self._queue,), name="cellstream-worker", daemon=True).start()

    def put(self, job: _Job) -> None:
        """Have it done. Never blocks, and may be called from finalizers."""
        self._queue.put(job)

    def call(self, job: Callable[[], R]) -> R:
        """Have it done, and wait: its result, or what it raises."""
        outcome = Outcome[R]()
        self.put(lambda: outcome.settle_by(job))
        outcome.wait(None)
        return outcome.result()

    def stop(self) -> None:
        """End the thread once everything that was put is done."""
        self._queue.put(None)

    def flush(self, seconds: float) -> bool:
        """Wait until everything that was put is done; False: `seconds` have passed first."""
        outcome = Outcome[None]()
        self.put(lambda: outcome.settle(None))
        return outcome.wait(seconds)


class Outcome(Generic[R]):
    """A result that another thread brings. Waiting takes no lock that an interrupt could leave taken."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self._value: Any = None
        self._error: BaseException | None = None

    def settle(self, value: Any, error: BaseException | None = None) -> None:
        """Bring it; once."""
        self._value, self._error = value, error
        self._gate.release()

    def settle_by(self, job: Callable[[], Any]) -> None:
        """Bring what a function gives or raises."""
        try:
            value = job()
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            self.settle(None, error)
        else:
            self.settle(value)

    def wait(self, seconds: float | None) -> bool:
        """Wait for it; False: `seconds` have passed first."""
        return self._gate.acquire(timeout=gate_timeout(seconds))

    def result(self) -> R:
        """The value, once it is there. Raises the error that came instead."""
        if self._error is not None:
            raise self._error
        value: R = self._value
        return value


def gate_timeout(seconds: float | None) -> float:
    """Seconds as a lock takes them: -1 for no limit, and neither negative nor beyond what it can hold."""
    return -1.0 if seconds is None else min(max(0.0, seconds), threading.TIMEOUT_MAX)


def _serve(queue: SimpleQueue[_Job | None]) -> None:
    while (job := queue.get()) is not None:
        try:
            job()
        except Exception:
            log.exception("the client's worker failed")
        del job  # it holds what it works on
