"""The processes of a benchmark: the servers that stand side by side, and a generator for each measurement."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import Case, Peer
from bench.load.result import processor_seconds
from bench.samples import Sample
from bench.server_process import RunningServer, server, started
from serving.config import WIRE_ENVIRONMENT

INPUTS = "64"
_LOAD_SECONDS = 180.0  # no measurement takes as long


class MeasurementError(RuntimeError):
    """A generator gave up; the text is its own."""


@dataclass(frozen=True, slots=True)
class Stand:
    """A running server and what the suite knows of it."""

    running: RunningServer
    metrics: str | None = None  # its Prometheus address

    @property
    def process(self) -> int:
        """Its process id."""
        return self.running.process.pid


@contextmanager
def ours(artifact: Path, options: Sequence[str] = ()) -> Iterator[Stand]:
    """`python -m serving` with its metrics."""
    port = free_port()
    with server(artifact.parent.parent, ["--metrics-listen", f"127.0.0.1:{port}", "--grace", "2", *options]) as running:
        yield Stand(running, f"127.0.0.1:{port}")


@contextmanager
def stands(artifact: Path, peers: Sequence[Peer]) -> Iterator[dict[Peer, Stand]]:
    """These servers side by side."""
    commands: dict[Peer, tuple[str, list[str]]] = {
        Peer.ECHO: ("bench.peers.echo", []),
        Peer.FLOOR: ("bench.peers.echo", ["--artifact", str(artifact)]),
        Peer.AIO_ECHO: ("bench.peers.aio_echo", ["--uvloop"]),
        Peer.NAIVE: ("bench.peers.naive", ["--artifact", str(artifact)]),
        Peer.NAIVE_UVLOOP: ("bench.peers.naive", ["--artifact", str(artifact), "--uvloop"]),
    }
    with ExitStack() as stack:
        made: dict[Peer, Stand] = {}
        for peer in peers:
            if peer is Peer.OURS:
                made[peer] = stack.enter_context(ours(artifact))
            else:
                same_wire = peer in (Peer.ECHO, Peer.FLOOR)  # others as they come
                environment = WIRE_ENVIRONMENT if same_wire else {}
                made[peer] = Stand(stack.enter_context(started(*commands[peer], environment)))
        yield made


def free_port() -> int:
    """A port that nobody has at the moment."""
    import socket  # noqa: PLC0415  for this alone

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load_command(case: Case, stand: Stand, artifact: Path, *, warm_up: float, seconds: float) -> list[str]:
    """The generator's command line for a case."""
    timing = ["--warm-up", str(warm_up), "--seconds", str(seconds), "--address", stand.running.address]
    if not case.by_generator:
        how = ["--model", artifact.parent.name, "--input-size", INPUTS, *["--bare"] * case.bare]
        return [sys.executable, "-m", "bench.client_load", "--streams", str(case.streams), *how, *timing]
    command = [sys.executable, "-m", "bench.load", "--json", *timing, "--server-process", str(stand.process)]
    command += ["--artifact", str(artifact)] if case.peer.computes else ["--no-check", "--input-size", INPUTS]
    command += ["--streams", str(case.streams), "--connections", str(case.connections)]
    command += ["--steps-per-message", str(case.steps_per_message)]
    command += ["--infer"] * case.infer
    return command + ["--multiplex"] * case.multiplex + (["--rate", str(case.rate)] if case.rate else [])


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a generator prints. Raises MeasurementError with what it says otherwise."""
    try:
        out, errors = process.communicate(timeout=_LOAD_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise MeasurementError(f"a generator took more than {_LOAD_SECONDS:.0f} s: {process.args!r}") from None
    if process.returncode:
        raise MeasurementError(f"{errors.strip() or '(it said nothing)'}\n  in {process.args!r}")
    return dict(json.loads(out))


def begin(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a generator."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def sample(case: Case, number: int, stand: Stand, artifact: Path, *, warm_up: float, seconds: float) -> Sample:
    """Measure one case once. Raises MeasurementError."""
    before, cpu = counters(stand), processor_seconds(stand.process)
    result = result_of(begin(load_command(case, stand, artifact, warm_up=warm_up, seconds=seconds)))
    after = counters(stand)
    if not case.by_generator:
        # Warm-up included: the client doesn't tell when its window begins.
        used = (processor_seconds(stand.process) - cpu) / (after["steps"] - before["steps"]) * 1e6
        return _by_client(case, number, result, _runs(before, after), used)
    late = result["latency_us"]
    return Sample(
        case=case,
        round=number,
        steps_per_second=result["steps_per_second"],
        p50=late["p50"],
        p99=late["p99"],
        p999=late["p999"],
        server_cpu=result["server_cpu_us"],
        load_cpu=result["load_cpu_us"],
        unanswered=result["unanswered"],
        **_runs(before, after),
    )


def _by_client(case: Case, number: int, result: dict[str, Any], runs: dict[str, Any], cpu: float) -> Sample:
    return Sample(
        case=case,
        round=number,
        steps_per_second=result["steps_per_second"],
        p50=result["p50_us"],
        p99=result["p99_us"],
        p999=result["p999_us"],
        server_cpu=cpu,
        load_cpu=result["client_cpu_us"],
        **runs,
    )


_NAMES = {
    "cellstream_steps_total": "steps",
    "cellstream_compute_seconds_sum": "seconds",
    "cellstream_compute_seconds_count": "runs",
    "cellstream_batch_streams_sum": "lanes",
}


def counters(stand: Stand) -> dict[str, float]:
    """What the server has counted so far; nothing of one without metrics."""
    if stand.metrics is None:
        return {}
    with urllib.request.urlopen(f"http://{stand.metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = dict.fromkeys(_NAMES.values(), 0.0)
    for line in lines:
        name = _NAMES.get(line.partition("{")[0])
        if name is not None:
            found[name] += float(line.rpartition(" ")[2])
    return found


def _runs(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Means over the runs between two looks."""
    gone = {name: value - before[name] for name, value in after.items()}
    if not gone or not gone["runs"] or not gone["steps"]:
        return {}
    return {
        "batch": gone["lanes"] / gone["runs"],
        "run_steps": gone["steps"] / gone["runs"],
        "engine": gone["seconds"] / gone["steps"] * 1e6,
    }
