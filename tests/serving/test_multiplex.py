"""Multiplex: many streams in one call, over a real port."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellstream.v1 import stream_inference_pb2 as pb
from serving.config import Batching, Limits, ServerConfig
from serving.server import Server
from tests.serving.client import RawCall, StreamCall
from tests.waiting import wait_until

F = 5


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[Server]:
    """One server for all tests here."""
    limits = Limits(max_streams=20, window_steps=40, max_message_bytes=100_000)
    running = Server(ServerConfig(artifacts, "127.0.0.1:0", grace=0.5, limits=limits, batching=Batching(8, 4)))
    running.start()
    yield running
    assert running.drain()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A connection of the test's own."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as connection:
        yield connection


class MultiplexCall(RawCall):
    """One Multiplex call: what each key was answered, in order."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(channel, "Multiplex", pb.MultiplexResponse)
        self.sent: dict[int, int] = defaultdict(int)
        self.opened: dict[int, pb.Opened] = {}
        self.answers: dict[int, bytes] = defaultdict(bytes)
        self.steps: dict[int, int] = defaultdict(int)
        self.ended: dict[int, pb.MultiplexEnded] = {}

    def open(self, *keys: int, model: str = "vectors", **fields: Any) -> None:
        """Ask for streams."""
        openings = [pb.MultiplexOpen(key=key, open=pb.Open(model=model, **fields)) for key in keys]
        self.send(pb.MultiplexRequest(opens=openings))

    def rows(self, chunks: Mapping[int, npt.NDArray[Any]]) -> pb.StepRows:
        """Columns for one chunk [T, ...] per key."""
        rows = pb.StepRows(
            keys=list(chunks),
            first_steps=[self.sent[key] + 1 for key in chunks],
            steps=[len(x) for x in chunks.values()],
            tensors=[b"".join(x.tobytes() for x in chunks.values())],
        )
        for key, x in chunks.items():
            self.sent[key] += len(x)
        return rows

    def push(self, chunks: Mapping[int, npt.NDArray[Any]]) -> None:
        """Send one chunk per key in one message."""
        self.send(pb.MultiplexRequest(steps=[self.rows(chunks)]))

    def take(self) -> None:
        """Receive one message."""
        response = self.receive()
        for opened in response.opened:
            self.opened[opened.key] = opened.opened
        for rows in response.outputs:
            counts = list(rows.steps) or [1] * len(rows.keys)
            (data,) = rows.tensors
            size, start = len(data) // sum(counts), 0
            for key, first, count in zip(rows.keys, rows.first_steps, counts, strict=True):
                assert first == self.steps[key] + 1
                self.answers[key] += data[start : start + count * size]
                self.steps[key] += count
                start += count * size
        for ended in response.ended:
            self.ended[ended.key] = ended

    def take_until(self, keys: Mapping[int, int]) -> None:
        """Receive until each key has so many steps."""
        while any(self.steps[key] < steps for key, steps in keys.items()):
            self.take()


def vectors(steps: int, seed: int) -> npt.NDArray[np.float32]:
    """X [T, F]."""
    return np.random.default_rng(seed).standard_normal((steps, F), dtype=np.float32)


def alone(channel: grpc.Channel, x: npt.NDArray[Any]) -> bytes:
    """The bytes that x gives on a Stream call."""
    with StreamCall(channel) as stream:
        stream.open("vectors")
        return b"".join(stream.run(x))


def test_a_description_is_sent_once_in_a_call(channel: grpc.Channel) -> None:
    """Many streams opened by a client that knows no model: one of the answers carries the description, all its name."""
    with MultiplexCall(channel) as call:
        call.open(1, 2, known_digest=b"")
        call.open(3, known_digest=b"")
        while len(call.opened) < 3:
            call.take()
    assert [call.opened[key].HasField("description") for key in (1, 2, 3)] == [True, False, False]
    digests = {opened.model_digest for opened in call.opened.values()}
    assert digests == {call.opened[1].description.digest}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(
        st.dictionaries(st.integers(0, 9), st.integers(1, 9), min_size=1, max_size=10), min_size=1, max_size=6
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_streams_of_one_call_get_the_bytes_they_get_alone(
    channel: grpc.Channel, plan: list[dict[int, int]], seed: int
) -> None:
    """Whatever steps of whatever streams share a message, every stream's bytes are those of a call of its own."""
    totals: dict[int, int] = defaultdict(int)
    for message in plan:
        for key, steps in message.items():
            totals[key] += steps
    x = {key: vectors(total, seed + key) for key, total in totals.items()}
    with MultiplexCall(channel) as call:
        call.open(*totals)
        for message in plan:
            call.push({key: x[key][call.sent[key] :][:steps] for key, steps in message.items()})
        call.take_until(totals)
        assert set(call.opened) == set(totals)
        call.half_close()
        assert call.end()[0] is grpc.StatusCode.OK
    for key in totals:
        assert call.answers[key] == alone(channel, x[key]), f"key {key}"


def test_a_stream_that_is_refused_ends_alone(server: Server, channel: grpc.Channel) -> None:
    """NaN, a gap, an unknown model, an unknown key, too many streams: the stream ends with its reason, others go on."""
    x = vectors(6, 1)
    nan = np.full((1, F), np.nan, np.float32)
    with MultiplexCall(channel) as call:
        call.open(1, 2, 3)
        call.open(4, model="nobody")
        call.push({1: x[:2], 2: nan, 3: x[:1]})
        call.sent[3] += 5
        call.push({1: x[2:4], 3: x[:1], 77: x[:1]})
        wait_until(lambda: server.lanes.find("vectors", 0).streams.live == 1)  # 2 is refused when its turn comes
        call.open(*range(100, 130))
        call.push({1: x[4:]})
        call.take_until({1: 6})
        while not {2, 3, 4, 77, 129} <= set(call.ended):
            call.take()
        ends = {key: (ended.code, ended.reason) for key, ended in call.ended.items() if key < 100}
        assert ends == {
            2: (grpc.StatusCode.INVALID_ARGUMENT.value[0], "invalid_input"),
            3: (grpc.StatusCode.FAILED_PRECONDITION.value[0], "step_gap"),
            4: (grpc.StatusCode.NOT_FOUND.value[0], "unknown_model"),
            77: (grpc.StatusCode.FAILED_PRECONDITION.value[0], "wrong_phase"),
        }
        assert "holds nan" in call.ended[2].message
        full = [key for key, ended in call.ended.items() if ended.reason == "stream_limit"]
        assert len(full) == 30 - 19
    assert call.answers[1] == alone(channel, x)
    wait_until(lambda: sum(lane.streams.live for lane in server.lanes) == 0)


def test_closing_one_stream_and_using_its_key_again(channel: grpc.Channel) -> None:
    """A closed stream ends with code 0 once it is answered; its key may then name a new one, from the first state."""
    x = vectors(5, 2)
    with MultiplexCall(channel) as call:
        call.open(1)
        call.push({1: x})
        call.send(pb.MultiplexRequest(closes=[1]))
        while 1 not in call.ended:
            call.take()
        assert call.ended[1].code == 0
        first = call.answers.pop(1)
        call.sent[1] = call.steps[1] = 0
        call.open(1)
        call.push({1: x})
        call.take_until({1: 5})
        assert call.answers[1] == first == alone(channel, x)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"\xff\xff", "isn't a cellstream.v1.MultiplexRequest"),
        (bytes(100_001), "limit is 100000 bytes"),
        (pb.MultiplexRequest(closes=[7] * 41), "41 opens, closes and keys; the limit is 40"),
        (pb.MultiplexRequest(opens=[pb.MultiplexOpen()] * 41), "41 opens, closes and keys"),
        (pb.MultiplexRequest(steps=[pb.StepRows(keys=[5] * 20)] * 3), "60 opens, closes and keys"),
        (pb.MultiplexRequest(steps=[pb.StepRows()] * 41), "41 opens, closes and keys"),
        (pb.MultiplexRequest(steps=[pb.StepRows(keys=[1, 2], first_steps=[1])]), "2 keys, 1 first_steps"),
        (pb.MultiplexRequest(steps=[pb.StepRows(keys=[1, 1], first_steps=[1, 1])]), "a key stands twice"),
        (pb.MultiplexRequest(steps=[pb.StepRows(keys=[1], first_steps=[1])]), "0 input tensors"),
        (pb.MultiplexRequest(steps=[pb.StepRows(keys=[1], first_steps=[1], tensors=[b"1"])]), "has 1 bytes; 1 steps"),
        (pb.MultiplexRequest(steps=[pb.StepRows(keys=[1, 9], first_steps=[1, 1])]), "several models"),
        (pb.MultiplexRequest(opens=[pb.MultiplexOpen(key=1, open=pb.Open(model="vectors"))]), "key 1 names a stream"),
    ],
)
def test_a_message_that_makes_no_sense_ends_the_call(
    server: Server, channel: grpc.Channel, request_: Any, text: str
) -> None:
    """What can't be understood at all ends the call and its streams, with a text, and no other call."""
    with StreamCall(channel) as neighbour, MultiplexCall(channel) as call:
        neighbour.open("vectors")
        call.open(1)
        call.open(9, model="tokens")
        call.send(request_)
        _, details, _ = call.end()
        assert text in details
        assert len(neighbour.run(vectors(2, 0))) == 2
    wait_until(lambda: sum(lane.streams.live for lane in server.lanes) == 0)


def test_a_call_may_send_far_more_than_its_window(channel: grpc.Channel) -> None:
    """What is answered makes room again: a thousand steps pass through a window of forty."""
    x = {key: vectors(500, key) for key in (1, 2)}
    with MultiplexCall(channel) as call:
        call.open(1, 2)
        for start in range(0, 500, 10):
            call.push({key: values[start : start + 10] for key, values in x.items()})
        call.take_until({1: 500, 2: 500})
        for key, values in x.items():
            assert call.answers[key] == alone(channel, values)


def test_half_close_finishes_every_stream_first(channel: grpc.Channel) -> None:
    """Everything sent before the half-close is answered, then the call ends with OK."""
    x = {key: vectors(30, key) for key in range(5)}
    with MultiplexCall(channel) as call:
        call.open(*x)
        call.push(x)
        call.half_close()
        call.take_until(dict.fromkeys(x, 30))
        assert call.end()[0] is grpc.StatusCode.OK
    for key, steps in x.items():
        assert call.answers[key] == alone(channel, steps)
