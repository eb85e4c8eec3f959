"""End to end: a server with worker processes on the device, under load over gRPC from processes of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import cellstream
from bench.gpu.busy import Busy
from bench.gpu.desk import Desk
from bench.gpu.models import artifact_of, name_of, repository_of
from bench.gpu.place import CPU
from bench.gpu.plan import Job
from bench.gpu.records import Served
from bench.gpu.runs import Array
from bench.gpu.steps import TOLERANCE
from bench.machinery import begin, free_port, result_of
from bench.server_process import RunningServer, server
from bench.workers import cpu_seconds
from export.artifact import MODEL, read_graph
from export.runtime import Portable

MOST_LANES, MOST_STEPS = 1024, 4096  # of a run: more than a CPU should be given
CONNECTIONS = 16  # of each load process: the kernel deals out connections, not streams
CHECKED_STEPS = 20
_BEGIN, _EACH = 1.0, 0.001  # seconds until the load processes have started, and for each stream that they open


class WrongAnswersError(RuntimeError):
    """The server doesn't answer what the model computes."""


def served(job: Job, desk: Desk) -> Iterator[Served]:
    """One server, one load. Raises ServerFailedError, MeasurementError and WrongAnswersError."""
    device = job.device or desk.device
    desk.note(f"{job.name}: writing the model", "")
    artifact = artifact_of(job, desk.models)
    desk.note(f"{job.name}: starting", "")
    started = time.monotonic()
    with server(repository_of(job, desk.models), _options(job, device)) as running:
        ready = time.monotonic() - started
        desk.note(f"{job.name}: checking answers", "")
        error = _checked(job, running, artifact)
        desk.note(f"{job.name}: under load", "")
        results, cores, busy = _under_load(job, device, running)
    late = [result["latency_us"] for result in results]
    yield Served(
        device=device,
        precision=job.precision,
        workers=job.workers,
        streams=job.streams,
        steps_per_message=job.steps_per_message,
        generators=job.generators,
        seconds_to_ready=ready,
        steps_per_second=sum(result["steps_per_second"] for result in results),
        **{name: max(one[name] for one in late) for name in ("p50", "p99", "p999")},
        server_cores=cores,
        busy=busy.share,
        busy_unknown=busy.unknown,
        error=error,
    )


def _options(job: Job, device: str) -> list[str]:
    where = [] if device == CPU else ["--device", device]
    large = ["--max-batch", str(MOST_LANES), "--max-run-steps", str(MOST_STEPS)]
    metrics = ["--metrics-listen", f"127.0.0.1:{free_port()}"]
    return ["--allow-unproved", "--workers", str(job.workers), "--grace", "2", *metrics, *large, *where]


def _checked(job: Job, running: RunningServer, artifact: Path) -> float:
    """How far off one stream's answers are from ONNX Runtime's on the CPU, as a share of their rms."""
    x = np.random.default_rng(0).standard_normal((CHECKED_STEPS, job.features)).astype(np.float32)
    with cellstream.connect(running.address) as client, client.stream(name_of(job)) as stream:
        y: Array = np.concatenate([np.asarray(stream.step(part)) for part in (x[:1], x[1:])])
    _, contract = read_graph(artifact / MODEL, weights=False)
    zeros = {state.input: np.zeros((1, *state.shape), state.dtype) for state in contract.states}
    right = Portable(artifact / MODEL, contract, threads=1).run({"x": x[None]}, zeros)["y"][0]
    error = float(np.sqrt(np.mean(np.square(y - right)) / np.mean(np.square(right))))
    if not error <= TOLERANCE[job.precision]:
        allowed = TOLERANCE[job.precision]
        raise WrongAnswersError(f"answers are off by {error:.2g} of their rms, allowed {allowed:g}")
    return error


def _under_load(job: Job, device: str, running: RunningServer) -> tuple[list[dict[str, Any]], float, Busy]:
    """Every load process's result over one and the same window, and what the server and the GPU did in it."""
    at = time.perf_counter() + _BEGIN + _EACH * job.streams
    with ExitStack() as stack:
        loads = [stack.enter_context(begin(_load(job, running, number, at))) for number in range(job.generators)]
        for load in loads:
            stack.callback(_end, load)
        time.sleep(max(0.0, at - time.perf_counter()))  # nothing tells when their windows begin but the clock
        before = cpu_seconds(running)
        with Busy(device) as busy:
            time.sleep(job.seconds)
        cores = (cpu_seconds(running) - before) / job.seconds
        return [result_of(load) for load in loads], cores, busy


def _end(load: subprocess.Popen[str]) -> None:
    if load.poll() is None:
        load.kill()


def _load(job: Job, running: RunningServer, number: int, at: float) -> list[str]:
    """One load process's command; it checks no answers, whose bits depend on the batch on a GPU."""
    streams = job.streams // job.generators + (number < job.streams % job.generators)
    words: dict[str, object] = {
        "address": running.address,
        "model": name_of(job),
        "input-size": job.features,
        "streams": streams,
        "connections": min(streams, CONNECTIONS),
        "steps-per-message": job.steps_per_message,
        "warm-up": 0.1,
        "seconds": job.seconds,
        "measure-at": at,
    }
    options = [text for name, value in words.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "bench.load", "--json", "--no-check", *options]
