"""Structure checks: each planted fault is found, by the check that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from export import artifact, checks
from export.precision import Precision
from export.time_scan import body_of, is_time_scan
from model.lstm import LSTM
from tests.export.conftest import PROJECTED, SPECS, VECTORS, Written, seeded


def freeze_time(model: ModelProto) -> None:
    """Fix the time axis of the input, as the stock exporter does."""
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3


def freeze_time_within(model: ModelProto) -> None:
    """Fix time within the graph, and leave its signature as it was."""
    for node in model.graph.node:
        if node.output[0] == "y":
            node.output[0] = "free"
    shape = numpy_helper.from_array(np.array([-1, 3, 7], np.int64), "frozen")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", ["free", "frozen"], ["y"], name="freeze"))


def slice_a_weight(model: ModelProto) -> None:
    """Feed a recurrent node from a slice of its weight."""
    for name, value in (("from", 0), ("to", 28)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    axis = numpy_helper.from_array(np.array([1], np.int64), "sliced_axis")
    model.graph.initializer.append(axis)
    node = helper.make_node("Slice", ["lstm.0.W", "from", "to", "sliced_axis"], ["sliced"], name="litter")
    model.graph.node.insert(0, node)
    next(node for node in model.graph.node if node.op_type == "LSTM").input[1] = "sliced"


def compute_a_weight(model: ModelProto) -> None:
    """Feed a recurrent node from a computed weight."""
    model.graph.node.insert(0, helper.make_node("Identity", ["lstm.0.W"], ["computed"], name="computed"))
    next(node for node in model.graph.node if node.op_type == "LSTM").input[1] = "computed"


def embed_a_weight(model: ModelProto) -> None:
    """Put a weight into the graph, where no digest covers it."""
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "lstm.0.B")
    bias.CopyFrom(numpy_helper.from_array(np.zeros((1, 56), np.float32), "lstm.0.B"))


def drop_a_name(model: ModelProto) -> None:
    """Take a node's name away."""
    model.graph.node[0].name = ""


def newer_opset(model: ModelProto) -> None:
    """Ask for an opset that older runtimes have no kernels for."""
    model.opset_import[0].version = 22


def rename_a_state(model: ModelProto) -> None:
    """Declare an output under another name."""
    model.graph.output[2].name = "cell"
    next(node for node in model.graph.node if node.output[0] == "c_out").output[0] = "cell"


def break_a_node(model: ModelProto) -> None:
    """Give a node an input that nothing makes."""
    model.graph.node[-1].input[0] = "nothing"


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (freeze_time, "check_signature"),
        (freeze_time_within, "check_shapes_inferred"),
        (slice_a_weight, "check_operators"),
        (compute_a_weight, "check_names"),
        (embed_a_weight, "check_weights_outside"),
        (drop_a_name, "check_names"),
        (newer_opset, "check_opset"),
        (rename_a_state, "check_signature"),
        (break_a_node, "check_valid"),
    ],
)
def test_a_planted_fault_is_found(
    fault: Callable[[ModelProto], None], check: str, write: Callable[[LSTM], Written]
) -> None:
    """The check that is there for the fault refuses the graph, by its own name."""
    written = write(seeded(VECTORS))
    path = written.folder / artifact.MODEL
    fault(written.model)
    artifact.write_graph(written.model, path, written.contract)
    with pytest.raises(checks.StructureError, match=rf"^model\.onnx: {check}: "):
        checks.check_structure(checks.portable_subject(path, written.model, written.contract))


def test_a_contract_of_another_model_is_found(write: Callable[[LSTM], Written]) -> None:
    """A state that the contract has in another size doesn't pass for the graph's."""
    written = write(seeded(VECTORS))
    states = (replace(written.contract.states[0], shape=(2, 8)), written.contract.states[1])
    contract = replace(written.contract, states=states)
    for subject in (
        checks.portable_subject(written.folder / artifact.MODEL, written.model, contract),
        checks.resident_subject(written.folder / artifact.RESIDENT, written.resident, contract),
    ):
        with pytest.raises(checks.StructureError):
            checks.check_signature(subject)


def test_a_lost_weights_file_is_found(write: Callable[[LSTM], Written]) -> None:
    """A graph whose weights aren't beside it is not valid."""
    written = write(seeded(VECTORS))
    (written.folder / artifact.WEIGHTS).unlink()
    subject = checks.resident_subject(written.folder / artifact.RESIDENT, written.resident, written.contract)
    with pytest.raises(checks.StructureError, match=r"resident\.onnx: check_valid"):
        checks.check_structure(subject)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shape_inference_names_batch_and_time(spec: object, write: Callable[[LSTM], Written]) -> None:
    """Inferred without the declared shapes, outputs still have free batch and time axes."""
    written = write(seeded(spec))  # type: ignore[arg-type]
    inferred = onnx.shape_inference.infer_shapes(written.model, strict_mode=True, data_prop=True)
    y = inferred.graph.output[0].type.tensor_type.shape
    assert [dim.dim_param for dim in y.dim[:2]] == ["batch", "time"]


def _scan(model: ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if is_time_scan(node))


def capture_an_activation(model: ModelProto) -> None:
    """Let a Scan take something from outside that isn't a weight."""
    scan = _scan(model)
    body_of(scan).node[0].input[1] = scan.input[2]


def another_scan(model: ModelProto) -> None:
    """Let a Scan be somebody else's."""
    body_of(_scan(model)).name = "theirs"


def loop_within(model: ModelProto) -> None:
    """Hide control flow inside a Scan of ours."""
    body_of(_scan(model)).node.append(helper.make_node("If", ["front_axis"], ["hidden"], name="hidden"))


def slice_within(model: ModelProto) -> None:
    """Cut an activation where nothing needs cutting."""
    body_of(_scan(model)).node.append(helper.make_node("Slice", ["lstm.0.step.y"] * 3, ["cut"], name="cut"))


@pytest.mark.parametrize("fault", [capture_an_activation, another_scan, loop_within, slice_within])
def test_only_our_own_scans_are_let_through(fault: Callable[[ModelProto], None], write: Callable[..., Written]) -> None:
    """A Scan over time may be there, but no other control flow, and it takes weights from outside and nothing else."""
    written = write(seeded(PROJECTED))
    checks.check_operators(checks.portable_subject(written.folder / artifact.MODEL, written.model, written.contract))
    fault(written.model)
    with pytest.raises(checks.StructureError, match=r"doesn't belong here|isn't a weight"):
        checks.check_operators(
            checks.portable_subject(written.folder / artifact.MODEL, written.model, written.contract)
        )


def test_operators_outside_the_standard_are_for_int8_alone(write: Callable[..., Written]) -> None:
    """8-bit products are the one operator of another domain, and only a contract that says int8 may have it."""
    written = write(seeded(VECTORS), Precision.INT8)
    for precision in ("fp32", "tf32", "fp16"):
        contract = replace(written.contract, precision=precision)
        subject = checks.portable_subject(written.folder / artifact.MODEL, written.model, contract)
        with pytest.raises(checks.StructureError, match="opsets"):
            checks.check_opset(subject)
    subject = checks.portable_subject(written.folder / artifact.MODEL, written.model, written.contract)
    checks.check_opset(subject)
    node = helper.make_node("DynamicQuantizeLSTM", [], [], name="theirs", domain="com.microsoft")
    written.model.graph.node.append(node)
    with pytest.raises(checks.StructureError, match="DynamicQuantizeLSTM"):
        checks.check_opset(subject)


def test_an_unknown_precision_is_refused_by_name(write: Callable[..., Written]) -> None:
    """What the contract calls int4 is nothing that this version can prove."""
    written = write(seeded(VECTORS))
    contract = replace(written.contract, precision="int4")
    subject = checks.portable_subject(written.folder / artifact.MODEL, written.model, contract)
    with pytest.raises(checks.StructureError, match="'int4' is none of fp32, int8, tf32, fp16"):
        checks.check_opset(subject)


@pytest.mark.parametrize("precision", list(Precision))
def test_shapes_of_cells_are_inferred(precision: Precision, write: Callable[..., Written]) -> None:
    """Within Scans and behind 8-bit products, strict inference still finds batch and time free and sizes fixed."""
    written = write(seeded(PROJECTED), precision)
    for model in (written.model, written.resident):
        bare = ModelProto()
        bare.CopyFrom(model)
        for value in bare.graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
        y = inferred.graph.output[0].type.tensor_type.shape
        assert [dim.dim_param or dim.dim_value for dim in y.dim] == ["batch", "time", 3]
