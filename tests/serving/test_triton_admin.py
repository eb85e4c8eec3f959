"""What Triton's client can ask besides inference: what is served, its configuration and figures, load and unload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.config import ServerConfig
from serving.server import Server
from tests.serving.triton_client import Error, Stream, ask, check, connect, given, tensor


@pytest.fixture(scope="module")
def client(triton: Server) -> Iterator[Any]:
    """A client of the server that everybody leaves as it was."""
    with connect(triton) as connected:
        yield connected


def test_alive_and_ready(client: Any) -> None:
    """The server and its models; one that isn't there, or a version that isn't, isn't ready."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("lstm")
    assert client.is_model_ready("lstm", "1")
    assert not client.is_model_ready("lstm", "2")
    assert not client.is_model_ready("nobody")


def test_what_the_server_says_of_itself(client: Any) -> None:
    """Name, version, and the extensions that it has; none that it hasn't."""
    metadata = client.get_server_metadata(as_json=True)
    assert metadata["name"] == "cellstream"
    assert {"sequence", "sequence(string_id)", "statistics", "model_configuration"} <= set(metadata["extensions"])
    assert not {"system_shared_memory", "cuda_shared_memory", "trace", "logging"} & set(metadata["extensions"])


def test_a_model_s_tensors(client: Any) -> None:
    """Shapes with the batch in front; -1 where any number of steps goes; states aren't among them."""
    metadata = client.get_model_metadata("lstm", as_json=True)
    assert metadata["name"] == "lstm"
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "-1", "5"]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": ["-1", "-1", "6"]}]
    assert client.get_model_metadata("crossed", as_json=True)["inputs"][0]["shape"] == ["-1", "3"]


def test_a_model_s_configuration(client: Any) -> None:
    """A sequence model with its states, the limits that hold, and no idle expiry."""
    config = client.get_model_config("lstm").config
    assert config.max_batch_size == 32
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    batching = config.sequence_batching
    assert batching.WhichOneof("strategy_choice") == "oldest"
    assert batching.oldest.max_candidate_sequences == 200
    assert batching.max_sequence_idle_microseconds == 0
    pairs = {state.input_name: state.output_name for state in client.get_model_config("crossed").config
             .sequence_batching.state}  # fmt: skip
    assert pairs == {"a": "z_out", "b": "y_out"}


def test_statistics_grow_by_what_was_asked(client: Any) -> None:
    """Requests count once each, failures apart, and inferences are the sum over batch sizes."""

    def now() -> Any:
        (found,) = client.get_inference_statistics("lstm").model_stats
        return found

    before = now()
    for t in range(5):
        ask(client, given(1)[0], 1, sequence_start=t == 0, sequence_end=t == 4)
    for wrong in ({"sequence_id": 77}, {"sequence_id": 0}):
        with pytest.raises(Error):
            client.infer("lstm", [tensor(given(1)[0])], **wrong)
    after = now()
    stats, old = after.inference_stats, before.inference_stats
    assert after.version == "1"
    assert stats.success.count - old.success.count == 5
    assert stats.queue.count - old.queue.count == 5
    assert stats.fail.count - old.fail.count == 2
    assert after.inference_count - before.inference_count == 5
    assert after.inference_count == sum(each.batch_size * each.compute_infer.count for each in after.batch_stats)
    assert after.execution_count == sum(each.compute_infer.count for each in after.batch_stats)
    assert stats.success.ns == stats.queue.ns + stats.compute_infer.ns
    assert after.last_inference >= before.last_inference
    assert {each.name for each in client.get_inference_statistics().model_stats} == {"lstm", "crossed"}
    with pytest.raises(Error, match="unknown model: 'nobody'"):
        client.get_inference_statistics("nobody")


def test_the_index(client: Any) -> None:
    """Everything in the repository, by name."""
    index = client.get_model_repository_index(as_json=True)["models"]
    assert [(model["name"], model["version"], model["state"]) for model in index] == [
        ("crossed", "1", "READY"),
        ("lstm", "1", "READY"),
    ]


def test_load_and_unload_are_off_unless_the_operator_says(client: Any) -> None:
    """Anybody who reaches the port could otherwise stop what is served."""
    for call in (client.load_model, client.unload_model):
        with pytest.raises(Error, match="--model-control explicit") as refused:
            call("lstm")
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("call", "arguments", "text"),
    [
        ("get_system_shared_memory_status", (), "shared memory isn't offered"),
        ("register_system_shared_memory", ("mine", "/mine", 10), "shared memory isn't offered"),
        ("unregister_system_shared_memory", (), "shared memory isn't offered"),
        ("get_cuda_shared_memory_status", (), "shared memory isn't offered"),
        ("register_cuda_shared_memory", ("mine", b"aGFuZGxl", 0, 10), "shared memory isn't offered"),
        ("unregister_cuda_shared_memory", (), "shared memory isn't offered"),
        ("get_trace_settings", (), "tracing isn't offered"),
        ("update_trace_settings", (), "tracing isn't offered"),
        ("get_log_settings", (), "log settings can't be changed"),
        ("update_log_settings", ({"log_info": True},), "log settings can't be changed"),
    ],
)
def test_what_is_not_offered_says_so(client: Any, call: str, arguments: tuple[Any, ...], text: str) -> None:
    """UNIMPLEMENTED with a reason, not a missing method."""
    with pytest.raises(Error, match=text) as refused:
        getattr(client, call)(*arguments)
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_loading_and_unloading(models: Path, lstm: torch.nn.LSTM) -> None:
    """An unloaded model's sequences are told; other models go on; loaded again it begins anew."""
    server = Server(ServerConfig(models, "127.0.0.1:0", grace=0.2, model_control=True, allow_unproved=True))
    server.start()
    try:
        with connect(server) as client:
            three = np.ones(3, np.float32)
            client.infer("crossed", [tensor(three)], sequence_id=1, sequence_start=True)
            stream = Stream(client)
            stream.send(given(1)[0], 1, sequence_start=True)
            stream.y()
            client.unload_model("lstm")
            assert not client.is_model_ready("lstm")
            index = {model.name: model.state for model in client.get_model_repository_index().models}
            assert index == {"crossed": "READY", "lstm": "UNAVAILABLE"}
            stream.send(given(1)[0], 1)
            with pytest.raises(Error, match="Request for unknown model: 'lstm' is not found"):
                stream.result()
            second = client.infer("crossed", [tensor(three)], sequence_id=1).as_numpy("y")
            assert second.tolist() == [[2 + 3 * -3] * 3]
            with pytest.raises(Error, match="failed to unload 'lstm': it isn't served"):
                client.unload_model("lstm")
            with pytest.raises(Error, match="failed to load 'nobody': the repository has no such model"):
                client.load_model("nobody")
            with pytest.raises(Error, match="isn't offered"):
                client.load_model("lstm", config="{}")
            client.load_model("lstm")
            assert client.is_model_ready("lstm")
            with pytest.raises(Error, match="it was never started here"):
                ask(client, given(1)[0], 1)
            stream.send(given(5, 4), 1, sequence_start=True, sequence_end=True)
            check(stream.y(), lstm, given(5, 4))
            stream.stop()
    finally:
        server.drain()
