"""What a run has found, as a record: counts, latencies, and the processor time of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TICKS = 100.0  # of /proc/*/stat, per second, on every Linux that this runs on


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds from a message's moment to the end of its answer."""

    p50: float
    p90: float
    p99: float
    p999: float
    mean: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run's measured window. CPU is in microseconds per step, None where it wasn't asked for."""

    streams: int
    connections: int
    steps_per_message: int
    multiplex: bool
    asked_rate: float | None  # messages per second; None: closed loop
    checked: bool
    seconds: float
    messages: int
    steps: int
    steps_per_second: float
    unanswered: int  # messages at the end of the window
    latency_us: Latency
    load_cpu_us: float
    server_cpu_us: float | None


def latency_of(nanoseconds: Sequence[int]) -> Latency:
    """Quantiles of what was measured; all NaN if nothing was."""
    if not len(nanoseconds):
        return Latency(*[float("nan")] * 6)
    micros = np.asarray(nanoseconds, dtype=np.float64) / 1e3
    p50, p90, p99, p999 = (float(value) for value in np.quantile(micros, (0.5, 0.9, 0.99, 0.999)))
    return Latency(p50, p90, p99, p999, float(micros.mean()), float(micros.max()))


def processor_seconds(process: int) -> float:
    """What a process has used so far, all its threads, user and system."""
    tasks = list(Path(f"/proc/{process}/task").iterdir())
    try:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError, ValueError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_bytes(process: int) -> int:
    """A process's resident memory."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {process} has no memory any more")
