"""The precisions a model can be exported in: what each means, what it may cost, and what has never been run.

None is chosen for anybody: fp32 is the default, and the contract says which one it is. Owns words and limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Precision(StrEnum):
    """How the products of a model are computed. Gates and states are float32 in all of them."""

    FP32 = "fp32"
    INT8 = "int8"
    TF32 = "tf32"
    FP16 = "fp16"

    @property
    def terms(self) -> Terms:
        """What it promises."""
        return TERMS[self]

    @property
    def reduced(self) -> bool:
        """Whether it rounds more than float32 does."""
        return self is not Precision.FP32


@dataclass(frozen=True, slots=True)
class Terms:
    """What a precision means, for people; `share` is the error that it may make, as a share of the output's rms."""

    means: str
    share: float = 0.0  # 0: PyTorch's own float32 error is the only bar
    exact_weights: bool = True  # whether an artifact has the checkpoint's own weights
    not_checked: tuple[str, ...] = ()


TERMS = {
    Precision.FP32: Terms("float32 throughout"),
    Precision.INT8: Terms(
        "8-bit weights and 8-bit activations in blocks of 32, products summed exactly, gates and states in float32",
        share=0.02,
        exact_weights=False,
        not_checked=("onnx's own evaluator, which has no 8-bit products",),
    ),
    Precision.TF32: Terms(
        "the float32 graph, whose products a GPU may round to TF32 (10 bits of fraction); a CPU computes it in float32",
        share=0.001,
        not_checked=("TF32 itself: no GPU has ever run this, only a CPU in float32; its cost is emulated in float64",),
    ),
    Precision.FP16: Terms(
        "weights and products in float16, gates and states in float32; a CPU rounds the weights, and no more",
        share=0.002,
        exact_weights=False,
        not_checked=(
            "float16 products in ONNX Runtime: no GPU has ever run this, and its CPU rounds the weights only",
            "float16 products beyond the steps that onnx's own evaluator, which has them, is asked",
        ),
    ),
}
