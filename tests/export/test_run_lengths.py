"""Runs of several steps: which lengths are tried, how far they are promised, and what a graph can't hide beyond."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper, parser
from torch import nn
from torch.nn import functional

from export import artifact, run_lengths, wrap
from export.module_calls import ModuleError
from export.module_find_plan import find_plan
from export.module_plan import parse_input
from export.module_streams import check_streams
from export.run_lengths import EVERY, MOST, most_steps, numbers, tried
from export.runtime import Resident
from export.theirs import WrapError
from model.contract import Contract, StatePair, TensorSpec
from tests import modules, wrapped

# y[t] = x[t] + SCALE · x[t - LAG] + h, where a lag reaches no further back than its own run.
LAGGING = """
<ir_version: 8, opset_import: ["" : 17]>
lagging (float[n,t,3] x, float[n,3] h) => (float[n,t,3] y, float[n,3] h_out)
<int64[6] lag = {0, LAG, 0, 0, 0, 0}, int64[1] one = {1}, int64[1] zero = {0}, float scale = {SCALE}>
{
  shape = Shape(x)
  steps = Slice(shape, one, two)
  later = Pad(x, lag)
  past = Slice(later, zero, steps, one)
  some = Mul(past, scale)
  lifted = Unsqueeze(h, one)
  y = Sum(x, some, lifted)
  h_out = Identity(h)
}
""".replace("int64[1] one = {1},", "int64[1] one = {1}, int64[1] two = {2},")
# A run of more than 40 steps is answered a little otherwise, whatever is in it.
BY_LENGTH = """
<ir_version: 8, opset_import: ["" : 17]>
by_length (float[n,t,3] x, float[n,3] h) => (float[n,t,3] y, float[n,3] h_out)
<int64[1] one = {1}, int64[1] two = {2}, int64[1] most = {40}, float low = {1.0}, float high = {1.001}>
{
  shape = Shape(x)
  steps = Slice(shape, one, two)
  many = Greater(steps, most)
  factor = Where(many, high, low)
  lifted = Unsqueeze(h, one)
  sum = Add(x, lifted)
  y = Mul(sum, factor)
  h_out = Identity(h)
}
"""
# A row of the table for each step of a run, all the same: as long as the table lasts.
TABLED = """
<ir_version: 8, opset_import: ["" : 17]>
tabled (float[n,t,3] x, float[n,3] h) => (float[n,t,3] y, float[n,3] h_out)
<float[50,3] table, int64[1] one = {1}, int64 begin = {0}, int64 step = {1}, int64 axis = {1}>
{
  shape = Shape(x)
  steps = Gather(shape, axis)
  places = Range(begin, steps, step)
  rows = Gather(table, places)
  with_rows = Add(x, rows)
  lifted = Unsqueeze(h, one)
  y = Add(with_rows, lifted)
  h_out = Identity(h)
}
"""


def wrapped_as(text: str, tmp_path: Path) -> wrap.Wrapped:
    """The artifact of a model."""
    return wrap.wrap(wrapped.save(text, tmp_path / "given.onnx"), tmp_path / "a" / "1", name="a")


def lagging(lag: int, scale: float) -> str:
    """The model with a lag of so many steps, and how much it counts."""
    return LAGGING.replace("LAG,", f"{lag},").replace("SCALE", str(scale))


@pytest.mark.parametrize("lag", [7, 40, 300])
def test_a_lag_within_a_run_is_refused(tmp_path: Path, lag: int) -> None:
    """A graph that looks back within its run only is found by a run that is longer than any lag of it."""
    with pytest.raises(WrapError, match=f"first at step {lag + 1}: the graph .* forgets between runs"):
        wrapped_as(lagging(lag, 1.0), tmp_path)


class Lagging(nn.Module):
    """A layer, and what went in so many steps before, which no state has."""

    def __init__(self, lag: int) -> None:
        super().__init__()
        self.lag, self.gru = lag, nn.GRU(3, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        past = functional.pad(x, (0, 0, self.lag, 0))[:, : x.shape[1]]
        return self.gru(x)[0] + 0.01 * past


@pytest.mark.parametrize("lag", [7, 40, 300])
def test_a_modules_lag_is_refused(lag: int) -> None:
    """A module is asked for longer sequences than any lag of its own."""
    module = modules.seeded(lambda: Lagging(lag)).eval()
    plan = find_plan(module, [parse_input("x=float32[batch,time,3]")], None)
    with pytest.raises(ModuleError, match=f"differ first at step {lag + 1}; step {lag + 1} needs more of the past"):
        check_streams(plan, module)


def test_a_faint_lag_bounds_the_runs(tmp_path: Path) -> None:
    """Where it changes last digits only, runs are as short as the lag, and the table and contract say so."""
    made = wrapped_as(lagging(40, 1e-3), tmp_path)
    assert (made.contract.ragged, made.contract.max_steps) == (True, 40)
    assert any("a run takes 40 steps of a stream at most: runs of 41 steps differ" in text for text in made.remarks)
    assert wrap.prove(made.folder).contract == made.contract


def test_a_length_that_the_graph_asks_for_bounds_the_runs(tmp_path: Path) -> None:
    """An operator that compares the number of steps with a constant is tried on both sides of it."""
    assert wrapped_as(BY_LENGTH, tmp_path).contract.max_steps == 40


def test_a_table_that_ends_bounds_the_runs(tmp_path: Path) -> None:
    """Runs that the graph can't take are promised to nobody."""
    model = wrapped.parsed(TABLED)
    tensors = model.graph.initializer
    (table,) = [tensor for tensor in tensors if tensor.name == "table"]
    table.CopyFrom(numpy_helper.from_array(np.ones((50, 3), np.float32), "table"))
    made = wrap.wrap(wrapped.save(model, tmp_path / "given.onnx"), tmp_path / "a" / "1", name="a")
    assert (made.contract.ragged, made.contract.max_steps) == (True, 50)


def test_a_table_of_positions_leaves_single_steps(tmp_path: Path) -> None:
    """Where a step's place within its run matters from the second on, no run has two."""
    model = wrapped.parsed(TABLED)
    for tensor in model.graph.initializer:
        if tensor.name == "table":
            small = 1e-3 * np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(small, "table"))
    made = wrap.wrap(wrapped.save(model, tmp_path / "given.onnx"), tmp_path / "a" / "1", name="a")
    assert (made.contract.ragged, made.contract.run_steps) == (False, 1)


def test_a_promise_beyond_the_proof_is_found_again(tmp_path: Path) -> None:
    """`prove` tries the lengths that the contract promises, not those that were tried before."""
    made = wrapped_as(lagging(40, 1e-3), tmp_path)
    graphs = {
        name: artifact.read_graph(made.folder / name, weights=False)[0] for name in ("model.onnx", "resident.onnx")
    }
    assert made.contract.certificate is not None

    longer = artifact.certify(replace(made.contract, max_steps=64), made.contract.certificate, graphs)
    for name, graph in graphs.items():
        artifact.write_graph(graph, made.folder / name, longer)
    with pytest.raises(WrapError, match="promises runs of 64 steps: runs of 41 steps differ"):
        wrap.prove(made.folder)


def test_all_numbers_of_a_graph_count(tmp_path: Path) -> None:
    """Attributes, windows with their dilation and all of them together, constants in inner graphs, sizes of weights."""
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        all (float[1,3,n] x, bool more) => (float[1,3,m] y)
        <float[3,3,5] w, float limit = {77.0}, float half = {0.5}>
        {
          a = Conv<dilations = [9]>(x, w)
          b = MaxPool<kernel_shape = [13]>(a)
          y = If (more) <
            then_branch = yes () => (float[1,3,k] c) { d = Constant<value = float {123.0}>() c = Mul(b, d) },
            else_branch = no () => (float[1,3,k] e) { e = Identity(b) }
          >
        }
        """
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 3, 5), np.float32), "w"))
    model.graph.node.append(helper.make_node("Identity", ["limit"], ["unused"]))
    found = numbers(model, tmp_path)
    assert {3, 5, 9, 13, (5 - 1) * 9 + 1, (5 - 1) * 9 + 13, 77, 123} <= found
    assert not {0, 1} & found


def test_small_weights_beside_the_graph_are_read(tmp_path: Path) -> None:
    """A constant that lies in the weights file is a number like any other."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> a (float[n] x) => (float[n] y) { y = Add(x, k) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([31.0], np.float32), "k"))
    artifact.write_weights(model, tmp_path / artifact.WEIGHTS)
    assert 31 in numbers(model, tmp_path)


def test_what_is_tried() -> None:
    """Every length of the usual slices, both sides of each number, the longest; whole calls where these are longer."""
    assert tried([], MOST) == [*range(1, EVERY + 1), MOST]
    assert tried([100], MOST) == [*range(1, EVERY + 1), 99, 100, 101, MOST]
    assert tried([100, 600], 100) == [*range(1, EVERY + 1), 99, 100]
    assert tried([], 10, 4) == [4, 8]
    assert sum(tried(range(MOST), MOST)) <= sum(range(EVERY + 1)) + (run_lengths.TRIED + 1) * MOST


def test_wide_and_heavy_models_promise_less() -> None:
    """Memory and time of a proof are bounded, and so is what it promises."""

    def contract(width: int, *, ragged: bool = True) -> Contract:
        state = StatePair("h", "h_out", "float32", (4,))
        return Contract(
            "a",
            (TensorSpec("x", "float32", (4,)),),
            (TensorSpec("y", "float32", (width,)),),
            (state,),
            "",
            ragged=ragged,
        )

    assert most_steps(contract(4), 1000) == MOST
    assert most_steps(contract(4, ragged=False), 1000) == 1
    assert most_steps(contract(1 << 18), 1000) == 16
    assert most_steps(contract(4), 1 << 30) == 16


def test_the_promise_is_kept_by_the_graph(tmp_path: Path) -> None:
    """The longest run that the contract promises gives what its steps give one by one."""
    made = wrapped_as(lagging(40, 1e-3), tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 40, 3)).astype(np.float32)
    resident = Resident(made.folder / artifact.RESIDENT, made.contract, rows=4)
    at_once = resident.run({"x": x}, [40], [0], [1])["y"]
    rows = [0, 2]
    singles = []
    for step in range(40):
        rows = [rows[1], 2 if rows[1] == 3 else 3]
        singles.append(resident.run({"x": x[:, step : step + 1]}, [1], [rows[0] if step else 0], [rows[1]])["y"])
    assert at_once.tobytes() == np.concatenate(singles, axis=1).tobytes()
