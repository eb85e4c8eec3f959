"""Users' modules exported and served over a real port: every stream as the untouched module gives it, and as ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import cellstream
from export.module import Exported, export_module
from export.module_streams import Whole
from export.wrap_parity import INITIAL, ByHand, draw
from serving.config import Batching, Limits, ServerConfig
from serving.server import Server
from tests import modules

STREAMS, STEPS = 6, 9
Arrays = dict[str, npt.NDArray[Any]]
MODELS: dict[str, tuple[Any, list[str]]] = {
    "tagger": (modules.Tagger, []),
    "classifier": (modules.Classifier, ["x=float32[batch,time,5]"]),
    "mixed": (modules.Mixed, ["x=float32[batch,time,5]", "kind=int64[batch,time]"]),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """All of them, proved over a step."""
    root = tmp_path_factory.mktemp("modules")
    return {
        name: export_module(modules.seeded(make), root / name / "1", name=name, inputs=inputs, steps=(1,))
        for name, (make, inputs) in MODELS.items()
    }


@pytest.fixture(scope="module")
def address(exported: dict[str, Exported]) -> Iterator[str]:
    """A server of all of them."""
    root = next(iter(exported.values())).folder.parent.parent
    limits = Limits(max_streams=50, max_steps_per_message=100, window_steps=200)
    server = Server(ServerConfig(root, "127.0.0.1:0", grace=0.5, limits=limits, batching=Batching(8, 4)))
    server.start()
    yield server.address
    assert server.drain()


def served(address: str, name: str, x: Arrays, lane: int) -> Arrays:
    """One stream's answers, its steps cut into messages at random."""
    random = np.random.default_rng(lane)
    parts: list[Arrays] = []
    with cellstream.connect(address) as client, client.stream(name) as stream:
        outputs = client.model(name).outputs
        done = 0
        while done < STEPS:
            size = min(int(random.integers(1, 5)), STEPS - done)
            answer: Any = stream.step({key: value[lane, done : done + size] for key, value in x.items()})
            parts.append(answer if isinstance(answer, dict) else {outputs[0].name: answer})
            done += size
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@pytest.mark.parametrize("name", MODELS)
def test_every_stream_gets_what_the_module_gives(name: str, exported: dict[str, Exported], address: str) -> None:
    """To float32's roundings as the whole sequence in float64, and bit for bit as model.onnx step by step."""
    made = exported[name]
    sample = draw(made.contract, STREAMS, STEPS, INITIAL, seed=9)
    by_hand = ByHand(made.folder / "model.onnx", made.contract).run(sample)
    whole = Whole(made.plan, modules.seeded(MODELS[name][0])).run(sample.inputs, sample.states, every=True)
    with ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(lambda lane: served(address, name, sample.inputs, lane), range(STREAMS)))
    for lane, answer in enumerate(answers):
        for spec in made.contract.outputs:
            assert answer[spec.name].tobytes() == by_hand[spec.name][lane].tobytes()
            if np.dtype(spec.dtype).kind == "f":
                np.testing.assert_allclose(answer[spec.name], whole[spec.name][lane], rtol=1e-4, atol=1e-5)


def test_the_server_describes_them(address: str, exported: dict[str, Exported]) -> None:
    """Ranges, first values and the proof reach the client."""
    with cellstream.connect(address) as client:
        tagger = client.model("tagger")
        assert [spec.name for spec in tagger.outputs] == ["logits", "value"]
        assert tagger.certificate is not None
        assert tagger.certificate["passed"]
        assert tagger.notes["module"] == "Tagger"
    assert exported["classifier"].contract.states[0].initial is not None
    assert not any(isinstance(part, torch.nn.Module) for part in exported["mixed"].contract.notes.values())
