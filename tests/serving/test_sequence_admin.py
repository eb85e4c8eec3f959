"""The operator's hand on sequences, over a real port: what is listed, what is evicted, and who is told what."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cellstream.errors import InvalidInput, UnknownModel
from cellstream.sequences import evict_sequences, list_sequences, main
from serving.config import ServerConfig
from serving.oip.infer_service import INFER
from serving.oip.v1 import inference_pb2 as pb
from serving.server import Server
from tests.serving.client import SECONDS
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[Server]:
    """A server of the small models."""
    running = Server(ServerConfig(artifacts, "127.0.0.1:0", metrics_listen="127.0.0.1:0", grace=0.2))
    running.start()
    yield running
    assert running.drain()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A connection, and no sequence before or after the test."""
    with grpc.insecure_channel(server.address) as connection:
        yield connection
        for model in ("vectors", "tokens"):
            keys = [one.key for one in list_sequences(connection, model)[0]]
            if keys:
                evict_sequences(connection, model, keys=keys)


def step(
    channel: grpc.Channel, key: int | str, *, start: bool = False, model: str = "vectors", idle: float = 0.0
) -> None:
    """One step of a sequence."""
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1, 5])
    request.raw_input_contents.append(bytes(20))
    if isinstance(key, int):
        request.parameters["sequence_id"].int64_param = key
    else:
        request.parameters["sequence_id"].string_param = key
    request.parameters["sequence_start"].bool_param = start
    request.parameters["cellstream_idle_seconds"].double_param = idle
    channel.unary_unary(INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)(
        request, timeout=SECONDS
    )


def test_live_sequences_are_listed_longest_idle_first(channel: grpc.Channel) -> None:
    """Ids as they were given, steps as they were computed, and no more than asked for."""
    for key in (7, "7", "user"):
        step(channel, key, start=True)
    step(channel, 7)
    found, live = list_sequences(channel, "vectors")
    assert live == 3
    assert [(one.key, one.steps, one.waiting_steps, one.attended) for one in found] == [
        ("7", 1, 0, False), ("user", 1, 0, False), (7, 2, 0, False),
    ]  # fmt: skip
    assert [one.key for one in list_sequences(channel, "vectors", limit=1)[0]] == ["7"]
    assert list_sequences(channel, "vectors", min_idle_seconds=3600) == ([], 3)


def test_an_evicted_sequence_says_so_and_the_others_go_on(channel: grpc.Channel) -> None:
    """Only what was named and live is evicted; its next request is told why, and may begin anew."""
    for key in (1, 2):
        step(channel, key, start=True)
    assert evict_sequences(channel, "vectors", keys=[1, 9, "2"]) == [1]
    step(channel, 2)
    with pytest.raises(grpc.RpcError, match=r"START flag.*evicted by the operator") as caught:
        step(channel, 1)
    error: Any = caught.value
    assert dict(error.trailing_metadata())["cellstream-reason"] == "sequence_evicted"
    step(channel, 1, start=True)


def test_all_that_are_idle_are_evicted_at_once(channel: grpc.Channel) -> None:
    """By the time since their latest request; a request that says nothing evicts nothing."""
    for key in range(1, 21):
        step(channel, key, start=True)
    with pytest.raises(InvalidInput, match="nothing says which"):
        evict_sequences(channel, "vectors")
    assert evict_sequences(channel, "vectors", min_idle_seconds=3600) == []
    with pytest.raises(InvalidInput, match="give ids or min_idle_seconds, not both"):
        evict_sequences(channel, "vectors", keys=[1], min_idle_seconds=3600)  # 1 isn't idle, and was evicted
    assert len(list_sequences(channel, "vectors", limit=1 << 40)[0]) == 20
    assert set(evict_sequences(channel, "vectors", min_idle_seconds=1e-9)) == set(range(1, 21))
    assert list_sequences(channel, "vectors") == ([], 0)


def test_what_becomes_of_sequences_is_measured(server: Server, channel: grpc.Channel) -> None:
    """Starts, restarts, expiries, evictions, answers and refusals, by model."""

    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=SECONDS) as response:
            lines = response.read().decode().splitlines()
        label = '{model="wide",version="1"}'
        return {name: float(value) for name, _, value in (line.partition(label) for line in lines) if value}

    before = metrics()
    step(channel, 1, start=True, model="wide", idle=0.01)
    for _ in range(2):
        step(channel, 2, start=True, model="wide")
    assert evict_sequences(channel, "wide", keys=[2]) == [2]
    with pytest.raises(grpc.RpcError):
        step(channel, 2, model="wide")
    wait_until(lambda: metrics()["cellstream_sequences_expired_total"] == 1)
    step(channel, 3, start=True, model="wide")
    after = metrics()
    assert {name: after[name] - before[name] for name in after if "sequences_" in name or "requests_" in name} == {
        "cellstream_sequences_started_total": 4,
        "cellstream_sequences_restarted_total": 1,
        "cellstream_sequences_expired_total": 1,
        "cellstream_sequences_displaced_total": 0,
        "cellstream_sequences_evicted_total": 1,
        "cellstream_requests_answered_total": 4,
        "cellstream_requests_refused_total": 1,
    }


def test_live_sequences_and_their_bytes_are_measured(server: Server, channel: grpc.Channel) -> None:
    """A row for each live sequence that has taken a step."""
    for key in (1, 2):
        step(channel, key, start=True)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=SECONDS) as response:
        text = response.read().decode()
    label = '{model="vectors",version="2"}'
    assert f"cellstream_live_sequences{label} 2.0" in text
    assert f"cellstream_state_bytes{label} {2 * 2 * 2 * 7 * 4}.0" in text  # streams, h and c, layers, units, bytes


def test_an_unknown_model_has_no_sequences(channel: grpc.Channel) -> None:
    """Both calls say which models there are."""
    with pytest.raises(UnknownModel, match="nobody"):
        list_sequences(channel, "nobody")
    with pytest.raises(UnknownModel, match="nobody"):
        evict_sequences(channel, "nobody", keys=[1])


def test_the_command_line_lists_and_evicts(
    server: Server, channel: grpc.Channel, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table, what was evicted, what wasn't live, and one line where it can't be done."""
    step(channel, 41, start=True)
    step(channel, "user", start=True)
    address = ["--address", server.address]
    assert main([*address, "list", "vectors"]) == 0
    listed = capsys.readouterr().out
    assert "\n41 " in listed
    assert "\n'user' " in listed
    assert listed.endswith("2 of 2 live sequences\n")
    assert main([*address, "evict", "vectors", "--id", "41", "--text-id", "41"]) == 0
    assert capsys.readouterr().out.endswith("evicted 1; not live: '41'\n")
    assert main([*address, "evict", "nobody", "--id", "41"]) == 1
    assert capsys.readouterr().err.startswith("no model 'nobody'")
