"""The floor of a step, against figures worked out by hand for an H200."""

from __future__ import annotations

import pytest

from bench.gpu.records import Launches, Memory, Rates
from bench.gpu.roofline import Size, floor

H200 = Rates(Memory(4.8e12, 9.6e12, 50 << 20), Launches(4.0, 1.5, 6.0), {"fp32": 67e12, "tf32": 495e12, "fp16": 989e12})


def test_weights_decide_alone() -> None:
    """134 MB at 4.8 TB/s; of those that fit the cache, half as long at twice the bandwidth."""
    alone = floor(Size(2048, 1, "tf32", 1, 1), H200)
    assert alone.us == pytest.approx(28.0, rel=0.01)
    assert alone.bound == "weights"
    assert floor(Size(1024, 1, "tf32", 1, 1), H200).weights == pytest.approx(3.5, rel=0.01)
    half = floor(Size(2048, 1, "fp16", 1, 1), H200)
    assert half.weights == pytest.approx(alone.weights / 2)


@pytest.mark.parametrize(("precision", "micros"), [("fp32", 1027), ("tf32", 139), ("fp16", 69.5)])
def test_products_decide_in_a_large_batch(precision: str, micros: float) -> None:
    """4,096 lanes of 1,024: 16·H²·B operations a layer."""
    found = floor(Size(1024, 1, precision, 1, 4096), H200)
    assert found.us == pytest.approx(micros, rel=0.01)
    assert found.bound == "operations"
    assert floor(Size(1024, 2, precision, 16, 4096), H200).us == pytest.approx(32 * micros, rel=0.01)


def test_states_count_what_is_read_and_written() -> None:
    """A lane's row both ways, its input and its output."""
    found = floor(Size(256, 2, "fp16", 1, 8192), H200)
    assert found.state == pytest.approx(8192 * 4 * (4 * 256 * 2 + 2 * 256) / 4.8e12 * 1e6)


def test_launches_decide_in_small_models() -> None:
    """A kernel for each layer and step in a row, one before and one behind."""
    found = floor(Size(256, 2, "tf32", 16, 1), H200)
    assert found.bound == "launches"
    assert found.us == pytest.approx(4.0 + (2 * 16 + 2 - 1) * 1.5)


def test_a_rate_that_nobody_measured_is_left_out() -> None:
    """The other terms still hold."""
    rates = Rates(H200.memory, H200.launches, {})
    assert floor(Size(1024, 1, "fp32", 1, 4096), rates).operations == 0
