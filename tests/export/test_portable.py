"""model.onnx: it computes what the module computes, keeps its axes free, and gives the module back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export import artifact, portable
from export.runtime import Portable
from model.cell import State
from model.lstm import LSTM, Spec
from tests.export.conftest import SPECS, TOKENS, VECTORS, Written, seeded


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_computes_what_the_module_computes(spec: Spec, write: Callable[[LSTM], Written]) -> None:
    """Outputs and both states agree with PyTorch for several batches and times in one session: nothing is frozen."""
    written = write(seeded(spec))
    session = Portable(written.folder / artifact.MODEL, written.contract)
    for batch, steps in ((1, 1), (3, 5), (2, 40), (7, 1)):
        x = torch.randn(batch, steps, spec.input_size or 0)
        if spec.vocabulary is not None:
            x = torch.randint(spec.vocabulary, (batch, steps))
        state = State(*(torch.randn(batch, spec.layers, spec.hidden_size) for _ in range(2)))
        y, new = written.module(x, state)
        found = session.run({"x": x.numpy()}, {"h": state.h.numpy(), "c": state.c.numpy()})
        for name, expected in (("y", y), ("h_out", new.h), ("c_out", new.c)):
            np.testing.assert_allclose(found[name], expected.numpy(), rtol=0, atol=2e-6)


@given(st.integers(1, 5), st.integers(1, 3))
def test_gate_orders_are_inverse(hidden: int, width: int) -> None:
    """Into ONNX's gate order and back is where it was, and the input gate stays first."""
    rows = np.arange(4 * hidden * width, dtype=np.float32).reshape(4 * hidden, width)
    there = portable.onnx_gates(rows)
    assert np.array_equal(portable.torch_gates(there), rows)
    assert np.array_equal(there[:hidden], rows[:hidden])
    assert np.array_equal(there[hidden : 2 * hidden], rows[3 * hidden :])  # PyTorch's last, o, is ONNX's second


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_module_reads_back_bit_for_bit(spec: Spec, write: Callable[[LSTM], Written]) -> None:
    """From the written files alone comes a module of the same spec with the same weights."""
    written = write(seeded(spec))
    model, contract = artifact.read_graph(written.folder / artifact.MODEL, weights=True)
    module = portable.read_module(model)
    assert module.spec == spec
    assert contract == written.contract
    theirs = module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in written.module.state_dict().items())


def test_the_graph_is_clean() -> None:
    """One LSTM node per layer with named weights, and no slices, shapes or casts around them."""
    model = portable.build(seeded(VECTORS))
    operators = sorted(node.op_type for node in model.graph.node)
    assert operators == sorted(["Transpose"] * 6 + ["Split"] * 2 + ["LSTM"] * 2 + ["Squeeze"] * 2 + ["Concat"] * 2)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"lstm.0.W", "lstm.0.R", "lstm.0.B", "lstm.1.W", "lstm.1.R", "lstm.1.B"} < names


def test_the_contract_says_what_a_server_needs() -> None:
    """Tokens have their bounds, states their pairs, and notes travel along."""
    contract = portable.contract_of(TOKENS, name="a", weights_digest="sha256:0", notes={"tokens": "bytes"})
    (x,) = contract.inputs
    assert (x.dtype, x.shape, x.minimum, x.maximum) == ("int64", (), 0, 10)
    assert [(pair.input, pair.output, pair.shape) for pair in contract.states] == [
        ("h", "h_out", (1, 6)),
        ("c", "c_out", (1, 6)),
    ]
    assert contract.outputs[0].shape == (4,)
    assert contract.notes == {"tokens": "bytes"}


def test_weights_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    """Two exports of one module have one digest, and another module's is another; embedded or not, it is the same."""
    first = artifact.write_weights(portable.build(seeded(VECTORS)), tmp_path / "first")
    with (tmp_path / "second").open("wb") as file:
        writer = artifact.WeightsWriter(file)
        portable.build(seeded(VECTORS), keep=writer.keep)
    assert writer.digest == first
    assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()
    other = seeded(VECTORS)
    other.lstm.all_weights[0][0][0, 0] += 1e-6
    assert artifact.write_weights(portable.build(other), tmp_path / "other") != first
