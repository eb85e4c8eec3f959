"""Every subject's errors on one course of streams, as they stand after each number of steps that is compared.

Owns that bookkeeping. Knows no model and no runtime.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from export.samples import Course, Part
from export.yardstick import Tally
from model.contract import Contract


class Findings:
    """Every subject's errors on one course, tensor by tensor, as they stood after each mark."""

    def __init__(self, course: Course, contract: Contract) -> None:
        self._course = course
        self._outputs = [tensor.name for tensor in contract.outputs]
        self._running: dict[tuple[str, str], Tally] = {}
        self._at: dict[tuple[int, str], dict[str, Tally]] = {}
        self.curves: dict[str, npt.NDArray[np.float64]] = {}

    def add(self, subject: str, part: Part, done: int, errors: Mapping[str, npt.NDArray[np.float64]]) -> None:
        """Add the errors of a piece that ends at step `done`: outputs count always, states at the marks."""
        for name in self._outputs:
            running = self._running.setdefault((subject, name), Tally(self._course.lanes))
            running.add(errors[name], part.lanes)
        squares = np.square(errors[self._outputs[0]])
        curve = self.curves.setdefault(subject, np.zeros(self._course.steps))
        curve[done - squares.shape[1] : done] += np.mean(squares, axis=tuple(range(2, squares.ndim))).sum(axis=0)
        if done not in self._course.marks:
            return
        here = self._at.setdefault((done, subject), {})
        for name, found in errors.items():
            if name in self._outputs:
                here[name] = copy.deepcopy(self._running[subject, name])
            else:
                here.setdefault(name, Tally(self._course.lanes)).add(found, part.lanes)

    def of(self, steps: int, initial: str) -> dict[str, dict[str, Tally]]:
        """The tallies of every subject that went so far, after so many steps from this state."""
        lanes = self._course.lanes_of(initial)
        return {
            subject: {name: tally.of(lanes) for name, tally in tallies.items()}
            for (at, subject), tallies in self._at.items()
            if at == steps
        }
