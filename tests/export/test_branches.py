"""Ifs that a constant decides: the branch that is taken stays, computing the same, and the other is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, parser

from export import artifact, wrap
from export.branches import decide
from export.one_by_one import BATCHES
from export.subgraphs import all_nodes
from export.understanding import Asked
from model.contract import Constant
from tests import wrapped

RATE = """
<ir_version: 8, opset_import: ["" : 17]>
rates (float[b,6] x, float[b,3] h, int64 sr) => (float[b,3] y, float[b,3] hn)
<int64 fast = {16000}, int64 slow = {8000}, int64[2] shape = {-1, 3},
 float[6,3] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18}, float[3] half = {0.5, 0.25, 0.125}>
{
  is_fast = Equal(sr, fast)
  is_slow = Equal(sr, slow)
  known = Or(is_fast, is_slow)
  y, hn = If (known) <
    then_branch = outer () => (float[b,3] y1, float[b,3] h1) {
      y1, h1 = If (is_fast) <
        then_branch = sixteen () => (float[b,3] y2, float[b,3] h2) {
          a2 = MatMul(x, w)
          h2 = Add(a2, h)
          y2 = Tanh(h2)
        },
        else_branch = eight () => (float[b,3] y3, float[b,3] h3) { y3 = Mul(h, half)  h3 = Reshape(h, shape) }
      >
    },
    else_branch = never () => (float[b,3] y4, float[b,3] h4) { y4 = Neg(h)  h4 = Abs(h) }
  >
}
"""
TWO = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[b,n] x, float[b,3] h, int64 sr) => (float[b,3] y, float[b,3] hn)
<int64 fast = {16000}, float[4,3] w, int64[1] frame = {1}>
{
  is_fast = Equal(sr, fast)
  y, hn = If (is_fast) <
    then_branch = six () => (float[b,3] y1, float[b,3] h1) {
      a = ReduceMax<axes=[1]>(x)
      h1 = Add(a, h)
      y1 = Tanh(h1)
    },
    else_branch = four () => (float[b,3] y2, float[b,3] h2) { c = MatMul(x, w)  h2 = Add(c, h)  y2 = Tanh(h2) }
  >
}
"""
ASKS = """
<ir_version: 8, opset_import: ["" : 17]>
asks (float[b,3] x, float[b,3] h, bool louder, int64 sr) => (float[b,3] hn)
<int64 fast = {16000}>
{
  is_fast = Equal(sr, fast)
  both = And(is_fast, louder)
  hn = If (both) <
    then_branch = loud () => (float[b,3] a) { a = Add(x, h) },
    else_branch = soft () => (float[b,3] c) { c = Sub(x, h) }
  >
}
"""


def constant(name: str, value: object, dtype: str = "int64") -> Constant:
    """A side input's value."""
    array = np.asarray(value, dtype)
    return Constant(name, dtype, array.shape, array.tobytes())


def operators(model: ModelProto) -> list[str]:
    """What the outermost graph does, in order."""
    return [node.op_type for node in model.graph.node]


def answers(model: ModelProto, rate: int) -> list[bytes]:
    """What ONNX Runtime gives for a fixed input."""
    random = np.random.default_rng(0)
    feeds = {"x": random.standard_normal((2, 6), np.float32), "h": random.standard_normal((2, 3), np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value).tobytes() for value in session.run(None, feeds | {"sr": np.array(rate)})]


@pytest.mark.parametrize(
    ("rate", "decided", "left"),
    [
        (16000, 2, ["MatMul", "Add", "Tanh"]),
        (8000, 2, ["Mul", "Reshape"]),
        (44100, 1, ["Neg", "Abs"]),
    ],
)
def test_the_taken_branch_stays(rate: int, decided: int, left: list[str]) -> None:
    """Nested Ifs too; nodes and weights of what isn't taken are gone."""
    model = parser.parse_model(RATE)
    expected = answers(model, rate)
    assert decide(model, [constant("sr", rate)]) == decided
    assert sorted(operators(model)) == sorted(left)
    weights = {16000: {"w"}, 8000: {"half", "shape"}, 44100: set[str]()}
    assert {tensor.name for tensor in model.graph.initializer} == weights[rate]
    onnx.checker.check_model(model, full_check=True)
    assert answers(model, rate) == expected


def test_a_condition_that_may_change_stays_open() -> None:
    """It depends on an input besides the constant: nothing is decided, and nothing is changed."""
    model = parser.parse_model(ASKS)
    before = model.SerializeToString()
    assert decide(model, [constant("sr", 16000)]) == 0
    assert model.SerializeToString() == before
    assert decide(model, [constant("sr", 16000), constant("louder", True, "bool")]) == 1
    assert operators(model) == ["Add"]


def test_a_branch_that_does_not_fit_is_no_hindrance(tmp_path: Path) -> None:
    """Two models in one file (a voice detector for two sampling rates): the one not asked for takes other frames."""
    path = wrapped.save(TWO, tmp_path / "theirs.onnx")
    asked = Asked(constants={"sr": np.array(16000)}, shapes={"x": ("batch", 6)})
    contract = wrap.make(path, tmp_path, name="a", asked=asked).contract
    made, _ = artifact.read_graph(tmp_path / artifact.RESIDENT, weights=False)
    assert "If" not in [node.op_type for node in all_nodes(made.graph.node)]
    assert contract.notes[BATCHES] == "together"
    assert [value.name for value in contract.constants] == ["sr"]
