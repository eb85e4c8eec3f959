"""Which model a stream runs: what its own server says, whatever was known under the name before."""

from __future__ import annotations

import asyncio

import pytest

import cellstream
from cellstream.aio import connect as connect_aio
from cellstream.v1 import stream_inference_pb2 as pb
from tests.cellstream.fake_server import FakeServer


def _tensors(*names: str, dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> list[pb.Tensor]:
    return [pb.Tensor(name=name, dtype=dtype, shape=shape) for name in names]


def _redeploy(server: FakeServer, outputs: list[pb.Tensor], inputs: list[pb.Tensor] | None = None) -> None:
    """Another `pair` under the same name and version: the sums of its two inputs under other names."""
    server.models["pair", 1] = (inputs or _tensors("a", "n")), outputs


BOTH = {"a": [1.0, 2.0], "n": [30.0, 40.0]}


def test_a_redeployed_model_keeps_its_outputs_names(server: FakeServer, client: cellstream.Client) -> None:
    """The same name and version with outputs in another order: each value under the name that its server gives it."""
    _redeploy(server, _tensors("alarm", "score"))
    with client.stream("pair") as stream:
        before = stream.model
        assert stream.step(BOTH)["alarm"].tolist() == [1.0, 2.0]
    _redeploy(server, _tensors("score", "alarm"))
    with client.stream("pair") as stream:
        assert stream.step(BOTH)["score"].tolist() == [1.0, 2.0]
        assert stream.model.digest != before.digest
        assert [tensor.name for tensor in stream.model.outputs] == ["score", "alarm"]
    assert server.model_requests == 0


def test_a_redeployed_model_takes_its_own_inputs(server: FakeServer, client: cellstream.Client) -> None:
    """Another dtype and shape are taken and refused as the new model says."""
    _redeploy(server, _tensors("x"), _tensors("x"))
    with client.stream("pair") as stream:
        assert stream.step([1.0, 2.0]).tolist() == [1.0, 2.0]
    _redeploy(server, _tensors("x", dtype="int32", shape=(3,)), _tensors("x", dtype="int32", shape=(3,)))
    with client.stream("pair") as stream:
        assert stream.step([1, 2, 3]).tolist() == [1, 2, 3]
        with pytest.raises(cellstream.InvalidInput):
            stream.step([1.5, 2.5, 3.5])


def test_the_description_is_sent_when_it_changes_only(server: FakeServer, client: cellstream.Client) -> None:
    """Two servers of different content behind one address: each stream has its own server's tensors."""
    for names, descriptions in ((("p", "q"), 1), (("q", "p"), 2), (("q", "p"), 2), (("p", "q"), 3)):
        _redeploy(server, _tensors(*names))
        with client.stream("pair") as stream:
            assert tuple(tensor.name for tensor in stream.model.outputs) == names
            assert stream.step(BOTH)[names[0]].tolist() == [1.0, 2.0]
        assert server.descriptions == descriptions


def test_an_older_server_is_refused(server: FakeServer, client: cellstream.Client) -> None:
    """A server that doesn't say what it opened isn't believed to run what was asked for elsewhere."""
    server.behaviour.describes = False
    with pytest.raises(cellstream.ProtocolError, match="update the server"):
        client.stream("sum")


def test_a_multiplexed_call_runs_what_its_first_stream_opened(server: FakeServer, client: cellstream.Client) -> None:
    """A model replaced between the call's making and its first stream: the stream's own server is believed."""
    _redeploy(server, _tensors("alarm", "score"))
    with client.multiplex("pair") as m:
        _redeploy(server, _tensors("score", "alarm"))
        m.open(1, 2)
        assert [tensor.name for tensor in m.model.outputs] == ["score", "alarm"]
        assert m.step({1: BOTH, 2: BOTH})[2]["score"].tolist() == [1.0, 2.0]


def test_a_multiplexed_call_refuses_a_second_model(server: FakeServer, client: cellstream.Client) -> None:
    """A model replaced during a call: its streams go on with theirs, and a new key is told."""
    _redeploy(server, _tensors("alarm", "score"))
    with client.multiplex("pair") as m:
        m.open(1)
        _redeploy(server, _tensors("score", "alarm"))
        with pytest.raises(cellstream.ModelChanged, match=r"replaced model 'pair' version 1 .*open a new"):
            m.open(2)
        assert m.keys == (1,)
        assert m.step({1: BOTH})[1]["alarm"].tolist() == [1.0, 2.0]
    with client.multiplex("pair") as m:
        m.open(2)
        assert m.step({2: BOTH})[2]["score"].tolist() == [1.0, 2.0]


def test_what_was_encoded_for_another_model_is_not_sent(server: FakeServer, client: cellstream.Client) -> None:
    """Steps that another thread encoded before the first stream was opened never reach a model of other tensors."""
    _redeploy(server, _tensors("y"), _tensors("x"))
    with client.multiplex("pair") as m:
        request = m._core.signature.encode([1.0, 2.0])
        _redeploy(server, _tensors("y", dtype="int32"), _tensors("x", dtype="int32"))
        m.open(1)
        with pytest.raises(cellstream.ModelChanged):
            m._core.push((1,), [1], request)
        assert m.step({1: [1, 2]})[1].tolist() == [1, 2]


def test_asyncio_believes_the_streams_server_too(server: FakeServer) -> None:
    """The same for asyncio: streams and multiplexed calls."""

    async def body() -> None:
        _redeploy(server, _tensors("alarm", "score"))
        async with connect_aio(server.address) as client:
            async with client.stream("pair") as stream, client.multiplex("pair") as m:
                assert (await stream.step(BOTH))["alarm"].tolist() == [1.0, 2.0]
                await m.open(1)
                _redeploy(server, _tensors("score", "alarm"))
                with pytest.raises(cellstream.ModelChanged):
                    await m.open(2)
            async with client.stream("pair") as stream:
                assert (await stream.step(BOTH))["score"].tolist() == [1.0, 2.0]

    asyncio.run(body())
