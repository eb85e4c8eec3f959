"""Triton's control inputs: START told as Triton tells it, READY and END as ever, and an artifact that Triton serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export import __main__ as command
from export import artifact, starts, triton_theirs
from export.theirs import WrapError
from export.understanding import Asked
from model.contract import Contract
from tests import starting, wrapped
from tests.triton import Sequences

CONFIG = """
name: "theirs"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
sequence_batching {
  control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START VALUES } ] } ]
  state [
    { input_name: "h" output_name: "h_out" data_type: TYPE_FP32 dims: [ 4 ]
      initial_state { name: "none" data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } }
  ]
}
"""


def controls(*kinds: str, true: int = 1) -> str:
    """Control inputs as a configuration has them, named as their kinds."""
    said = f"int32_false_true: [ 0, {true} ]"
    return ", ".join(f'{{ name: "{kind}" control [ {{ kind: CONTROL_SEQUENCE_{kind} {said} }} ] }}' for kind in kinds)


def moved(model: str, config: str, folder: Path) -> Contract:
    """A Triton model's folder `theirs`, and the contract of the artifact `ours` wrapped by its configuration."""
    theirs = folder / "theirs"
    (theirs / "1").mkdir(parents=True)
    path = wrapped.save(model, theirs / "1" / "model.onnx")
    (theirs / "config.pbtxt").write_text(config)
    arguments = ["wrap", str(path), "--name", "ours", "--out", str(folder / "artifacts")]
    assert command.main([*arguments, "--triton-config", str(theirs / "config.pbtxt")]) == 0
    return artifact.read_graph(folder / "artifacts" / "ours" / "1" / artifact.RESIDENT, weights=False)[1]


@pytest.mark.parametrize(
    ("kind", "values", "first"),
    [
        ("float", "fp32_false_true: [ 0, 1 ]", np.array([1], "<f4")),
        ("int32", "int32_false_true: [ 0, 1 ]", np.array([1], "<i4")),
        ("int32", "int32_false_true: [ 1, -3 ]", np.array([-3], "<i4")),
        ("bool", "bool_false_true: [ false, true ]", np.array([True])),
    ],
    ids=["fp32", "int32", "odd", "bool"],
)
def test_triton_serves_what_came_from_it(kind: str, values: str, first: np.ndarray, tmp_path: Path) -> None:
    """Their folder with START told by Triton, and ours without, answer the same bytes under restarts and in batches."""
    moved(starting.CONTROLLED.replace("KIND", kind), CONFIG.replace("VALUES", values), tmp_path)
    ours = tmp_path / "artifacts" / "ours"
    served = [Sequences(tmp_path / "theirs", "1"), Sequences(ours, "1")]
    (state,) = [state for state in served[1].config.sequence_batching.state if state.input_name == "START"]
    assert list(state.dims) == [1]
    assert (ours / "initial_state" / state.initial_state[0].data_file).read_bytes() == first.tobytes()
    random = np.random.default_rng(0)
    for turn in range(12):
        batch = {key: {"x": random.standard_normal((1, 4)).astype("f4")} for key in ([7, 8] if turn % 3 != 1 else [8])}
        answers = [one.infer(batch, start=turn in (0, 6, 7)) for one in served]
        theirs, here = ({key: value["y"].tobytes() for key, value in answer.items()} for answer in answers)
        assert theirs == here


def test_a_flat_start_is_served_by_triton_too(tmp_path: Path) -> None:
    """A START [batch] becomes [batch, 1], as Triton's states have an axis beside the batch."""
    contract = moved(starting.FLAT, CONFIG.replace("VALUES", "fp32_false_true: [ 0, 1 ]"), tmp_path)
    assert [(state.input, state.shape) for state in contract.states] == [("START", (1,)), ("h", (4,))]
    assert (tmp_path / "artifacts" / "ours" / "config.pbtxt").is_file()


def test_ready_and_end_are_constants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """READY says that the stream is there; END stays false, and one line warns of it."""
    text = f"max_batch_size: 4 sequence_batching {{ control_input [ {controls('START', 'END', 'READY', true=5)} ] }}"
    contract = moved(starting.ENDING, text, tmp_path)
    shown = capsys.readouterr().out
    assert (
        shown.count("  end 'END' stays 0: Triton says 5 with a sequence's last request, and no step of a stream") == 1
    )
    constants = {value.name: np.frombuffer(value.value, value.dtype).tolist() for value in contract.constants}
    assert constants == {"END": [0], "READY": [5]}
    (start,) = starts.noted(contract)
    assert (start.state.input, start.false.tolist(), start.true.tolist()) == ("START", [0], [5])


def test_two_controls_in_one_input(tmp_path: Path) -> None:
    """An input that says START and READY has no one meaning, and the refusal names both."""
    config = tmp_path / "config.pbtxt"
    ready = "}, { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] }"
    config.write_text(f"sequence_batching {{ control_input [ {controls('START').replace('} ] }', ready)} ] }}")
    with pytest.raises(WrapError, match="'START' is CONTROL_SEQUENCE_START and CONTROL_SEQUENCE_READY"):
        triton_theirs.asked_by(config, Asked())


@pytest.mark.parametrize(
    "asked",
    [
        Asked(constants={"START": np.array(0)}),
        Asked(states={"START": "y"}),
        Asked(inputs=("START",)),
        Asked(starts={"START": (np.array(1), np.array(2))}),
    ],
    ids=["constant", "state", "input", "start"],
)
def test_options_are_stronger(asked: Asked, tmp_path: Path) -> None:
    """What an option says of START isn't asked of the configuration."""
    config = tmp_path / "config.pbtxt"
    config.write_text(CONFIG.replace("VALUES", "fp32_false_true: [ 0, 1 ]"))
    assert triton_theirs.asked_by(config, asked).starts == asked.starts
    assert triton_theirs.asked_by(config, Asked()).starts.keys() == {"START"}
