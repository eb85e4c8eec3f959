"""The yardstick: what counts as PyTorch's error, as a rounding, as chance and as a fault."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from export import yardstick as measure
from export.samples import ZERO, Sample
from export.yardstick import Case, Tally, Yardstick, compare, compare_bits, difference
from model.contract import ParityRecord

TRUTH = np.random.default_rng(0).standard_normal((50, 20))
OWN = (TRUTH + 1e-4 * np.random.default_rng(1).standard_normal(TRUTH.shape)).astype(np.float32)


def judge(answer: np.ndarray, truth: np.ndarray = TRUTH, own: np.ndarray = OWN) -> ParityRecord:
    """One record of `answer` against a made-up truth, PyTorch's own answer being off by 1e-4."""
    yardstick = Yardstick({"y": tally(truth)}, {"y": tally(difference(own, truth))}, {"y": tally(0 * truth)}, {"y": 1})
    answers = yardstick.own if answer is own else {"y": tally(difference(answer, truth))}
    (record,) = compare(subject="it", case=Case(1, ZERO), answer=answers, yardstick=yardstick, double=False)
    return record


def tally(errors: np.ndarray) -> Tally:
    """These errors, counted a few lanes at a time."""
    found = Tally(len(errors))
    for lane in range(0, len(errors), 3):
        found.add(errors[lane : lane + 3], slice(lane, lane + 3))
    return found


def test_pieces_add_up_to_the_whole() -> None:
    """A tally of slices of lanes and of time says what one over everything says, group by group."""
    errors = np.random.default_rng(3).standard_normal((10, 30, 4))
    found = Tally(10)
    for first in range(0, 10, 4):
        for step in range(0, 30, 7):
            found.add(errors[first : first + 4, step : step + 7], slice(first, first + 4))
    groups = np.array_split(errors, 5)
    expected = [(np.sqrt(np.mean(np.square(group))), np.abs(group).max()) for group in groups]
    assert np.allclose(found.groups(), expected, rtol=1e-12)
    assert found.rms == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert found.largest == np.abs(errors).max()


def test_ratios_are_multiples_of_pytorchs_error() -> None:
    """Three times PyTorch's error is a ratio of about three, and fails; one and a half times passes."""
    noise = np.random.default_rng(2).standard_normal(TRUTH.shape)
    threefold = judge((TRUTH + 3e-4 * noise).astype(np.float32))
    assert threefold.rms_ratio == pytest.approx(3, rel=0.15)
    assert not threefold.passed
    assert judge((TRUTH + 1.5e-4 * noise).astype(np.float32)).passed


def test_one_unlucky_stream_fails_nothing_and_one_broken_stream_does() -> None:
    """A stream with ten times the error is chance; one with a thousand times, or with NaN, is a fault."""
    for factor, passed in ((10.0, True), (1000.0, False), (np.nan, False)):
        answer = OWN.copy()
        answer[7] = TRUTH[7] + factor * (OWN[7] - TRUTH[7])
        record = judge(answer)
        assert record.passed is passed
        assert np.isfinite([record.rms_error, record.max_error, record.rms_ratio, record.max_ratio]).all()


def test_an_exact_answer_passes_where_pytorch_is_exact_too() -> None:
    """No error over no error is no failure, and neither is a rounding, even where everything is zero."""
    exact = TRUTH.astype(np.float32)
    assert judge(np.nextafter(exact, np.float32(9)), truth=exact.astype(np.float64), own=exact).passed
    zero = np.zeros((10, 3), np.float32)
    record = judge(zero.copy(), truth=zero.astype(np.float64), own=zero)
    assert record.passed
    assert record.rms_ratio == 0


def test_a_net_that_float32_cannot_hold_is_no_proof() -> None:
    """Where PyTorch's own float32 answer is a percent off, agreeing with it means nothing, and fails."""
    wild = (TRUTH * 1.05).astype(np.float32)
    assert not judge(wild, own=wild).passed
    assert judge(OWN).passed


def test_slack_is_a_rounding_of_each_activation() -> None:
    """The less exact activations are off by at most 1.5 epsilons, in the lanes asked for, the same each time."""
    value = torch.linspace(-8, 8, 1001, dtype=torch.float64).repeat(2, 1)
    activations = measure.off_by(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    for found, exact in (
        (activations.sigmoid(value), torch.sigmoid(value)),
        (activations.tanh(value), torch.tanh(value)),
    ):
        error = (found - exact).abs()
        assert not error[0].any()
        assert 1.4 < error[1].max() / measure.EPSILON <= 1.5
    assert torch.equal(activations.tanh(value), activations.tanh(value))


def test_bits_are_bits() -> None:
    """The last bit of one element, and the sign of a zero, make a record fail; the same bytes pass with no error."""
    sample, exact = Sample(1, ZERO, {}, {}), np.array([1.0, 0.0], np.float32)
    for answer, passed in (
        (exact.copy(), True),
        (np.array([np.nextafter(np.float32(1), np.float32(2)), 0], np.float32), False),
        (np.array([1.0, -0.0], np.float32), False),
    ):
        given = {"answer": {"y": answer}, "truth": {"y": exact}}
        (record,) = compare_bits(subject="it", sample=sample, truth_name="itself", **given)
        assert record.passed is passed


def reduced(answer: float, emulated: float, share: float = 0.02) -> ParityRecord:
    """One record of an answer in a reduced precision, both errors given as shares of the truth's size."""
    noise = np.random.default_rng(4).standard_normal(TRUTH.shape)
    yardstick = Yardstick(
        {"y": tally(TRUTH)},
        {"y": tally(0 * TRUTH)},
        {"y": tally(0 * TRUTH)},
        {"y": 1},
        emulated={"y": tally(emulated * noise)},
        share=share,
    )
    answers = {"y": tally(answer * noise)}
    (record,) = compare(subject="it", case=Case(1, ZERO), answer=answers, yardstick=yardstick, double=False)
    return record


def test_a_reduced_precision_is_measured_by_its_own_roundings() -> None:
    """Errors are multiples of the emulation's: twice passes, three times fails, however small all of them are."""
    assert reduced(0.006, 0.004).rms_ratio == pytest.approx(1.5)
    assert reduced(0.006, 0.004).passed
    assert not reduced(0.012, 0.004).passed
    assert not reduced(1.2e-5, 4e-6).passed
    assert reduced(1e-8, 0.0).passed  # what float32 rounds is no error, even where the emulation has none


def test_a_share_has_a_limit_until_the_emulation_is_over_it() -> None:
    """Within the ratio's bar an error over the limit still fails; a net that amplifies is left to the ratio."""
    over = reduced(0.024, 0.014)
    assert over.rms_ratio < 2
    assert over.share > over.share_bar == 0.02
    assert not over.passed
    wild = reduced(0.5, 0.4)
    assert wild.share_bar > 0.5
    assert wild.passed
    assert not reduced(0.9, 0.4).passed
    near = reduced(0.0201, 0.0199)  # as close to its emulation as can be: no hair's breadth decides
    assert near.passed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (TRUTH + 3e-2, "error: error 3"),
        (np.where(np.arange(50)[:, None] == 0, TRUTH + 1, TRUTH), "one group: error .* none may reach 50 and 100"),
    ],
)
def test_a_failure_says_by_which_criterion(answer: np.ndarray, said: str) -> None:
    """With the figures that were over their bars, and those bars."""
    record = judge(answer.astype(np.float32))
    assert not record.passed
    assert re.match(said, record.failed_by)


def test_a_chaotic_net_is_called_so() -> None:
    """Its own float32 is off, by a share of its size that is told."""
    own = (TRUTH + 0.05).astype(np.float32)
    record = judge(own, own=own)
    assert not record.passed
    assert record.failed_by.startswith("chaotic: PyTorch's own float32 is off its float64 by 5.")
    assert judge(OWN, own=OWN).failed_by == ""
