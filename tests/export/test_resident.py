"""resident.onnx: rows in place, neighbours untouched, and derived for graphs that aren't LSTMs too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from export import artifact, checks, resident
from export.runtime import Portable, Resident
from model.contract import Constant, Contract, StatePair, TensorSpec
from model.lstm import LSTM, Spec
from tests.export.conftest import SPECS, TOKENS, VECTORS, Written, seeded


def test_rows_are_written_in_place_and_others_are_untouched(write: Callable[[LSTM], Written]) -> None:
    """A run changes the rows it writes, in the very buffer that was bound, and no other byte of it."""
    written = write(seeded(VECTORS))
    session = Resident(written.folder / artifact.RESIDENT, written.contract, rows=50)
    slab = session.slabs["float32"]
    slab[:] = np.random.default_rng(0).standard_normal(slab.shape)
    before, address = slab.copy(), slab.ctypes.data
    x = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)
    session.run({"x": x}, [4, 1, 2], read=[7, 3, 7], write=[40, 8, 1])
    changed = np.flatnonzero((slab != before).any(axis=1)).tolist()
    assert changed == [1, 8, 40]
    assert session.slabs["float32"].ctypes.data == address


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_ragged_lanes_are_each_stream_alone_bit_for_bit(spec: Spec, write: Callable[[LSTM], Written]) -> None:
    """In a batch with other lengths a lane's outputs and state are the bytes that it gets alone in model.onnx."""
    written = write(seeded(spec))
    random = np.random.default_rng(0)
    lengths = [5, 1, 3, 8]
    x = random.standard_normal((4, 8, spec.input_size or 0)).astype(np.float32)
    if spec.vocabulary is not None:
        x = random.integers(0, spec.vocabulary, (4, 8))  # type: ignore[assignment]
    together = Resident(written.folder / artifact.RESIDENT, written.contract, rows=9)
    together.slabs["float32"][1:5] = random.standard_normal((4, together.slabs["float32"].shape[1]))
    answer = together.run({"x": x}, lengths, read=[1, 2, 3, 4], write=[8, 7, 6, 5])
    alone = Portable(written.folder / artifact.MODEL, written.contract)
    shape = (1, spec.layers, spec.hidden_size)
    for lane, length in enumerate(lengths):
        h, c = np.split(together.slabs["float32"][1 + lane], 2)
        found = alone.run({"x": x[lane : lane + 1, :length]}, {"h": h.reshape(shape), "c": c.reshape(shape)})
        assert answer["y"][lane, :length].tobytes() == found["y"].tobytes()
        states = together.read_states(8 - lane)
        assert states["h_out"].tobytes() == found["h_out"].tobytes()
        assert states["c_out"].tobytes() == found["c_out"].tobytes()


def test_a_row_out_of_range_is_an_error_here(write: Callable[[LSTM], Written]) -> None:
    """On the CPU a row beyond the slab is refused by the runtime; hosts check it before, since CUDA clamps it."""
    written = write(seeded(VECTORS))
    session = Resident(written.folder / artifact.RESIDENT, written.contract, rows=4)
    with pytest.raises(Exception, match="invalid indice"):
        session.run({"x": np.zeros((1, 1, 5), np.float32)}, [1], read=[1], write=[4])


def test_layers_come_straight_from_the_row(write: Callable[[LSTM], Written]) -> None:
    """No transpose and no reshape of states remains: a row is cut into layers at once, and joined likewise."""
    written = write(seeded(VECTORS))
    operators = [node.op_type for node in written.resident.graph.node]
    assert operators.count("Transpose") == 2  # x and y
    assert operators.count("Split") == operators.count("Concat") == operators.count("ScatterND") == 1
    assert "Reshape" not in operators
    assert len(operators) == 12


FUSED = """
<ir_version: 10, opset_import: ["": 20]>
cell (float[batch,time,2] x, int64[3,batch] count, float[2,batch,2] s, float[1] scale)
  => (float[time,batch,2] y, int64[3,batch] count_out, float[2,batch,2] s_out)
<int64[1] axis = {1}, int64[1] front = {0}, int64[1,1] one = {1}>
{
  total = ReduceSum<keepdims = 0>(x, axis)
  lifted = Unsqueeze(total, front)
  scaled = Mul(lifted, scale)
  s_out = Add(s, scaled)
  count_out = Add(count, one)
  first = Transpose<perm = [1, 0, 2]>(x)
  y = Neg(first)
}
"""


def fused_contract() -> Contract:
    """States on other axes, one of them an integer, an output with time first, and a constant side input."""
    return Contract(
        name="fused",
        inputs=(TensorSpec("x", "float32", (2,)),),
        outputs=(TensorSpec("y", "float32", (2,), batch_axis=1, time_axis=0),),
        states=(
            StatePair("count", "count_out", "int64", (3,), batch_axis=1),
            StatePair("s", "s_out", "float32", (2, 2), batch_axis=1, initial=np.arange(4, dtype="<f4").tobytes()),
        ),
        constants=(Constant("scale", "float32", (1,), np.array([0.5], "<f4").tobytes()),),
        weights_digest="sha256:0",
        ragged=False,
    )


def written_text(text: str, contract: Contract, folder: Path) -> tuple[ModelProto, ModelProto]:
    """A model given as ONNX text and what is derived from it, both in `folder`."""
    model = onnx.parser.parse_model(text)
    artifact.write_weights(model, folder / artifact.WEIGHTS)
    artifact.write_graph(model, folder / artifact.MODEL, contract)
    wrapped = resident.derive(model, contract)
    artifact.write_graph(wrapped, folder / artifact.RESIDENT, contract)
    return model, wrapped


def test_any_graph_with_declared_states_is_wrapped(tmp_path: Path) -> None:
    """A graph of other states (two dtypes, other axes, a first value, a constant) gives the same as by hand."""
    contract = fused_contract()
    _, wrapped = written_text(FUSED, contract, tmp_path)
    checks.check_signature(checks.resident_subject(tmp_path / artifact.RESIDENT, wrapped, contract))
    session, alone = (
        Resident(tmp_path / artifact.RESIDENT, contract, rows=6),
        Portable(tmp_path / artifact.MODEL, contract),
    )
    assert session.slabs["float32"][0].tolist() == [0, 1, 2, 3]
    x = np.random.default_rng(0).standard_normal((2, 1, 2)).astype(np.float32)
    answer = session.run({"x": x}, [1, 1], read=[0, 0], write=[4, 2])
    count, s = np.zeros((3, 2), np.int64), np.arange(4, dtype=np.float32).reshape(2, 1, 2).repeat(2, axis=1)
    found = alone.run({"x": x}, {"count": count, "s": s})
    assert np.array_equal(answer["y"], found["y"].transpose(1, 0, 2))
    for lane, row in enumerate((4, 2)):
        states = session.read_states(row)
        assert np.array_equal(states["count_out"], found["count_out"][:, lane])
        assert np.array_equal(states["s_out"], found["s_out"][:, lane])


STEPWISE = """
<ir_version: 10, opset_import: ["": 20]>
gru (float[3,batch] x, float[batch,4] h) => (float[batch,4] y, float[batch,4] h_out)
<float[4,3] w>
{
  product = MatMul(w, x)
  turned = Transpose<perm = [1, 0]>(product)
  h_out = Add(h, turned)
  y = Tanh(h_out)
}
"""


def test_a_model_of_single_steps_gets_a_time_axis(tmp_path: Path) -> None:
    """A model without a time axis, batch last, is served as [B, 1, *shape] all the same."""
    contract = Contract(
        name="stepwise",
        inputs=(TensorSpec("x", "float32", (3,), batch_axis=1, time_axis=None),),
        outputs=(TensorSpec("y", "float32", (4,), time_axis=None),),
        states=(StatePair("h", "h_out", "float32", (4,)),),
        weights_digest="sha256:0",
        ragged=False,
    )
    w = ", ".join(str(value) for value in range(12))
    written_text(STEPWISE.replace("<float[4,3] w>", f"<float[4,3] w = {{{w}}}>"), contract, tmp_path)
    session = Resident(tmp_path / artifact.RESIDENT, contract, rows=3)
    x = np.array([[[0.5, -1, 2]], [[1, 0, 0]]], np.float32)
    answer = session.run({"x": x}, [1, 1], read=[0, 0], write=[1, 2])
    expected = x[:, 0] @ np.arange(12, dtype=np.float32).reshape(4, 3).T
    assert answer["y"].shape == (2, 1, 4)
    np.testing.assert_allclose(session.slabs["float32"][1:], expected, rtol=1e-6)
    np.testing.assert_allclose(answer["y"][:, 0], np.tanh(expected), rtol=1e-6)


def test_backward_and_foreign_lengths_are_refused(write: Callable[[LSTM], Written]) -> None:
    """A node that reads backwards, or whose lengths are taken already, can't keep the promise of a stream."""
    written = write(seeded(TOKENS))
    backwards, lengthy = ModelProto(), ModelProto()
    for model in (backwards, lengthy):
        model.CopyFrom(written.model)
    (node,) = [node for node in backwards.graph.node if node.op_type == "LSTM"]
    node.attribute.append(onnx.helper.make_attribute("direction", "reverse"))
    with pytest.raises(resident.ResidentError, match="reads its sequence backwards"):
        resident.derive(backwards, written.contract)
    (node,) = [node for node in lengthy.graph.node if node.op_type == "LSTM"]
    node.input[4] = "their_lengths"
    with pytest.raises(resident.ResidentError, match="lengths of its own"):
        resident.derive(lengthy, written.contract)
    resident.derive(lengthy, replace(written.contract, ragged=False))
