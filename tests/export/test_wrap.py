"""Somebody else's models wrapped: what is understood, what is proved, and how each refusal says what settles it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import __main__ as command
from export import artifact
from export.runtime import Resident
from model.contract import Contract
from tests import wrapped

Wrap = Callable[..., Contract]


@pytest.fixture
def wrap(tmp_path: Path) -> Wrap:
    """Wrap a model by the command line, and give the contract that its artifact has."""

    def run(model: ModelProto | str, *options: str) -> Contract:
        path = wrapped.save(model, tmp_path / "theirs.onnx")
        arguments = ["wrap", str(path), "--name", "a", "--out", str(tmp_path / "out"), *options]
        if command.main(arguments):
            raise AssertionError("refused")
        _, contract = artifact.read_graph(tmp_path / "out" / "a" / "1" / artifact.RESIDENT, weights=False)
        return contract

    return run


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: ModelProto | str, *options: str) -> str:
    """Wrap a model that can't be, and give the one line of its refusal."""
    path = wrapped.save(model, tmp_path / "theirs.onnx")
    assert command.main(["wrap", str(path), "--name", "a", "--out", str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))
    return error


@pytest.mark.parametrize(
    ("model", "ragged", "batches"),
    [
        (wrapped.recurrent("LSTM"), True, "together"),
        (wrapped.recurrent("LSTM", peepholes=True), True, "together"),
        (wrapped.recurrent("GRU"), True, "together"),
        (wrapped.recurrent("GRU", ", linear_before_reset = 1"), True, "together"),
        (wrapped.recurrent("RNN"), False, "one by one"),
    ],
    ids=["LSTM", "peepholes", "GRU", "GRU of cuDNN", "RNN"],
)
def test_recurrent_nodes_need_no_options(wrap: Wrap, model: ModelProto, ragged: bool, batches: str) -> None:
    """States, axes and chunks are inferred; an RNN, whose kernel isn't batch invariant, runs its streams one by one."""
    contract = wrap(model)
    assert [(state.input, state.output) for state in contract.states[:1]] == [("h0", "hn")]
    assert [(state.shape, state.batch_axis) for state in contract.states] == [((1, 6), 1)] * len(contract.states)
    assert (contract.inputs[0].batch_axis, contract.inputs[0].time_axis) == (1, 0)
    assert (contract.outputs[0].batch_axis, contract.outputs[0].time_axis) == (1, 0)
    assert (contract.ragged, contract.notes["batches"]) == (ragged, batches)


def test_the_artifact_is_as_any_other(wrap: Wrap, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five files, the weights under the digest, a certificate of equal bytes that says what wasn't compared."""
    contract = wrap(wrapped.FUSED)
    folder = tmp_path / "out" / "a" / "1"
    files = {artifact.MODEL, artifact.WEIGHTS, artifact.RESIDENT, artifact.PARITY, artifact.PAGE}
    assert {path.name for path in folder.iterdir()} == files
    artifact.check_digest(folder, contract)
    certificate = contract.certificate
    assert certificate is not None
    assert certificate.passed
    assert all(record.rms_bar == record.max_bar == record.max_error == 0 for record in certificate.records)
    assert any("PyTorch" in text for text in certificate.not_checked)
    assert len(certificate.controls) == 4
    assert all(ratio > 1 for ratio in certificate.controls.values())
    shown = capsys.readouterr().out
    assert "4 of 4 planted faults caught" in shown
    assert "not for Triton: state 'state' has its batch on axis 1, and Triton's is axis 0" in shown
    assert not (tmp_path / "out" / "a" / "config.pbtxt").exists()
    page = (folder / artifact.PAGE).read_text()
    assert "Planted faults: 4 of 4 caught" in page
    assert all(name.replace("'", "&#x27;") in page for name in certificate.controls)
    assert json.loads((folder / artifact.PARITY).read_text())["passed"]
    capsys.readouterr()
    assert command.main(["prove", str(tmp_path / "out" / "a")]) == 0
    assert "proved again" in capsys.readouterr().out


def test_a_changed_graph_is_not_proved_again(wrap: Wrap, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resident graph that computes something else than model.onnx is found, even where all digests fit."""
    contract = wrap(wrapped.FUSED)
    folder = tmp_path / "out" / "a" / "1"
    names = (artifact.MODEL, artifact.RESIDENT)
    graphs = {name: artifact.read_graph(folder / name, weights=False)[0] for name in names}
    (node,) = [node for node in graphs[artifact.RESIDENT].graph.node if node.op_type == "Sub"]
    node.input[0], node.input[1] = node.input[1], node.input[0]
    assert contract.certificate is not None
    certified = artifact.certify(contract, contract.certificate, graphs)
    for name, graph in graphs.items():
        artifact.write_graph(graph, folder / name, certified)
    assert command.main(["prove", str(tmp_path / "out" / "a")]) == 1
    assert "differ in their bytes" in capsys.readouterr().err


def test_several_dtypes_and_scalars_without_a_time_axis(wrap: Wrap) -> None:
    """Integer, boolean and half states lie in slabs of their own; a call is a step."""
    contract = wrap(wrapped.COUNTS)
    assert [slab.dtype for slab in contract.slabs()] == ["int64", "bool", "float16"]
    assert [(spec.name, spec.dtype, spec.shape, spec.time_axis) for spec in contract.inputs] == [
        ("x", "int64", (), None),
        ("z", "int32", (2,), None),
    ]
    assert not contract.ragged


def test_a_batch_fixed_to_one_is_loosened_where_the_graph_allows(wrap: Wrap) -> None:
    """A convolution over a cache has no free axis declared, and still takes its streams together."""
    contract = wrap(wrapped.CONVOLVED)
    assert contract.notes["batches"] == "together"
    assert contract.states[0].shape == (3, 4)


def test_a_batch_that_stays_one_is_run_one_by_one(wrap: Wrap, tmp_path: Path) -> None:
    """Where the graph reshapes to one row, each lane of a batch runs by itself and gets what it gets alone."""
    contract = wrap(wrapped.FIXED)
    assert contract.notes["batches"] == "one by one"
    resident = Resident(tmp_path / "out" / "a" / "1" / artifact.RESIDENT, contract, rows=8)
    x = np.random.default_rng(0).standard_normal((3, 1, 6)).astype(np.float32)
    answer = resident.run({"x": x}, [1] * 3, [0] * 3, [5, 2, 7])
    alone = onnxruntime.InferenceSession(tmp_path / "theirs.onnx")
    for lane, row in enumerate((5, 2, 7)):
        y, h = alone.run(["y", "h_next"], {"x": x[lane], "h": np.zeros((1, 6), np.float32)})
        assert answer["y"][lane].tobytes() == y.tobytes()
        assert resident.slabs["float32"][row].tobytes() == h.tobytes()


def test_a_graph_without_any_batch_axis(wrap: Wrap, tmp_path: Path) -> None:
    """Vectors and scalars of a single stream get an axis of size 1, and streams run one by one."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    bare (float[4] x, int64 add, float[3] h, int64 count) => (float[3] y, float[3] h_out, int64 count_out)
    <float[4,3] w, int64 one = {1}>
    {
      product = MatMul(x, w)
      h_out = Add(h, product)
      y = Tanh(h_out)
      more = Add(add, one)
      count_out = Add(count, more)
    }
    """
    contract = wrap(text)
    assert contract.notes["batches"] == "one by one"
    assert [(spec.name, spec.shape) for spec in contract.inputs] == [("x", (4,)), ("add", ())]
    assert [(state.dtype, state.shape) for state in contract.states] == [("float32", (3,)), ("int64", ())]
    resident = Resident(tmp_path / "out" / "a" / "1" / artifact.RESIDENT, contract, rows=3)
    inputs = {"x": np.zeros((2, 1, 4), np.float32), "add": np.array([[4], [7]])}
    resident.run(inputs, [1, 1], [0, 0], [1, 2])
    assert resident.slabs["int64"].tolist() == [[0], [5], [8]]


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_side_input_chooses_the_branch(wrap: Wrap, tmp_path: Path, rate: int) -> None:
    """A constant is folded into the resident graph, and the If that asks for it goes by it."""
    contract = wrap(wrapped.RATED, "--constant", f"sr={rate}", "--shape", "input=batch,6")
    assert [constant.name for constant in contract.constants] == ["sr"]
    resident = Resident(tmp_path / "out" / "a" / "1" / artifact.RESIDENT, contract, rows=3)
    resident.slabs["float32"][1] = 1
    resident.run({"input": np.zeros((1, 1, 6), np.float32)}, [1], [1], [2])
    assert resident.slabs["float32"][2].tolist() == [0.5 if rate == 16000 else 1.0] * 6


def test_first_values(wrap: Wrap, tmp_path: Path) -> None:
    """--initial takes a number or a file, and row 0 of the slab begins so."""
    np.save(tmp_path / "first.npy", np.arange(6, dtype=np.float32))
    contract = wrap(wrapped.recurrent("LSTM"), "--initial", f"h0={tmp_path / 'first.npy'}", "--initial", "c0=0.5")
    assert contract.slabs()[0].initial_row().tolist() == [0, 1, 2, 3, 4, 5, *[0.5] * 6]


def test_a_default_value_of_a_state_is_its_first(wrap: Wrap) -> None:
    """An input that has an initializer of its own name is a state that begins with that."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    default (float[n,3] x, float[1,3] h) => (float[n,3] y, float[n,3] h_next)
    <float[1,3] h = {1.0, 2.0, 3.0}>
    {
      h_next = Add(x, h)
      y = Tanh(h_next)
    }
    """
    assert wrap(text, "--state", "h=h_next").states[0].initial_value().tolist() == [1, 2, 3]


def test_names_that_the_resident_graph_needs(wrap: Wrap) -> None:
    """Tensors called as ours get another name, and the contract says it."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    clash (float[b,t,4] slab_float32, float[b,4] read_rows) => (float[b,t,4] lengths, float[b,4] read_rows_out)
    <int64[1] one = {1}>
    {
      write_rows = Unsqueeze(read_rows, one)
      lengths = Add(slab_float32, write_rows)
      read_rows_out = Identity(read_rows)
    }
    """
    contract = wrap(text, "--state", "their_read_rows=read_rows_out")
    assert contract.inputs[0].name == "their_slab_float32"
    assert contract.outputs[0].name == "their_lengths"
    assert contract.states[0].input == "their_read_rows"


def test_an_old_opset_is_brought_forward(wrap: Wrap) -> None:
    """A graph of opset 11, with axes as attributes, is converted, and proved against itself as it was."""
    text = """
    <ir_version: 4, opset_import: ["" : 11]>
    old (float[b,t,4] x, float[b,4] s0) => (float[b,t,4] y, float[b,4] s1)
    {
      lifted = Unsqueeze<axes = [1]>(s0)
      y = Add(x, lifted)
      s1 = Identity(s0)
    }
    """
    assert wrap(text).ragged


def test_a_step_that_sees_its_chunk_is_run_alone(wrap: Wrap, capsys: pytest.CaptureFixture[str]) -> None:
    """A sum over the whole chunk makes padding matter: found by parity, and steps run one at a time."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    summed (float[batch,time,3] x, float[batch,3] h) => (float[batch,time,3] y, float[batch,3] h_next)
    <int64 axis = {1}, int64[1] one = {1}>
    {
      sums = CumSum(x, axis)
      lifted = Unsqueeze(h, one)
      y = Add(sums, lifted)
      all = ReduceSum<keepdims = 0>(x, one)
      h_next = Add(h, all)
    }
    """
    contract = wrap(text)
    assert not contract.ragged
    assert contract.notes["batches"] == "together"
    assert "differ in their bytes" in capsys.readouterr().out


def test_where_states_are_all_that_is_given(wrap: Wrap) -> None:
    """A bare cell's new state is its output too."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    cell (float[n,3] x, float[n,3] h) => (float[n,3] h_next)
    {
      sum = Add(x, h)
      h_next = Tanh(sum)
    }
    """
    contract = wrap(text)
    assert [spec.name for spec in contract.outputs] == ["h_next_value"]
    assert [state.output for state in contract.states] == ["h_next"]


def test_an_index_into_a_table_gets_its_bounds(wrap: Wrap) -> None:
    """The server may refuse a token that the embedding doesn't have."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    tokens (int64[n] token, float[n,3] h) => (float[n,3] y, float[n,3] h_out)
    <float[9,3] table>
    {
      row = Gather(table, token)
      h_out = Add(h, row)
      y = Tanh(h_out)
    }
    """
    spec = wrap(text).inputs[0]
    assert (spec.minimum, spec.maximum) == (0, 8)


def test_weights_anywhere(wrap: Wrap, tmp_path: Path) -> None:
    """Weights beside the file, in Constant nodes and as inputs all come to lie in the weights file."""
    model = wrapped.recurrent("GRU")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    np.save(tmp_path / "b.npy", numpy_helper.to_array(weights["b"]))
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 36]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["r"], value=weights["r"]))
    for name in ("b", "r"):
        model.graph.initializer.remove(weights[name])
    onnx.save(model, tmp_path / "theirs.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    arguments = ["wrap", str(tmp_path / "theirs.onnx"), "--name", "a", "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--constant", f"b={tmp_path / 'b.npy'}"]) == 0
    made, contract = artifact.read_graph(tmp_path / "out" / "a" / "1" / artifact.RESIDENT, weights=False)
    outside = {tensor.name for tensor in made.graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
    assert outside == {"w", "r", "b"}
    assert contract.ragged


def test_a_quantised_lstm_is_run_one_by_one(wrap: Wrap) -> None:
    """DynamicQuantizeLSTM takes its scale from the whole batch: only alone does a stream keep its bytes."""
    onnxruntime_quantised = helper.make_node(
        "DynamicQuantizeLSTM",
        ["x", "w", "r", "b", "", "h0", "c0", "", "ws", "wz", "rs", "rz"],
        ["all", "hn", "cn"],
        domain="com.microsoft",
        hidden_size=6,
    )
    model = wrapped.recurrent("LSTM")
    model.graph.node[0].CopyFrom(onnxruntime_quantised)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    random = np.random.default_rng(0)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in {"w", "r"}]:
        model.graph.initializer.remove(tensor)
    for name, size in (("w", 5), ("r", 6)):
        values = random.integers(-127, 128, (1, size, 24)).astype(np.int8)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0.01], np.float32), f"{name}s"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int8), f"{name}z"))
    contract = wrap(model)
    assert (contract.ragged, contract.notes["batches"]) == (False, "one by one")


TWO = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[n,3] a, float[n,3] b) => (float[n,3] c, float[n,3] d)
{
  c = Add(a, b)
  d = Mul(a, b)
}
"""
RIVALS = TWO.replace("b)", "h)").replace(" b", " h").replace(" c", " h_out").replace(" d", " h_new")
SWAPPED = """
<ir_version: 8, opset_import: ["" : 17]>
swapped (float[p,q,3] x, float[s,3] h) => (float[p,q,3] y, float[s,3] h_out)
{
  y = Neg(x)
  h_out = Neg(h)
}
"""


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (TWO, [], "say which output is the successor of which input: --state IN=OUT"),
        (TWO, ["--state", "a=z"], "no output is called 'z', only 'c', 'd'"),
        (TWO, ["--state", "a"], "it has the form NAME=…"),
        (RIVALS, [], "the successor of 'h' could be 'h_out', 'h_new': say which, --state h=OUT"),
        (SWAPPED, [], "the axes of 'x' are ambiguous: say --shape x=batch,time,3 or --shape x=time,batch,3"),
        (wrapped.RATED, ["--shape", "input=batch,6"], "say which one, --constant sr=VALUE"),
        (wrapped.RATED, ["--constant", "sr=1.5"], "--constant sr: 1.5 is no int64"),
        (wrapped.RATED, ["--constant", "sr=x"], "'x' is no number, list of numbers or .npy file"),
        (wrapped.FUSED, ["--shape", "x=batch,5"], "axis 1 has size 4 in the graph"),
        (wrapped.FUSED, ["--shape", "x=4,batch"], "the graph runs with no choice of batch and time axes"),
        (wrapped.FUSED, ["--shape", "x=time,4"], "it needs 'batch' once"),
        (wrapped.FUSED, ["--initial", "q=1"], "--initial q: no input is called so"),
        (wrapped.FUSED, ["--initial", "state=1,2"], "one stream's state is [2, 1, 3]"),
        (wrapped.FIXED, ["--batch", "together"], "say better ones than --shape x=batch,6 --shape h=batch,6"),
        (wrapped.recurrent("RNN"), ["--batch", "together"], "comparisons differ in their bytes"),
        (wrapped.recurrent("GRU", ', direction = "reverse"'), [], "reads its sequence backwards, which a stream can't"),
        (TWO.replace("float[n,3] a", "string[n,3] a"), ["--state", "b=d"], "ONNX Runtime refuses"),
    ],
)
def test_refusals_name_what_settles_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: ModelProto | str, options: list[str], words: str
) -> None:
    """What is ambiguous or impossible is one line that names the option, and nothing is written."""
    assert words in refused(capsys, tmp_path, model, *options)


def test_a_file_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rubbish, an empty file and no file at all are one line each."""
    (tmp_path / "rubbish.onnx").write_bytes(b"rubbish")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, words in (("rubbish", "can't be read as ONNX"), ("empty", "holds no graph"), ("none", "doesn't exist")):
        assert command.main(["wrap", str(tmp_path / f"{name}.onnx"), "--name", "a", "--out", str(tmp_path / "o")]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows every option in an example."""
    with pytest.raises(SystemExit) as stop:
        command.main(["wrap", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for words in ("--state h=h_out", "--constant sr=16000", "--initial", "--shape", "--range", "--batch", "examples:"):
        assert words in shown


def test_an_input_beside_the_sequence_makes_single_steps(wrap: Wrap) -> None:
    """Where one input has time and another has none, or an output is of the last step only, a run is one step."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    beside (double[batch,time,3] x, uint8[batch] speaker, double[batch,3] h) => (double[batch,3] y, double[batch,3] hn)
    <int64[1] one = {1}>
    {
      number = Cast<to = 11>(speaker)
      column = Unsqueeze(number, one)
      all = ReduceSum<keepdims = 0>(x, one)
      sum = Add(h, all)
      hn = Tanh(sum)
      y = Mul(hn, column)
    }
    """
    contract = wrap(text)
    assert not contract.ragged
    assert [(spec.dtype, spec.shape, spec.time_axis) for spec in contract.inputs] == [
        ("float64", (3,), 1),
        ("uint8", (), None),
    ]
    assert contract.outputs[0].time_axis is None


def test_a_number_of_steps_that_the_file_fixes(wrap: Wrap) -> None:
    """With its axes named, a file of 2 streams and 4 steps is freed, and proved in calls of 4."""
    model = wrapped.recurrent("GRU")
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = {"time": 4, "batch": 2}[dim.dim_param]
    contract = wrap(model, "--shape", "x=time,batch,5", "--shape", "h0=1,batch,6")
    assert contract.ragged
    assert contract.certificate is not None
    assert "4 step(s) a run" in contract.certificate.records[0].truth


def test_sequence_lengths_of_their_own(wrap: Wrap, capsys: pytest.CaptureFixture[str]) -> None:
    """An input that only says how long each row is, is left out, and ragged chunks take its place."""
    model = wrapped.recurrent("GRU")
    (node,) = [node for node in model.graph.node if node.op_type == "GRU"]
    node.input[4] = "x_lens"
    model.graph.input.append(helper.make_tensor_value_info("x_lens", TensorProto.INT32, ["batch"]))
    contract = wrap(model)
    assert [spec.name for spec in contract.inputs] == ["x"]
    assert contract.ragged
    assert "input 'x_lens' is left out" in capsys.readouterr().out


def test_outputs_can_be_chosen(wrap: Wrap) -> None:
    """--output leaves out what no client needs, and gives a state's successor where it is asked for."""
    contract = wrap(wrapped.COUNTS, "--output", "y", "--output", "seen_out")
    assert [spec.name for spec in contract.outputs] == ["y", "seen_out_value"]
