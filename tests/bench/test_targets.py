"""The ratios that the project is held to, from figures that anybody can check by head."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import targets
from bench.cases import Peer, many, single
from bench.ceilings import Ceiling, at, sizes
from bench.samples import Round
from bench.studies import Held, Memory
from tests.bench.figures import a_document, a_round


def found(name: str, *rounds: Round) -> targets.Target:
    """The target whose name contains that."""
    (target,) = [item for item in targets.of_rounds(rounds) if name in item.name]
    return target


def test_processor_time_over_echo_and_compute() -> None:
    """18 over 10 + 5, in the median of three rounds; the extremes are told."""
    target = found("over echo + compute: 64 streams, a connection each", a_round(), a_round(1.5), a_round(0.5))
    assert (target.found, target.low, target.high) == pytest.approx((18 / 15, 9 / 15, 27 / 15))
    assert target.met
    assert not found("over echo + compute: 64 streams, a connection each", a_round(1.1)).met


def test_the_ratio_is_taken_within_a_round() -> None:
    """A round in which the whole machine was half as fast changes nothing."""
    slow = a_round()
    samples = tuple(replace(item, server_cpu=2 * item.server_cpu) for item in slow.samples)
    ceilings = tuple(replace(item, us_per_run=2 * item.us_per_run) for item in slow.ceilings)
    target = found("over echo + compute: 256 streams, a", a_round(), Round(samples, ceilings))
    assert target.low == target.high


def test_processor_time_over_compute_alone() -> None:
    """Of many streams in one message."""
    assert found(f"over compute: {many(64).shape}", a_round()).found == pytest.approx(18 / 5)


def test_throughput_over_the_better_naive_server() -> None:
    """2,500 steps/s, not 1,000."""
    target = found("session.run per message: 64 streams", a_round())
    assert target.found == pytest.approx(4.0)
    assert not target.at_most
    assert not target.met


def test_a_lone_stream_and_the_client() -> None:
    """p50 1,020 µs is beyond the echo's 1,000 by 20, of which the batch it says it reached explains 5."""
    assert found("lone stream", a_round()).found == pytest.approx(15.0)
    assert found("client's CPU/step", a_round()).found == pytest.approx(2.5)


def test_what_was_not_measured_is_no_target() -> None:
    """A quick run has fewer lines, not empty ones."""
    whole = a_round()
    few = Round(tuple(item for item in whole.samples if item.case.peer is not Peer.ECHO), whole.ceilings)
    names = [target.name for target in targets.of_rounds([few])]
    assert not any("echo" in name for name in names)
    assert len(names) == 5
    assert targets.of_rounds([Round(whole.samples, ())]) != []
    assert targets.of_fairness(()) == []


def test_the_studies_targets() -> None:
    """Fairness, memory, idle streams, start-up."""
    by_name = {target.name: target for target in a_document().targets()}
    late, kept = (by_name[name] for name in by_name if "bulk" in name)
    assert (late.found, late.met) == (1.5, True)
    assert (kept.found, kept.met) == (0.6, False)
    memory = targets.of_memory(Memory(idle=25.0, active=0, echo_idle=20.0, echo_active=1, row=4))
    assert (memory.found, memory.met) == (1.25, True)
    held = targets.of_held(Held(10, (100.0, 100.0), (94.0, 95.0, 99.0)))
    assert (held.found, held.low, held.met) == (0.95, 0.94, True)
    start = next(target for name, target in by_name.items() if "start-up" in name)
    assert start.found == pytest.approx(2.1 - 1.05)


def test_compute_between_the_sizes_measured() -> None:
    """Linear in the logarithm of the batch, flat beyond the ends; other numbers of steps are kept apart."""
    ceilings = [Ceiling(1, 1, 100.0), Ceiling(4, 1, 4 * 20.0), Ceiling(1, 16, 16 * 7.0)]
    assert at(ceilings, 2, 1) == pytest.approx(60.0)
    assert at(ceilings, 0.5, 1) == 100.0
    assert at(ceilings, 400, 1) == 20.0
    assert at(ceilings, 9, 16) == 7.0
    with pytest.raises(ValueError, match="2 steps"):
        at(ceilings, 1, 2)


def test_ceilings_are_of_sizes_that_the_server_runs() -> None:
    """128 lanes of one step, 512 steps in all otherwise."""
    assert max(batch for batch, steps in sizes([1, 16]) if steps == 1) == 128
    assert max(batch for batch, steps in sizes([1, 16]) if steps == 16) == 32


def test_chunks_compute_in_slices() -> None:
    """64 steps a message run 32 at a time."""
    whole = a_round()
    long = replace(single(64), steps_per_message=64)
    sample = replace(whole.samples[0], case=long, batch=1.0)
    assert targets.compute(whole, sample) == 8.0
