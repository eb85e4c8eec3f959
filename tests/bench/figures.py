"""A made-up run of `make bench`, for tests of what is done with one."""

from __future__ import annotations

from dataclasses import replace

from bench.cases import Case, Peer, bare, chunks, client, many, single
from bench.ceilings import Ceiling
from bench.document import Document
from bench.samples import Round, Sample
from bench.studies import Fairness, Held, Memory, StartUp, Sustained

CASES = (single(1), single(64), single(256), single(64, 64), single(256, 256), chunks(16), many(64), many(256))


def sample(case: Case, **values: float) -> Sample:
    """One with round figures."""
    base = Sample(
        case=case,
        round=0,
        steps_per_second=10_000.0,
        p50=1000.0,
        p99=2000.0,
        p999=3000.0,
        server_cpu=10.0,
        load_cpu=2.0,
    )
    return replace(base, **values)  # type: ignore[arg-type]


def a_round(slower: float = 1.0) -> Round:
    """Ours at 18 µs a step, the echo at 10, compute at 8 alone and 5 in a batch of 64; `slower`: ours, by so much."""
    samples = []
    for case in CASES:
        samples.append(sample(case, server_cpu=18.0 * slower, batch=64.0, run_steps=64.0, p50=1000.0 + 20 * slower))
        samples.append(sample(case.of(Peer.ECHO), p50=1000.0))
    samples += [
        sample(single(64).of(Peer.NAIVE_UVLOOP), steps_per_second=1000.0),
        sample(single(64).of(Peer.NAIVE), steps_per_second=2500.0),
        sample(client(64), load_cpu=5.0),
        sample(bare(64), load_cpu=4.0),
    ]
    ceilings = [Ceiling(1, steps, 8.0 * steps) for steps in (1, 16, 32)]
    ceilings += [Ceiling(64, steps, 64 * 5.0 * steps) for steps in (1, 16, 32)]
    return Round(tuple(samples), tuple(ceilings))


def a_document() -> Document:
    """Everything filled in."""
    curve = tuple(
        sample(replace(single(64).of(peer), rate=rate), steps_per_second=rate, p50=100.0, p99=rate)
        for peer in (Peer.OURS, Peer.NAIVE_UVLOOP)
        for rate in (1000.0, 5000.0)
    )
    return Document(
        date="2026-11-25T03:00:00+00:00",
        commit="abc",
        machine="a machine",
        versions={"numpy": "2"},
        seconds=12.0,
        load=0.5,
        rounds=(a_round(), a_round(1.5), a_round(0.5)),
        curves=curve,
        fairness=(Fairness(1000.0, 1500.0, 5000.0, 3000.0),),
        sustained=(Sustained(Peer.OURS, 256, 9000.0, ((256, 9000.0), (512, 20_000.0))),),
        memory=Memory(idle=30_000.0, active=40_000.0, echo_idle=20_000.0, echo_active=25_000.0, row=4096),
        held=Held(10_000, (100.0, 110.0), (99.0, 101.0)),
        start_up=StartUp((2.0, 2.2), (1.0, 1.1)),
    )
