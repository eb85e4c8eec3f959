"""Parity: honest exports of any size pass, and every planted fault fails by far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper

from export import artifact, parity, portable, resident
from export.parity import NON_ZERO, ZERO, Levels, Making, compare, draw, lanes
from model.contract import ParityRecord
from model.lstm import LSTM, Spec
from tests.export.conftest import ENCODED, SINGLE, TOKENS, VECTORS, Written, seeded

FAR = 25.0  # times the bar


def levels_of(written: Written, module: LSTM | None = None) -> Levels:
    """All levels of what was written, against another module if one is given."""
    names = (artifact.MODEL, artifact.RESIDENT)
    return Levels(module or written.module, written.folder, names, written.contract)


def records_at(levels: Levels, *steps: int) -> list[ParityRecord]:
    """Records at these numbers of steps, from zero and other states."""
    records = []
    for count in steps:
        for initial in (ZERO, NON_ZERO):
            records += levels.against_truth(draw(levels.contract, count, initial, lanes(levels.contract, count), 0))
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
        "resident.onnx",
        "resident.onnx, step by step",
        "resident.onnx, ragged chunks of 1 to 8",
    }
    assert all(record.passed for record in records)


def edit(written: Written, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write both graphs anew with one weight changed."""
    model = portable.build(written.module)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    rewrite(written, model)


def rewrite(written: Written, model: ModelProto) -> None:
    """Write both graphs anew from a model with its weights embedded."""
    (written.folder / artifact.WEIGHTS).write_bytes(artifact.move_weights(model))
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
    assert failed == {"model.onnx", "resident.onnx"}


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


def sample_and_answers(noise: float) -> tuple[parity.Sample, dict[str, dict[str, np.ndarray]]]:
    """A made-up truth with answers that are off by `noise` (the yardstick) and by what a test makes of it."""
    random = np.random.default_rng(0)
    truth = random.standard_normal((50, 20))
    own = (truth + noise * random.standard_normal(truth.shape)).astype(np.float32)
    return parity.Sample(1, ZERO, {}, {}), {"truth": {"y": truth}, "yardstick": {"y": own}}


def judge(answer: np.ndarray, noise: float = 1e-4) -> ParityRecord:
    """One record of `answer` against the made-up truth."""
    sample, given = sample_and_answers(noise)
    (record,) = compare(subject="it", sample=sample, answer={"y": answer}, made={"y": Making(1)}, **given)
    return record


def test_ratios_are_multiples_of_pytorchs_error() -> None:
    """Three times PyTorch's error is a ratio of about three, and fails; one and a half times passes."""
    _, given = sample_and_answers(1e-4)
    truth = given["truth"]["y"]
    noise = np.random.default_rng(1).standard_normal(truth.shape)
    threefold = judge((truth + 3e-4 * noise).astype(np.float32))
    assert threefold.rms_ratio == pytest.approx(3, rel=0.15)
    assert not threefold.passed
    assert judge((truth + 1.5e-4 * noise).astype(np.float32)).passed


def test_one_unlucky_stream_fails_nothing_and_one_broken_stream_does() -> None:
    """A stream with ten times the error is chance; one with a thousand times, or with NaN, is a fault."""
    _, given = sample_and_answers(1e-4)
    own, truth = given["yardstick"]["y"], given["truth"]["y"]
    for factor, passed in ((10.0, True), (1000.0, False), (np.nan, False)):
        answer = own.copy()
        answer[7] = truth[7] + factor * (own[7] - truth[7])
        record = judge(answer)
        assert record.passed is passed
        assert np.isfinite([record.rms_error, record.max_error, record.rms_ratio, record.max_ratio]).all()


def test_an_exact_answer_passes_where_pytorch_is_exact_too() -> None:
    """With zero weights all is zero: no error over no error is no failure, and a rounding isn't either."""
    _, given = sample_and_answers(0.0)
    truth = given["truth"]["y"]
    assert judge(truth.astype(np.float32), noise=0.0).passed
    zero = {"y": np.zeros((10, 3))}
    (record,) = compare(
        subject="it",
        sample=parity.Sample(1, ZERO, {}, {}),
        answer={"y": np.zeros((10, 3), np.float32)},
        truth=zero,
        yardstick={"y": np.zeros((10, 3), np.float32)},
        made={"y": Making(1)},
    )
    assert record.passed
    assert record.rms_ratio == 0


def test_a_net_that_float32_cannot_hold_is_no_proof() -> None:
    """Where PyTorch's own float32 answer is a percent off, agreeing with it means nothing, and fails."""
    sample, given = sample_and_answers(0.05)
    (record,) = compare(subject="it", sample=sample, answer=given["yardstick"], made={"y": Making(1)}, **given)
    assert not record.passed


def test_samples_cover_the_vocabulary_and_are_the_same_each_time(tmp_path: Path) -> None:
    """Every token is drawn, states start where they are said to, and the same seed draws the same."""
    contract = portable.contract_of(TOKENS, name="a", weights_digest="sha256:0", notes={})
    sample = draw(contract, 100, NON_ZERO, 20, 0)
    assert set(np.unique(sample.inputs["x"])) == set(range(11))
    assert np.abs(sample.states["h"]).max() < 1
    assert not np.array_equal(sample.states["h"], sample.states["c"])
    assert np.array_equal(draw(contract, 100, NON_ZERO, 20, 0).inputs["x"], sample.inputs["x"])
    assert not draw(contract, 100, ZERO, 20, 0).states["c"].any()
    first = replace(contract.states[0], initial=np.ones(6, "<f4").tobytes())
    begun = draw(replace(contract, states=(first, contract.states[1])), 1, ZERO, 2, 0)
    assert begun.states["h"].tolist() == np.ones((2, 1, 6)).tolist()
