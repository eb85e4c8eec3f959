"""Where nodes run: what may be on the CPU of a graph that was asked for elsewhere, and what may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving import placement
from serving.cuda_machine import CUDA
from serving.device import CPU, Device, open_session
from serving.errors import ConfigError
from serving.placement import LANES, misplaced

Event = dict[str, Any]


@pytest.fixture(scope="module")
def events(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """What ONNX Runtime notes of a run of the "tokens" model."""
    path = artifacts / "tokens/1/resident.onnx"
    session = open_session(path, Device(), threads=1, profile=tmp_path_factory.mktemp("profile") / "of")
    session.run(None, placement._trial(placement.read_contract(session, path)))
    noted: list[Event] = json.loads(Path(session.end_profiling()).read_text())
    return noted


def moved(events: list[Event], *but: str) -> list[Event]:
    """The same, as if all nodes had run on a GPU but for those of these operators."""
    found: list[Event] = json.loads(json.dumps(events))
    for event in found:
        if event.get("cat") == "Node" and event["args"]["op_name"] not in but:
            event["args"]["provider"] = CUDA
    return found


def node(operator: str, provider: str, *tensors: Event) -> Event:
    """One node's run."""
    about = {
        "op_name": operator,
        "provider": provider,
        "input_type_shape": tensors[:-1],
        "output_type_shape": tensors[-1:],
    }
    return {"cat": "Node", "name": f"n/{operator}_kernel_time", "args": about}


MULTIPLIED = node("MatMul", CUDA, {"float": [16, 4]}, {"float": [16, 8]})


def test_all_nodes_of_a_real_run_are_seen(events: list[Event]) -> None:
    """Each operator of the graph has an event that says where it ran."""
    assert list(misplaced(events, CPU, lanes=LANES)) == []
    found = list(misplaced(events, CUDA, lanes=LANES))
    assert found[-1] == f"no node ran on {CUDA}"
    for operator in ("(LSTM)", "(ScatterND)", "(MatMul)", "lstm.x/Gather (Gather) on CPUExecutionProvider with float"):
        assert any(operator in text for text in found), operator


@pytest.mark.parametrize("operator", ["LSTM", "ScatterND", "Gather", "MatMul", "Add", "Concat", "Split"])
def test_one_node_left_on_the_cpu_is_found(events: list[Event], operator: str) -> None:
    """Any that touches a number of the model's own."""
    found = list(misplaced(moved(events, operator), CUDA, lanes=LANES))
    assert found
    assert all(f"({operator}) on {CPU} with float" in text for text in found)


def test_a_batch_of_tokens_on_the_cpu_is_found(events: list[Event]) -> None:
    """Integers too, if they are more than bookkeeping."""
    found = [text for text in misplaced(moved(events, "Transpose"), CUDA, lanes=LANES) if text.startswith("tokens/")]
    assert found == ["tokens/Transpose (Transpose) on CPUExecutionProvider with int64[16, 2]"]


def test_shapes_and_lengths_are_on_the_cpu_by_right() -> None:
    """What ONNX Runtime keeps in the host's memory on purpose, and its copies to the device."""
    right = [
        node("Shape", CPU, {"int64": [3]}),
        node("Concat", CPU, {"int64": [1]}, {"int64": [1]}, {"int64": [2]}),
        node("Greater", CPU, {"int64": []}, {"bool": []}),
        node("Cast", CPU, {"int32": [16]}, {"int64": [16]}),
        node("MemcpyFromHost", CUDA, {"int64": [16]}, {"int64": [16]}),
    ]
    assert list(misplaced([MULTIPLIED, *right], CUDA, lanes=LANES)) == []


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            node("MemcpyToHost", CUDA, {"float": [16, 4]}, {"float": [16, 4]}),
            "n/MemcpyToHost (MemcpyToHost) copies float[16, 4]",
        ),
        (node("MemcpyFromHost", CUDA, {"int64": [16, 2]}, {"int64": [16, 2]}), "copies int64[16, 2]"),
        (node("Gather", CPU, {"int64": [33, 2]}, {"int64": [16]}, {"int64": [16, 2]}), "with int64[33, 2]"),
        (node("Cast", CPU, {"int32": [1]}, {"float16": [1]}), "with float16[1]"),
        (node("LSTM", "TensorrtExecutionProvider", {"float": [1]}), "on TensorrtExecutionProvider with float[1]"),
    ],
)
def test_the_models_own_numbers_are_not(event: Event, text: str) -> None:
    """Neither computed nor copied, and a slab of integers is the model's own."""
    (found,) = misplaced([MULTIPLIED, event], CUDA, lanes=LANES)
    assert text in found


def test_a_run_without_a_node_proves_nothing() -> None:
    """Were the profile to look different one day, that must not pass for a graph in its place."""
    assert list(misplaced([], CUDA, lanes=LANES)) == [f"no node ran on {CUDA}"]


def test_a_graph_that_is_not_where_it_should_be_is_refused(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names file, device, the first few nodes and how many more."""
    path = artifacts / "tokens/1/resident.onnx"
    monkeypatch.setattr(Device, "provider", CUDA)
    monkeypatch.setattr(placement, "open_session", lambda *args, **about: _open_on_cpu(monkeypatch, *args, **about))
    with pytest.raises(ConfigError, match=r"resident\.onnx: not all of it runs on cpu: .*Gather.*; .*, and \d+ more"):
        placement.check(path, Device(), threads=1)


def _open_on_cpu(monkeypatch: pytest.MonkeyPatch, *args: Any, **about: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(Device, "provider", CPU)
        return open_session(*args, **about)


def test_a_graph_that_does_not_run_is_refused(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a kernel needs a library that isn't there."""
    monkeypatch.setattr(placement, "_trial", lambda _contract: {})
    with pytest.raises(ConfigError, match=r"resident\.onnx: it doesn't run on cpu: "):
        placement.check(artifacts / "vectors/1/resident.onnx", Device(), threads=1)


@pytest.mark.parametrize("model", ["vectors", "tokens", "wide"])
def test_every_model_of_ours_passes_on_the_cpu(artifacts: Path, model: str) -> None:
    """The trial run suits whatever the contract asks, and gives the contract."""
    contract = placement.check(artifacts / model / "1/resident.onnx", Device(), threads=1)
    assert contract.name == model
