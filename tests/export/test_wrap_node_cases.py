"""ONNX's own node tests of LSTM, GRU and RNN, wrapped and streamed step by step wherever that can be."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, helper

from export import artifact, wrap
from export.resident import ResidentError
from export.runtime import Resident
from export.theirs import WrapError
from export.understanding import Asked

RTOL, ATOL = 1e-3, 1e-7  # as upstream
BACKWARDS = (ResidentError, "reads its sequence backwards, which a stream can't")
NO_LAYOUT = (WrapError, r"ONNX Runtime refuses .*layout == 1\) are not supported")
# Those that can't stream, and why: the error, and what it says.
CANNOT: dict[str, tuple[type[Exception], str]] = {
    "test_lstm_batchwise": NO_LAYOUT,
    "test_gru_batchwise": NO_LAYOUT,
    "test_simple_rnn_batchwise": NO_LAYOUT,
    "test_lstm_reverse": BACKWARDS,
    "test_lstm_bidirectional": BACKWARDS,
    "test_gru_reverse": BACKWARDS,
    "test_gru_bidirectional": BACKWARDS,
    "test_simple_rnn_reverse": BACKWARDS,
    "test_simple_rnn_bidirectional": BACKWARDS,
}


class Case(NamedTuple):
    """One node test: its model, and inputs and expected outputs by name."""

    name: str
    model: ModelProto
    inputs: dict[str, npt.NDArray[Any]]
    outputs: dict[str, npt.NDArray[Any]]


def node_cases() -> list[Case]:
    """What the onnx package makes of its own sources."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case import node  # noqa: PLC0415
        from onnx.backend.test.case.node import gru, lstm, rnn  # noqa: F401, PLC0415  making them registers them
    found: dict[str, Case] = {}
    for case in node._NodeTestCases:
        if case.model is None or case.model.graph.node[0].op_type not in {"LSTM", "GRU", "RNN"}:
            continue
        ((inputs, outputs),) = case.data_sets or []
        names_in = [value.name for value in case.model.graph.input]
        names_out = [value.name for value in case.model.graph.output]
        found[case.name] = Case(
            case.name,
            case.model,
            dict(zip(names_in, map(np.asarray, inputs), strict=True)),
            dict(zip(names_out, map(np.asarray, outputs), strict=True)),
        )
    return list(found.values())


CASES = node_cases()


def with_states(case: Case) -> ModelProto:
    """The case's model with the states that it leaves out as inputs and outputs, which default to zero."""
    model = ModelProto()
    model.CopyFrom(case.model)
    (node,) = model.graph.node
    _, batch, _ = case.inputs["X"].shape
    directions, _, hidden = case.inputs["R"].shape
    names = [("initial_h", "Y_h"), ("initial_c", "Y_c")][: 2 if node.op_type == "LSTM" else 1]
    node.input.extend([""] * (5 + len(names) - len(node.input)))
    node.output.extend([""] * (1 + len(names) - len(node.output)))
    for place, (name, successor) in enumerate(names):
        shape = [directions, batch, hidden]
        for index, wanted, there, values in (
            (5 + place, name, node.input, model.graph.input),
            (1 + place, successor, node.output, model.graph.output),
        ):
            if not there[index]:
                there[index] = wanted
                values.append(helper.make_tensor_value_info(wanted, onnx.TensorProto.FLOAT, shape))
    if not node.output[0]:
        node.output[0] = "Y"
        steps = case.inputs["X"].shape[0]
        shape = [steps, directions, batch, hidden]
        model.graph.output.append(helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, shape))
    return model


def asked_of(case: Case) -> Asked:
    """What the case fixes that a stream needs free, and its weights."""
    features = case.inputs["X"].shape[-1]
    directions, _, hidden = case.inputs["R"].shape
    states = ["initial_h"] + ["initial_c"] * (case.model.graph.node[0].op_type == "LSTM")
    return Asked(
        constants={name: value for name, value in case.inputs.items() if name in {"W", "R", "B", "P"}},
        shapes={"X": ("time", "batch", features)} | dict.fromkeys(states, (directions, "batch", hidden)),
    )


def test_every_case_is_here() -> None:
    """The package has cases of all three operators, and the list of those that can't stream names no others."""
    names = {case.name for case in CASES}
    assert len(names) >= 15
    assert set(CANNOT) < names
    assert {case.model.graph.node[0].op_type for case in CASES} == {"LSTM", "GRU", "RNN"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in CANNOT], ids=lambda case: case.name)
def test_a_case_that_can_not_stream_says_why(case: Case, tmp_path: Path) -> None:
    """What reads backwards, or what ONNX Runtime has no kernel for, is refused with that reason."""
    onnx.save(case.model if "batchwise" in case.name else with_states(case), tmp_path / "case.onnx")
    kind, words = CANNOT[case.name]
    with pytest.raises(kind, match=words):
        wrap.wrap(tmp_path / "case.onnx", tmp_path / "a" / "1", name="a", asked=asked_of(case))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in CANNOT], ids=lambda case: case.name)
def test_a_case_streamed_step_by_step_gives_what_is_expected(case: Case, tmp_path: Path) -> None:
    """Wrapped, its rows as streams of the slab, one step a run: the outputs and last states that upstream expects."""
    onnx.save(with_states(case), tmp_path / "case.onnx")
    made = wrap.wrap(tmp_path / "case.onnx", tmp_path / "a" / "1", name="a", asked=asked_of(case))
    x = np.swapaxes(case.inputs["X"], 0, 1)
    batch, steps, _ = x.shape
    resident = Resident(made.folder / artifact.RESIDENT, made.contract, rows=2 * batch + 1)
    rows, fresh = list(range(1, batch + 1)), list(range(batch + 1, 2 * batch + 1))
    for lane, row in enumerate(rows):
        resident.write_states(
            row,
            {
                state.input: np.take(case.inputs[state.input], lane, state.batch_axis)
                if state.input in case.inputs
                else state.initial_value()
                for state in made.contract.states
            },
        )
    y = []
    for step in range(steps):
        y.append(resident.run({"X": x[:, step : step + 1]}, [1] * batch, rows, fresh)["Y"])
        rows, fresh = fresh, rows
    states = [resident.read_states(row) for row in rows]
    found = {name: np.stack([state[name] for state in states], axis=1) for name in states[0]}
    found["Y"] = np.moveaxis(np.concatenate(y, axis=1), (0, 1), (2, 0))
    for name, expected in case.outputs.items():
        np.testing.assert_allclose(found[name], expected, rtol=RTOL, atol=ATOL)
