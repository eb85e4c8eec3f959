"""Clients that send too little or too much: health answers, and each refusal names its limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellstream.v1 import stream_inference_pb2 as pb
from serving import server as server_module
from serving import unary
from serving.config import Limits, ServerConfig
from serving.server import Server
from tests.serving.client import SECONDS, SERVICE, StreamCall
from tests.serving.http2 import Connection
from tests.serving.test_server import health_of, vectors
from tests.waiting import wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
OWN = (("grpc.use_local_subchannel_pool", 1),)
LIST = f"{SERVICE}/ListModels"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LIMITS = Limits(max_silent_calls=40, max_silent_calls_per_connection=30)


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[Server]:
    """One server for the tests, which leave it as it was."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(unary, "REQUEST_SECONDS", 2.0)
        patched.setattr(server_module, "REQUEST_SECONDS", 2.0)
        running = Server(ServerConfig(artifacts, "127.0.0.1:0", grace=0.2, limits=LIMITS))
        running.start()
        yield running
        assert running.drain()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A connection of the test's own."""
    with grpc.insecure_channel(server.address, OWN) as connection:
        yield connection


@pytest.fixture
def bare(server: Server) -> Iterator[Connection]:
    """A connection on which nothing is done by itself."""
    with Connection(server.address) as connection:
        yield connection


@pytest.mark.parametrize("path", [LIST, CHECK, WATCH, "/inference.GRPCInferenceService/ServerReady", REFLECT])
def test_calls_that_send_nothing_starve_nobody(
    server: Server, channel: grpc.Channel, bare: Connection, path: str
) -> None:
    """A hundred of them, of any method: health, watchers and streams are answered at once; they end by themselves."""
    calls = [bare.begin(path) for _ in range(100)]
    assert health_of(channel, "vectors") == SERVING
    watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert next(watch).status == SERVING
    watch.cancel()
    with StreamCall(channel) as stream:
        stream.open("vectors")
        assert len(stream.run(vectors(2, 0))) == 2
    if path != REFLECT:  # which has a minute
        for call in calls:
            told = bare.until_ended(call)
            assert (told["grpc-status"], told["cellstream-reason"]) == ("4", "nothing_sent")
            assert "has sent no message for 2 s" in told["grpc-message"]


def test_a_message_that_is_never_whole_counts_as_none(bare: Connection, channel: grpc.Channel) -> None:
    """Half a request holds no thread, and is ended like none."""
    call = bare.begin(LIST)
    bare.send(call, b"\x01\x02", size=1000)
    assert health_of(channel, "") == SERVING
    assert bare.until_ended(call)["cellstream-reason"] == "nothing_sent"


def test_too_many_silent_calls(server: Server) -> None:
    """The 31st of a connection and the 41st of all are refused; those that were there, and other calls, go on."""
    wait_until(lambda: not any(map(len, server.front.stats.gates)))
    with ExitStack() as stack:
        first, second = (stack.enter_context(Connection(server.address)) for _ in range(2))
        channel = stack.enter_context(grpc.insecure_channel(server.address, OWN))
        spoken = stack.enter_context(StreamCall(channel))
        spoken.open("vectors")
        held = [first.begin(f"{SERVICE}/Stream") for _ in range(30)]
        told = first.until_ended(first.begin(f"{SERVICE}/Multiplex"))
        assert told["cellstream-reason"] == "calls_limit"
        assert told["grpc-message"] == "30 calls of this connection have sent nothing; the limit is 30"
        held += [second.begin("/inference.GRPCInferenceService/ModelStreamInfer") for _ in range(10)]
        wait_until(lambda: sum(map(len, server.front.stats.gates)) == 40)
        with StreamCall(channel) as late:
            assert late.end() == (EXHAUSTED, "40 calls that have sent nothing are open; the limit is 40", "calls_limit")
        assert len(spoken.run(vectors(2, 0))) == 2
        assert health_of(channel, "") == SERVING
        first.send(held[0], pb.StreamRequest(open=pb.Open(model="vectors")))
        wait_until(lambda: bool(held[0].messages))
        with StreamCall(channel) as late:
            late.open("vectors")
        assert not any(call.ended for call in held)
    wait_until(lambda: not any(map(len, server.front.stats.gates)))


def call_with(channel: grpc.Channel, path: str, metadata: Any) -> tuple[Any, str, str | None]:
    """How a call with this metadata and no message ends."""
    call: Any = channel.stream_stream(path)(iter(()), timeout=SECONDS, metadata=metadata)
    with suppress(grpc.RpcError):
        list(call)
    reason = dict(call.trailing_metadata() or ()).get("cellstream-reason")
    return call.code(), call.details(), reason


@pytest.mark.parametrize(
    "path", [f"{SERVICE}/Stream", LIST, WATCH, REFLECT, "/inference.GRPCInferenceService/ModelInfer"]
)
@pytest.mark.parametrize("size", [12_000, 16_000, 17_000, 60_000, 500_000])
def test_metadata_is_taken_or_refused_by_one_number(channel: grpc.Channel, path: str, size: int) -> None:
    """Of whichever service: up to 16 KiB it is taken, above it refused in our words, each time."""
    for _ in range(10):
        code, text, reason = call_with(channel, path, (("authorization", "x" * size),))
        assert (code is EXHAUSTED) is (size > 16_100), text
        if size > 16_100:
            assert reason == "metadata_too_large"
            assert "counting 32 for each field; the limit is 16384 bytes (the server's --max-metadata-bytes)" in text


def test_the_metadata_of_many_small_fields_counts(channel: grpc.Channel) -> None:
    """Each field has its 32 bytes: 400 tiny ones are too much."""
    code, _, reason = call_with(channel, LIST, tuple((f"k{number}", "v" * 10) for number in range(400)))
    assert (code, reason) == (EXHAUSTED, "metadata_too_large")


def test_an_admin_call_takes_one_request(bare: Connection) -> None:
    """None at all is told; what comes behind the first is too late to matter."""
    none = bare.begin(LIST)
    bare.half_close(none)
    told = bare.until_ended(none)
    assert (told["grpc-status"], told["grpc-message"]) == ("3", "the call ended without a request")
    wrong = bare.begin(f"{SERVICE}/GetModel")
    bare.send(wrong, b"\xff\xff\xff")
    assert bare.until_ended(wrong)["grpc-message"] == "the message isn't a cellstream.v1.GetModelRequest"


def test_an_answer_from_the_pool_leaves_at_once(channel: grpc.Channel) -> None:
    """A function that may wait runs elsewhere, and its answer doesn't wait for the thread's next look."""
    listed: Any = channel.unary_unary(LIST, pb.ListModelsRequest.SerializeToString, pb.ListModelsResponse.FromString)
    began = time.monotonic()
    for _ in range(20):
        assert listed(pb.ListModelsRequest(), timeout=SECONDS).models
    assert time.monotonic() - began < 20 * unary._POLL_SECONDS / 2


def test_a_watcher_of_what_health_does_not_know(channel: grpc.Channel) -> None:
    """It is told so, and stays, as the protocol says."""
    watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="no"), timeout=SECONDS)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert watch.is_active()
    watch.cancel()


def test_a_fault_of_ours_ends_one_call_and_tells_nothing_internal(
    server: Server, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INTERNAL without a trace; the next call is answered."""
    lane = server.lanes.find("tokens", 1)

    def broken(**_options: Any) -> None:
        raise ZeroDivisionError("told to")

    get: Any = channel.unary_unary(
        f"{SERVICE}/GetModel", pb.GetModelRequest.SerializeToString, pb.GetModelResponse.FromString
    )
    with monkeypatch.context() as patched:
        patched.setattr(type(lane.description), "message", lambda *_, **__: broken())
        with pytest.raises(grpc.RpcError) as told:
            get(pb.GetModelRequest(model="tokens"), timeout=SECONDS)
    error: Any = told.value
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "the server has an internal fault; its log says more",
    )
    assert get(pb.GetModelRequest(model="tokens"), timeout=SECONDS).name == "tokens"
