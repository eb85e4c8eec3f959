"""Models moved from Triton with their START, served over a real port to Triton's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from export import __main__ as command
from serving.config import Batching, Limits, ServerConfig
from serving.server import Server
from tests import starting, wrapped

CONFIG = """
max_batch_size: 8
sequence_batching {
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START KIND_false_true: [ 0, 1 ] } ] } MORE
  ]
  STATES
}
"""
READY = ', { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] }'
STATES = ", ".join(
    f'{{ input_name: "{name}" output_name: "{name}_out" data_type: TYPE_FP32 dims: [ 1, 6 ] }}' for name in "hc"
)
# Model, its configuration, its states, the shape of a step, and its output.
MODELS: dict[str, tuple[str, str, dict[str, str], tuple[int, ...], str]] = {
    "simple_sequence": (
        starting.READY,
        CONFIG.replace("KIND", "int32").replace("MORE", READY).replace("STATES", ""),
        {},
        (1,),
        "OUTPUT",
    ),
    "resetting_lstm": (
        starting.RESET,
        CONFIG.replace("KIND", "fp32").replace("MORE", "").replace("STATES", f"state [ {STATES} ]"),
        {"h": "h_out", "c": "c_out"},
        (5,),
        "y",
    ),
}
STEPS = 5
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models wrapped by their configurations, theirs beside."""
    root = tmp_path_factory.mktemp("moved")
    for name, (model, config, *_) in MODELS.items():
        path = wrapped.save(model, root / f"{name}.onnx")
        (root / f"{name}.pbtxt").write_text(config)
        arguments = ["wrap", str(path), "--name", name, "--out", str(root / "artifacts")]
        assert command.main([*arguments, "--triton-config", str(root / f"{name}.pbtxt")]) == 0
    return root


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[InferenceServerClient]:
    """Triton's client of a server of all of them."""
    limits = Limits(max_streams=50, max_steps_per_message=100, window_steps=200)
    config = ServerConfig(repository / "artifacts", "127.0.0.1:0", grace=0.5, limits=limits, batching=Batching(8, 4))
    server = Server(config)
    server.start()
    with InferenceServerClient(server.address) as connected:
        yield connected
    assert server.drain()


def drawn(name: str, seed: int) -> Array:
    """The steps of one sequence."""
    shape, random = MODELS[name][3], np.random.default_rng(seed)
    values = 9 * random.standard_normal((STEPS, *shape))
    return values.astype(np.int32 if name == "simple_sequence" else np.float32)


def by_hand(repository: Path, name: str, x: Array) -> list[bytes]:
    """A sequence's answers as plain calls of their file give them."""
    _, _, states, _, output = MODELS[name]
    given = "INPUT" if name == "simple_sequence" else "x"
    found = starting.plainly(repository / f"{name}.onnx", [{given: step} for step in x], states, output)
    return [answer.tobytes() for answer in found]


def ask(client: InferenceServerClient, name: str, x: Array, key: int, **flags: bool) -> bytes:
    """One step of a sequence."""
    model = MODELS[name]
    tensor = InferInput(
        "INPUT" if x.dtype == np.int32 else "x", [1, *x.shape], "INT32" if x.dtype == np.int32 else "FP32"
    )
    tensor.set_data_from_numpy(x[None])
    answer = client.infer(name, [tensor], sequence_id=key, **flags).as_numpy(model[4])
    return bytes(answer.tobytes())


@pytest.mark.parametrize("name", MODELS)
def test_two_sequences_and_a_restart(name: str, repository: Path, client: InferenceServerClient) -> None:
    """Interleaved sequences, one of which starts again in its middle, get what their file gives a start and others."""
    one, two, again = (drawn(name, seed) for seed in range(3))
    found: dict[str, list[bytes]] = {"one": [], "two": [], "again": []}
    for step in range(STEPS):
        found["one"].append(ask(client, name, one[step], 1, sequence_start=step == 0))
        found["two"].append(ask(client, name, two[step], 2, sequence_start=step == 0))
    for step in range(STEPS):
        end = step == STEPS - 1
        found["again"].append(ask(client, name, again[step], 1, sequence_start=step == 0, sequence_end=end))
    ask(client, name, two[0], 2, sequence_end=True)
    assert found == {key: by_hand(repository, name, x) for key, x in (("one", one), ("two", two), ("again", again))}


def test_a_start_shows_in_the_answers(client: InferenceServerClient) -> None:
    """The same value sent four times: one more with each start, and with no other."""
    x = np.array([5], np.int32)
    answers = [ask(client, "simple_sequence", x, 3, sequence_start=start) for start in (True, False, True, False)]
    ask(client, "simple_sequence", x, 3, sequence_end=True)
    assert [int(np.frombuffer(answer, np.int32)[0]) for answer in answers] == [6, 5, 6, 5]


def test_clients_are_not_asked_for_a_start(client: InferenceServerClient) -> None:
    """START is the server's to tell: it is a state in the configuration, and no input."""
    config = client.get_model_config("simple_sequence", as_json=True)["config"]
    assert [spec["name"] for spec in config["input"]] == ["INPUT"]
    assert [state["input_name"] for state in config["sequence_batching"]["state"]] == ["START"]
