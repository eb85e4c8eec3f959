"""Somebody's Triton model wrapped by its own configuration: states, first values, outputs and controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export import __main__ as command
from export import artifact
from export.runtime import Resident
from export.theirs import WrapError
from export.triton_theirs import asked_by
from export.understanding import Asked
from model.contract import Contract
from tests import wrapped
from tests.triton import Sequences

THEIRS = """
<ir_version: 8, opset_import: ["" : 17]>
theirs (float[n,4] x, float[n,1] START, bool[n,1] READY, float[n,4] one, float[n,3] two)
  => (float[n,4] y, float[n,4] spare, float[n,4] one_out, float[n,3] two_out)
<float unit = {1}, float[4,4] w, float[4,3] v>
{
  go_on = Sub(unit, START)
  kept = Mul(one, go_on)
  new = MatMul(x, w)
  sum = Add(kept, new)
  next = Tanh(sum)
  one_out = Where(READY, next, one)
  part = MatMul(x, v)
  two_out = Add(part, two)
  y = Neg(next)
  spare = Abs(x)
}
"""
CONFIG = """
name: "theirs"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
sequence_batching {
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } ] }
  ]
  state [
    { input_name: "one" output_name: "one_out" data_type: TYPE_FP32 dims: [ 4 ] },
    { input_name: "two" output_name: "two_out" data_type: TYPE_FP32 dims: [ 3 ]
      initial_state { data_type: TYPE_FP32 dims: [ 3 ] data_file: "two" } }
  ]
}
"""
TWO = np.array([1, -2, 0.5], "<f4")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A Triton model's folder with everything in it; its configuration."""
    folder = tmp_path / "theirs"
    (folder / "initial_state").mkdir(parents=True)
    (folder / "1").mkdir()
    (folder / "initial_state" / "two").write_bytes(TWO.tobytes())
    wrapped.save(THEIRS, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(CONFIG)
    return folder / "config.pbtxt"


def contract_of(config: Path, *options: str) -> Contract:
    """Wrap the model by its configuration, and give the contract of the artifact."""
    model, out = config.parent / "1" / "model.onnx", config.parent.parent / "artifacts"
    arguments = ["wrap", str(model), "--name", "ours", "--out", str(out), "--triton-config", str(config), *options]
    assert command.main(arguments) == 0
    return artifact.read_graph(out / "ours" / "1" / artifact.RESIDENT, weights=False)[1]


def test_a_model_moves_by_its_configuration(config: Path) -> None:
    """Everything that options would have to say is taken from there."""
    text = CONFIG.replace("dims: [ 4 ] },\n", "dims: [ 4 ] initial_state { data_type: TYPE_FP32 zero_data: true } },\n")
    config.write_text(text)
    contract = contract_of(config)
    assert [(spec.name, spec.shape, spec.time_axis) for spec in contract.inputs] == [("x", (4,), None)]
    assert [spec.name for spec in contract.outputs] == ["y"]
    assert [(state.input, state.output, state.initial) for state in contract.states] == [
        ("START", "START_next", np.array([1], "<f4").tobytes()),
        ("one", "one_out", None),
        ("two", "two_out", TWO.tobytes()),
    ]
    constants = {value.name: np.frombuffer(value.value, value.dtype).tolist() for value in contract.constants}
    assert constants == {"READY": [True]}


def test_options_are_stronger(config: Path) -> None:
    """What an option says isn't asked of the configuration, not even if it couldn't tell."""
    config.write_text(
        CONFIG.replace("CONTROL_SEQUENCE_READY bool_false_true", "CONTROL_SEQUENCE_CORRID bool_false_true")
    )
    asked = Asked(constants={"READY": np.array(1)}, initial={"two": np.array(9.0)}, outputs=("spare",))
    found = asked_by(config, asked)
    assert found.initial == asked.initial
    assert found.outputs == ("spare",)
    assert {name: float(value) for name, value in found.constants.items()} == {"READY": 1}
    assert {name: [float(value) for value in both] for name, both in found.starts.items()} == {"START": [0, 1]}
    assert found.states == {"one": "one_out", "two": "two_out"}


def test_a_client_gets_what_it_got(config: Path, tmp_path: Path) -> None:
    """Triton with START and READY in each request, and the artifact without them, answer the same bytes."""
    contract = contract_of(config)
    served = Sequences(config.parent, "1")
    resident = Resident(tmp_path / "artifacts" / "ours" / "1" / artifact.RESIDENT, contract, rows=3, threads=1)
    random = np.random.default_rng(0)
    for turn in range(12):
        x, first = random.standard_normal((1, 4)).astype("f4"), turn % 8 == 0
        theirs = served.infer({7: {"x": x}}, start=first)[7]["y"]
        ours = resident.run({"x": x[:, None]}, [1], [0 if first else 1 + turn % 2], [1 + (turn + 1) % 2])["y"]
        assert theirs.tobytes() == ours.tobytes()


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("max_batch_size: 8", "max_batch_size: [", "line 4: expected ',' or '\\]'"),
        ("max_batch_size: 8", 'max_batch_size: "8"', "max_batch_size is '8', not a int"),
        (
            "CONTROL_SEQUENCE_START",
            "CONTROL_SEQUENCE_CORRID",
            "'START' is CONTROL_SEQUENCE_CORRID, .* say --constant START=0",
        ),
        ("fp32_false_true: [ 0, 1 ]", "fp32_false_true: [ 0 ]", "'START' has none of int32_false_true, "),
        ('output_name: "one_out"', "", "there is no output_name"),
        ('data_file: "two"', 'data_file: "none"', "initial_state/none can't be read: No such file"),
        (
            "dims: [ 3 ] data_file",
            "dims: [ 4 ] data_file",
            "initial_state/two has 3 values of TYPE_FP32, and state 'two'",
        ),
        ("TYPE_FP32 dims: [ 3 ] data_file", "TYPE_BF16 dims: [ 3 ] data_file", "state 'two' is of TYPE_BF16"),
        ("dims: [ 4 ]", "dims: [ 4.5 ]", "aren't whole numbers"),
        ("state [", "state: 3 other [", "state isn't a message"),
    ],
)
def test_a_configuration_that_says_something_else(config: Path, old: str, new: str, why: str) -> None:
    """Each mistake is named, with the file."""
    assert old in CONFIG
    config.write_text(CONFIG.replace(old, new))
    with pytest.raises(WrapError, match=why) as refused:
        asked_by(config, Asked())
    assert str(config.parent) in str(refused.value)


def test_a_configuration_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and nothing is written."""
    arguments = ["wrap", "none.onnx", "--name", "a", "--out", str(tmp_path), "--triton-config", str(tmp_path / "none")]
    assert command.main(arguments) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'} can't be read: No such file or directory\n"


def test_axes_that_the_configuration_leaves_open(config: Path) -> None:
    """Free axes, and those that may be one step of several, are left to the trial run; reshapes are the graph's."""
    config.write_text(CONFIG.replace("dims: [ 4 ]", "dims: [ 1, 4 ]", 1).replace("dims: [ 3 ]", "dims: [ -1 ]", 1))
    assert asked_by(config, Asked()).shapes == {"one": ("batch", 4)}
    config.write_text(CONFIG.replace("dims: [ 4 ]", "dims: [ 1 ] reshape { shape: [ ] }", 1))
    assert asked_by(config, Asked()).shapes["x"] == ("batch",)
    config.write_text(CONFIG.replace("max_batch_size: 8", "max_batch_size: 0"))
    found = asked_by(config, Asked())
    assert found.shapes == {}
    assert found.initial["two"].shape == (3,)
