"""What isn't one closed loop: fairness, idle streams, memory, start-up, and how many streams a period sustains."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cases import Case, Peer, single
from bench.load.course import course_of
from bench.load.drive import Closed, Run
from bench.load.measure import Job, begins
from bench.load.result import resident_bytes
from bench.load.sockets import Sockets
from bench.machinery import Stand, begin, load_command, ours, result_of, sample, stands

PERIOD = 0.010  # seconds between two steps of a paced stream
BULK_STREAMS, BULK_STEPS, SINGLES = 8, 1000, 56
SINGLES_PERIOD = 0.050  # seconds: seldom enough that they don't take from the bulk streams what is theirs
IDLE, HELD, ACTIVE = 4000, 10_000, 1000  # streams
_PER_CONNECTION = 1000
_LEAD = 1.5  # seconds for two generators to start
_LIBRARIES = (
    "numpy", "onnxruntime", "grpc", "google.protobuf", "prometheus_client", "structlog",
    "grpc_health.v1.health", "grpc_reflection.v1alpha.reflection",
)  # fmt: skip

Told = Callable[[str], None]  # what is being measured


@dataclass(frozen=True, slots=True)
class Fairness:
    """Single steps (56 streams, one every 50 ms) beside bulk (8 streams, chunks of 1,000 steps without pause)."""

    p99_alone: float  # microseconds, of the single steps
    p99_beside: float
    bulk_alone: float  # steps per second
    bulk_beside: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes per stream beyond those of the process. An idle one never took a step, so its row isn't memory yet."""

    idle: float
    active: float
    echo_idle: float
    echo_active: float
    row: int  # of state


@dataclass(frozen=True, slots=True)
class Held:
    """Steps per second of 64 streams, with nobody else and beside idle streams."""

    idle_streams: int
    alone: tuple[float, ...]
    beside: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds from the command to being ready, and of importing the libraries alone."""

    ready: tuple[float, ...]
    libraries: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sustained:
    """The most streams that step every 10 ms with a p99 below that; with one more step of the search it wasn't."""

    peer: Peer
    streams: int
    p99: float
    tried: tuple[tuple[int, float], ...]  # streams, p99


def fairness(stand: Stand, artifact: Path, seconds: float) -> Fairness:
    """One round of it."""
    paced = Case(peer=Peer.OURS, streams=SINGLES, rate=SINGLES / SINGLES_PERIOD)
    bulk = Case(peer=Peer.OURS, streams=BULK_STREAMS, steps_per_message=BULK_STEPS)

    def together(*cases: Case) -> list[dict[str, object]]:
        at = time.perf_counter() + _LEAD
        commands = [load_command(case, stand, artifact, warm_up=0.5, seconds=seconds) for case in cases]
        return [result_of(process) for process in [begin([*one, "--measure-at", str(at)]) for one in commands]]

    def p99(result: dict[str, object]) -> float:
        late = result["latency_us"]
        assert isinstance(late, dict)
        return float(late["p99"])

    (singles,), (alone,) = together(paced), together(bulk)
    beside = together(paced, bulk)
    rates = [float(str(result["steps_per_second"])) for result in (alone, beside[1])]
    return Fairness(p99(singles), p99(beside[0]), *rates)


@contextmanager
def streams(stand: Stand, artifact: Path, count: int, peer: Peer) -> Iterator[Run]:
    """So many open streams that do nothing unless told."""
    connections = -(-count // _PER_CONNECTION)
    job = Job(
        address=stand.running.address,
        model=artifact.parent.name,
        streams=count,
        connections=connections,
        check=peer.computes,
    )
    net = Sockets(job.address, connections)
    try:
        run = Run(net, Closed(net), begins(job, course_of(artifact)))
        run.open()
        yield run
        run.close()
    finally:
        net.close()


def _bytes_per_stream(artifact: Path, peer: Peer, count: int, busy_seconds: float) -> float:
    with stands(artifact, [peer]) as made:
        stand = made[peer]
        sample(single(64).of(peer), 0, stand, artifact, warm_up=0.1, seconds=0.3)  # the process's own memory first
        before = resident_bytes(stand.process)
        with streams(stand, artifact, count, peer) as run:
            if busy_seconds:
                run.start()
                run.go_on(time.perf_counter_ns() + round(busy_seconds * 1e9))
            time.sleep(0.2)  # what the server still does about the last of them
            return (resident_bytes(stand.process) - before) / count


def memory(artifact: Path, row: int, told: Told) -> Memory:
    """Each figure from a process of its own."""

    def of(peer: Peer, count: int, busy_seconds: float) -> float:
        told(f"memory, {peer}, {count:,} {'active' if busy_seconds else 'idle'} streams")
        return _bytes_per_stream(artifact, peer, count, busy_seconds)

    return Memory(
        idle=of(Peer.OURS, IDLE, 0.0),
        active=of(Peer.OURS, ACTIVE, 1.5),
        echo_idle=of(Peer.ECHO, IDLE, 0.0),
        echo_active=of(Peer.ECHO, ACTIVE, 1.5),
        row=row,
    )


def held(artifact: Path, rounds: int, seconds: float, told: Told) -> Held:
    """64 streams flat out, with and without HELD idle ones, in turn."""
    alone, beside = [], []

    def rate(stand: Stand) -> float:
        return sample(single(64), 0, stand, artifact, warm_up=0.3, seconds=seconds).steps_per_second

    with ours(artifact, ["--max-streams", str(HELD + 100)]) as stand:
        for _ in range(rounds):
            told("64 streams alone")
            alone.append(rate(stand))
            told(f"64 streams beside {HELD:,} idle ones")
            with streams(stand, artifact, HELD, Peer.OURS):
                beside.append(rate(stand))
        alone.append(rate(stand))
    return Held(HELD, tuple(alone), tuple(beside))


def start_up(artifact: Path, rounds: int, told: Told) -> StartUp:
    """In turn."""
    ready, libraries = [], []
    for _ in range(rounds):
        told("start-up")
        started = time.perf_counter()
        with ours(artifact):
            ready.append(time.perf_counter() - started)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {', '.join(_LIBRARIES)}"], check=True)
        libraries.append(time.perf_counter() - started)
    return StartUp(tuple(ready), tuple(libraries))


def sustained(peer: Peer, stand: Stand, artifact: Path, seconds: float, told: Told) -> Sustained:
    """Doubled until it is too many, then halved in between until it is known to an eighth."""
    tried: dict[int, float] = {}

    def holds(count: int) -> bool:
        told(f"{peer}, {count} streams every {PERIOD * 1000:.0f} ms")
        case = Case(peer=peer, streams=count, rate=count / PERIOD)
        found = [sample(case, 0, stand, artifact, warm_up=0.5, seconds=seconds).p99]
        if found[0] >= PERIOD * 1e6:  # once more: the machine may have been busy
            found.append(sample(case, 0, stand, artifact, warm_up=0.5, seconds=seconds).p99)
        tried[count] = min(found)
        return tried[count] < PERIOD * 1e6

    good, bad = 0, 16
    while holds(bad):
        good, bad = bad, bad * 2
    while bad - good > max(good // 8, 4):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return Sustained(peer, good, tried.get(good, float("nan")), tuple(sorted(tried.items())))


def median(values: tuple[float, ...]) -> float:
    """Of measurements in turn."""
    return statistics.median(values)
