"""One measurement from beginning to end: open, warm up, measure, close."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.load.course import Course
from bench.load.drive import Closed, Open, Run
from bench.load.infer_shape import InferTrack
from bench.load.result import Result, latency_of, processor_seconds
from bench.load.shapes import MultiplexTrack, StreamTrack, Track, Unchecked
from bench.load.sockets import Sockets


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to send, and for how long."""

    address: str
    model: str
    streams: int
    connections: int = 1
    steps_per_message: int = 1
    multiplex: bool = False
    infer: bool = False  # sequences of the Open Inference Protocol
    calls: int | None = None  # Multiplex calls; None: one for each connection
    rate: float | None = None  # messages per second of all streams; None: closed loop
    in_flight: int = 1
    check: bool = True
    warm_up: float = 0.5
    seconds: float = 3.0
    server_process: int | None = None
    measure_at: float | None = None  # time.perf_counter() at which the window begins, at the earliest
    seed: int = 0


def begins(job: Job, course: Course) -> Sequence[Callable[[], Track]]:
    """What makes each call's track."""
    chunk = job.steps_per_message
    if job.infer:
        return [partial(InferTrack, course, job.model, index, chunk) for index in range(job.streams)]
    if not job.multiplex:
        make = [partial(StreamTrack, course, job.model, index, chunk) for index in range(job.streams)]
        return make if job.check else [partial(_unchecked, begin, chunk) for begin in make]
    calls = job.calls or job.connections
    shares = [job.streams // calls + (call < job.streams % calls) for call in range(calls)]
    return [
        partial(MultiplexTrack, course, job.model, share, chunk)
        if job.check
        else partial(_unchecked, partial(MultiplexTrack, course, job.model, share, chunk), share * chunk)
        for share in shares
    ]


def _unchecked(begin: Callable[[], StreamTrack | MultiplexTrack], steps: int) -> Track:
    return Unchecked(begin(), steps)


def measure(job: Job, course: Course) -> Result:
    """Do it. Raises LoadError."""
    net = Sockets(job.address, job.connections)
    try:
        pace = Closed(net, job.in_flight) if job.rate is None else Open(net, job.rate, job.seed)
        run = Run(net, pace, begins(job, course))
        run.open()
        gc.collect()
        gc.disable()  # nothing here makes circles, and a collection would be measured as the server's
        run.start()
        begin = max(time.perf_counter() + job.warm_up, job.measure_at or 0.0)
        run.go_on(round(begin * 1e9))
        result = _window(run, job)
        if job.rate is None or result.unanswered < result.messages:
            run.close()
        return result
    finally:
        gc.enable()
        net.close()


def _window(run: Run, job: Job) -> Result:
    started, cpu = time.perf_counter_ns(), time.process_time()
    server = None if job.server_process is None else processor_seconds(job.server_process)
    run.latencies.clear()
    run.steps = 0
    run.go_on(started + round(job.seconds * 1e9))
    seconds = (time.perf_counter_ns() - started) / 1e9
    used = time.process_time() - cpu
    steps, messages = run.steps, len(run.latencies)
    per_step = 1e6 / max(steps, 1)
    return Result(
        streams=job.streams,
        connections=job.connections,
        steps_per_message=job.steps_per_message,
        multiplex=job.multiplex,
        asked_rate=job.rate,
        checked=job.check,
        seconds=seconds,
        messages=messages,
        steps=steps,
        steps_per_second=steps / seconds,
        unanswered=run.unanswered,
        latency_us=latency_of(run.latencies),
        load_cpu_us=used * per_step,
        server_cpu_us=None
        if server is None or job.server_process is None
        else (processor_seconds(job.server_process) - server) * per_step,
    )
