"""Cells in a Scan: what ONNX's LSTM operator can't say computes what PyTorch computes, and never sees the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from export import artifact, portable
from export.invariance import invariances
from export.precision import Precision
from export.runtime import Portable, Resident
from export.subgraphs import all_nodes
from export.time_scan import captured, is_time_scan
from model.cell import State
from model.lstm import Spec
from tests.export.conftest import PROJECTED, VECTORS, Written, seeded

NARROW = Spec(input_size=3, hidden_size=2, proj_size=1, bias=False)
HEADED = Spec(vocabulary=11, encoder_size=3, hidden_size=6, proj_size=4, layers=3, output_size=1)
ENCODED = Spec(input_size=5, encoder_size=3, hidden_size=33, proj_size=32, output_size=2)
# Its kernels for one column are seen to round otherwise, where they are used.
DEEP = Spec(input_size=5, encoder_size=3, hidden_size=4, layers=3, bias=False, output_size=2, proj_size=1)
CELLS = [PROJECTED, NARROW, HEADED, ENCODED]
LOOSE = {Precision.FP32: 2e-6, Precision.TF32: 2e-6, Precision.FP16: 2e-3, Precision.INT8: 2e-2}


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("spec", CELLS, ids=str)
def test_it_computes_what_the_module_computes(spec: Spec, precision: Precision, write: Callable[..., Written]) -> None:
    """Outputs and both states, which differ in size, for several batches and times in one session."""
    written = write(seeded(spec), precision)
    session = Portable(written.folder / artifact.MODEL, written.contract)
    for batch, steps in ((1, 1), (3, 5), (2, 40)):
        x = torch.randn(batch, steps, spec.input_size or 0)
        if spec.vocabulary is not None:
            x = torch.randint(spec.vocabulary, (batch, steps))
        state = State(*(torch.randn(batch, spec.layers, size) for size in (spec.state_size, spec.hidden_size)))
        y, new = written.module(x, state)
        found = session.run({"x": x.numpy()}, {"h": state.h.numpy(), "c": state.c.numpy()})
        for name, expected in (("y", y), ("h_out", new.h), ("c_out", new.c)):
            np.testing.assert_allclose(found[name], expected.numpy(), rtol=0, atol=LOOSE[precision])


@pytest.mark.parametrize(
    ("spec", "precision"),
    [(DEEP, Precision.FP16), (HEADED, Precision.INT8), (ENCODED, Precision.FP32), (HEADED, Precision.FP16)],
    ids=str,
)
def test_nothing_around_a_stream_changes_a_bit(spec: Spec, precision: Precision, write: Callable[..., Written]) -> None:
    """Batch, chunks, rows, neighbours and threads: sizes of 1 are where kernels differ."""
    written = write(seeded(spec), precision)
    held = invariances(written.folder / artifact.RESIDENT, written.contract)
    assert [name for name, same in held.items() if not same] == []


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8, Precision.FP16])
def test_ragged_lanes_are_each_stream_alone_bit_for_bit(precision: Precision, write: Callable[..., Written]) -> None:
    """A row that ends earlier than its neighbours has the state of its own last step, whatever its padding holds."""
    written = write(seeded(PROJECTED), precision)
    random = np.random.default_rng(0)
    lengths = [5, 1, 3, 8]
    x = random.standard_normal((4, 8, 5)).astype(np.float32)
    together = Resident(written.folder / artifact.RESIDENT, written.contract, rows=9)
    together.slabs["float32"][1:5] = random.standard_normal((4, together.slabs["float32"].shape[1]))
    answer = together.run({"x": x}, lengths, read=[1, 2, 3, 4], write=[8, 7, 6, 5])
    alone = Portable(written.folder / artifact.MODEL, written.contract)
    for lane, length in enumerate(lengths):
        h, c = np.split(together.slabs["float32"][1 + lane], [2 * 3])
        states = {"h": h.reshape(1, 2, 3), "c": c.reshape(1, 2, 7)}
        found = alone.run({"x": x[lane : lane + 1, :length]}, states)
        assert answer["y"][lane, :length].tobytes() == found["y"].tobytes()
        new = together.read_states(8 - lane)
        assert new["h_out"].tobytes() == found["h_out"].tobytes()
        assert new["c_out"].tobytes() == found["c_out"].tobytes()


@pytest.mark.parametrize("spec", CELLS, ids=str)
def test_the_module_reads_back_bit_for_bit(spec: Spec, write: Callable[..., Written]) -> None:
    """From float32 cells comes the same module, both biases apart."""
    written = write(seeded(spec))
    model, _ = artifact.read_graph(written.folder / artifact.MODEL, weights=True)
    module = portable.read_module(model)
    assert module.spec == spec
    theirs = module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in written.module.state_dict().items())


@pytest.mark.parametrize(("precision", "off"), [(Precision.INT8, 1 / 254), (Precision.FP16, 2**-11)])
@pytest.mark.parametrize("spec", [VECTORS, HEADED, ENCODED], ids=str)
def test_rounded_weights_read_back_as_what_they_stand_for(
    spec: Spec, precision: Precision, off: float, write: Callable[..., Written]
) -> None:
    """Matrices come back rounded, each by as much as it may be, and biases and embeddings as they were."""
    written = write(seeded(spec), precision)
    model, _ = artifact.read_graph(written.folder / artifact.MODEL, weights=True)
    module = portable.read_module(model)
    assert module.spec == spec
    for name, value in module.state_dict().items():
        given = written.module.state_dict()[name]
        embedding = name == "encoder.weight" and spec.vocabulary is not None
        if "bias" in name or embedding:
            assert torch.equal(value, given)
        else:
            assert 0 < float((value - given).abs().max()) <= off * float(given.abs().max()) * 1.001


def test_a_scan_captures_nothing_but_weights() -> None:
    """One Scan per layer, its weights in the graph around it where the weights file can hold them."""
    model = portable.build(seeded(PROJECTED))
    scans = [node for node in model.graph.node if is_time_scan(node)]
    assert len(scans) == 2
    assert captured(scans[1]) == {"lstm.1.W_hh", "lstm.1.W_hr", "front_axis"}
    assert not any(node.op_type == "LSTM" for node in all_nodes(model.graph.node))


def test_int8_weights_are_a_quarter(tmp_path: Path) -> None:
    """8-bit matrices leave a quarter of the file, and a scale for each 32; even the smallest lie in the file."""
    spec = Spec(input_size=64, hidden_size=64, output_size=1)
    sizes = {}
    for precision in (Precision.FP32, Precision.INT8):
        artifact.write_weights(portable.build(seeded(spec), precision), tmp_path / precision)
        sizes[precision] = (tmp_path / precision).stat().st_size
    assert sizes[Precision.INT8] < 0.3 * sizes[Precision.FP32]
    model = portable.build(seeded(Spec(input_size=1, hidden_size=2, proj_size=1)), Precision.INT8)
    artifact.write_weights(model, tmp_path / "small")
    inside = [tensor.name for tensor in model.graph.initializer if not tensor.external_data]
    assert inside == ["front_axis"]


def test_an_lstm_without_need_has_no_cells() -> None:
    """What the LSTM operator can say is said by it: its kernel is faster."""
    for precision in (Precision.FP32, Precision.TF32):
        model = portable.build(seeded(VECTORS), precision)
        assert not any(is_time_scan(node) for node in model.graph.node)


def test_large_inputs_never_become_nan_in_float16(write: Callable[..., Written]) -> None:
    """An input that float16 can't hold saturates gates, and leaves a state that the stream can go on from."""
    written = write(seeded(VECTORS), Precision.FP16)
    evaluator = ReferenceEvaluator(str(written.folder / artifact.MODEL))  # ONNX Runtime's CPU leaves out the casts
    zeros = {name: np.zeros((1, 2, 7), np.float32) for name in ("h", "c")}
    with np.errstate(over="ignore", invalid="ignore"):  # its sigmoid computes both branches
        found = evaluator.run(None, {"x": np.full((1, 3, 5), 1e30, np.float32), **zeros})
    assert all(np.isfinite(value).all() for value in found)
