"""Users' modules: what is understood of each kind, that it streams, and how each refusal says why it can't."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export import artifact, wrap
from export.layouts import BATCH, TIME
from export.module import export_module, traced
from export.module_calls import ModuleError
from export.module_code import first_state
from export.module_find_plan import find_plan
from export.module_graph import OnnxKernel, Streaming, to_onnx
from export.module_parity import Slack
from export.module_plan import Plan, parse_input
from export.module_streams import Streamed, Whole, check_streams, first_apart
from export.page import STYLE
from export.pipeline import ParityError
from model.recurrent import formula
from tests import modules

X, TIME_FIRST, STEP = "x=float32[batch,time,5]", "x=float32[time,batch,5]", "x=float32[batch,5]"
SHORT = (1, 10)  # steps of parity, where a whole export is made


class Kind(NamedTuple):
    """A module, what is said of it, and what is to be understood."""

    make: Any
    inputs: list[str]
    stepwise: bool
    states: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    state: dict[str, str] = {}  # noqa: RUF012  of a NamedTuple


KINDS = {
    "stacked, tokens": Kind(
        modules.Tagger,
        [],
        False,
        {"rnn1.h": (BATCH, 2, 6), "rnn1.c": (BATCH, 2, 6), "rnn2.h": (BATCH, 1, 6)},
        {"logits": (BATCH, TIME, 3), "value": (BATCH, TIME)},
    ),
    "state in and out": Kind(modules.Carrying, [TIME_FIRST], False, {"state": (2, BATCH, 6)}, {"y": (TIME, BATCH, 2)}),
    "cells": Kind(
        modules.Cells,
        [STEP],
        True,
        {"state0": (BATCH, 4), "state1": (BATCH, 4), "state2": (BATCH, 4)},
        {"y": (BATCH, 8)},
    ),
    "a loop": Kind(modules.Looping, [X], True, {"cell.h": (BATCH, 1, 6)}, {"y": (BATCH, TIME, 2)}),
    "one answer": Kind(
        modules.Classifier, [X], True, {"lstm.h": (BATCH, 1, 6), "lstm.c": (BATCH, 1, 6)}, {"y": (BATCH, 3)}
    ),
    "two inputs": Kind(
        modules.Mixed,
        [X, "kind=int64[batch,time]"],
        False,
        {"rnn.h": (BATCH, 1, 6)},
        {"y0": (BATCH, TIME, 6), "y1": (BATCH, TIME)},
    ),
    "its own recurrence": Kind(
        modules.Own,
        [STEP],
        True,
        {"h": (BATCH, 6), "count": (BATCH,)},
        {"y": (BATCH,)},
        {"h": "float32[batch,6]", "count": "int64[batch]"},
    ),
    "a state that is told": Kind(
        modules.NeedsState,
        [STEP],
        True,
        {"state0": (BATCH, 6), "state1": (BATCH, 6)},
        {"y": (BATCH, 6)},
        {"state": "(float32[batch,6],float32[batch,6])"},
    ),
    "an input without time": Kind(
        modules.Speaking,
        ["x=uint8[batch,time,5]", "speaker=int64[batch]"],
        True,
        {"gru.h": (BATCH, 1, 6)},
        {"y": (BATCH, TIME, 6)},
    ),
    "a loop of its own": Kind(modules.HandWritten, [X], False, {"h": (BATCH, 6)}, {"y": (BATCH, TIME, 6)}),
    "no state given": Kind(
        modules.Quiet, [], False, {"lstm.h": (BATCH, 1, 6), "lstm.c": (BATCH, 1, 6)}, {"y": (BATCH, TIME, 6)}
    ),
    "nn.LSTM": Kind(
        lambda: nn.LSTM(5, 6, 2), [], False, {"hx0": (2, BATCH, 6), "hx1": (2, BATCH, 6)}, {"y": (TIME, BATCH, 6)}
    ),
    "nn.GRUCell": Kind(lambda: nn.GRUCell(5, 6), [], True, {"hx": (BATCH, 6)}, {"y": (BATCH, 6)}),
}


def planned(make: Any, inputs: list[str], state: dict[str, str] | None = None) -> tuple[nn.Module, Plan]:
    """A module with seeded weights, and what is understood of it."""
    module = modules.seeded(make).eval()
    return module, find_plan(module, [parse_input(text) for text in inputs], first_state(state or {}))


def understood(make: Any, inputs: list[str]) -> None:
    """Raise where a module isn't understood, or doesn't stream."""
    module, plan = planned(make, inputs)
    check_streams(plan, module)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_kind_is_understood_and_streams(kind: Kind) -> None:
    """States, outputs and axes are found, and steps one by one give in float64 what whole sequences give."""
    module, plan = planned(kind.make, kind.inputs, kind.state)
    assert plan.stepwise == kind.stepwise
    assert {state.name: state.layout for state in plan.states} == kind.states
    assert {tensor.name: tensor.layout for tensor in plan.outputs} == kind.outputs
    check_streams(plan, module)


def test_first_values_ranges_and_remarks_are_found() -> None:
    """A parameter that a layer begins from, a method's first state, an embedding's range, a state that isn't given."""
    module, plan = planned(modules.Classifier, [X])
    assert isinstance(module, modules.Classifier)
    assert plan.states[0].initial is not None
    np.testing.assert_array_equal(plan.states[0].initial, module.h0[0].detach().numpy())
    _, plan = planned(modules.Cells, [STEP])
    assert [state.initial is None for state in plan.states] == [True, False, True]
    _, plan = planned(modules.Mixed, KINDS["two inputs"].inputs)
    assert [tensor.bounds for tensor in plan.inputs] == [None, (0, 2)]
    assert plan.remarks == ("output 'y2' is rnn's state, and is left out",)
    _, plan = planned(modules.Tagger, [])
    assert (plan.inputs[0].name, plan.inputs[0].dtype, plan.inputs[0].bounds) == ("tokens", "int64", (0, 10))


REFUSED: list[tuple[Any, list[str], str]] = [
    (modules.Bidirectional, [], "encoder .*bidirectional: it reads a sequence from its end"),
    (modules.Projected, [], "proj_size=2.*export that LSTM by itself"),
    (modules.Packed, [], "packed sequence .*leave the packing out"),
    (lambda: modules.OverTime("flip"), [X], "differ first at step 1; step 1 needs later ones"),
    (lambda: modules.OverTime("mean"), [X], "differ first at step 1; step 1 needs later ones"),
    (lambda: modules.OverTime("attention"), [X], "differ first at step 1"),
    (lambda: modules.OverTime("causal convolution"), [X], "differ first at step 2; step 2 needs more of the past"),
    (lambda: modules.OverTime("convolution"), [X], r"forward fails with x \[3, 1, 5\]"),
    (modules.EncoderDecoder, [], "the state that decoder begins from depends on the input"),
    (modules.Remembering, [STEP], r"a state in the module's own attributes \(h\)"),
    (modules.OverBatch, [], "depends on the others in its batch"),
    (lambda: modules.Overridden(5, 6), [], "forward of its own"),
    (modules.Stateless, [X], "no state found"),
    (modules.NeedsState, [STEP], r"needs state, and fails with None.*initial_state\(batch\), or by --state"),
    (modules.Carrying, [STEP], "without one for the batch"),
    (modules.Carrying, ["y=float32[batch,5]"], "--input y: forward takes x, state"),
    (modules.Tagger, ["tokens=float32[batch,time]"], "forward fails with tokens"),
    (modules.Mixed, [], "say what forward takes"),
]


@pytest.mark.parametrize(("make", "inputs", "text"), REFUSED)
def test_what_cannot_stream_is_refused_with_its_reason(make: Any, inputs: list[str], text: str) -> None:
    """In one line that says why, or what to give."""
    with pytest.raises(ModuleError, match=text) as refusal:
        understood(make, inputs)
    assert "\n" not in str(refusal.value)


def test_control_flow_on_values_cannot_be_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may stream, and there is still no graph of it."""
    module, plan = planned(modules.Branching, [])
    check_streams(plan, module)
    with pytest.raises(ModuleError, match=r"its control flow depends on values.*\(modules.py line \d+\)") as refusal:
        to_onnx(plan, copy.deepcopy(module), tmp_path / "a.onnx")
    assert capsys.readouterr() == ("", "")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["x", "x=float32", "x=float32[time,5]", "x=f[batch]", "x=str[batch]", "lengths=int64[batch]"]
)
def test_an_input_that_does_not_read_is_refused(text: str) -> None:
    """With the form that it has."""
    with pytest.raises(ModuleError, match=r"--input"):
        parse_input(text)


def test_a_wrong_slot_is_noticed() -> None:
    """Were two layers' states exchanged, or one forgotten, whole sequences and steps would differ."""
    module, plan = planned(modules.Tagger, [])
    states = list(plan.states)
    states[0], states[1] = (
        type(states[0])(**{n: getattr(s, n) for n in s.__dataclass_fields__} | {"place": 1 - s.place})
        for s in states[:2]
    )
    wrong = type(plan)(**{n: getattr(plan, n) for n in plan.__dataclass_fields__} | {"states": tuple(states)})
    with pytest.raises(ModuleError, match=r"isn't what the whole sequence leaves|doesn't stream"):
        check_streams(wrong, module)


def test_first_apart_names_the_step() -> None:
    """From 1; nothing for equal ones; NaN is apart."""
    whole = np.ones((2, 5, 3))
    other = whole.copy()
    assert first_apart(whole, other) is None
    other[1, 3, 0] += 1e-6
    assert first_apart(whole, other) == 4
    other[0, 1, 2] = np.nan
    assert first_apart(whole, other) == 2


def test_the_graph_has_clean_recurrent_operators(tmp_path: Path) -> None:
    """One operator a layer, weights as named initializers, no slices, free batch and time."""
    module, plan = planned(modules.Tagger, [])
    to_onnx(plan, copy.deepcopy(module), tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("LSTM") == 2
    assert ops.count("GRU") == 1
    assert "Slice" not in ops
    weights = {tensor.name for tensor in model.graph.initializer}
    assert all(set(node.input[1:4]) <= weights for node in model.graph.node if node.op_type in ("LSTM", "GRU"))
    assert [dim.HasField("dim_value") for dim in model.graph.input[0].type.tensor_type.shape.dim] == [False, False]
    assert [value.name for value in model.graph.output][:2] == ["logits", "value"]


def test_tracing_leaves_the_module_and_dtypes_as_they_were() -> None:
    """A streamed copy is a copy; the default dtype is put back."""
    module, plan = planned(modules.Looping, [X])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = {"x": np.ones((2, 3, 5), np.float32)}
    states = {"cell.h": np.zeros((2, 1, 6))}
    streamed = Streamed(plan, module, formula).run(inputs, states)
    whole = Whole(plan, module).run(inputs, states, every=True)
    np.testing.assert_allclose(streamed["y"], whole["y"], rtol=1e-12)
    assert isinstance(module.cell, nn.GRUCell)
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_time_that_is_a_number_in_the_code_is_one_step(tmp_path: Path) -> None:
    """A graph whose time can't be free takes single steps, and says why."""
    module, plan = planned(modules.HandWritten, [X])
    found, remarks = traced(plan, module, tmp_path / "a.onnx")
    assert found.stepwise
    assert "a Python loop over time" in remarks[0]
    assert len(onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape.dim) == 2


def test_slack_moves_activations_by_epsilons_only() -> None:
    """By 1.5 epsilons at most, in formulas and elsewhere; sums and products stay as they are."""
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    most = 1.5 * float(np.finfo(np.float32).eps)
    with Slack():  # type: ignore[no-untyped-call]
        found = [torch.sigmoid(x), torch.tanh(x), torch.softmax(x, 0), x * 3 + 1]
    exact = [torch.sigmoid(x), torch.tanh(x), torch.softmax(x, 0), x * 3 + 1]
    moved = [float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)]
    assert all(
        0.3 * most * float(value.abs().max()) < by <= most for value, by in zip(exact[:3], moved[:3], strict=True)
    )
    assert moved[3] == 0


def test_an_export_proves_its_module(tmp_path: Path) -> None:
    """Four levels against float64, equal bytes, planted faults, and an integer state of its own slab."""
    made = export_module(
        modules.seeded(modules.Own),
        tmp_path / "own" / "1",
        name="own",
        inputs=[STEP],
        first_state=first_state(KINDS["its own recurrence"].state),
        steps=SHORT,
    )
    folder = made.folder
    found = {path.name for path in folder.iterdir()}
    assert found == {artifact.MODEL, artifact.WEIGHTS, artifact.RESIDENT, artifact.PARITY, artifact.PAGE}
    assert STYLE in (folder / artifact.PAGE).read_text()
    _, contract = artifact.read_graph(folder / artifact.RESIDENT, weights=False)
    certificate = contract.certificate
    assert certificate is not None
    assert certificate.passed
    subjects = {record.subject for record in certificate.records if record.rms_bar}
    assert len(subjects) == 4
    assert all(record.rms_ratio < 1e-6 for record in certificate.records if record.rms_bar == 1e-4)
    assert certificate.controls.keys() >= {"a state not carried", "a stale row read", "a step lost"}
    assert min(certificate.controls.values()) > 10
    assert all(certificate.invariances.values())
    assert [slab.dtype for slab in contract.slabs()] == ["float32", "int64"]
    assert wrap.prove(folder).contract == contract


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates in PyTorch's order where ONNX wants its own: float64 finds it, and nothing is written."""
    monkeypatch.setattr(OnnxKernel, "_rows", lambda _self, weight: weight.detach())
    with pytest.raises(ParityError, match=r"comparisons failed; worst: (model|resident).onnx"):
        export_module(modules.seeded(modules.Looping), tmp_path / "a" / "1", name="a", inputs=[X], steps=SHORT)
    assert not list(tmp_path.iterdir())


def test_streaming_gives_states_after_outputs() -> None:
    """The one function that graph and truth are made of: flat in, flat out."""
    module, plan = planned(modules.Carrying, [TIME_FIRST])
    function = Streaming(plan, copy.deepcopy(module), formula)
    y, state = function(torch.ones(4, 3, 5), torch.zeros(2, 3, 6))
    assert y.shape == (4, 3, 2)
    assert state.shape == (2, 3, 6)
