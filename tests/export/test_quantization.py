"""8-bit weights: off by half a step at most, and what ONNX Runtime takes them for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.products import MICROSOFT, NBITS
from export.quantization import BLOCK, STEPS, ZERO, dequantize, quantize


def weight(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A random weight [N, K] whose blocks are of very different sizes."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, columns)) * 10.0 ** random.integers(-3, 3, (rows, 1))).astype(np.float32)


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 100))
def test_no_weight_is_off_by_more_than_half_a_step(rows: int, columns: int, seed: int) -> None:
    """Each weight is within 1/254 of its block's largest, which itself is kept; padding is zero."""
    values = weight(rows, columns, seed)
    quantized = quantize(values)
    assert quantized.steps.shape == (rows, -(-columns // BLOCK), BLOCK)
    assert (quantized.steps.reshape(rows, -1)[:, columns:] == ZERO).all()
    assert quantized.steps.min() >= ZERO - STEPS
    found = dequantize(quantized, columns)
    for start in range(0, columns, BLOCK):
        block, near = values[:, start : start + BLOCK], found[:, start : start + BLOCK]
        largest = np.abs(block).max(axis=1, keepdims=True)
        assert (np.abs(near - block) <= largest * (0.5 / STEPS + 1e-6)).all()
        np.testing.assert_allclose(np.abs(near).max(axis=1, keepdims=True), largest, rtol=1e-6)


def test_zeros_stay_zeros() -> None:
    """A block of zeros has a scale of zero, and divides nothing by it."""
    values = weight(3, 40)
    values[:, :BLOCK] = 0
    assert (dequantize(quantize(values), 40)[:, :BLOCK] == 0).all()


def test_what_was_quantized_quantizes_to_itself() -> None:
    """Weights read back from an artifact are its own: the same steps, and the same scales but for a last bit."""
    first = quantize(weight(16, 100))
    again = quantize(dequantize(first, 100))
    assert np.array_equal(first.steps, again.steps)
    np.testing.assert_allclose(first.scales, again.scales, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (28, 7), (1, 64), (96, 100)], ids=str)
def test_onnx_runtime_takes_them_for_the_same(shape: tuple[int, int]) -> None:
    """Its MatMulNBits of the unit vectors, in full float32 (accuracy level 1), gives the dequantized weight."""
    rows, columns = shape
    quantized = quantize(weight(rows, columns))
    attributes: dict[str, Any] = {"N": rows, "K": columns, "bits": 8, "block_size": BLOCK, "accuracy_level": 1}
    node = helper.make_node(NBITS, ["x", "q", "s"], ["y"], domain=MICROSOFT, **attributes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [columns, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [columns, rows])],
        [numpy_helper.from_array(array, name) for name, array in zip("qs", quantized, strict=True)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    np.testing.assert_allclose(found.T, dequantize(quantized, columns), rtol=1e-6)
