"""What an input may be, and what is said when it may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstream import errors
from cellstream._tensors import Signature
from cellstream.models import Tensor
from tests.cellstream.models import signature

VECTOR = signature(inputs=(Tensor("x", "float32", (3,)),))
TOKEN = signature(inputs=(Tensor("x", "int64", (), 0, 255),))
MATRIX = signature(inputs=(Tensor("x", "float32", (2, 2)),))
BYTE = signature(inputs=(Tensor("x", "uint8", ()),))
PAIR = signature(inputs=(Tensor("a", "float32", (2,)), Tensor("n", "int64", ())))


class Stubborn:
    """As a tensor that numpy can't have."""

    def __array__(self, *_args: object, **_options: object) -> None:
        raise TypeError("on another device")


@pytest.mark.parametrize(
    ("model", "values", "wire"),
    [
        (VECTOR, [1, 2, 3], np.array([[1, 2, 3]], "<f4")),
        (VECTOR, [1.1, 2.2, 3.3], np.array([[1.1, 2.2, 3.3]], "<f4")),
        (VECTOR, np.ones((2, 3)), np.ones((2, 3), "<f4")),
        (VECTOR, np.ones((2, 3), ">f4"), np.ones((2, 3), "<f4")),
        (VECTOR, np.arange(6, dtype=np.float32).reshape(3, 2).T, np.array([[0, 2, 4], [1, 3, 5]], "<f4")),
        (VECTOR, [True, False, True], np.array([[1, 0, 1]], "<f4")),
        (TOKEN, 7, np.array([7], "<i8")),
        (TOKEN, np.int32(7), np.array([7], "<i8")),
        (TOKEN, list(b"ab"), np.array([97, 98], "<i8")),
        (TOKEN, np.frombuffer(b"ab", np.uint8), np.array([97, 98], "<i8")),
        (BYTE, [0, 255], np.array([0, 255], "u1")),
    ],
)
def test_safe_inputs_are_converted(model: Signature, values: Any, wire: np.ndarray[Any, Any]) -> None:
    """What can be taken without losing more than float precision is taken, little-endian and in C order."""
    request = model.encode(values)
    assert request.cut(0, request.steps) == [wire.tobytes()]
    assert request.steps == len(wire)


@pytest.mark.parametrize(
    ("model", "values", "text"),
    [
        (VECTOR, [1.0, 2.0], r"shape \[2\]; one step is \[3\], a chunk \[T, 3\]"),
        (VECTOR, np.zeros((1, 2, 3)), r"shape \[1, 2, 3\]; one step is \[3\]"),
        (VECTOR, 1.0, r"shape \[\]"),
        (VECTOR, np.zeros((0, 3)), r"shape \[0, 3\]; there must be at least one step"),
        (VECTOR, [1.0, float("nan"), 2.0], "holds nan in the one step given, element 1; every value must be finite"),
        (
            VECTOR,
            [1.0, 1e300, 2.0],
            "holds inf in the one step given, element 1; .* finite and within float32",
        ),
        (VECTOR, [2**24 + 1, 0, 0], "holds 16777217 in the one step given, element 0; float32 can't hold it exactly"),
        (VECTOR, [1j, 0, 0], "dtype complex128; float32"),
        (VECTOR, [[1, 2, 3], [4, 5, float("nan")]], "holds nan in step 2 of the 2 given, element 2; every value"),
        (MATRIX, np.full((2, 2, 2), np.inf), r"holds inf in step 1 of the 2 given, element \[0, 0\]; every value"),
        (VECTOR, [1.0, float("nan")], "holds nan; every value"),  # before its shape is refused
        (VECTOR, ["a", "b", "c"], r"dtype <U1; float32.*np\.asarray\(x, 'float32'\), a text's bytes with list"),
        (TOKEN, "def ", r"dtype <U4; int64.*list\(x\.encode\(\)\)"),
        (TOKEN, b"def ", r"dtype \|S4; int64.*list\(x\)"),
        (TOKEN, [1.0, 2.0], r"takes no float64: round or convert it first"),
        (VECTOR, [None, 1.0, 2.0], "takes no object: give numbers that fit"),
        (VECTOR, Stubborn(), "is no array: on another device"),
        (VECTOR, [[1.0, 2.0, 3.0], [1.0]], "is no array"),
        (VECTOR, None, "dtype object"),
        (TOKEN, 1.0, "dtype float64; int64.* takes no float64"),
        (TOKEN, 256, "holds 256 in the one step given; the largest value is 255"),
        (TOKEN, [1, -1], "holds -1 in step 2 of the 2 given; the smallest value is 0"),
        (TOKEN, 2**70, "dtype object"),
        (TOKEN, np.uint64(2**63), "holds 9223372036854775808 in the one step given; int64 holds"),
        (TOKEN, [[1, 2]], r"shape \[1, 2\]; one step is \[\], a chunk \[T\]"),
        (TOKEN, [], "an empty list"),
        (BYTE, [0, 256], "holds 256 in step 2 of the 2 given; uint8 holds 0 … 255"),
        (BYTE, -1, "holds -1 in the one step given; uint8 holds"),
        (PAIR, [1.0, 2.0], "2 inputs; give a dict with 'a', 'n'"),
        (PAIR, {"a": [1.0, 2.0]}, r"inputs \['a'\]; the model takes 'a', 'n'"),
        (PAIR, {"a": [1.0, 2.0], "n": 1, "z": 1}, "the model takes 'a', 'n'"),
        (PAIR, {"a": [[1.0, 2.0]], "n": 1}, r"differ in their numbers of steps: 'a' \[1, 2\], 'n' \[\]"),
        (PAIR, {"a": [[1.0, 2.0]], "n": [1, 2]}, "differ in their numbers of steps"),
    ],
)
def test_other_inputs_are_refused(model: Signature, values: Any, text: str) -> None:
    """A refusal names the input, its value and what is expected."""
    with pytest.raises(errors.InvalidInput, match=text) as caught:
        model.encode(values)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "invalid_input")


def test_rows_of_many_streams_have_one_axis_more() -> None:
    """[K, *shape] is a step of each of K streams, [K, T, *shape] a chunk of each."""
    assert VECTOR.encode(np.zeros((4, 3)), streams=4).steps == 4
    chunk = VECTOR.encode(np.zeros((4, 2, 3)), streams=4)
    assert (chunk.steps, chunk.chunk) == (8, True)
    with pytest.raises(errors.InvalidInput, match=r"shape \[4, 3\]; 5 keys need 5 rows"):
        VECTOR.encode(np.zeros((4, 3)), streams=5)
    with pytest.raises(errors.InvalidInput, match=r"one step is \[K, 3\], a chunk \[K, T, 3\]"):
        VECTOR.encode(np.zeros(3), streams=1)
    wrong = np.zeros((4, 2, 3))
    wrong[3, 0, 1] = np.nan
    with pytest.raises(errors.InvalidInput, match="holds nan in row 3, step 1 of the 2 given, element 1;"):
        VECTOR.encode(wrong, streams=4)


@given(
    st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=5),
    st.sampled_from(["int8", "uint16", "int32", "uint64"]),
)
def test_integers_are_never_wrapped(values: list[int], dtype: str) -> None:
    """Integers arrive as they are, or are refused."""
    model = signature(inputs=(Tensor("x", dtype, ()),))
    info = np.iinfo(dtype)
    if all(info.min <= value <= info.max for value in values):
        try:
            request = model.encode(values)
        except errors.InvalidInput:
            # numpy finds no common integer type for a list of negative and very large numbers
            assert np.asarray(values).dtype.kind not in "iu"
            return
        assert np.frombuffer(request.cut(0, len(values))[0], dtype).tolist() == values
    else:
        with pytest.raises(errors.InvalidInput):
            model.encode(values)


def test_what_numpy_cannot_represent_is_refused() -> None:
    """A model with an unknown dtype raises UnsupportedModel."""
    with pytest.raises(errors.UnsupportedModel, match="posit8"):
        signature(inputs=(Tensor("x", "posit8", ()),))
