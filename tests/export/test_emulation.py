"""The roundings of each precision in float64: how many bits they leave, and that they are what the graphs do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from export import artifact
from export.emulation import eight_bits, emulate, fewer_bits, half
from export.precision import Precision
from export.runtime import Portable
from model.cell import State
from model.lstm import LSTM, Spec
from tests.export.conftest import PROJECTED, TOKENS, VECTORS, Written, seeded


def test_tf32_keeps_ten_bits_of_fraction() -> None:
    """Ten bits are what float16 has in its normal range, and TF32 has them in all of float32's."""
    values = torch.from_numpy(np.random.default_rng(0).uniform(-4, 4, 1000).astype(np.float32))
    values = values[values.abs() > 1e-3]
    assert torch.equal(fewer_bits(values), values.half().float())
    large = values.double() * 2.0**80
    assert torch.equal(fewer_bits(large), fewer_bits(values.double()) * 2.0**80)


def test_eight_bits_are_each_rows_own() -> None:
    """A block of a row has 127 steps up to its own largest value, whatever other rows and blocks hold."""
    x = torch.randn(3, 70).double()
    rounded = eight_bits(x)
    for first in (0, 32, 64):
        block, near = x[1, first : first + 32], rounded[1, first : first + 32]
        step = block.abs().max() / 127
        assert torch.allclose(near / step, torch.round(near / step), atol=1e-9)
        assert float((near - block).abs().max()) <= float(step) * 0.5000001
    x[0] *= 1e6
    assert torch.equal(eight_bits(x)[1:], rounded[1:])
    assert torch.equal(eight_bits(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_half_stays_within_its_range() -> None:
    """What float16 can't hold becomes its largest number, and never infinity."""
    assert half(torch.tensor([1e9, -1e9, 1.0001])).tolist() == [65504.0, -65504.0, 1.0]


@pytest.mark.parametrize("precision", list(Precision))
def test_biases_and_embeddings_are_not_rounded(precision: Precision) -> None:
    """Only what is multiplied with loses bits: the matrices of layers, the projections and the head."""
    spec = Spec(vocabulary=11, encoder_size=3, hidden_size=6, proj_size=2, output_size=4)
    module = seeded(spec)
    rounded = emulate(module, precision).module.state_dict()
    changed = {name for name, weight in module.state_dict().items() if not torch.equal(weight.double(), rounded[name])}
    matrices = {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0", "head.weight"}
    assert changed == (matrices if precision.reduced else set())


@pytest.mark.parametrize("spec", [VECTORS, TOKENS, PROJECTED, Spec(input_size=40, hidden_size=70)], ids=str)
def test_int8_graphs_do_these_very_roundings(spec: Spec, write: Callable[..., Written]) -> None:
    """ONNX Runtime's answer is a hundred times closer to the emulation than to the truth, after several steps."""
    written = write(seeded(spec), Precision.INT8)
    x = torch.randn(4, 6, spec.input_size or 0)
    if spec.vocabulary is not None:
        x = torch.randint(spec.vocabulary, (4, 6))
    state = written.module.zero_state(4)
    found = Portable(written.folder / artifact.MODEL, written.contract).run(
        {"x": x.numpy()}, {"h": state.h.numpy(), "c": state.c.numpy()}
    )
    zeros = State(state.h.double(), state.c.double())
    truth = _double(written.module, x, zeros)
    module, arithmetic = emulate(written.module, Precision.INT8)
    emulated, _ = module.reference(x if spec.vocabulary is not None else x.double(), zeros, arithmetic)
    off = np.sqrt(np.mean((found["y"] - emulated.numpy()) ** 2))
    cost = np.sqrt(np.mean((found["y"] - truth.numpy()) ** 2))
    assert off < cost / 100


def test_float16_graphs_do_these_very_roundings(write: Callable[..., Written]) -> None:
    """By onnx's own evaluator, which rounds operands and products as the graph says, far closer than to the truth."""
    written = write(seeded(PROJECTED), Precision.FP16)
    x, state = torch.randn(4, 6, 5), written.module.zero_state(4)
    evaluator = ReferenceEvaluator(str(written.folder / artifact.MODEL))
    answers: Any = evaluator.run(["y"], {"x": x.numpy(), "h": state.h.numpy(), "c": state.c.numpy()})
    zeros = State(state.h.double(), state.c.double())
    module, arithmetic = emulate(written.module, Precision.FP16)
    emulated = module.reference(x.double(), zeros, arithmetic)[0].numpy()
    truth = _double(written.module, x, zeros).numpy()
    assert np.sqrt(np.mean((answers[0] - emulated) ** 2)) < np.sqrt(np.mean((answers[0] - truth) ** 2)) / 5


def _double(module: LSTM, x: torch.Tensor, state: State) -> torch.Tensor:
    return module.double().reference(x.double() if x.is_floating_point() else x, state)[0]
