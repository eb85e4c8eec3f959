"""Somebody else's models, wrapped and served over a real port: every stream as their own graph gives it by hand."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

import cellstream
from export import __main__ as command
from serving import server as server_module
from serving.config import Batching, Limits, ServerConfig
from serving.engine import Engine
from serving.server import Server
from tests import wrapped

STREAMS, STEPS = 12, 9
Arrays = dict[str, npt.NDArray[Any]]
MODELS: dict[str, tuple[Any, list[str]]] = {
    "gru": (wrapped.recurrent("GRU"), ["--initial", "h0=0.25"]),
    "peepholes": (wrapped.recurrent("LSTM", peepholes=True), []),
    "rnn": (wrapped.recurrent("RNN"), []),
    "fused": (wrapped.FUSED, []),
    "counts": (wrapped.COUNTS, []),
    "convolved": (wrapped.CONVOLVED, []),
    "rated": (wrapped.RATED, ["--constant", "sr=16000", "--shape", "input=batch,6"]),
    "fixed": (wrapped.FIXED, []),
    "framed": (wrapped.FRAMED, ["--state", "h=h_out"]),
    "bands": (wrapped.BANDS, ["--state", "h=h_out"]),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models wrapped by the command line, theirs beside."""
    root = tmp_path_factory.mktemp("wrapped")
    for name, (model, options) in MODELS.items():
        path = wrapped.save(model, root / f"{name}.onnx")
        assert command.main(["wrap", str(path), "--name", name, "--out", str(root / "artifacts"), *options]) == 0
    return root


@pytest.fixture(scope="module", params=["host path", "a GPU's path"])
def address(repository: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A server of all of them, on the CPU by the path of its own or by a GPU's."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "a GPU's path":
            patch.setattr(server_module, "Engine", partial(Engine, graphs=True))
        yield from serve(repository)


def serve(repository: Path) -> Iterator[str]:
    """Start, and drain."""
    limits = Limits(max_streams=50, max_steps_per_message=100, window_steps=200)
    config = ServerConfig(repository / "artifacts", "127.0.0.1:0", grace=0.5, limits=limits, batching=Batching(8, 4))
    server = Server(config)
    server.start()
    yield server.address
    assert server.drain()


def draw(model: cellstream.Model, seed: int) -> Arrays:
    """Random inputs [T, *shape] by name."""
    random = np.random.default_rng(seed)
    return {
        spec.name: random.integers(0, 3, (STEPS, *spec.shape)).astype(spec.dtype)
        if np.dtype(spec.dtype).kind in "iu"
        else random.standard_normal((STEPS, *spec.shape)).astype(spec.dtype)
        for spec in model.inputs
    }


def by_hand(repository: Path, name: str, model: cellstream.Model, x: Arrays) -> Arrays:
    """Plain ONNX Runtime calls of the file as it was given, one step each, the states carried along."""
    session = onnxruntime.InferenceSession(repository / f"{name}.onnx", providers=["CPUExecutionProvider"])
    shapes = {value.name: [d if isinstance(d, int) else 1 for d in value.shape] for value in session.get_inputs()}
    first = 0.25 if name == "gru" else 0
    states = {state.input: np.full(shapes[state.input], first, state.dtype) for state in model.states}
    constants = {"sr": np.array(16000)} if name == "rated" else {}
    names = [value.name for value in session.get_outputs()]
    given: dict[str, list[npt.NDArray[Any]]] = {spec.name: [] for spec in model.outputs}
    for step in range(STEPS):
        inputs = {
            # What a step lacks of the graph's axes are batch and time, of size 1.
            spec.name: x[spec.name][step].reshape([1] * (len(shapes[spec.name]) - len(spec.shape)) + list(spec.shape))
            for spec in model.inputs
        }
        answer = dict(zip(names, session.run(names, {**inputs, **states, **constants}), strict=True))
        states = {state.input: answer[state.output] for state in model.states}
        for spec in model.outputs:
            given[spec.name].append(answer[spec.name].reshape(spec.shape))
    return {key: np.stack(values) for key, values in given.items()}


def as_dict(model: cellstream.Model, answer: Any) -> Arrays:
    """A client's answer by name, whatever the number of outputs."""
    return answer if isinstance(answer, dict) else {model.outputs[0].name: answer}


@pytest.mark.parametrize("name", MODELS)
def test_every_stream_gets_what_their_graph_gives_by_hand(name: str, repository: Path, address: str) -> None:
    """Alone and among others, in one chunk and in pieces: the bytes of plain ONNX Runtime, step by step."""
    with cellstream.connect(address) as client:
        model = client.model(name)
        xs = [draw(model, seed) for seed in range(STREAMS)]
        expected = [by_hand(repository, name, model, x) for x in xs]

        def served(lane: int) -> Arrays:
            random = np.random.default_rng(lane)
            parts: list[Arrays] = []
            with client.stream(name) as stream:
                done = 0
                while done < STEPS:
                    size = min(int(random.integers(1, 5)), STEPS - done)
                    piece = {key: value[done : done + size] for key, value in xs[lane].items()}
                    parts.append(as_dict(model, stream.step(piece)))
                    done += size
            return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

        alone = served(0)
        with ThreadPoolExecutor(STREAMS) as pool:
            together = list(pool.map(served, range(STREAMS)))
    for key, value in expected[0].items():
        assert alone[key].tobytes() == value.tobytes()
    for found, wanted in zip(together, expected, strict=True):
        for key, value in wanted.items():
            assert found[key].dtype == value.dtype
            assert found[key].tobytes() == value.tobytes()


def test_the_server_describes_them(address: str) -> None:
    """A model's tensors, states, proof and origin reach the client."""
    with cellstream.connect(address) as client:
        assert {summary.name for summary in client.models()} == set(MODELS)
        model = client.model("counts")
        assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [
            ("x", "int64", ()),
            ("z", "int32", (2,)),
        ]
        assert [(spec.name, spec.dtype) for spec in model.outputs] == [("y", "int64"), ("m", "float16")]
        assert [state.dtype for state in model.states] == ["int64", "bool", "float16"]
        assert model.certificate is not None
        assert model.certificate["passed"]
        assert model.notes["wrapped"] == "counts.onnx"
