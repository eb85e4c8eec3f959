"""Messages nobody would send: whatever arrives on a call, the server's own code raises nothing and a neighbour is safe.

The services are driven without a network, so that hypothesis can try thousands of messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellstream.v1 import stream_inference_pb2 as pb
from serving.config import Batching, Limits
from serving.front import Front
from serving.lane import Lane, Lanes
from serving.multiplex_service import MultiplexCall
from serving.stats import ServerStats
from serving.stream_service import StreamCall
from tests.serving.test_lane import Clock, SumEngine
from tests.serving.test_streams import pack, unpack

LIMITS = Limits(
    max_streams=6,
    max_steps_per_message=9,
    window_steps=9,
    max_waiting_steps=40,
    max_message_bytes=2000,
    max_unsent_bytes=120,
)


class FakeCall:
    """A call whose client reads everything, or nothing."""

    def __init__(self, *, reads: bool = True) -> None:
        self.sent: list[bytes] = []
        self.reads = reads
        self.unsent_bytes = 0
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.receiving = False
        self.puts_off = False  # as for a client that is known to wait for every answer
        self.put_off = False

    def receive(self) -> None:
        self.put_off = False
        self.receiving = self.status is None

    def receive_after_reply(self) -> None:
        if self.puts_off:
            self.put_off = True
        else:
            self.receive()

    def reply(self, data: bytes) -> None:
        self.send(data)
        if self.put_off:
            self.receive()

    def send(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if self.status is None:
            self.sent.append(data)
            self.unsent_bytes += 0 if self.reads else len(data)

    def finish(self, code: grpc.StatusCode, details: str = "", metadata: Sequence[tuple[str, str]] = ()) -> None:
        if self.status is None:
            self.status = (code, details)
            assert len(details) < 1000, "the text doesn't fit into trailing metadata"


def make_front() -> tuple[Front, Lane]:
    """A front with one model, the running sum."""
    lane = Lane("sum", 1, SumEngine(), limits=LIMITS, batching=Batching(max_batch=3, slice_steps=4), clock=Clock())
    return Front(Lanes([lane]), LIMITS, ServerStats(), Clock()), lane


small = st.integers(0, 12)
numbers = st.one_of(small, st.sampled_from([2**31, 2**32 - 1]))
long_numbers = st.one_of(small, st.sampled_from([2**32, 2**63, 2**64 - 1]))
floats = st.lists(st.floats(width=32), max_size=10).map(lambda values: pack(values)[0])
tensors = st.one_of(floats, st.binary(max_size=20))
opens = st.builds(
    pb.Open,
    model=st.one_of(st.just("sum"), st.text(max_size=400)),
    version=st.sampled_from([0, 1, 2, -1]),
    stream_id=st.text(max_size=300),
    resume_token=st.one_of(st.just(b""), st.binary(max_size=3)),
)
chunks = st.builds(pb.Chunk, first_step=long_numbers, steps=numbers, inputs=st.lists(tensors, max_size=2))
stream_requests = st.one_of(
    st.builds(pb.StreamRequest, open=opens), st.builds(pb.StreamRequest, chunk=chunks), st.just(pb.StreamRequest())
)
step_rows = st.builds(
    pb.StepRows,
    keys=st.lists(small, max_size=5),
    first_steps=st.lists(long_numbers, max_size=5),
    steps=st.one_of(st.just([]), st.lists(numbers, max_size=5)),
    tensors=st.lists(tensors, max_size=2),
)
multiplex_requests = st.builds(
    pb.MultiplexRequest,
    opens=st.lists(st.builds(pb.MultiplexOpen, key=small, open=opens), max_size=3),
    steps=st.lists(step_rows, max_size=2),
    closes=st.lists(small, max_size=2),
)


def with_damage(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """The messages' bytes, some of them cut, changed or made up."""
    whole = messages.map(lambda message: message.SerializeToString())
    damaged = st.builds(
        lambda data, at, byte: data[:at] + bytes([byte]) + data[at + 1 :],
        whole,
        st.integers(0, 60),
        st.integers(0, 255),
    )
    cut = st.builds(lambda data, at: data[:at], whole, st.integers(0, 60))
    return st.one_of(whole, whole, damaged, cut, st.binary(max_size=30), st.just(bytes(2001)))


def play(kind: type, messages: list[bytes], ends: str, *, reads: bool, puts_off: bool = False) -> None:
    """Send the messages on a call beside a neighbour's; both must come out right."""
    front, lane = make_front()
    neighbour_call, call = FakeCall(), FakeCall(reads=reads)
    call.puts_off = puts_off
    neighbour = StreamCall(front, neighbour_call)  # type: ignore[arg-type]
    neighbour.on_message(pb.StreamRequest(open=pb.Open(model="sum")).SerializeToString())
    handler = kind(front, call)
    for step, data in enumerate(messages, start=1):
        if call.receiving and call.status is None:
            call.receiving = False
            handler.on_message(data)
        chunk = pb.Chunk(first_step=step, steps=1, inputs=pack([1.0]))
        neighbour.on_message(pb.StreamRequest(chunk=chunk).SerializeToString())
        lane.turn()
        front.flush()
        lane.streams.check()
    if ends == "half-close" and call.status is None:
        handler.on_half_close()
    if ends == "go away":
        front.go_away(1.0)
    for _ in range(60):
        lane.turn()
        front.flush()
    if ends == "half-close":
        assert call.status is not None or not reads, "a call that was half-closed never ended"
    assert call.receiving or not reads or call.status is not None, "all is answered, and no message is asked for"
    handler.on_closed(cancelled=True)
    lane.streams.check()
    assert lane.streams.live == 1, "something of the call is left"
    if not reads:
        # A client that reads nothing is computed no further than its outbox, and one run beyond.
        assert call.unsent_bytes <= 16 * LIMITS.max_unsent_bytes + 2000
    answers = [pb.StreamResponse.FromString(data) for data in neighbour_call.sent]
    sums = [value for answer in answers for tensor in answer.outputs.outputs for value in unpack(tensor)]
    assert sums == [float(step) for step in range(1, len(messages) + 1)]


endings = st.sampled_from(["half-close", "cancel", "go away"])


@settings(max_examples=400, deadline=None)
@given(
    messages=st.lists(with_damage(stream_requests), max_size=8),
    ends=endings,
    reads=st.booleans(),
    puts_off=st.booleans(),
)
def test_stream_takes_whatever_comes(messages: list[bytes], ends: str, reads: bool, puts_off: bool) -> None:
    """Any messages on a Stream call: answered or refused, nothing raised, the neighbour's sums are right."""
    play(StreamCall, messages, ends, reads=reads, puts_off=puts_off)


@settings(max_examples=400, deadline=None)
@given(
    messages=st.lists(with_damage(stream_requests), max_size=8).map(
        lambda rest: [pb.StreamRequest(open=pb.Open(model="sum")).SerializeToString(), *rest]
    ),
    ends=endings,
    reads=st.booleans(),
    puts_off=st.booleans(),
)
def test_stream_that_is_open_takes_whatever_comes(
    messages: list[bytes], ends: str, reads: bool, puts_off: bool
) -> None:
    """The same for a stream that was opened as it should be."""
    play(StreamCall, messages, ends, reads=reads, puts_off=puts_off)


@settings(max_examples=600, deadline=None)
@given(messages=st.lists(with_damage(multiplex_requests), max_size=8), ends=endings, reads=st.booleans())
def test_multiplex_takes_whatever_comes(messages: list[bytes], ends: str, reads: bool) -> None:
    """Any messages on a Multiplex call: answered or refused, nothing raised, the neighbour's sums are right."""
    play(MultiplexCall, messages, ends, reads=reads)


def steady(kind: type) -> tuple[FakeCall, int]:
    """A client that sends whenever it is let and never reads: its call, and how many steps it could send."""
    front, lane = make_front()
    call = FakeCall(reads=False)
    handler = kind(front, call)
    opening, step = pb.Open(model="sum"), 0
    if kind is StreamCall:
        handler.on_message(pb.StreamRequest(open=opening).SerializeToString())
    else:
        handler.on_message(pb.MultiplexRequest(opens=[pb.MultiplexOpen(key=1, open=opening)]).SerializeToString())
    for _ in range(500):
        if call.receiving:
            call.receiving = False
            step += 1
            if kind is StreamCall:
                chunk = pb.Chunk(first_step=step, steps=1, inputs=pack([1.0]))
                handler.on_message(pb.StreamRequest(chunk=chunk).SerializeToString())
            else:
                rows = pb.StepRows(keys=[1], first_steps=[step], tensors=pack([1.0]))
                handler.on_message(pb.MultiplexRequest(steps=[rows]).SerializeToString())
        lane.turn()
        front.flush()
    return call, step


@pytest.mark.parametrize("kind", [StreamCall, MultiplexCall])
def test_a_client_that_never_reads_is_stopped(kind: type) -> None:
    """Its outbox is bounded, its next message isn't received, and it gets no more turns."""
    call, sent = steady(kind)
    assert call.status is None
    assert call.unsent_bytes < LIMITS.max_unsent_bytes + 60
    assert sent < 40
    assert not call.receiving


@pytest.mark.parametrize("kind", [StreamCall, MultiplexCall])
def test_a_held_stream_gets_no_turns(kind: type) -> None:
    """Chunks that were taken before the outbox was full wait, and aren't computed into it."""
    front, lane = make_front()
    call = FakeCall(reads=False)
    handler = kind(front, call)
    opening = pb.Open(model="sum")
    if kind is StreamCall:
        handler.on_message(pb.StreamRequest(open=opening).SerializeToString())
    else:
        handler.on_message(pb.MultiplexRequest(opens=[pb.MultiplexOpen(key=1, open=opening)]).SerializeToString())
    call.unsent_bytes = LIMITS.max_unsent_bytes - 1
    for first in (1, 10):  # two chunks of nine steps, in slices of four
        if kind is StreamCall:
            chunk = pb.Chunk(first_step=first, steps=9, inputs=pack([1.0] * 9))
            handler.on_message(pb.StreamRequest(chunk=chunk).SerializeToString())
        else:
            rows = pb.StepRows(keys=[1], first_steps=[first], steps=[9], tensors=pack([1.0] * 9))
            handler.on_message(pb.MultiplexRequest(steps=[rows]).SerializeToString())
    for _ in range(10):
        lane.turn()
        front.flush()
    assert lane.stats.steps == 4, "one slice filled the outbox, and more were computed"
    call.unsent_bytes = 0
    call.reads = True
    handler.on_sent()
    for _ in range(10):
        lane.turn()
        front.flush()
    assert lane.stats.steps == 18


def test_a_stream_that_waited_for_hours_is_answered() -> None:
    """The protocol's microseconds end at 71 minutes; a longer wait is told as that, and nothing breaks."""
    front, lane = make_front()
    call = FakeCall()
    handler = StreamCall(front, call)  # type: ignore[arg-type]
    handler.on_message(pb.StreamRequest(open=pb.Open(model="sum")).SerializeToString())
    chunk = pb.Chunk(first_step=1, steps=1, inputs=pack([1.0]))
    handler.on_message(pb.StreamRequest(chunk=chunk).SerializeToString())
    lane._clock.now += 5 * 3600.0  # type: ignore[attr-defined]
    lane.turn()
    assert pb.StreamResponse.FromString(call.sent[-1]).outputs.queue_us == 2**32 - 1
