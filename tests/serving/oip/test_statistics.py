"""A model's figures are true: perf_analyzer computes from them."""

from __future__ import annotations

from typing import Any

from serving.oip.statistics import statistics
from serving.oip.v1 import inference_pb2 as pb
from serving.row_states import RowStates
from serving.streams import slab_rows
from tests.serving.oip.calls import LIMITS, House, Streamed, request
from tests.serving.test_lane import SumEngine
from tests.serving.test_streams import Sink, pack


def figures(house: House, since_1970: float = 0.0) -> pb.ModelStatistics:
    """The sum's, with what must hold whenever they are asked for."""
    found = statistics(house.sum, since_1970=since_1970)
    assert (found.name, found.version) == ("sum", "1")
    assert found.version.isdecimal()
    batches = found.batch_stats
    assert found.inference_count == sum(batch.batch_size * batch.compute_infer.count for batch in batches)
    assert found.execution_count == sum(batch.compute_infer.count for batch in batches)
    assert [batch.batch_size for batch in batches] == sorted({batch.batch_size for batch in batches})
    stats = found.inference_stats
    assert stats.success.ns == stats.queue.ns + stats.compute_infer.ns
    assert stats.success.count == stats.queue.count == stats.compute_infer.count
    return found


class SlowEngine(SumEngine):
    """Takes a while, by the house's clock."""

    def __init__(self, house: House, seconds: float) -> None:
        super().__init__()
        self._house = house
        self._seconds = seconds

    def run(self, *arguments: Any) -> list[list[bytes]]:
        self._house.clock.now += self._seconds
        return super().run(*arguments)


def test_nothing_done_is_all_zeros() -> None:
    """Before the first request, with the memory that the slab takes."""
    found = figures(House())
    assert (found.inference_count, found.execution_count, found.last_inference) == (0, 0, 0)
    assert found.inference_stats.success.count == found.inference_stats.fail.count == 0
    (memory,) = found.memory_usage
    house = House()
    assert (memory.type, memory.byte_size) == ("CPU", slab_rows(LIMITS, house.sum.batching) * 4)
    assert house.sum.streams.rows.capacity * 4 == memory.byte_size


def test_counts_and_times_are_those_of_what_was_done() -> None:
    """Two sequences in one run of 5 ms, after 2 ms of waiting; one request of three runs; a refusal; a read."""
    house = House()
    house.sum.engine = engine = SlowEngine(house, 0.005)
    house.sum.sequences.states = RowStates(engine)
    call = Streamed(house)
    call.send(request(5, 1.0, start=True))
    call.send(request(6, 1.0, start=True))
    house.clock.now = 0.002
    house.turn()
    found = figures(house, since_1970=1000.0)
    assert (found.inference_count, found.execution_count) == (2, 1)
    assert found.last_inference == 1_000_002
    assert found.inference_stats.success.count == 2
    assert found.inference_stats.queue.ns == 2 * 2_000_000
    assert found.inference_stats.compute_infer.ns == 2 * 5_000_000
    (batch,) = found.batch_stats
    assert (batch.batch_size, batch.compute_infer.count, batch.compute_infer.ns) == (2, 1, 5_000_000)
    call.send(request(5, *[1.0] * 8))
    house.turn(3)
    found = figures(house)
    assert (found.inference_count, found.execution_count) == (4, 3)
    assert found.inference_stats.success.count == 3
    call.send(request(7, 1.0))
    call.send(request(5, cellstream_read_state=True))
    found = figures(house)
    assert found.inference_stats.fail.count == 1
    assert found.inference_stats.success.count == 4
    assert found.inference_stats.success.count + found.inference_stats.fail.count == len(call.answers)


def test_a_request_that_does_not_fit_the_model_has_failed() -> None:
    """Whatever is wrong with it: it was for this model, and wasn't computed."""
    house = House()
    call = Streamed(house)
    call.send(request(None, 1.0))
    call.send(request(5, start=True))
    call.send(request(5, 1.0, model="nope"))
    assert figures(house).inference_stats.fail.count == 2


def test_other_streams_count_as_inferences_and_not_as_requests() -> None:
    """Runs are shared by both protocols; requests are this one's."""
    house = House()
    call = Streamed(house)
    call.send(request(5, 1.0, start=True))
    stream = house.sum.streams.open("s", Sink())
    house.sum.streams.push(stream, 1, 1, pack([1.0]), 0.0)
    house.turn()
    found = figures(house)
    assert found.inference_count == 2
    assert found.inference_stats.success.count == 1


def test_counts_grow_with_every_answer() -> None:
    """perf_analyzer takes a model whose count stands still for another version."""
    house = House()
    call = Streamed(house)
    call.send(request(5, 1.0, start=True))
    before = 0
    for _ in range(20):
        call.send(request(5, 1.0))
        house.turn(2)
        count = figures(house).inference_stats.queue.count
        assert count > before
        before = count
