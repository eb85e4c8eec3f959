"""The whole server over a real port, with nothing between it and plain gRPC."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellstream.v1 import stream_inference_pb2 as pb
from serving.config import Batching, Limits, ServerConfig
from serving.engine import EngineError
from serving.server import Server
from tests.serving.client import SECONDS, SERVICE, StreamCall, cut
from tests.waiting import wait_until

LIMITS = Limits(
    max_streams=300, max_steps_per_message=100, window_steps=200, max_waiting_steps=30_000, max_message_bytes=100_000
)
F = 5  # features of the "vectors" model


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    config = ServerConfig(
        artifacts, "127.0.0.1:0", metrics_listen="127.0.0.1:0", grace=0.5, limits=LIMITS, batching=Batching(32, 16)
    )
    running = Server(config)
    running.start()
    yield running
    assert running.drain()


@pytest.fixture
def fragile(artifacts: Path) -> Iterator[Server]:
    """A server of its own for a test that breaks it."""
    running = Server(ServerConfig(artifacts, "127.0.0.1:0", grace=0.2, limits=LIMITS, batching=Batching(32, 16)))
    running.start()
    yield running
    running.drain()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A connection of the test's own."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as connection:
        yield connection


def vectors(steps: int, seed: int) -> npt.NDArray[np.float32]:
    """X [T, F] for the "vectors" model."""
    return np.random.default_rng(seed).standard_normal((steps, F), dtype=np.float32)


def alone(channel: grpc.Channel, x: npt.NDArray[Any], model: str = "vectors") -> list[bytes]:
    """What the server answers to x when nobody else is there, in one go."""
    with StreamCall(channel) as stream:
        stream.open(model)
        answers: list[bytes] = []
        for chunk in cut(x, iter(lambda: 50, 0)):
            answers += stream.run(chunk)
        return answers


def live(server: Server) -> int:
    """Streams that are open."""
    return sum(lane.streams.live for lane in server.lanes)


def rows_in_use(server: Server) -> int:
    """Rows that hold a state."""
    return sum(lane.streams.rows.in_use for lane in server.lanes)


def test_many_streams_at_once_each_get_the_bytes_they_get_alone(server: Server) -> None:
    """200 streams over several connections, chunked at random and begun at different moments: not one byte differs."""
    lengths = np.random.default_rng(0).integers(1, 120, 200)

    def one(index: int) -> list[bytes]:
        random = np.random.default_rng(1000 + index)
        x = vectors(int(lengths[index]), index)
        with StreamCall(channels[index % len(channels)]) as stream:
            stream.open("vectors")
            answers: list[bytes] = []
            for chunk in cut(x, iter(lambda: int(random.integers(1, 20)), 0)):
                answers += stream.run(chunk)
            return answers

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(server.address, options) for _ in range(8)]
    try:
        with ThreadPoolExecutor(32) as pool:
            together = list(pool.map(one, range(200)))
        for index, answers in enumerate(together):
            assert answers == alone(channels[0], vectors(int(lengths[index]), index)), f"stream {index}"
    finally:
        for channel in channels:
            channel.close()
    wait_until(lambda: live(server) == 0)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=12),
    pipelined=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_chunking_does_not_change_a_byte(channel: grpc.Channel, sizes: list[int], pipelined: bool, seed: int) -> None:
    """However the steps are cut, and whether answers are awaited or not, the bytes are those of single steps."""
    x = vectors(sum(sizes), seed)
    with StreamCall(channel) as stream:
        stream.open("vectors")
        chunks = list(cut(x, iter(sizes)))
        if pipelined:
            for chunk in chunks:
                stream.push(chunk)
            chunked = stream.pull(len(x))
        else:
            chunked = [answer for chunk in chunks for answer in stream.run(chunk)]
    assert chunked == alone(channel, x)


BAD: dict[str, tuple[list[Any], grpc.StatusCode, str, str]] = {}


def bad(name: str, messages: list[Any], code: grpc.StatusCode, reason: str, text: str) -> None:
    """Add a row to the table of wrong inputs: what is sent after Open, and what must come back."""
    BAD[name] = (messages, code, reason, text)


def chunk(first_step: int, steps: int, *inputs: bytes) -> pb.StreamRequest:
    """A chunk as it is said, right or wrong."""
    return pb.StreamRequest(chunk=pb.Chunk(first_step=first_step, steps=steps, inputs=list(inputs)))


_STEP = bytes(4 * F)
_INVALID, _EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
_NAN = np.array([0, 0, np.nan, 0, 0], np.float32).tobytes()
_INF = np.array([0, 0, 0, 0, -np.inf], np.float32).tobytes()
bad("nan", [chunk(1, 1, _NAN)], _INVALID, "invalid_input", "holds nan in the step numbered 1, element 2")
bad("inf", [chunk(1, 2, _STEP + _INF)], _INVALID, "invalid_input", "holds -inf in the step numbered 2, element 4")
bad("float64", [chunk(1, 1, bytes(8 * F))], _INVALID, "invalid_input", "has 40 bytes; 1 steps of float32[5] are 20")
bad("too short", [chunk(1, 2, _STEP)], _INVALID, "invalid_input", "has 20 bytes; 2 steps")
bad("not a multiple", [chunk(1, 1, bytes(19))], _INVALID, "invalid_input", "19 bytes")
bad("no tensor", [chunk(1, 1)], _INVALID, "invalid_input", "0 input tensors; the model takes 1 (x)")
bad("two tensors", [chunk(1, 1, _STEP, _STEP)], _INVALID, "invalid_input", "2 input tensors")
bad("no steps", [chunk(1, 0, b"")], _INVALID, "invalid_input", "0 steps")
bad("many steps", [chunk(1, 101, bytes(101 * 4 * F))], _EXHAUSTED, "message_too_large", "101 steps; the limit is 100")
bad("big message", [bytes(100_001)], _EXHAUSTED, "message_too_large", "100001 bytes; the limit is 100000 bytes")
bad("malformed", [b"\xff\xff\xff\xff"], _INVALID, "invalid_input", "isn't a cellstream.v1.StreamRequest")
bad("empty", [b""], _INVALID, "invalid_input", "neither Open nor Chunk")
bad("gap", [chunk(3, 1, _STEP)], _PRECONDITION, "step_gap", "first_step is 3; the stream's next step is 1")
bad("step 0", [chunk(0, 1, _STEP)], _PRECONDITION, "step_gap", "numbered from 1")
bad("huge step", [chunk(2**64 - 1, 1, _STEP)], _PRECONDITION, "step_gap", "18446744073709551615")
bad("second open", [pb.StreamRequest(open=pb.Open(model="vectors"))], _PRECONDITION, "wrong_phase", "second Open")


@pytest.mark.parametrize("name", BAD)
def test_wrong_input_is_answered_and_harms_nobody(server: Server, channel: grpc.Channel, name: str) -> None:
    """Each mistake has its code, reason and text; a neighbour on the same connection gets the bytes it gets alone."""
    messages, code, reason, text = BAD[name]
    x = vectors(20, 7)
    expected = alone(channel, x)
    before = server.front.stats.refusals[reason]
    with StreamCall(channel) as neighbour, StreamCall(channel) as culprit:
        neighbour.open("vectors")
        answers = neighbour.run(x[:10])
        culprit.open("vectors")
        for message in messages:
            culprit.send(message)
        answers += neighbour.run(x[10:])
        got_code, got_text, got_reason = culprit.end()
    assert (got_code, got_reason) == (code, reason)
    assert text in got_text
    assert answers == expected
    assert server.front.stats.refusals[reason] == before + 1


def test_tokens_outside_the_vocabulary_are_refused(channel: grpc.Channel) -> None:
    """An embedding's bounds are checked at the edge, where a mistake is one client's own."""
    for token, rule in ((11, "the largest value is 10"), (-1, "the smallest value is 0")):
        for tokens in ([0, token], [token]):
            with StreamCall(channel) as stream:
                stream.open("tokens")
                stream.push(np.array(tokens))
                code, details, _ = stream.end()
                assert code is _INVALID
                assert f"holds {token} in the step numbered {len(tokens)}, element 0; {rule}" in details


def test_a_step_sent_again_is_not_computed_again(channel: grpc.Channel) -> None:
    """A client that isn't sure repeats itself: overlapping steps are dropped, and the state advances once."""
    x = vectors(10, 3)
    expected = alone(channel, x)
    with StreamCall(channel) as stream:
        stream.open("vectors")
        answers = stream.run(x[:6])
        stream.sent = 3
        stream.push(x[3:10])
        assert answers + stream.pull(4) == expected


@pytest.mark.parametrize(
    ("opening", "code", "reason", "text"),
    [
        (pb.Open(model="nobody"), grpc.StatusCode.NOT_FOUND, "unknown_model", "no model 'nobody'; served: tokens/1"),
        (pb.Open(model="vectors", version=7), grpc.StatusCode.NOT_FOUND, "unknown_model", "'vectors' version 7"),
        (pb.Open(), grpc.StatusCode.NOT_FOUND, "unknown_model", "no model ''"),
        (pb.Open(model="vectors", resume_token=b"?"), _PRECONDITION, "state_lost", "can be resumed"),
        (pb.Open(model="vectors", stream_id="x" * 300), _EXHAUSTED, "message_too_large", "300 characters"),
    ],
)
def test_an_open_that_can_not_be_had(
    channel: grpc.Channel, opening: pb.Open, code: grpc.StatusCode, reason: str, text: str
) -> None:
    """A stream that can't be opened says why."""
    with StreamCall(channel) as stream:
        stream.send(pb.StreamRequest(open=opening))
        got_code, details, got_reason = stream.end()
    assert (got_code, got_reason) == (code, reason)
    assert text in details


def test_a_chunk_before_open_and_a_call_without_open(channel: grpc.Channel) -> None:
    """A stream begins with Open, whatever else comes first, or nothing."""
    with StreamCall(channel) as stream:
        stream.push(vectors(1, 0))
        assert stream.end()[::2] == (_PRECONDITION, "wrong_phase")
    with StreamCall(channel) as stream:
        stream.half_close()
        assert stream.end()[::2] == (_PRECONDITION, "wrong_phase")


def test_half_close_answers_everything_first(channel: grpc.Channel) -> None:
    """Steps sent just before the half-close are computed and answered, then the call ends with OK."""
    x = vectors(150, 5)
    with StreamCall(channel) as stream:
        stream.open("vectors")
        stream.push(x[:100])
        stream.push(x[100:])
        stream.half_close()
        assert stream.pull(150) == alone(channel, x)
        assert stream.end()[0] is grpc.StatusCode.OK


def test_whatever_way_a_client_leaves_its_row_is_free_again(server: Server) -> None:
    """Cancel, deadline, a closed connection and a half-close: in each case nothing of the stream is left."""
    connection = grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
    for leave in ("cancel", "deadline", "half-close", "disconnect"):
        stream = StreamCall(connection, timeout=0.3 if leave == "deadline" else SECONDS)
        stream.open("vectors")
        stream.run(vectors(3, 0))
        assert live(server) >= 1
        match leave:
            case "cancel":
                stream.call.cancel()
            case "half-close":
                stream.half_close()
            case "deadline":
                assert stream.end()[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            case "disconnect":
                connection.close()
        wait_until(lambda: live(server) == 0 and rows_in_use(server) == 0)


def test_chaos_around_good_streams(server: Server) -> None:
    """Clients cancel, vanish, half-close and send rubbish by the dozen: good streams get the bytes they get alone."""
    names = list(BAD)

    def good(seed: int) -> bool:
        dice = np.random.default_rng(seed)
        x = vectors(int(dice.integers(50, 150)), seed)
        with StreamCall(shared) as stream:
            stream.open("vectors")
            answers: list[bytes] = []
            for piece in cut(x, iter(lambda: int(dice.integers(1, 9)), 0)):
                answers += stream.run(piece)
        return answers == expected[seed]

    def chaotic(seed: int) -> bool:
        dice = np.random.default_rng(seed)
        own = grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
        stream = StreamCall(own if dice.random() < 0.5 else shared)
        stream.open("vectors")
        stream.push(vectors(int(dice.integers(1, 100)), seed))
        match int(dice.integers(4)):
            case 0:
                stream.call.cancel()
            case 1:
                stream.half_close()
            case 2:
                for message in BAD[names[int(dice.integers(len(names)))]][0]:
                    stream.send(message)
                stream.half_close()
                stream.end()
            case 3:
                stream.receive()
        own.close()
        stream.call.cancel()
        return True

    with (
        grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as shared,
        ThreadPoolExecutor(32) as pool,
    ):
        lengths = {seed: int(np.random.default_rng(seed).integers(50, 150)) for seed in range(40)}
        expected = {seed: alone(shared, vectors(steps, seed)) for seed, steps in lengths.items()}
        jobs = [
            pool.submit(good if seed % 5 == 0 else chaotic, seed // 5 if seed % 5 == 0 else seed) for seed in range(200)
        ]
        assert all(job.result(60.0) for job in jobs)
    wait_until(lambda: live(server) == 0 and rows_in_use(server) == 0 and server._wire.live == 0)
    for lane in server.lanes:
        lane.streams.check()


def test_the_limit_on_streams(artifacts: Path) -> None:
    """The stream past the limit is refused at once, naming the limit; a place freed can be had."""
    running = Server(ServerConfig(artifacts, "127.0.0.1:0", grace=0.0, limits=Limits(max_streams=2)))
    running.start()
    try:
        with grpc.insecure_channel(running.address) as connection, StreamCall(connection) as first:
            first.open("vectors")
            second = StreamCall(connection)
            second.open("vectors")
            with StreamCall(connection) as third:
                third.send(pb.StreamRequest(open=pb.Open(model="vectors")))
                assert third.end() == (_EXHAUSTED, "2 streams are open; the limit is 2", "stream_limit")
            second.call.cancel()
            wait_until(lambda: live(running) == 1)
            with StreamCall(connection) as fourth:
                fourth.open("vectors")
                assert len(fourth.run(vectors(1, 0))) == 1
    finally:
        assert running.drain()


def test_the_limit_on_waiting_steps(artifacts: Path) -> None:
    """When too much waits, a chunk is refused at once and names value and limit; others go on."""
    limits = Limits(max_waiting_steps=60)
    running = Server(ServerConfig(artifacts, "127.0.0.1:0", grace=0.0, limits=limits))
    running.start()
    try:
        with grpc.insecure_channel(running.address) as connection, StreamCall(connection) as stream:
            stream.open("vectors")
            with StreamCall(connection) as greedy:
                greedy.open("vectors")
                greedy.push(vectors(61, 0))
                code, details, reason = greedy.end()
            assert (code, reason) == (_EXHAUSTED, "waiting_steps_limit")
            assert "61 more would pass the limit of 60" in details
            assert len(stream.run(vectors(60, 0))) == 60
    finally:
        assert running.drain()


def test_a_client_that_does_not_read_is_held_and_nobody_else(server: Server, channel: grpc.Channel) -> None:
    """It is computed no further than its outbox; a neighbour is answered; reading again, it gets every step."""
    steps, size = 60_000, 100
    x = vectors(steps, 9)
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as own:
        slow = StreamCall(own, timeout=60.0)
        slow.open("wide")
        for piece in cut(x, iter(lambda: size, 0)):
            slow.push(piece)
        wide = server.lanes.find("wide", 0)
        last = -1

        def stands_still() -> bool:
            nonlocal last
            before, last = last, wide.stats.steps
            return before == last

        wait_until(stands_still, every=0.2)
        assert wide.stats.steps < steps, "it was all computed, so nothing was shown"
        assert wide.streams.batcher.waiting_steps <= LIMITS.window_steps + size
        assert len(alone(channel, vectors(50, 1))) == 50
        assert len(slow.pull(steps)) == steps
        slow.call.cancel()
    wait_until(lambda: live(server) == 0)


def test_several_models_and_versions_in_one_server(channel: grpc.Channel) -> None:
    """Each name and version is its own model, with its own weights; version 0 is the highest."""
    x = vectors(4, 1)
    answers = {}
    for version in (1, 2, 0):
        with StreamCall(channel) as stream:
            opened = stream.open("vectors", version)
            assert opened.version == (version or 2)
            assert (opened.next_step, opened.resume_token) == (1, b"")
            answers[version] = stream.run(x)
    assert answers[0] == answers[2] != answers[1]


def test_list_models_and_get_model(channel: grpc.Channel) -> None:
    """A client learns the tensors, limits and proof of a model from the server itself."""
    listed = channel.unary_unary(
        f"{SERVICE}/ListModels", pb.ListModelsRequest.SerializeToString, pb.ListModelsResponse.FromString
    )(pb.ListModelsRequest(), timeout=SECONDS)
    names = [(model.name, model.version, model.ready) for model in listed.models]
    assert names == [("tokens", 1, True), ("vectors", 1, True), ("vectors", 2, True), ("wide", 1, True)]
    get: Any = channel.unary_unary(
        f"{SERVICE}/GetModel", pb.GetModelRequest.SerializeToString, pb.GetModelResponse.FromString
    )
    model = get(pb.GetModelRequest(model="tokens"), timeout=SECONDS)
    assert [(t.name, t.dtype, list(t.shape), t.minimum, t.maximum) for t in model.inputs] == [("x", "int64", [], 0, 10)]
    assert [(s.input, s.output) for s in model.states] == [("h", "h_out"), ("c", "c_out")]
    assert json.loads(model.certificate_json)["passed"] is True
    assert model.limits.max_steps_per_message == LIMITS.max_steps_per_message
    with pytest.raises(grpc.RpcError) as error:
        get(pb.GetModelRequest(model="nobody"), timeout=SECONDS)
    refused: Any = error.value
    assert refused.code() is grpc.StatusCode.NOT_FOUND
    assert dict(refused.trailing_metadata())["cellstream-reason"] == "unknown_model"
    with pytest.raises(grpc.RpcError, match="a model of 1000 characters; the limit is 256"):
        get(pb.GetModelRequest(model="x" * 1000), timeout=SECONDS)


def health_of(channel: grpc.Channel, service: str) -> int:
    """What health says."""
    stub = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS).status)


def test_opened_says_which_model_runs(channel: grpc.Channel) -> None:
    """Opened names the model's description; it carries it for a client that asks and has another one, or none."""
    described = channel.unary_unary(
        f"{SERVICE}/GetModel", pb.GetModelRequest.SerializeToString, pb.GetModelResponse.FromString
    )(pb.GetModelRequest(model="tokens"))
    bare = pb.GetModelResponse.FromString(described.SerializeToString())
    bare.ClearField("digest")
    bare.ClearField("ready")
    assert described.digest == hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, False),  # a client that doesn't ask
        ({"known_digest": b""}, True),
        ({"known_digest": b"another"}, True),
        ({"known_digest": described.digest}, False),
    ]
    for fields, carried in cases:
        with StreamCall(channel) as stream:
            opened = stream.open("tokens", **fields)
            assert opened.model_digest == described.digest
            assert opened.HasField("description") == carried
            if carried:
                assert opened.description == described


def test_health_per_model_and_reflection(channel: grpc.Channel) -> None:
    """Health answers for the server, the service and every model; reflection lists the services."""
    for name in ("", "cellstream.v1.StreamInference", "vectors", "vectors/1", "tokens/1"):
        assert health_of(channel, name) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        health_of(channel, "nobody")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=SECONDS
    )
    services = {service.name for service in answer.list_services_response.service}
    assert {"cellstream.v1.StreamInference", "grpc.health.v1.Health"} <= services


def test_idle_reflection_calls_do_not_take_the_threads_of_health(channel: grpc.Channel) -> None:
    """However many stay open and silent, health and GetModel answer; those past the limit are refused."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    released = threading.Event()

    def silent() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        released.wait(SECONDS)

    calls: list[Any] = [stub.ServerReflectionInfo(silent(), timeout=SECONDS) for _ in range(12)]
    answered, refused = [], []
    for call in calls:
        try:
            answered.append(next(call))
        except grpc.RpcError as error:
            refused.append(error)
    assert len(answered) == 8
    assert all("the limit is 8" in str(error) for error in refused)
    assert health_of(channel, "vectors") == health_pb2.HealthCheckResponse.SERVING
    released.set()
    for call in calls:
        call.cancel()


def test_watching_health_tells_changes_only(fragile: Server) -> None:
    """A watcher hears the state at once, then of changes, however often the server looks at itself."""
    lane = fragile.lanes.find("tokens", 1)
    status = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(fragile.address) as connection:
        stub = health_pb2_grpc.HealthStub(connection)
        watch: Any = stub.Watch(health_pb2.HealthCheckRequest(service="tokens"), timeout=SECONDS)
        assert next(watch).status == status.SERVING
        for _ in range(5):
            fragile.look()
        lane.ready = False
        fragile.look()
        assert next(watch).status == status.NOT_SERVING
        lane.ready = True
        fragile.look()
        assert next(watch).status == status.SERVING
        watch.cancel()


def test_metrics(server: Server, channel: grpc.Channel) -> None:
    """A scrape shows live streams, rows, state bytes, histograms and refusals by reason."""
    with StreamCall(channel) as stream:
        stream.open("tokens")
        stream.run(np.array([1, 2, 3]))
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=SECONDS) as response:
            text = response.read().decode()
    lane = server.lanes.find("tokens", 1)
    labels = '{model="tokens",version="1"}'
    assert f"cellstream_live_streams{labels} 1.0" in text
    assert f"cellstream_rows_in_use{labels} 1.0" in text
    assert f"cellstream_state_bytes{labels} {float(lane.engine.row_bytes)}" in text
    assert f"cellstream_steps_total{labels}" in text
    for histogram in ("batch_streams", "queue_seconds", "compute_seconds"):
        assert f'cellstream_{histogram}_bucket{{le="+Inf",model="tokens",version="1"}}' in text
    assert "cellstream_refusals_total" in text


class Faulty:
    """Stands before a real engine, and fails when told to."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.fail_next = 0
        self.broken = False
        self.raises: type[Exception] = EngineError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, *arguments: Any) -> Any:
        if self.fail_next or self.broken:
            self.fail_next = max(0, self.fail_next - 1)
            raise self.raises("told to")
        return self._engine.run(*arguments)

    def probe(self, *arguments: Any, **options: Any) -> None:
        if self.broken:
            raise EngineError("told to")
        self._engine.probe(*arguments, **options)


def test_an_engine_that_fails_once_costs_nobody_a_byte(fragile: Server) -> None:
    """The run is made again: the stream goes on with the same bytes."""
    lane = fragile.lanes.find("vectors", 2)
    with grpc.insecure_channel(fragile.address) as connection, StreamCall(connection) as stream:
        x = vectors(20, 1)
        expected = alone(connection, x)
        stream.open("vectors")
        got = stream.run(x[:10])
        faulty = lane.engine = Faulty(lane.engine)
        faulty.fail_next = 1
        assert got + stream.run(x[10:]) == expected
    assert lane.stats.failed_runs == 1


def test_a_broken_engine_turns_health_and_tells_everybody(fragile: Server) -> None:
    """Every caller gets UNAVAILABLE at once, health says so for that model alone, and both recover with the engine."""
    lane = fragile.lanes.find("vectors", 2)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with grpc.insecure_channel(fragile.address) as connection:
        streams = [StreamCall(connection) for _ in range(5)]
        for stream in streams:
            stream.open("vectors")
        bystander = StreamCall(connection)
        bystander.open("tokens")
        faulty = lane.engine = Faulty(lane.engine)
        faulty.broken = True
        streams[0].push(vectors(1, 0))
        for stream in streams:
            code, details, reason = stream.end()
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
            assert "'vectors' version 2" in details
        for name in ("vectors", "vectors/2", "", "cellstream.v1.StreamInference"):
            assert health_of(connection, name) == not_serving
        assert health_of(connection, "vectors/1") == serving
        assert health_of(connection, "tokens") == serving
        assert len(bystander.run(np.array([1, 2]))) == 2
        bystander.call.cancel()
        faulty.broken = False
        wait_until(lambda: health_of(connection, "vectors") == serving)
        assert len(alone(connection, vectors(3, 0))) == 3


def test_a_loop_that_dies_leaves_nobody_waiting(fragile: Server) -> None:
    """A bug of ours ends every call with UNAVAILABLE, new ones too, and health says NOT_SERVING; no trace leaks."""
    lane = fragile.lanes.find("vectors", 2)
    with grpc.insecure_channel(fragile.address) as connection:
        streams = [StreamCall(connection) for _ in range(3)]
        for stream in streams:
            stream.open("vectors")
        faulty = lane.engine = Faulty(lane.engine)
        faulty.raises, faulty.fail_next = ZeroDivisionError, 1
        streams[0].push(vectors(1, 0))
        late = StreamCall(connection)
        late.send(pb.StreamRequest(open=pb.Open(model="tokens")))
        for stream in [*streams, late]:
            code, details, _ = stream.end()
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "ZeroDivision" not in details
        assert health_of(connection, "") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not fragile.loop.alive
    fragile.health.update(working=True)  # as a look that was under way when it died would
    with grpc.insecure_channel(fragile.address) as connection:
        assert health_of(connection, "") == health_pb2.HealthCheckResponse.NOT_SERVING
