"""Waiting for something to become true, with a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, seconds: float = 20.0, every: float = 0.01) -> None:
    """Return as soon as `condition` holds; fail if it doesn't within the limit."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        pause.wait(every)
