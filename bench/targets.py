"""What the project aims at, as ratios of figures from one run: target, found, and whether it is met.

Every ratio is taken in each round and the median counts. Owns the bars; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.cases import CLIENT, Case, Peer, chunks, client, infer, many, single
from bench.ceilings import at
from bench.samples import Round, Sample, spread
from bench.studies import Fairness, Held, Memory, StartUp, median

TIMES = "times"
LARGEST_SLICE = 32  # steps of one stream in one run of the server


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table; low and high are the rounds' extremes."""

    name: str
    bar: float
    at_most: bool  # else: at least
    found: float
    low: float
    high: float
    unit: str = TIMES

    @property
    def met(self) -> bool:
        """Whether the median is on the right side."""
        return self.found <= self.bar if self.at_most else self.found >= self.bar


def compute(round_: Round, sample: Sample) -> float | None:
    """Raw ONNX Runtime's microseconds per step at the mean batch that a sample reached; None if it isn't known."""
    if sample.batch is None or not round_.ceilings:
        return None
    return at(round_.ceilings, sample.batch, min(sample.case.steps_per_message, LARGEST_SLICE))


def transport(round_: Round, sample: Sample) -> float | None:
    """The echo's processor time per step in the same shape."""
    echo = round_.find(sample.case.of(Peer.ECHO))
    return None if echo is None else echo.server_cpu


def over_ceiling(round_: Round, case: Case) -> float | None:
    """Our processor time per step over echo and raw computation together."""
    sample = round_.find(case)
    if sample is None:
        return None
    wire, work = transport(round_, sample), compute(round_, sample)
    return None if wire is None or work is None else sample.server_cpu / (wire + work)


def over_compute(round_: Round, case: Case) -> float | None:
    """Our processor time per step over raw computation alone."""
    sample = round_.find(case)
    work = None if sample is None else compute(round_, sample)
    return None if sample is None or work is None else sample.server_cpu / work


def over_naive(round_: Round, case: Case) -> float | None:
    """Our throughput over the better of the servers that run the model once per message."""
    sample = round_.find(case)
    others = [round_.find(case.of(peer)) for peer in (Peer.NAIVE, Peer.NAIVE_UVLOOP)]
    rates = [other.steps_per_second for other in others if other is not None]
    return None if sample is None or not rates else sample.steps_per_second / max(rates)


def beyond_echo(round_: Round, case: Case) -> float | None:
    """A lone stream's p50 beyond the echo's and the computation, in microseconds."""
    sample, echo = round_.find(case), round_.find(case.of(Peer.ECHO))
    work = None if sample is None else compute(round_, sample)
    return None if sample is None or echo is None or work is None else sample.p50 - echo.p50 - work


def client_cost(round_: Round, case: Case) -> float | None:
    """The Python client's processor time per step over the generator's, which checks every answer."""
    by_client, by_load = round_.find(case), round_.find(many(case.streams))
    return None if by_client is None or by_load is None else by_client.load_cpu / by_load.load_cpu


def of_rounds(rounds: Sequence[Round]) -> list[Target]:
    """Every target that these rounds have figures for."""
    found: list[Target] = []

    def add(
        name: str, bar: float, read: Callable[[Round, Case], float | None], case: Case, *, unit: str = TIMES
    ) -> None:
        values = spread(value for round_ in rounds if (value := read(round_, case)) is not None)
        if values is not None:
            at_most = read is not over_naive
            found.append(Target(name, bar, at_most, values.median, values.low, values.high, unit))

    for streams in (64, 256):
        add(f"CPU/step over echo + compute: {single(streams).shape}", 1.2, over_ceiling, single(streams))
    for streams in (64, 256):
        add(f"steps/s over one session.run per message: {single(streams).shape}", 5.0, over_naive, single(streams))
    for streams in (64, 256):
        add(f"CPU/step over echo + compute: {infer(streams).shape}", 1.35, over_ceiling, infer(streams))
    for streams in (64, 256):
        each = single(streams, streams)
        add(f"CPU/step over echo + compute: {each.shape}", 1.25, over_ceiling, each)
    for streams in (64, 256):
        add(f"CPU/step over compute: {many(streams).shape}", 1.25, over_compute, many(streams))
    add(f"CPU/step over compute: {chunks(16).shape}", 1.25, over_compute, chunks(16))
    add("a lone stream's p50 beyond echo + compute", 25.0, beyond_echo, single(1), unit="µs")
    for streams in CLIENT:
        add(f"the client's CPU/step over the generator's: {many(streams).shape}", 2.0, client_cost, client(streams))
    return found


def of_fairness(found: Sequence[Fairness]) -> list[Target]:
    """Single steps beside bulk."""
    late = spread(item.p99_beside / item.p99_alone for item in found)
    kept = spread(item.bulk_beside / item.bulk_alone for item in found)
    if late is None or kept is None:
        return []
    late_name = "p99 of 56 single-step streams, beside 8 in bulk over alone"
    kept_name = "steps/s of 8 streams in bulk, beside 56 single-step over alone"
    return [
        Target(late_name, 2.0, True, late.median, late.low, late.high),
        Target(kept_name, 0.7, False, kept.median, kept.low, kept.high),
    ]


def of_memory(found: Memory) -> Target:
    """An idle stream's bytes over the echo's. It has no row of state yet that could be taken off."""
    ratio = found.idle / found.echo_idle
    return Target("memory of an idle stream over the echo's", 1.25, True, ratio, ratio, ratio)


def of_held(found: Held) -> Target:
    """What idle streams cost the active ones."""
    base = median(found.alone)
    ratios = sorted(rate / base for rate in found.beside)
    name = f"steps/s of 64 streams beside {found.idle_streams:,} idle ones over alone"
    return Target(name, 0.95, False, median(tuple(ratios)), ratios[0], ratios[-1])


def of_start_up(found: StartUp) -> Target:
    """From the command to being ready, beyond importing the libraries."""
    base = median(found.libraries)
    rest = sorted(ready - base for ready in found.ready)
    return Target("start-up beyond importing the libraries", 1.5, True, median(tuple(rest)), rest[0], rest[-1], "s")
