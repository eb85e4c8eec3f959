"""The yardstick of parity: which error is PyTorch's own, which is nothing, and which is a fault.

Owns the bars and the judgement. Knows no runtime and no files; docs/design.md has the measurements behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.samples import GROUPS, Arrays, Sample
from model.cell import Arithmetic
from model.contract import ParityRecord

TRUTH = "reference cell float64"
RMS_BAR, MAX_BAR = 2.0, 4.0  # times PyTorch's own float32 error
FLOAT64_BAR = 1e-4  # nn.LSTM in float64 must be closer to the truth than float32 by at least this
GROSS = 25.0  # times the bar: what no single group may reach
ROOM = 1.25  # times the emulation's share: what a limit must leave, to be one
USABLE = 1e-2  # a net whose float32 error in PyTorch is above this share of its output proves nothing
EPSILON = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)
SLACK = 1.5  # epsilons: between the worst of PyTorch's activations and of ONNX Runtime's
RIPPLE = 20.0  # how fast the slack of an activation changes with its argument
RATIO, ONE_GROUP, SHARE, CHAOTIC, BYTES = "error", "one group", "share", "chaotic", "bytes"  # criteria
NOT_A_NUMBER = 1e30  # the error of an answer that isn't finite


class Tally:
    """The sizes of one tensor's errors, lane by lane: sums of squares and maxima, so that nothing large is kept."""

    def __init__(self, batch: int) -> None:
        self._squares = np.zeros(batch)
        self._largest = np.zeros(batch)
        self._counts = np.zeros(batch)

    def add(self, errors: npt.NDArray[np.float64], lanes: slice | None = None) -> None:
        """Errors [B, …] of these lanes (None: of all)."""
        lanes = lanes or slice(None)
        flat = errors.reshape(len(errors), -1)
        self._squares[lanes] += np.einsum("be,be->b", flat, flat)
        self._largest[lanes] = np.maximum(self._largest[lanes], np.max(np.abs(flat), axis=1))
        self._counts[lanes] += flat.shape[1]

    def of(self, lanes: slice) -> Tally:
        """The same, of these lanes only."""
        part = Tally(0)
        part._squares, part._largest, part._counts = self._squares[lanes], self._largest[lanes], self._counts[lanes]
        return part

    @property
    def rms(self) -> float:
        """Over all lanes."""
        return float(np.sqrt(self._squares.sum() / self._counts.sum()))

    @property
    def largest(self) -> float:
        """Over all lanes."""
        return float(self._largest.max())

    def groups(self) -> npt.NDArray[np.float64]:
        """The rms and the maximum of each of GROUPS groups of lanes: [GROUPS, 2]."""
        pieces = (np.array_split(values, GROUPS) for values in (self._squares, self._counts, self._largest))
        return np.array([(np.sqrt(s.sum() / n.sum()), m.max()) for s, n, m in zip(*pieces, strict=True)])


Tallies = Mapping[str, Tally]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What an answer's error is measured by: PyTorch's own in float32, and what counts as nothing.

    `exact` is the truth's own size. `slack` is what the truth changes by when every activation is off by up to SLACK
    epsilons. `terms` are those of the last sum that makes each tensor.
    Answers in a reduced precision have `emulated`, which is then the larger of all.
    """

    exact: Tallies
    own: Tallies
    slack: Tallies
    terms: Mapping[str, int]
    emulated: Tallies | None = None  # the errors of a reduced precision, emulated in float64
    share: float = 0.0  # of the truth's size, that a reduced precision may cost

    def of(self, tensor: str) -> npt.NDArray[np.float64]:
        """The rms and the maximum, for each group of streams, that ratios are taken to: [GROUPS, 2].

        The larger of three. PyTorch's own error. The slack: sigmoid and tanh are approximations in every library
        (worst measured: PyTorch 0.8 and 0.3 eps, ONNX Runtime 1.4 and 2.8), the same at each step, and a net with a
        long memory adds them up, which nobody can blame on the export. And the rounding of a sum, relatively about
        eps·√terms/7 where it is made in order (measured: 2.4 eps for 256 terms; PyTorch's blocks do better).
        """
        rounding = EPSILON * max(1.0, math.sqrt(self.terms[tensor]) / 7) * self.exact[tensor].rms
        errors = np.maximum(self.own[tensor].groups(), self.slack[tensor].groups())
        if self.emulated is not None:
            errors = np.maximum(errors, self.emulated[tensor].groups())
        return np.asarray(np.maximum(errors, max(rounding, TINY)))

    def share_bar(self, tensor: str) -> float:
        """The largest error, as a share of the truth's rms, that may be made; 0 where nothing is asked.

        Where the emulation's own roundings come near the limit or over it, RMS_BAR times as much as those: such a net
        amplifies whatever is rounded, and only the comparison with the emulation says anything of the export.
        """
        if self.emulated is None:
            return 0.0
        emulated = share_of(self.emulated[tensor], self.exact[tensor])
        return self.share if ROOM * emulated <= self.share else RMS_BAR * emulated


def share_of(error: Tally, exact: Tally) -> float:
    """The error as a share of the truth's size."""
    return error.rms / max(exact.rms, TINY)


def off_by(shares: torch.Tensor) -> Arithmetic:
    """Activations off by up to `shares` [B, 1] of the SLACK: by how much is up to the argument and the lane."""
    slack = shares * (SLACK * EPSILON)
    phase = torch.arange(len(shares), dtype=shares.dtype)[:, None]

    def ripple(value: torch.Tensor) -> torch.Tensor:
        return slack * torch.cos(RIPPLE * value + phase)

    return Arithmetic(
        sigmoid=lambda value: torch.sigmoid(value) + ripple(value),
        tanh=lambda value: torch.tanh(value) * (1 + ripple(value)),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """What was asked: for how many steps, from which initial state."""

    steps: int
    initial: str


def compare(*, subject: str, case: Case, answer: Tallies, yardstick: Yardstick, double: bool) -> list[ParityRecord]:
    """Records of an answer's errors against the truth, tensor by tensor, as ratios to the yardstick.

    Ratios are taken in each of GROUPS groups of streams and their median counts, because a single stream near a
    tipping point can own all error of its group, on either side, by chance; a fault is in every group, or is GROSS.
    `double` says that the subject computes in float64, where another bar holds.
    """
    rms_bar, max_bar = (FLOAT64_BAR, FLOAT64_BAR) if double else (RMS_BAR, MAX_BAR)
    records = []
    for tensor, exact in yardstick.exact.items():
        error = answer[tensor]
        found = error.groups() / yardstick.of(tensor)
        rms_ratio, max_ratio = (float(ratio) for ratio in np.median(found, axis=0))
        share, share_bar = share_of(error, exact), yardstick.share_bar(tensor)
        useless = answer is yardstick.own and error.rms > USABLE * exact.rms and rms_ratio >= 1
        over_share = share > share_bar > 0
        failed_by = (
            _over(rms_ratio, max_ratio, rms_bar, max_bar)
            or _over_in_a_group(found, GROSS * rms_bar, GROSS * max_bar)
            or (f"{SHARE}: {share:.2g} of the tensor's rms, and {share_bar:.2g} is the limit" if over_share else "")
            or (f"{CHAOTIC}: {chaos(share)}" if useless else "")
        )
        records.append(
            ParityRecord(
                subject=subject,
                truth=TRUTH,
                tensor=tensor,
                steps=case.steps,
                initial=case.initial,
                rms_error=error.rms,
                max_error=error.largest,
                rms_ratio=rms_ratio,
                max_ratio=max_ratio,
                rms_bar=rms_bar,
                max_bar=max_bar,
                passed=not failed_by,
                share=share,
                share_bar=share_bar,
                failed_by=failed_by,
            )
        )
    return records


def _over(rms_ratio: float, max_ratio: float, rms_bar: float, max_bar: float) -> str:
    """What is over its bar of the median group."""
    if rms_ratio <= rms_bar and max_ratio <= max_bar:
        return ""
    return (
        f"{RATIO}: error {rms_ratio:.3g} (rms) and {max_ratio:.3g} (max) times the yardstick, bars {rms_bar:g} and"
        f" {max_bar:g}"
    )


def _over_in_a_group(found: npt.NDArray[np.float64], rms_bar: float, max_bar: float) -> str:
    """What no single group may reach, where one does."""
    if not np.any(found > (rms_bar, max_bar)):
        return ""
    rms, largest = np.max(found, axis=0)
    return (
        f"{ONE_GROUP}: error {rms:.3g} (rms) and {largest:.3g} (max) times the yardstick in the worst of {GROUPS}"
        f" groups of streams, of which none may reach {rms_bar:g} and {max_bar:g}"
    )


def chaos(share: float) -> str:
    """What is said of a network whose float32 is no measure of anything."""
    return (
        f"PyTorch's own float32 is off its float64 by {100 * share:.3g}% of the tensor's rms, and beyond"
        f" {100 * USABLE:g}% nothing can be proved"
    )


def compare_bits(*, subject: str, sample: Sample, answer: Arrays, truth_name: str, truth: Arrays) -> list[ParityRecord]:
    """Records that pass where `answer` has the very bytes of `truth`; ratios are to an epsilon of its size."""
    records = []
    for tensor, exact in truth.items():
        error, least = difference(answer[tensor], exact), max(EPSILON * _rms(exact), TINY)
        rms_error, max_error = _rms(error), float(np.max(error))
        records.append(
            ParityRecord(
                subject=subject,
                truth=truth_name,
                tensor=tensor,
                steps=sample.steps,
                initial=sample.initial,
                rms_error=rms_error,
                max_error=max_error,
                rms_ratio=rms_error / least,
                max_ratio=max_error / least,
                rms_bar=0.0,
                max_bar=0.0,
                passed=(same := answer[tensor].tobytes() == exact.tobytes()),
                failed_by="" if same else f"{BYTES}: not the same, by up to {max_error:.3g}",
            )
        )
    return records


def difference(answer: npt.NDArray[Any], exact: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How far off each element is, in float64; NOT_A_NUMBER where the answer isn't finite."""
    assert answer.shape == exact.shape, f"{answer.shape} against {exact.shape}"
    difference = np.abs(answer.astype(np.float64) - exact)
    return np.asarray(np.nan_to_num(difference, nan=NOT_A_NUMBER, posinf=NOT_A_NUMBER))


def _rms(values: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))  # narrow dtypes would overflow
