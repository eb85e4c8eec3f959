"""What every piece of work is given: where to compute, where models lie, until when, and whom to tell what begins."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_AT_LEAST = 3  # calls behind a figure, unless
_PATIENCE = 300_000_000  # nanoseconds more don't suffice for so many


class PoisonedError(RuntimeError):
    """This process can't use the GPU any more; another one may."""


@dataclass(frozen=True, slots=True)
class Desk:
    """For one job."""

    device: str  # cpu or cuda:N
    models: Path
    until: float  # time.monotonic() after which no new figure is begun
    note: Callable[[str, str], None]  # what begins, and which contestant may be to blame if it's the last thing heard

    @property
    def over(self) -> bool:
        """Whether the job's time has passed."""
        return time.monotonic() > self.until


def timed(call: Callable[[], object], seconds: float) -> float:
    """The median of a call's microseconds, over so many seconds of calls; the call itself waits for the device."""
    call()
    call()  # the first two may compile, capture and allocate
    found: list[int] = []
    now = time.perf_counter_ns()
    until = now + round(seconds * 1e9)
    while not found or now < until or (len(found) < _AT_LEAST and now < until + _PATIENCE):
        call()
        before, now = now, time.perf_counter_ns()
        found.append(now - before)
    return statistics.median(found) / 1e3
