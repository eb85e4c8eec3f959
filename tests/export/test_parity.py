"""Parity: honest exports of any size pass, and every planted fault fails by far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper

from export import artifact, faults, parity, portable, resident, samples
from export.parity import EMULATED, Levels
from export.precision import Precision
from export.quantization import dequantize, quantize
from export.samples import NON_ZERO, ZERO
from export.yardstick import difference
from model.contract import ParityRecord
from model.lstm import LSTM, Spec
from tests.export.conftest import ENCODED, PROJECTED, SINGLE, TOKENS, VECTORS, Written, seeded

FAR = 25.0  # times the bar
PROJECTED_WIDE = Spec(input_size=3, hidden_size=131, proj_size=40, layers=2, bias=False)


def levels_of(written: Written, module: LSTM | None = None) -> Levels:
    """All levels of what was written, against another module if one is given."""
    names = (artifact.MODEL, artifact.RESIDENT)
    return Levels(module or written.module, written.folder, names, written.contract)


def records_at(levels: Levels, *steps: int) -> list[ParityRecord]:
    """Records at these numbers of steps, from zero and other states."""
    records = []
    for count in steps:
        for initial in (ZERO, NON_ZERO):
            records += levels.against_truth(count, initial)
    return records


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize(
    "spec",
    [
        SINGLE,
        TOKENS,
        ENCODED,
        Spec(input_size=37, hidden_size=37, layers=3),
        Spec(input_size=64, hidden_size=512, layers=2),
        Spec(input_size=3, hidden_size=200, output_size=1, bias=False),
        Spec(vocabulary=256, encoder_size=16, hidden_size=128, output_size=256),
    ],
    ids=str,
)
def test_honest_exports_pass(spec: Spec, gain: float, write: Callable[[LSTM], Written]) -> None:
    """Every level of a correct export passes, whatever its size and with weights as large as trained ones."""
    module = seeded(spec)
    for parameter in module.parameters():
        parameter.mul_(gain)
    levels = levels_of(write(module))
    records = records_at(levels, 1, 10, 50) + levels.bit_for_bit(0, most_steps=5)
    assert [record for record in records if not record.passed] == []
    assert {record.tensor for record in records} == {"y", "h_out", "c_out"}


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("spec", [SINGLE, TOKENS, PROJECTED, PROJECTED_WIDE], ids=str)
def test_every_precision_passes_by_its_own_bar(
    spec: Spec, precision: Precision, gain: float, write: Callable[..., Written]
) -> None:
    """Projections and reduced products pass, each byte the same in ragged batches; at gain 1 within the share."""
    module = seeded(spec)
    for parameter in module.parameters():
        parameter.mul_(gain)
    levels = levels_of(write(module, precision))
    records = records_at(levels, 1, 30)
    assert [record for record in records + levels.bit_for_bit(0, most_steps=5) if not record.passed] == []
    ours = [record for record in records if not record.subject.startswith("nn.LSTM")]
    assert {record.subject == EMULATED for record in ours} == ({False, True} if precision.reduced else {False})
    if gain == 1.0:
        assert {record.share_bar for record in ours} == {precision.terms.share}


def test_a_coarser_precision_fails_a_finer_ones_bar(write: Callable[..., Written]) -> None:
    """8-bit weights in a graph that calls itself tf32 are far over the bar, and over the share that TF32 may cost."""
    written = write(seeded(VECTORS))
    model = portable.build(seeded(VECTORS))
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".W", ".R")):
            (weight,) = numpy_helper.to_array(tensor)
            rounded = dequantize(quantize(weight), weight.shape[1])[None].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    forged = replace(written.contract, precision="tf32")
    rewrite(written._replace(contract=forged), model)
    levels = Levels(written.module, written.folder, (artifact.MODEL, artifact.RESIDENT), forged)
    records = [r for r in levels.against_truth(10, NON_ZERO) if r.subject == artifact.MODEL and r.tensor == "y"]
    assert [record.passed for record in records] == [False]
    assert records[0].share > records[0].share_bar == Precision.TF32.terms.share


def test_all_batches_make_a_certificate(write: Callable[[LSTM], Written]) -> None:
    """The whole proof covers four levels at 1, 10, 100 and 1000 steps, and its progress bar knows its length."""
    levels = levels_of(write(seeded(VECTORS)))
    batches = list(levels.records())
    records = [record for batch in batches for record in batch]
    assert len(batches) == levels.batches
    assert {record.steps for record in records if record.rms_bar} == {1, 10, 100, 1000}
    assert {record.subject for record in records} == {
        "nn.LSTM float64",
        "nn.LSTM float32",
        "model.onnx",
        "model.onnx, by onnx's own evaluator",
        "resident.onnx",
        "resident.onnx, step by step",
        "resident.onnx, ragged chunks of 1 to 8",
        "resident.onnx, runs of every length to 32, and of up to 512",
        "resident.onnx, 16 streams of 32 steps in one run",
    }
    assert all(record.passed for record in records)


def test_pieces_say_what_the_whole_says(write: Callable[[LSTM], Written], monkeypatch: pytest.MonkeyPatch) -> None:
    """With little memory a model is compared in slices of lanes and time: every one small, the verdict the same."""
    module = seeded(Spec(vocabulary=50, encoder_size=4, hidden_size=6, layers=2, output_size=300))
    levels = levels_of(write(module))
    whole = levels.against_truth(40, NON_ZERO)
    largest = []

    def watched(answer: np.ndarray, exact: np.ndarray) -> np.ndarray:
        largest.append(answer.size)
        return difference(answer, exact)

    monkeypatch.setattr(samples, "BUDGET", 20 * 300)
    monkeypatch.setattr(parity, "difference", watched)
    pieces = levels.against_truth(40, NON_ZERO)
    assert max(largest) <= 20 * 300
    assert all(record.passed for record in whole + pieces)
    assert [(r.subject, r.tensor) for r in whole] == [(r.subject, r.tensor) for r in pieces]
    for first, second in zip(whole, pieces, strict=True):
        assert 0.4 < (first.rms_error + 1e-12) / (second.rms_error + 1e-12) < 2.5  # drawn anew, so no closer


def edit(written: Written, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write both graphs anew with one weight changed."""
    model = portable.build(written.module)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    rewrite(written, model)


def rewrite(written: Written, model: ModelProto) -> None:
    """Write both graphs anew from a model with its weights embedded."""
    artifact.write_weights(model, written.folder / artifact.WEIGHTS)
    artifact.write_graph(model, written.folder / artifact.MODEL, written.contract)
    artifact.write_graph(resident.derive(model, written.contract), written.folder / artifact.RESIDENT, written.contract)


def swap_gates(written: Written) -> None:
    """Leave the recurrent weights in PyTorch's gate order."""
    edit(written, "lstm.1.R", lambda weight: portable.torch_gates(weight[0])[None])


def drop_bias(written: Written) -> None:
    """Forget the recurrent bias."""
    edit(written, "lstm.0.B", lambda bias: np.concatenate([bias[:, :28], np.zeros_like(bias[:, 28:])], axis=1))


def exchange_states(written: Written) -> None:
    """Give h where c belongs and c where h does."""
    model = portable.build(written.module)
    for node in model.graph.node:
        if node.op_type == "LSTM":
            node.input[5], node.input[6] = node.input[6], node.input[5]
    rewrite(written, model)


def change_one_element(written: Written) -> None:
    """Change a single weight by a tenth."""
    edit(written, "lstm.0.W", lambda weight: weight + np.eye(1, weight.size, 3).reshape(weight.shape).astype("f4") / 10)


def round_to_half(written: Written) -> None:
    """Keep the recurrent weights in half precision."""
    edit(written, "lstm.1.R", lambda weight: weight.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("fault", [swap_gates, drop_bias, exchange_states, change_one_element, round_to_half])
def test_planted_faults_fail_by_far(fault: Callable[[Written], None], write: Callable[[LSTM], Written]) -> None:
    """Each fault misses the bar many times over in both graphs, while PyTorch's own levels still pass."""
    written = write(seeded(VECTORS))
    fault(written)
    records = records_at(levels_of(written), 10)
    for subject in ("model.onnx", "resident.onnx"):
        worst = max(record.rms_ratio / record.rms_bar for record in records if record.subject == subject)
        assert worst > FAR
        assert not all(record.passed for record in records if record.subject == subject)
    assert all(record.passed for record in records if record.subject.startswith("nn.LSTM"))


def test_a_wrong_module_fails_in_every_level(write: Callable[[LSTM], Written]) -> None:
    """Graphs of another module's weights fail: the truth is the checkpoint's, not the graph's."""
    written = write(seeded(TOKENS))
    torch.manual_seed(1)
    other = LSTM.from_state_dict(LSTM(TOKENS).state_dict(), TOKENS)
    failed = {record.subject for record in records_at(levels_of(written, other), 10) if not record.passed}
    assert failed == {"model.onnx", "resident.onnx", "model.onnx, by onnx's own evaluator"}


def test_a_fault_of_the_resident_graph_alone_is_seen(write: Callable[[LSTM], Written]) -> None:
    """Where the wrapping pairs the states wrongly, model.onnx passes, resident.onnx and the bit level don't."""
    written = write(seeded(VECTORS))
    for node in written.resident.graph.node:
        if node.op_type == "Concat":
            node.input[:] = [node.input[place] for place in (2, 3, 0, 1)]
    artifact.write_graph(written.resident, written.folder / artifact.RESIDENT, written.contract)
    levels = levels_of(written)
    records = records_at(levels, 10) + levels.bit_for_bit(0, most_steps=3)
    failed = {record.subject for record in records if not record.passed}
    assert failed == {"resident.onnx", "resident.onnx, ragged chunks of 1 to 3"}


def test_a_long_memory_is_no_fault(write: Callable[[LSTM], Written]) -> None:
    """A net that adds up every step's rounding passes: its activations' errors are the library's, not the export's."""
    module = seeded(Spec(vocabulary=50, encoder_size=16, hidden_size=64, layers=2, output_size=50))
    for name, bias in module.lstm.named_parameters():
        if name.startswith("bias_ih"):
            bias[64:128] = 8.0  # forget gates open to a thousandth
    assert all(record.passed for record in records_at(levels_of(write(module)), 300))


def test_one_wrong_column_of_a_wide_head_is_seen(write: Callable[[LSTM], Written]) -> None:
    """Of 9,000 outputs a single one that is off by a tenth fails, though later steps are compared in drawn columns."""
    module = seeded(Spec(input_size=2, hidden_size=256, output_size=9000))
    written = write(module)
    honest = records_at(levels_of(written), 20)
    assert all(record.passed for record in honest)
    edit(written, "head.bias", lambda bias: bias + np.eye(1, 9000, 4321, dtype=np.float32)[0] / 10)
    failed = {record.subject for record in records_at(levels_of(written), 20) if not record.passed}
    assert failed == {"model.onnx", "resident.onnx"}


def test_a_large_models_proof_is_the_same_proof(
    write: Callable[[LSTM], Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With copies freed between levels and fewer steps, every level, state and fault is there, and all pass."""
    monkeypatch.setattr("export.effort.WORK", 1)
    monkeypatch.setattr("export.effort.LARGE", 1)
    written = write(seeded(VECTORS))
    levels = levels_of(written)
    batches = list(levels.records())
    records = [record for batch in batches for record in batch]
    assert len(batches) == levels.batches
    assert all(record.passed for record in records)
    assert {record.steps for record in records if record.rms_bar} == {1, 10, 100}
    assert {record.tensor for record in records} == {"y", "h_out", "c_out"}
    assert {record.initial for record in records} == {ZERO, NON_ZERO}
    assert min(dict(faults.controls(levels)).values()) > FAR / 2.5
