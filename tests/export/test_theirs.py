"""Reading a given file: what its library's errors say."""

from __future__ import annotations

import pytest

from export.theirs import one_line

SQUEEZE = """[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Squeeze node. Name:'m/x' Status
 Message: /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/squeeze.h:48 static onnxruntime::TensorShapeVector
 onnxruntime::SqueezeBase::ComputeOutputShape(const onnxruntime::TensorShape&, gsl::span<const long int>)
 input_shape[i] == 1 was false.\n\nIt is 2."""
TOLD = (
    "Non-zero status code returned while running Squeeze node. Name:'m/x' Status Message: input_shape[i] == 1 was"
    " false. It is 2."
)


@pytest.mark.parametrize(
    ("said", "told"), [(SQUEEZE, TOLD), ("No such file", "No such file"), ("word " * 100, "word " * 79 + "word …")]
)
def test_an_error_is_one_line_without_another_librarys_files(said: str, told: str) -> None:
    """ONNX Runtime's own files, lines and functions are left out, and a long text ends at a word and says so."""
    assert one_line(RuntimeError(said)) == told
