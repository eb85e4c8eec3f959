"""Models loaded and let go while the server runs: who is told, what health says, and that nothing else notices."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellstream.v1.stream_inference_pb2 import (
    MultiplexOpen,
    MultiplexRequest,
    MultiplexResponse,
    Open,
    StepRows,
    StreamRequest,
)
from serving.config import Batching, Limits, ServerConfig
from serving.engine import Engine
from serving.errors import ConfigError, UnknownModel
from serving.front import OPEN_INFERENCE
from serving.graph_files import GraphFiles
from serving.lane import Lane, Lanes
from serving.metrics import Scrape
from serving.models import load_all
from serving.oip.infer_service import STREAM_INFER
from serving.oip.v1 import inference_pb2 as pb
from serving.orders import Change
from serving.repository import Artifact, find_artifacts
from serving.server import Server
from tests.serving.client import SECONDS, RawCall, StreamCall
from tests.serving.oip.calls import parameter
from tests.waiting import wait_until

LIMITS = Limits(max_streams=20)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
X = np.arange(5, dtype=np.float32)


@pytest.fixture
def repository(artifacts: Path, tmp_path: Path) -> Path:
    """A repository of the test's own: vectors/1 and tokens/1."""
    for name in ("vectors", "tokens"):
        shutil.copytree(artifacts / name / "1", tmp_path / name / "1")
    return tmp_path


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    """A server that can be told what to serve."""
    config = ServerConfig(
        repository, "127.0.0.1:0", grace=0.2, limits=LIMITS, batching=Batching(4, 4), model_control=True
    )
    running = Server(config)
    running.start()
    yield running
    assert running.drain()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A connection to it."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as connection:
        yield connection


def ask(channel: grpc.Channel, name: str, request: Any, response: Any) -> Any:
    """One unary RPC of the protocol."""
    method: Any = channel.unary_unary(f"/{OPEN_INFERENCE}/{name}", None, response.FromString)
    return method(request.SerializeToString(), timeout=SECONDS)


def load(channel: grpc.Channel, name: str) -> None:
    """Have a model loaded."""
    ask(channel, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name), pb.RepositoryModelLoadResponse)


def unload(channel: grpc.Channel, name: str) -> None:
    """Have a model let go."""
    request = pb.RepositoryModelUnloadRequest(model_name=name)
    ask(channel, "RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse)


def index(channel: grpc.Channel) -> dict[str, str]:
    """The state of everything in the repository."""
    found = ask(channel, "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
    return {f"{model.name}/{model.version}": model.state for model in found.models}


def health(channel: grpc.Channel, name: str) -> Any:
    """What health says of a name."""
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name)).status


def step(key: str, *, start: bool = False, version: str = "") -> pb.ModelInferRequest:
    """A step of "vectors" by the Open Inference Protocol."""
    request = pb.ModelInferRequest(model_name="vectors", model_version=version)
    parameter(request, "sequence_id", key)
    if start:
        parameter(request, "sequence_start", True)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 5])
    request.raw_input_contents.append(X.tobytes())
    return request


class SequenceCall(RawCall):
    """One ModelStreamInfer call."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(channel, STREAM_INFER, pb.ModelStreamInferResponse)

    def ask(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        """Send one and wait for its answer."""
        self.send(request)
        answer: pb.ModelStreamInferResponse = self.receive()
        return answer


def test_a_model_that_is_let_go_tells_its_clients_and_can_come_back(server: Server, channel: grpc.Channel) -> None:
    """Streams of both protocols end or are told, health follows, other models go on, and nobody's state comes back."""
    with StreamCall(channel) as lost, StreamCall(channel) as kept, SequenceCall(channel) as sequences:
        lost.open("vectors")
        first = lost.run(X[None])
        kept.open("tokens")
        tokens = kept.run(np.array([1]))
        begun = sequences.ask(step("a", start=True))
        assert begun.infer_response.raw_output_contents[0] == first[0]
        second = sequences.ask(step("a")).infer_response.raw_output_contents[0]
        (lane,) = [lane for lane in server.lanes if lane.name == "vectors"]
        unload(channel, "vectors")
        code, text, reason = lost.end()
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
        assert text == "model 'vectors' was unloaded by the operator"
        refused = sequences.ask(step("a"))
        assert "unknown model: 'vectors' is not found" in refused.error_message
        assert (lane.streams.live, lane.streams.rows.in_use, len(lane.sequences)) == (0, 0, 0)
        assert not lane.sequences._owned, "a model that is gone holds on to calls"
        assert [health(channel, name) for name in ("vectors", "vectors/1")] == [NOT_SERVING] * 2
        assert [health(channel, name) for name in ("", "tokens", "tokens/1")] == [SERVING] * 3
        assert index(channel) == {"tokens/1": "READY", "vectors/1": "UNAVAILABLE"}
        assert server.models == ("tokens/1",)
        with StreamCall(channel) as late:
            late.send(StreamRequest(open=Open(model="vectors")))
            assert late.end()[0] is grpc.StatusCode.NOT_FOUND

        load(channel, "vectors")
        assert [health(channel, name) for name in ("vectors", "vectors/1", "")] == [SERVING] * 3
        assert index(channel) == {"tokens/1": "READY", "vectors/1": "READY"}
        forgotten = sequences.ask(step("a"))
        assert "must specify the START flag" in forgotten.error_message
        again = [sequences.ask(step("a", start=True)), sequences.ask(step("a"))]
        assert [answer.infer_response.raw_output_contents[0] for answer in again] == [first[0], second]
        assert kept.run(np.array([1])) != tokens
        sequences.half_close()
        assert sequences.end()[0] is grpc.StatusCode.OK
    wait_until(lambda: all(not lane.sequences._owned for lane in server.lanes))


def test_the_last_model_can_be_let_go_too(server: Server, channel: grpc.Channel) -> None:
    """A server without a model answers: it has none."""
    for name in ("vectors", "tokens"):
        unload(channel, name)
    assert not server.models
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, "ModelInfer", step("a", start=True), pb.ModelInferResponse)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    load(channel, "tokens")
    assert server.models == ("tokens/1",)


def test_names_that_mean_nothing(server: Server, channel: grpc.Channel) -> None:
    """What isn't in the repository can't be loaded, what isn't served can't be let go, and what is served stays."""
    unload(channel, "tokens")
    before = server.front.stats.refusals["unknown_model"]
    for change, name, text in (
        (load, "nope", "failed to load 'nope': the repository has no such model"),
        (unload, "nope", "failed to unload 'nope': it isn't served"),
        (unload, "tokens", "failed to unload 'tokens': it isn't served"),
        (load, "", "failed to load ''"),
        (load, "../vectors", "failed to load '../vectors'"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            change(channel, name)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert text in str(caught.value.details())
    for change in (load, unload):
        with pytest.raises(grpc.RpcError) as caught:
            change(channel, "x" * 50_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "a model name of 50000 characters; the limit is 256" in str(caught.value.details())
    assert server.front.stats.refusals["unknown_model"] == before + 5
    load(channel, "vectors")  # which is served already
    assert server.models == ("vectors/1",)


def test_what_is_served_stays_unless_the_operator_allows_otherwise(repository: Path) -> None:
    """Without --model-control both are refused, and the index still answers."""
    running = Server(ServerConfig(repository, "127.0.0.1:0", grace=0.2, limits=LIMITS, batching=Batching(4, 4)))
    running.start()
    try:
        with grpc.insecure_channel(running.address) as channel:
            for change in (load, unload):
                with pytest.raises(grpc.RpcError) as caught:
                    change(channel, "vectors")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
                assert "explicit model load / unload is not allowed" in str(caught.value.details())
            assert set(index(channel).values()) == {"READY"}
    finally:
        running.drain()


def garbage(version: Path) -> None:
    """Not a graph."""
    (version / "resident.onnx").write_bytes(b"no graph")


def nothing(version: Path) -> None:
    """An empty file."""
    (version / "resident.onnx").write_bytes(b"")


def no_weights(version: Path) -> None:
    """The weights are missing."""
    (version / "model.onnx.data").unlink()


def other_weights(version: Path) -> None:
    """One bit of the weights differs from those proved."""
    data = bytearray((version / "model.onnx.data").read_bytes())
    data[0] ^= 1
    (version / "model.onnx.data").write_bytes(data)


def a_folder(version: Path) -> None:
    """A folder in the graph's place."""
    (version / "resident.onnx").unlink()
    (version / "resident.onnx").mkdir()


def no_graph(version: Path) -> None:
    """A copy that wasn't finished: the certificate is there, the graph isn't."""
    (version / "resident.onnx").unlink()


DAMAGES = [
    (garbage, "ONNX Runtime can't load its resident.onnx"),
    (nothing, "ONNX Runtime can't load its resident.onnx"),
    (no_weights, "ONNX Runtime can't load its resident.onnx (there is no model.onnx.data beside it)"),
    (other_weights, "its parity certificate is for weights sha256:"),
    (a_folder, "its resident.onnx can't be read: Is a directory"),
    (no_graph, "its resident.onnx can't be read: No such file or directory"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGES)
def test_a_broken_artifact_is_refused_and_harms_nobody(
    server: Server, channel: grpc.Channel, repository: Path, damage: Any, why: str
) -> None:
    """Its client is told why, without a path, and what is served goes on; mended, it can be loaded."""
    unload(channel, "tokens")
    sound = repository.parent / f"{repository.name}-sound"
    shutil.copytree(repository / "tokens" / "1", sound)
    damage(repository / "tokens" / "1")
    with StreamCall(channel) as stream:
        stream.open("vectors")
        first = stream.run(X[None])
        with pytest.raises(grpc.RpcError) as caught:
            load(channel, "tokens")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"failed to load 'tokens' version 1: {why}" in str(caught.value.details())
        assert str(repository) not in str(caught.value.details())
        assert stream.run(X[None]) != first
    assert index(channel) == {"tokens/1": "UNAVAILABLE", "vectors/1": "READY"}
    assert health(channel, "tokens") == NOT_SERVING
    shutil.rmtree(repository / "tokens" / "1")
    shutil.copytree(sound, repository / "tokens" / "1")
    load(channel, "tokens")
    assert health(channel, "tokens") == SERVING


def test_many_at_once_load_a_model_once(server: Server, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second finds it served; loading and letting go in turns leaves one of each, or none."""
    loaded: list[Path] = []

    def engine(path: Path, **options: Any) -> Engine:
        loaded.append(path)
        return Engine(path, **options)

    monkeypatch.setattr("serving.server.Engine", engine)
    unload(channel, "tokens")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: load(channel, "tokens"), range(8)))
    assert len(loaded) == 1
    (lane,) = [lane for lane in server.lanes if lane.name == "tokens"]

    def change(turn: int) -> grpc.StatusCode | None:
        try:
            (load if turn % 2 else unload)(channel, "tokens")
        except grpc.RpcError as error:
            return error.code()
        return None

    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(change, range(16)))
    assert results <= {None, grpc.StatusCode.NOT_FOUND}
    load(channel, "tokens")
    assert sorted(server.models) == ["tokens/1", "vectors/1"]
    assert next(other for other in server.lanes if other.name == "tokens") is not lane


def test_a_new_version_is_served_beside_the_old(
    server: Server, channel: grpc.Channel, repository: Path, artifacts: Path
) -> None:
    """Loading a model again takes what the repository has got since; streams of the old version go on."""
    with StreamCall(channel) as stream, SequenceCall(channel) as sequences:
        assert stream.open("vectors").version == 1
        first = stream.run(X[None])
        sequences.ask(step("a", start=True))
        shutil.copytree(artifacts / "vectors" / "2", repository / "vectors" / "2")
        load(channel, "vectors")
        second = stream.run(X[None])
        assert second != first
        gone_on = sequences.ask(step("a", version="1")).infer_response
        assert (gone_on.model_version, gone_on.raw_output_contents[0]) == ("1", second[0])
        unversioned = sequences.ask(step("a")).infer_response
        assert unversioned.model_version == "1", "a live sequence stays where its state is"
        assert sequences.ask(step("a", start=True)).infer_response.model_version == "2"
        assert sequences.ask(step("a")).infer_response.model_version == "2"
        with StreamCall(channel) as newer:
            assert newer.open("vectors").version == 2
    assert sorted(server.models) == ["tokens/1", "vectors/1", "vectors/2"]
    unload(channel, "vectors")
    assert server.models == ("tokens/1",)


def test_what_is_loaded_while_the_server_leaves_admits_nothing(server: Server, channel: grpc.Channel) -> None:
    """A load that ends during the drain serves the model for nobody new."""
    unload(channel, "tokens")
    with StreamCall(channel) as stream:
        stream.open("vectors")
        server._do(server._close)
        load(channel, "tokens")
        with StreamCall(channel) as late:
            late.send(StreamRequest(open=Open(model="tokens")))
            code, _, reason = late.end()
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "shutting_down")


def replace(repository: Path, source: Path) -> None:
    """Put another export in the place of vectors/1."""
    shutil.rmtree(repository / "vectors" / "1")
    shutil.copytree(source, repository / "vectors" / "1")


def answer(channel: grpc.Channel, version: int = 0) -> bytes:
    """A new stream's first answer."""
    with StreamCall(channel) as stream:
        stream.open("vectors", version=version)
        first: bytes = stream.run(X[None])[0]
        return first


def test_load_serves_what_is_on_the_disk(
    server: Server, channel: grpc.Channel, repository: Path, artifacts: Path
) -> None:
    """A version of other content replaces the one that was served, whose streams and sequences are told."""
    shutil.copytree(artifacts / "vectors" / "2", repository / "vectors" / "2")
    load(channel, "vectors")
    first, second = answer(channel, 1), answer(channel, 2)
    assert first != second
    with StreamCall(channel) as lost, StreamCall(channel) as kept, SequenceCall(channel) as sequences:
        lost.open("vectors", version=1)
        kept.open("vectors", version=2)
        sequences.ask(step("a", start=True, version="1"))
        replace(repository, artifacts / "vectors" / "2")
        load(channel, "vectors")
        assert answer(channel, 1) == second
        code, text, reason = lost.end()
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
        assert text == "version 1 of model 'vectors' was loaded anew by the operator, with other content"
        assert kept.run(X[None])[0] == second, "a version that hasn't changed isn't touched"
        assert f"it was lost: {text}" in sequences.ask(step("a", version="1")).error_message
    (before,) = [lane for lane in server.lanes if (lane.name, lane.version) == ("vectors", 1)]
    load(channel, "vectors")
    assert before in list(server.lanes), "what hasn't changed isn't loaded again"


def test_what_is_gone_from_the_disk_is_let_go(
    server: Server, channel: grpc.Channel, repository: Path, artifacts: Path
) -> None:
    """A removed version ends with the next load, late requests are told why, and the highest is one that is left."""
    shutil.copytree(artifacts / "vectors" / "2", repository / "vectors" / "2")
    load(channel, "vectors")
    with StreamCall(channel) as lost, SequenceCall(channel) as sequences:
        lost.open("vectors")
        sequences.ask(step("a", start=True))
        shutil.rmtree(repository / "vectors" / "2")
        load(channel, "vectors")
        assert lost.end()[1] == "version 2 of model 'vectors' isn't in the repository any more"
        assert "it was lost: version 2 of model 'vectors' isn't in" in sequences.ask(step("a")).error_message
        assert index(channel) == {"tokens/1": "READY", "vectors/1": "READY"}
        with StreamCall(channel) as stream:
            assert stream.open("vectors").version == 1
    shutil.rmtree(repository / "vectors")
    with pytest.raises(grpc.RpcError) as caught:
        load(channel, "vectors")
    assert "no such model; what is served stays: version 1" in str(caught.value.details())
    assert answer(channel)


@pytest.mark.parametrize("broken", [1, 2])
def test_one_broken_version_among_others_is_told_and_the_others_are_loaded(
    server: Server, channel: grpc.Channel, repository: Path, artifacts: Path, broken: int
) -> None:
    """Whatever the order, a load does what can be done and says all of it; what was served stays."""
    sound = answer(channel)
    for version in (2, 3):
        shutil.copytree(artifacts / "vectors" / "2", repository / "vectors" / str(version))
    garbage(repository / "vectors" / str(broken))
    with pytest.raises(grpc.RpcError) as caught:
        load(channel, "vectors")
    text = str(caught.value.details())
    assert f"failed to load 'vectors' version {broken}: ONNX Runtime can't load its resident.onnx" in text
    assert "version 3 is loaded" in text
    if broken == 1:
        assert "the one that was loaded before is served" in text
        assert answer(channel, 1) == sound
    served = [version for version in (1, 2, 3) if version != broken or broken == 1]
    assert text.endswith(f"served now: version {', '.join(map(str, served))}")
    assert [lane.version for lane in server.lanes if lane.name == "vectors"] == served
    assert health(channel, "vectors/2") == (NOT_SERVING if broken == 2 else SERVING)
    assert [health(channel, name) for name in ("", "vectors", "vectors/3")] == [SERVING] * 3


def test_one_version_is_loaded_let_go_and_rolled_back(
    server: Server, channel: grpc.Channel, repository: Path, artifacts: Path
) -> None:
    """A new version comes alone, goes alone, and new streams are the old one's again; its clients are told."""
    shutil.copytree(artifacts / "vectors" / "2", repository / "vectors" / "2")
    assert server.control.load("vectors", 2) == [Change(2, "loaded")]
    with StreamCall(channel) as old, StreamCall(channel) as new, SequenceCall(channel) as sequences:
        old.open("vectors", version=1)
        new.open("vectors")
        sequences.ask(step("a", start=True))
        assert server.control.unload("vectors", 2) == [Change(2, "unloaded")]
        assert new.end()[1] == "version 2 of model 'vectors' was unloaded by the operator"
        assert "version 2 of model 'vectors' was unloaded" in sequences.ask(step("a")).error_message
        assert old.run(X[None])
        with StreamCall(channel) as stream:
            assert stream.open("vectors").version == 1
    for change in (server.control.unload, server.control.load):
        with pytest.raises(UnknownModel, match="'vectors' version 9"):
            change("vectors", 9)
    assert server.control.load("vectors") == [Change(1, "unchanged"), Change(2, "loaded")]


def start(repository: Path) -> Server:
    """A server that nobody tells what to serve."""
    running = Server(ServerConfig(repository, "127.0.0.1:0", grace=0.2, limits=LIMITS, batching=Batching(4, 4)))
    running.start()
    return running


@pytest.mark.parametrize(("damage", "why"), DAMAGES)
def test_a_broken_version_is_skipped_at_the_start(repository: Path, artifacts: Path, damage: Any, why: str) -> None:
    """The good version beside it is served; index, health, metrics and refusals say which isn't, and why."""
    shutil.copytree(artifacts / "vectors" / "2", repository / "vectors" / "2")
    damage(repository / "vectors" / "2")
    running = start(repository)
    try:
        with grpc.insecure_channel(running.address) as channel:
            assert answer(channel)
            names = ["", "vectors", "vectors/1", "vectors/2"]
            assert [health(channel, name) for name in names] == [SERVING] * 3 + [NOT_SERVING]
            assert index(channel) == {"tokens/1": "READY", "vectors/1": "READY", "vectors/2": "UNAVAILABLE"}
            with StreamCall(channel) as late:
                late.send(StreamRequest(open=Open(model="vectors", version=2)))
                code, text, _ = late.end()
            assert code is grpc.StatusCode.NOT_FOUND
            assert f"no model 'vectors' version 2 is served ({why}" in text
            assert str(repository) not in text
            state = running.health.state()
            assert (state["live"], state["ready"], list(state["not_served"])) == (True, True, ["vectors/2"])
            assert state["not_served"]["vectors/2"].startswith(why)
            ready = {tuple(one.labels.values()): one.value for one in gauge(running, "cellstream_model_ready")}
            assert ready == {("tokens", "1"): 1, ("vectors", "1"): 1, ("vectors", "2"): 0}
    finally:
        running.drain()


def gauge(running: Server, name: str) -> list[Any]:
    """A metric's samples."""
    return [sample for family in Scrape(running.front).collect() if family.name == name for sample in family.samples]


def test_a_model_without_a_good_version_is_no_healthy_server(repository: Path) -> None:
    """What is good is served; the server's own health says that a model is missing."""
    garbage(repository / "vectors" / "1")
    running = start(repository)
    try:
        with grpc.insecure_channel(running.address) as channel:
            names = ["", "vectors", "vectors/1", "tokens"]
            assert [health(channel, name) for name in names] == [NOT_SERVING] * 3 + [SERVING]
            ready = ask(channel, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
            assert not ready
            assert not running.health.state()["ready"]
    finally:
        running.drain()
    assert not running.health.state()["ready"]


def test_where_nothing_can_be_served_nothing_starts(repository: Path) -> None:
    """Each artifact's reason is told, once."""
    for name in ("vectors", "tokens"):
        garbage(repository / name / "1")
    with pytest.raises(ConfigError, match=r"tokens/1/resident\.onnx: ONNX.*; .*vectors/1/resident\.onnx: ONNX"):
        start(repository)


def test_a_worker_that_comes_later_serves_what_the_others_do(repository: Path, artifacts: Path) -> None:
    """Not what was put there since, and nothing whose content has changed: that is skipped, with the reason."""
    found, lanes = find_artifacts(repository), Lanes()

    def lane(artifact: Artifact, files: GraphFiles) -> Lane:
        engine = Engine(files, rows=4, max_batch=1, slice_steps=2, max_run_steps=2, threads=1)
        sizes: Any = {"limits": LIMITS, "batching": Batching(1, 2)}
        return Lane(artifact.name, artifact.version, engine, clock=lambda: 0.0, identity=files.identity, **sizes)

    load_all(found, lanes, lane)
    like = {f"{one.name}/{one.version}": one.identity for one in lanes}
    assert sorted(like) == ["tokens/1", "vectors/1"]
    shutil.copytree(artifacts / "vectors" / "2", repository / "vectors" / "2")
    later = Lanes()
    load_all(find_artifacts(repository), later, lane, like=like)
    assert {f"{one.name}/{one.version}" for one in later} == set(like)
    replace(repository, artifacts / "vectors" / "2")
    changed = Lanes()
    load_all(find_artifacts(repository), changed, lane, like=like)
    assert [one.name for one in changed] == ["tokens"]
    assert "have changed since the other workers loaded it" in changed.broken["vectors", 1]
    nothing_at_all = Lanes()
    load_all(find_artifacts(repository), nothing_at_all, lane, like={})
    assert not list(nothing_at_all)


def use(channel: grpc.Channel, how: str) -> None:
    """Step "vectors" once, by that RPC."""
    if how == "Stream":
        with StreamCall(channel) as stream:
            stream.open("vectors")
            stream.run(np.stack([X]))
            stream.half_close()
            stream.end()
    elif how == "Multiplex":
        with RawCall(channel, "Multiplex", MultiplexResponse) as call:
            opening = MultiplexOpen(key=1, open=Open(model="vectors"))
            rows = StepRows(keys=[1], first_steps=[1], tensors=[X.tobytes()])
            call.send(MultiplexRequest(opens=[opening], steps=[rows]))
            call.receive()
            call.half_close()
            call.end()
    elif how == "sequence":
        with SequenceCall(channel) as sequences:
            assert not sequences.ask(step("a", start=True)).error_message
            assert not sequences.ask(step("a")).error_message
            sequences.half_close()
            sequences.end()


@pytest.mark.parametrize("how", ["", "Stream", "Multiplex", "sequence"])
def test_a_model_is_freed_by_the_loop_and_at_once(server: Server, channel: grpc.Channel, how: str) -> None:
    """Its memory goes between two runs, and never while the same thread captures another model on a GPU."""
    freed: list[str] = []
    lane = next(lane for lane in server.lanes if lane.name == "vectors")
    weakref.finalize(lane.engine, lambda: freed.append(threading.current_thread().name))
    del lane
    gc.collect()
    gc.disable()  # it would find what a circle keeps, but later
    try:
        use(channel, how)
        wait_until(lambda: not server._wire.live)
        unload(channel, "vectors")
        wait_until(lambda: bool(freed))
    finally:
        gc.enable()
    assert freed == ["loop"]
