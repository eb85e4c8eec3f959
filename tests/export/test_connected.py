"""Recurrent nodes whose state is no input: connected, and proved by the given file over whole sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export import __main__ as command
from export import artifact, whole_runs, wrap, wrap_attempt
from export.pairs import StateQuestionError
from export.runtime import Resident
from export.theirs import WrapError
from export.understanding import Asked
from model.contract import Contract
from tests import wrapped

Wrap = Callable[..., wrap.Wrapped]
# {first} is what the node begins from; {time} its number of steps.
BARE = """
<ir_version: 8, opset_import: ["" : 17]>
bare (float[b,{time},3] x) => (float[b,{time},4] y{outs})
<float[1,16,3] w, float[1,16,4] r, float[1,32] bias, int64[1] one = {{1}}, float[1,1,4] own, int64[3] by = {{1, 1, 4}},
 float[1,3,4] three, float[3,4] v>
{{
  first = Transpose<perm = [1, 0, 2]>(x)
  {nodes}
  flat = Squeeze(all, one)
  y = Transpose<perm = [1, 0, 2]>(flat)
}}
"""
ZERO = "all, h, c = LSTM<hidden_size = 4>(first, w, r, bias)"
EXPANDED = """
  shape = Shape(x)
  batch = Gather(shape, zero)
  sizes = Concat<axis = 0>(one, batch, four)
  begun = Expand(own, sizes)
  all, h, c = LSTM<hidden_size = 4>(first, w, r, bias, , begun, begun)
""".replace("zero", "zero_of_one").replace("four", "width")


def bare(nodes: str = ZERO, time: str = "t", outs: str = "") -> str:
    """A file of one LSTM without state."""
    return BARE.format(nodes=nodes, time=time, outs=outs)


@pytest.fixture
def wrapping(tmp_path: Path) -> Wrap:
    """Wrap a model that is given as text."""

    def run(text: str, **asked: object) -> wrap.Wrapped:
        path = wrapped.save(text, tmp_path / "given.onnx")
        return wrap.wrap(path, tmp_path / "out" / "a" / "1", name="a", asked=Asked(**asked))  # type: ignore[arg-type]

    return run


def streamed(made: wrap.Wrapped, x: np.ndarray) -> dict[str, np.ndarray]:
    """One stream's outputs [T, …], step by step from a new stream's state."""
    resident = Resident(made.folder / artifact.RESIDENT, made.contract, rows=3)
    rows = [0, 1, 2]
    found = []
    for step in range(len(x)):
        into = rows[2] if rows[0] == 0 and step == 0 else (2 if step % 2 == 0 else 1)
        read = 0 if step == 0 else (1 if step % 2 == 0 else 2)
        found.append(resident.run({"x": x[None, step : step + 1]}, [1], [read], [into]))
    return {name: np.concatenate([one[name][0] for one in found]) for name in found[0]}


def given(tmp_path: Path, x: np.ndarray, *names: str) -> list[np.ndarray]:
    """What the given file says of a whole sequence [T, F] at once."""
    return list(onnxruntime.InferenceSession(tmp_path / "given.onnx").run(list(names), {"x": x[None]}))


def pairs(contract: Contract) -> dict[str, str]:
    """The contract's states."""
    return {state.input: state.output for state in contract.states}


def test_a_state_that_is_no_input_is_carried(wrapping: Wrap, tmp_path: Path) -> None:
    """A stream's steps give what the file gives for all of them at once; its own last states are outputs still."""
    made = wrapping(bare(outs=", float[1,b,4] h, float[1,b,4] c"))
    assert pairs(made.contract) == {"lstm_1_h": "lstm_1_h_next", "lstm_1_c": "lstm_1_c_next"}
    assert [spec.name for spec in made.contract.outputs] == ["y", "h", "c"]
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    answer = streamed(made, x)
    y, h, c = given(tmp_path, x, "y", "h", "c")
    np.testing.assert_allclose(answer["y"], y[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer["h"][-1], h[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer["c"][-1], c[:, 0], rtol=1e-5, atol=1e-6)
    whole = [record for record in made.records if "with no state carried" in record.truth]
    assert {record.tensor for record in whole} == {"y", "h", "c"}
    assert {record.steps for record in whole} == set(whole_runs.PREFIXES)
    assert made.contract.certificate is not None
    assert "began from zero at every call" in made.contract.certificate.states["lstm_1_h"]


def test_it_begins_from_the_value_in_the_file(wrapping: Wrap, tmp_path: Path) -> None:
    """A first state that is a weight, expanded to the batch, is a new stream's."""
    text = bare(EXPANDED).replace(
        "int64[1] one = {1}", "int64[1] one = {1}, int64[1] zero_of_one = {0}, int64[1] width = {4}"
    )
    made = wrapping(text)
    assert all(state.initial is not None for state in made.contract.states)
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    (y,) = given(tmp_path, x, "y")
    np.testing.assert_allclose(streamed(made, x)["y"], y[0], rtol=1e-5, atol=1e-6)


def test_a_batch_that_is_baked_in_is_freed(wrapping: Wrap) -> None:
    """A constant of one row is one stream's first state, and streams run together."""
    made = wrapping(bare("all, h, c = LSTM<hidden_size = 4>(first, w, r, bias, , own, own)").replace("[b,", "[1,"))
    assert made.contract.notes["batches"] == "together"
    assert [state.shape for state in made.contract.states] == [(1, 4)] * 2


def test_what_differs_by_row_has_no_first_state(wrapping: Wrap) -> None:
    """A constant with another value for each row of a batch is refused."""
    with pytest.raises(WrapError, match="another value for each row"):
        wrapping(bare("all, h, c = LSTM<hidden_size = 4>(first, w, r, bias, , three, three)").replace("[b,", "[3,"))


def test_a_fixed_number_of_steps_is_asked_about(wrapping: Wrap) -> None:
    """A file that takes windows of 5 steps may mean them to be apart; told, they are carried, and that is unproved."""
    text = bare(time="5").replace("[b,", "[1,")
    with pytest.raises(StateQuestionError, match="begins anew at every call") as question:
        wrapping(text)
    assert [choice.options for choice in question.value.choices] == [("--connect", "all")]
    made = wrapping(text, connect=("all",))
    assert len(made.contract.states) == 2
    assert made.contract.certificate is not None
    assert any(line.startswith(wrap_attempt.UNPROVED) for line in made.contract.certificate.not_checked)


def test_a_node_that_goes_along_another_axis_is_not_connected(wrapping: Wrap) -> None:
    """An LSTM across a frame's bands has nothing to carry: the file's whole run tells."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    bands (float[1,t,6] x) => (float[1,t,6] y)
    <float[1,4,1] w, float[1,4,1] r, int64[3] apart = {-1, 6, 1}, int64[3] back = {1, -1, 6}, int64[1] one = {1}>
    {
      rows = Reshape(x, apart)
      first = Transpose<perm = [1, 0, 2]>(rows)
      all = LSTM<hidden_size = 1>(first, w, r)
      flat = Squeeze(all, one)
      again = Transpose<perm = [1, 0, 2]>(flat)
      y = Reshape(again, back)
    }
    """
    with pytest.raises(WrapError, match=r"go along the stream's time|streams|axes"):
        wrapping(text, shapes={"x": ("batch", "time", 6)})


def test_whole_runs_find_a_state_that_is_lost(wrapping: Wrap, tmp_path: Path) -> None:
    """A graph that begins anew at every step is far from the file's whole run."""
    made = wrapping(bare())
    model, contract = artifact.read_graph(made.folder / artifact.RESIDENT, weights=True)
    (node,) = [node for node in model.graph.node if node.op_type == "LSTM"]
    del node.input[5:]
    artifact.write_graph(model, made.folder / artifact.RESIDENT, contract)
    with pytest.raises(WrapError, match=r"off from given\.onnx run over 96 steps at once"):
        whole_runs.records(made.folder, whole_runs.Whole(tmp_path / "given.onnx"), contract)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            ZERO.replace("hidden_size = 4", 'hidden_size = 4, direction = "reverse"'),
            "is reverse: it reads its sequence",
        ),
        (
            (
                "m = ReduceMean<axes = [0], keepdims = 1>(first)\n  k = MatMul(m, v)\n"
                "  all, h, c = LSTM<hidden_size = 4>(first, w, r, bias, , k, k)"
            ),
            "begins from what is computed from x",
        ),
    ],
)
def test_what_can_not_be_carried_says_why(wrapping: Wrap, nodes: str, words: str) -> None:
    """A node that reads backwards, or begins from what an input gives, is refused as such."""
    with pytest.raises(WrapError, match=words):
        wrapping(bare(nodes))


def test_a_pair_that_is_none_is_told_of_the_state_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--state x=h, where h is the last state of a node that begins anew, names the node."""
    path = wrapped.save(bare(outs=", float[1,b,4] h"), tmp_path / "given.onnx")
    assert command.main(["wrap", str(path), "--name", "a", "--out", str(tmp_path / "out"), "--state", "x=h"]) == 1
    assert "'h' is the last state of the LSTM node 'LSTM_1', which begins anew" in capsys.readouterr().err


def test_an_initial_state_without_a_successor(wrapping: Wrap, tmp_path: Path) -> None:
    """An input that a node begins from is asked about; connected, it is a state by its own name."""
    text = bare("all, h, c = LSTM<hidden_size = 4>(first, w, r, bias, , h0, c0)").replace(
        "x) =>", "x, float[1,b,4] h0, float[1,b,4] c0) =>"
    )
    with pytest.raises(StateQuestionError, match="'h0' is the initial state of the LSTM node") as question:
        wrapping(text)
    assert [choice.options for choice in question.value.choices] == [("--connect", "LSTM_1"), ("--input", "h0")]
    assert pairs(wrapping(text, connect=("LSTM_1",)).contract) == {"h0": "h0_next", "c0": "c0_next"}
