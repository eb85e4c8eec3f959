"""The streams of one model: their life, their order and their state, by histories that hypothesis invents.

The model is a running sum, computed by the test on a slab of its own: an answer shows at once whose state it came of.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.contract import Contract, StatePair, TensorSpec
from serving.config import Batching, Limits
from serving.errors import (
    ComputeFailed,
    InvalidInput,
    OutOfOrder,
    Overloaded,
    Refusal,
    ShuttingDown,
    TooLarge,
    TooManyStreams,
    Unavailable,
    WrongPhase,
)
from serving.inputs import InputCheck
from serving.rows import INITIAL
from serving.streams import Phase, Run, Stream, Streams

CONTRACT = Contract(
    name="sum",
    inputs=(TensorSpec("x", "float32", ()),),
    outputs=(TensorSpec("y", "float32", ()),),
    states=(StatePair("s", "s_out", "float32", ()),),
    weights_digest="",
)
LIMITS = Limits(max_streams=4, max_steps_per_message=9, window_steps=9, max_waiting_steps=30)
BATCHING = Batching(max_batch=3, slice_steps=4)


def make_streams(limits: Limits = LIMITS) -> Streams:
    """Streams of the running sum."""
    return Streams(check=InputCheck(CONTRACT, limits), limits=limits, batching=BATCHING)


def pack(values: list[float]) -> list[bytes]:
    """Steps as a chunk's one tensor."""
    return [struct.pack(f"<{len(values)}f", *values)]


def unpack(data: bytes | memoryview) -> list[float]:
    """A tensor's steps."""
    return list(struct.unpack(f"<{len(data) // 4}f", data))


class Sink:
    """Remembers what a stream was told."""

    def __init__(self) -> None:
        self.outputs: list[float] = []
        self.times: list[tuple[int, int]] = []
        self.ends: list[Refusal | None] = []

    def on_outputs(self, first_step: int, steps: int, outputs: Sequence[bytes], queue_us: int, compute_us: int) -> None:
        assert first_step == len(self.outputs) + 1
        self.outputs += unpack(outputs[0])
        assert len(self.outputs) == first_step + steps - 1
        self.times.append((queue_us, compute_us))

    def on_end(self, refusal: Refusal | None) -> None:
        self.ends.append(refusal)


class Slab:
    """The running sum on a slab: fails if a run reads a row that isn't written or writes one that is read."""

    def __init__(self) -> None:
        self.sums: dict[int, float] = {INITIAL: 0.0}

    def compute(self, run: Run) -> list[list[bytes]]:
        assert set(run.read_rows).isdisjoint(run.write_rows)
        assert INITIAL not in run.write_rows
        written, outputs = {}, []
        for piece, read, write in zip(run.batch.slices, run.read_rows, run.write_rows, strict=True):
            total, sums = self.sums[read], []
            for value in unpack(piece.chunk.inputs[0])[piece.offset : piece.offset + piece.steps]:
                total += value
                sums.append(total)
            written[write] = total
            outputs.append(pack(sums))
        self.sums |= written
        return outputs


def settle(streams: Streams, run: Run, slab: Slab) -> None:
    """The run succeeds."""
    streams.settle(run, slab.compute(run), queue_us=[0] * len(run), compute_us=0)


class StreamsMachine(RuleBasedStateMachine):
    """Whatever happens, in whatever order: every answer is the sum of that stream's own inputs, once, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = make_streams()
        self.slab = Slab()
        self.sent: dict[Stream, list[float]] = {}
        self.sinks: dict[Stream, Sink] = {}
        self.finishing: set[Stream] = set()
        self.ended: set[Stream] = set()
        self.base: dict[Stream, float] = {}  # what a stream began with, if not with nothing
        self.run: Run | None = None
        self.now = 0.0

    def live(self) -> list[Stream]:
        return [stream for stream in self.sent if stream not in self.ended]

    @initialize()
    def begin(self) -> None:
        self.open()
        self.open()

    @rule()
    def open(self) -> None:
        sink = Sink()
        if len(self.live()) >= LIMITS.max_streams:
            with pytest.raises(TooManyStreams, match="4 streams are open; the limit is 4"):
                self.streams.open("s", sink)
            return
        stream = self.streams.open("s", sink)
        self.sent[stream], self.sinks[stream] = [], sink

    @precondition(lambda self: self.live() and len(self.live()) < LIMITS.max_streams)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """A new stream begins where another's answers have got to, whatever that one has waiting or running."""
        source = data.draw(st.sampled_from(self.live()))
        before = self.streams.rows.in_use
        self.open()
        stream = list(self.sent)[-1]
        self.streams.fork(stream, source)
        assert self.streams.rows.in_use == before, "a fork took a row"
        self.base[stream] = self.sum_of(source)

    @precondition(lambda self: self.run is None and len(self.live()) < LIMITS.max_streams)
    @rule(total=st.integers(100, 900).map(float))
    def seed(self, total: float) -> None:
        """A new stream begins in a state that is given; nothing runs meanwhile, as in a server."""
        self.open()
        stream = list(self.sent)[-1]
        row = self.streams.seed(stream)
        assert row not in {other.row for other in self.live() if other is not stream}
        self.slab.sums[row] = self.base[stream] = total

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def open_in_the_place_of_another(self, data: st.DataObject) -> None:
        """With every place taken too, a new stream can have another's place."""
        old = data.draw(st.sampled_from(self.live()))
        sink = Sink()
        stream = self.streams.open("s", sink, instead_of=old)
        self.sent[stream], self.sinks[stream] = [], sink
        self.streams.end(old)
        self.ended.add(old)

    def sum_of(self, stream: Stream) -> float:
        """The state that a stream's answers have got to."""
        return self.base.get(stream, 0.0) + sum(self.sent[stream][: len(self.sinks[stream].outputs)])

    @precondition(lambda self: self.live())
    @rule(data=st.data(), values=st.lists(st.integers(-9, 9).map(float), max_size=9), back=st.integers(0, 9))
    def push(self, data: st.DataObject, values: list[float], back: int) -> None:
        """Push new steps, together with up to `back` that were sent before."""
        stream = data.draw(st.sampled_from(self.live()))
        sent = self.sent[stream]
        again = sent[len(sent) - min(back, len(sent)) :] if back else []
        chunk = (again + values)[: LIMITS.max_steps_per_message]
        fresh = chunk[len(again) :]
        if not chunk:
            return
        first = len(sent) - len(again) + 1
        self.now += 1
        if stream in self.finishing:
            with pytest.raises(WrongPhase):
                self.streams.push(stream, first, len(chunk), pack(chunk), self.now)
        elif fresh and self.streams.batcher.waiting_steps + len(fresh) > LIMITS.max_waiting_steps:
            with pytest.raises(Overloaded, match="limit of 30"):
                self.streams.push(stream, first, len(chunk), pack(chunk), self.now)
        else:
            self.streams.push(stream, first, len(chunk), pack(chunk), self.now)
            sent += fresh

    @precondition(lambda self: set(self.live()) - self.finishing)
    @rule(data=st.data(), gap=st.integers(2, 5))
    def push_with_a_gap(self, data: st.DataObject, gap: int) -> None:
        open_ones = [stream for stream in self.live() if stream not in self.finishing]
        stream = data.draw(st.sampled_from(open_ones))
        with pytest.raises(OutOfOrder, match=f"next step is {len(self.sent[stream]) + 1}"):
            self.streams.push(stream, len(self.sent[stream]) + gap, 1, pack([1.0]), self.now)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.live()))
        self.finishing.add(stream)
        self.streams.finish(stream)
        self.note_drained()

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.live()))
        self.ended.add(stream)
        self.streams.end(stream)
        self.streams.end(stream)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), held=st.booleans())
    def hold_or_release(self, data: st.DataObject, held: bool) -> None:
        stream = data.draw(st.sampled_from(self.live()))
        (self.streams.batcher.hold if held else self.streams.batcher.release)(stream)

    @precondition(lambda self: self.run is None)
    @rule()
    def take(self) -> None:
        self.run = self.streams.take()

    @rule()
    def compute(self) -> None:
        """Take and settle until nothing waits: most histories should compute something."""
        if self.run is not None:
            self.settle()
        while (run := self.streams.take()) is not None:
            self.run = run
            self.settle()

    @precondition(lambda self: self.run is not None)
    @rule()
    def settle(self) -> None:
        assert self.run is not None
        run, self.run = self.run, None
        before = {stream: list(sink.outputs) for stream, sink in self.sinks.items()}
        settle(self.streams, run, self.slab)
        for stream in self.ended:
            assert self.sinks[stream].outputs == before[stream], "an answer to a stream that has ended"
        self.note_drained()

    @precondition(lambda self: self.run is not None and len(self.run) > 1)
    @rule()
    def settle_one_half_and_fail_the_other(self) -> None:
        assert self.run is not None
        (first, second), self.run = self.run.halves(), None
        settle(self.streams, first, self.slab)
        self.note_drained()
        self.fail_members(second)

    @precondition(lambda self: self.run is not None)
    @rule()
    def fail(self) -> None:
        assert self.run is not None
        run, self.run = self.run, None
        self.fail_members(run)

    def fail_members(self, run: Run) -> None:
        members = [piece.stream for piece in run.batch.slices if piece.stream not in self.ended]
        self.streams.fail(run, [ComputeFailed("no")] * len(run))
        for stream in members:
            assert [type(end) for end in self.sinks[stream].ends] == [ComputeFailed], "a member wasn't told"
            self.ended.add(stream)

    def note_drained(self) -> None:
        for stream in list(self.finishing - self.ended):
            if len(self.sinks[stream].outputs) == len(self.sent[stream]):
                assert self.sinks[stream].ends == [None]
                self.ended.add(stream)

    @invariant()
    def every_answer_is_right_and_the_books_balance(self) -> None:
        self.streams.check()
        assert self.streams.live == len(self.live())
        for stream, sink in self.sinks.items():
            base = self.base.get(stream, 0.0)
            sums = [base + sum(self.sent[stream][: step + 1]) for step in range(len(sink.outputs))]
            assert sink.outputs == sums
            if stream not in self.ended:
                assert sink.ends == []


TestStreamsMachine = StreamsMachine.TestCase
TestStreamsMachine.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_only_a_stream_that_has_computed_nothing_takes_a_state() -> None:
    """Anything else would lose the row that it has."""
    streams, slab = make_streams(), Slab()
    stream, source = streams.open("s", Sink()), streams.open("t", Sink())
    for each in (stream, source):
        streams.push(each, 1, 1, pack([1.0]), 0.0)
    run_all(streams, slab)
    with pytest.raises(AssertionError, match="a state already"):
        streams.seed(stream)
    with pytest.raises(AssertionError, match="a state already"):
        streams.fork(stream, source)
    streams.check()


def test_a_seeded_row_is_free_when_its_stream_ends_unused() -> None:
    """Whether or not it ever computed."""
    streams = make_streams()
    stream = streams.open("s", Sink())
    streams.seed(stream)
    assert streams.rows.in_use == 1
    streams.end(stream)
    assert streams.rows.in_use == 0
    streams.check()


def run_all(streams: Streams, slab: Slab) -> None:
    """Compute until nothing waits."""
    while (run := streams.take()) is not None:
        settle(streams, run, slab)


def test_cancelling_one_member_of_a_batch_harms_no_other() -> None:
    """The first of three streams in a running batch is cancelled: the other two get answers (MLServer's defect)."""
    streams, slab = make_streams(), Slab()
    sinks = [Sink() for _ in range(3)]
    opened = [streams.open("s", sink) for sink in sinks]
    for value, stream in enumerate(opened):
        streams.push(stream, 1, 1, pack([float(value)]), 0.0)
    run = streams.take()
    assert run is not None
    streams.end(opened[0])
    settle(streams, run, slab)
    assert [sink.outputs for sink in sinks] == [[], [1.0], [2.0]]
    streams.check()


def test_a_lone_step_is_computed_at_once() -> None:
    """There is no window to wait for: one step of one stream is a batch (sherpa-onnx's defect)."""
    streams = make_streams()
    stream = streams.open("s", Sink())
    streams.push(stream, 1, 1, pack([1.0]), 0.0)
    run = streams.take()
    assert run is not None
    assert len(run) == 1


def test_a_stream_closed_in_flight_leaves_its_row_alone_until_the_run_is_over() -> None:
    """A run still reads the row of a stream that has ended: no other stream may be given it before."""
    streams, slab = make_streams(), Slab()
    first = streams.open("s", Sink())
    streams.push(first, 1, 1, pack([5.0]), 0.0)
    run_all(streams, slab)
    row = first.row
    streams.push(first, 2, 1, pack([5.0]), 0.0)
    run = streams.take()
    assert run is not None
    assert run.read_rows == [row]
    streams.end(first)
    claimed = streams.rows.claim(streams.rows.capacity - 1 - streams.rows.in_use)
    assert row not in claimed
    streams.rows.release(claimed)
    settle(streams, run, slab)
    assert streams.rows.in_use == 0


def test_a_new_stream_starts_from_the_first_state_whoever_had_its_rows_before() -> None:
    """State never leaks from one client to the next (Triton's defect)."""
    streams, slab = make_streams(), Slab()
    for _ in range(40):
        sink = Sink()
        stream = streams.open("s", sink)
        streams.push(stream, 1, 2, pack([1.0, 2.0]), 0.0)
        run_all(streams, slab)
        assert sink.outputs == [1.0, 3.0]
        streams.end(stream)


def test_a_failed_run_can_be_tried_again_with_the_same_result() -> None:
    """Rows are never changed once written, so running the same run twice gives the same answers."""
    streams, slab = make_streams(), Slab()
    sink = Sink()
    stream = streams.open("s", sink)
    streams.push(stream, 1, 1, pack([1.0]), 0.0)
    run_all(streams, slab)
    streams.push(stream, 2, 1, pack([1.0]), 0.0)
    run = streams.take()
    assert run is not None
    slab.compute(run)
    settle(streams, run, slab)
    assert sink.outputs == [1.0, 2.0]


def test_finishing_waits_for_what_was_sent() -> None:
    """A half-closed stream ends, once, when its last step is answered, and takes nothing more."""
    streams, slab = make_streams(), Slab()
    sink = Sink()
    stream = streams.open("s", sink)
    streams.push(stream, 1, 9, pack([1.0] * 9), 0.0)
    streams.finish(stream)
    with pytest.raises(WrongPhase, match="finishing"):
        streams.push(stream, 10, 1, pack([1.0]), 0.0)
    run_all(streams, slab)
    assert sink.outputs == [float(step) for step in range(1, 10)]
    assert sink.ends == [None]
    assert stream.phase is Phase.ENDED


def test_closing_refuses_new_streams_and_leaves_open_ones() -> None:
    """While the server drains, open streams go on and new ones are told."""
    streams, slab = make_streams(), Slab()
    sink = Sink()
    stream = streams.open("s", sink)
    streams.close()
    with pytest.raises(ShuttingDown):
        streams.open("t", Sink())
    streams.push(stream, 1, 1, pack([1.0]), 0.0)
    run_all(streams, slab)
    assert sink.outputs == [1.0]


def test_ending_all_tells_every_stream() -> None:
    """When the engine is lost nobody waits for an answer that can't come."""
    streams = make_streams()
    sinks = [Sink() for _ in range(3)]
    for sink in sinks:
        streams.push(streams.open("s", sink), 1, 1, pack([1.0]), 0.0)
    streams.end_all(Unavailable("gone"))
    assert all([type(end) for end in sink.ends] == [Unavailable] for sink in sinks)
    assert streams.take() is None
    with pytest.raises(Unavailable, match="gone"):
        streams.open("s", Sink())
    streams.check()


def test_a_stream_that_another_takes_along_is_told_once_or_not_at_all() -> None:
    """A sink that ends all of its client's streams when one has ended doesn't trip up the end of all."""
    streams = make_streams()

    class Together(Sink):
        def on_end(self, refusal: Refusal | None) -> None:
            super().on_end(refusal)
            for stream in members:
                streams.end(stream)

    sinks = [Together() for _ in range(3)]
    members = [streams.open("s", sink) for sink in sinks]
    streams.end_all(Unavailable("gone"))
    assert sorted(len(sink.ends) for sink in sinks) == [0, 0, 1]
    assert streams.live == 0
    streams.check()


@pytest.mark.parametrize(
    ("steps", "inputs", "error", "text"),
    [
        (0, [b""], InvalidInput, "0 steps"),
        (10, pack([0.0] * 10), TooLarge, "10 steps; the limit is 9"),
        (1, [], InvalidInput, "0 input tensors; the model takes 1"),
        (1, [b"", b""], InvalidInput, "2 input tensors"),
        (1, [struct.pack("<d", 1.0)], InvalidInput, "8 bytes; 1 steps of float32.* are 4 bytes"),
        (2, [struct.pack("<f", 1.0)], InvalidInput, "4 bytes; 2 steps of float32.* are 8 bytes"),
        (2, pack([1.0, float("nan")]), InvalidInput, "nan in the step numbered 2, element 0"),
    ],
)
def test_a_chunk_that_does_not_fit_changes_nothing(steps: int, inputs: list[bytes], error: type, text: str) -> None:
    """A refused chunk names value and limit, and the stream is as it was."""
    streams, slab = make_streams(), Slab()
    sink = Sink()
    stream = streams.open("s", sink)
    with pytest.raises(error, match=text):
        streams.push(stream, 1, steps, inputs, 0.0)
    streams.push(stream, 1, 1, pack([7.0]), 0.0)
    run_all(streams, slab)
    assert sink.outputs == [7.0]


def test_what_waits_is_bounded_in_bytes_too() -> None:
    """Wide inputs fill memory with few steps: the limit on bytes holds where the one on steps doesn't."""
    streams = make_streams(Limits(max_waiting_bytes=40))  # ten steps of one float
    stream = streams.open("s", Sink())
    streams.push(stream, 1, 10, pack([1.0] * 10), 0.0)
    with pytest.raises(Overloaded, match="10 steps are waiting, and 1 more would pass the limit of 10"):
        streams.push(stream, 11, 1, pack([1.0]), 0.0)


def test_step_numbers_begin_at_1() -> None:
    """Step 0 doesn't exist."""
    streams = make_streams()
    with pytest.raises(OutOfOrder, match="numbered from 1"):
        streams.push(streams.open("s", Sink()), 0, 1, pack([1.0]), 0.0)
