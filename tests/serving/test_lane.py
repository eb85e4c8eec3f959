"""A lane's turns on an engine that fails in every way: everybody is answered, and nobody pays for another."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from model.contract import Contract
from serving.config import Batching, Limits
from serving.engine import EngineError
from serving.errors import ComputeFailed, ConfigError, InvalidInput, ShuttingDown, Unavailable, UnknownModel
from serving.lane import Lane, Lanes
from tests.serving.test_streams import CONTRACT, Sink, pack


class SumEngine:
    """The running sum as an engine that can be told to fail."""

    contract: Contract = CONTRACT
    device = "cpu"
    slice_steps = 4
    row_bytes = 4

    def __init__(self) -> None:
        self.sums = {0: 0.0}
        self.runs: list[int] = []
        self.fail_next = 0  # runs to fail, whatever they hold
        self.broken = False  # every run and probe fails
        self.poison: float | None = None  # an input value that fails its run

    def run(
        self,
        inputs: list[tuple[bytes | memoryview, ...]],
        lengths: list[int],
        read_rows: list[int],
        write_rows: list[int],
    ) -> list[list[bytes]]:
        self.runs.append(len(lengths))
        values = [struct.unpack(f"<{steps}f", lane[0]) for steps, lane in zip(lengths, inputs, strict=True)]
        if self.fail_next or self.broken or any(self.poison in lane for lane in values):
            self.fail_next = max(0, self.fail_next - 1)
            raise EngineError("told to")
        outputs = []
        for lane, read, write in zip(values, read_rows, write_rows, strict=True):
            sums = [self.sums[read] + sum(lane[: step + 1]) for step in range(len(lane))]
            self.sums[write] = sums[-1]
            outputs.append(pack(sums))
        return outputs

    def probe(self, scratch_row: int, *, lanes: int = 1, steps: int = 1) -> None:
        if self.broken:
            raise EngineError("broken")

    def read_state(self, row: int) -> list[npt.NDArray[np.float32]]:
        return [np.array([self.sums[row]], dtype=np.float32)]

    def write_state(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        self.sums[row] = float(values[0][0])


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_lane(engine: SumEngine, clock: Clock | None = None) -> Lane:
    """A lane with room for eight streams, four in a batch."""
    limits = Limits(max_streams=8)
    return Lane("sum", 1, engine, limits=limits, batching=Batching(max_batch=4), clock=clock or Clock())


def push_all(lane: Lane, values: list[float]) -> list[Sink]:
    """One new stream per value, that value its first step."""
    sinks = []
    for value in values:
        sinks.append(Sink())
        lane.streams.push(lane.streams.open("s", sinks[-1]), 1, 1, pack([value]), 0.0)
    return sinks


def test_a_run_that_fails_once_costs_nobody_anything() -> None:
    """The engine raises once: the batch runs again in halves and every member is answered."""
    engine = SumEngine()
    lane = make_lane(engine)
    sinks = push_all(lane, [1.0, 2.0, 3.0])
    engine.fail_next = 1
    lane.turn()
    assert [sink.outputs for sink in sinks] == [[1.0], [2.0], [3.0]]
    assert engine.runs == [3, 1, 2]
    assert lane.stats.failed_runs == 1
    lane.streams.check()


def test_a_lone_stream_survives_a_run_that_fails_once() -> None:
    """With nobody to part from, the run is simply made again."""
    engine = SumEngine()
    lane = make_lane(engine)
    (sink,) = push_all(lane, [1.0])
    engine.fail_next = 1
    lane.turn()
    assert sink.outputs == [1.0]
    assert engine.runs == [1, 1]


@pytest.mark.parametrize("culprit", range(4))
def test_an_input_that_the_graph_can_not_compute_fails_alone(culprit: int) -> None:
    """One member's input breaks the run: it alone is refused, wherever it stands, and the engine counts as sound."""
    engine = SumEngine()
    engine.poison = 13.0
    lane = make_lane(engine)
    values = [1.0, 2.0, 3.0, 4.0]
    values[culprit] = 13.0
    sinks = push_all(lane, values)
    lane.turn()
    for index, sink in enumerate(sinks):
        if index == culprit:
            assert sink.outputs == []
            assert [type(end) for end in sink.ends] == [ComputeFailed]
            assert "step numbered 1" in str(sink.ends[0])
        else:
            assert sink.outputs == [values[index]]
            assert sink.ends == []
    assert lane.ready
    lane.streams.check()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_no_step_may_hold_end_their_own_stream_only(value: float) -> None:
    """Single steps are looked at together: who sent a number that isn't one is told which, and the others go on."""
    engine = SumEngine()
    lane = make_lane(engine)
    sinks = push_all(lane, [1.0, value, 3.0])
    lane.turn()
    assert [sink.outputs for sink in sinks] == [[1.0], [], [3.0]]
    assert [type(end) for end in sinks[1].ends] == [InvalidInput]
    assert f"input 'x' holds {value} in the step numbered 1, element 0; every value must be finite" in str(
        sinks[1].ends[0]
    )
    assert engine.runs == [2]
    assert lane.stats.steps == 2
    lane.streams.check()


def test_a_batch_of_nothing_but_bad_values_is_not_run() -> None:
    """The engine never sees it, and later steps of the same stream aren't computed either."""
    engine = SumEngine()
    lane = make_lane(engine)
    sinks = push_all(lane, [float("nan")])
    lane.turn()
    lane.turn()
    assert engine.runs == []
    assert [type(end) for end in sinks[0].ends] == [InvalidInput]
    assert not lane.busy


def test_the_last_step_of_a_long_chunk_shares_a_run_with_single_steps() -> None:
    """It was looked at when it came, and may be looked at again without harm."""
    lane = make_lane(SumEngine())
    sink = Sink()
    lane.streams.push(lane.streams.open("s", sink), 1, 5, pack([1.0] * 5), 0.0)
    lane.turn()
    (other,) = push_all(lane, [7.0])
    lane.turn()
    assert sink.outputs == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert other.outputs == [7.0]


def test_a_broken_engine_ends_every_stream_and_says_so_until_it_works_again() -> None:
    """Nobody waits for an engine that is lost; it is looked at every second, and serves again when it computes."""
    engine, clock = SumEngine(), Clock()
    lane = make_lane(engine, clock)
    told: list[bool] = []
    lane.on_ready_changed = lambda changed: told.append(changed.ready)
    sinks = push_all(lane, [1.0] * 6)
    engine.broken = True
    lane.turn()
    assert all([type(end) for end in sink.ends] == [Unavailable] for sink in sinks)
    assert told == [False]
    with pytest.raises(Unavailable, match="doesn't compute at the moment"):
        lane.streams.open("s", Sink())
    engine.broken = False
    lane.turn()
    assert not lane.ready, "looked again too soon"
    clock.now += 1.0
    lane.turn()
    assert told == [False, True]
    (sink,) = push_all(lane, [2.0])
    lane.turn()
    assert sink.outputs == [2.0]
    lane.streams.check()


def test_an_engine_that_recovers_during_shutdown_admits_nobody() -> None:
    """Recovery doesn't undo the server's goodbye."""
    engine, clock = SumEngine(), Clock()
    lane = make_lane(engine, clock)
    push_all(lane, [1.0])
    engine.broken = True
    lane.turn()
    lane.streams.close()
    engine.broken = False
    clock.now += 2.0
    lane.turn()
    with pytest.raises(ShuttingDown):
        lane.streams.open("s", Sink())


def test_a_long_chunk_is_computed_in_slices_that_carry_the_state() -> None:
    """Ten steps in slices of four: each slice starts from the state the one before left."""
    lane = make_lane(SumEngine())
    sink = Sink()
    lane.streams.push(lane.streams.open("s", sink), 1, 10, pack([1.0] * 10), 0.0)
    for _ in range(3):
        lane.turn()
    assert sink.outputs == [float(step) for step in range(1, 11)]
    assert not lane.busy


def test_what_is_counted() -> None:
    """Steps, streams per run and queue times are counted where they happen."""
    engine, clock = SumEngine(), Clock()
    lane = make_lane(engine, clock)
    push_all(lane, [1.0, 2.0, 3.0])
    clock.now = 0.002
    lane.turn()
    assert lane.stats.steps == 3
    assert lane.stats.batch_streams.counts[lane.stats.batch_streams.bounds.index(4)] == 1
    assert lane.stats.queue_times.total == pytest.approx(0.006)
    assert lane.stats.queue_times.counts[lane.stats.queue_times.bounds.index(0.002048)] == 3
    assert sum(lane.stats.queue_times.counts) == 3


def test_warming_up_a_model_that_does_not_run_is_an_error_of_configuration() -> None:
    """A graph that can't run is found at start, and named."""
    engine = SumEngine()
    engine.broken = True
    with pytest.raises(ConfigError, match="sum/1 doesn't run"):
        make_lane(engine).warm_up()


def test_the_first_of_every_size_is_run_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 1, 2, 4, … streams and of the largest, with one step and with a slice: no client pays for that."""
    engine, run = SumEngine(), []
    engine.slice_steps = 4
    monkeypatch.setattr(engine, "probe", lambda _row, *, lanes, steps: run.append((lanes, steps)))
    batching = Batching(max_batch=12, slice_steps=4, max_run_steps=32)
    Lane("sum", 1, engine, limits=Limits(max_streams=8), batching=batching, clock=Clock()).warm_up()
    assert set(run) == {(lanes, 1) for lanes in (1, 2, 4, 8, 12)} | {(1, 4), (2, 4), (4, 4), (8, 4), (12, 2)}


def test_lanes_are_found_by_name_and_version() -> None:
    """Version 0 is the highest; what isn't there is refused by naming what is."""
    lanes = [
        Lane("a", version, SumEngine(), limits=Limits(), batching=Batching(), clock=Clock()) for version in (1, 3, 2)
    ]
    served = Lanes(lanes)
    assert served.find("a", 0) is lanes[1]
    assert served.find("a", 2) is lanes[2]
    with pytest.raises(UnknownModel, match="no model 'b'; served: a/1, a/2, a/3"):
        served.find("b", 0)
    with pytest.raises(UnknownModel, match="'a' version 9"):
        served.find("a", 9)


def test_a_full_model_whose_run_fails_has_a_row_to_look_at_its_engine_with() -> None:
    """Every place taken, a full batch on its way: the probe that tells whose fault it is needs a row all the same."""
    engine = SumEngine()
    lane = make_lane(engine)
    opened = [lane.streams.open("s", Sink()) for _ in range(lane.limits.max_streams)]
    for stream in opened:
        lane.streams.push(stream, 1, 1, pack([1.0]), 0.0)
    for _ in range(4):
        lane.turn()
    engine.poison = 13.0
    for stream in opened:
        lane.streams.push(stream, 2, 1, pack([13.0]), 0.0)
    for _ in range(4):
        lane.turn()
    assert lane.ready
    assert lane.streams.live == 0
    lane.streams.check()
