"""The check at the edge: do these bytes fit the contract?

Owns the rules on lengths, ranges and finiteness of a chunk's tensors. Everything behind it may trust its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import Contract, TensorSpec
from serving.config import Limits
from serving.errors import InvalidInput, TooLarge


class InputCheck:
    """One model's rules for what a chunk may hold."""

    def __init__(self, contract: Contract, limits: Limits) -> None:
        self._specs = contract.inputs
        self._limit = limits.max_steps_per_message
        self.step_bytes = tuple(spec.step_bytes for spec in contract.inputs)

    def sizes(self, steps: int, inputs: Sequence[bytes | memoryview]) -> None:
        """Raise InvalidInput or TooLarge unless `inputs` are as long as `steps` steps of every input."""
        if steps < 1:
            raise InvalidInput(f"a chunk of {steps} steps; it must have at least 1")
        if steps > self._limit:
            raise TooLarge(f"a chunk of {steps} steps; the limit is {self._limit} steps per message")
        if len(inputs) != len(self._specs):
            names = ", ".join(spec.name for spec in self._specs)
            raise InvalidInput(f"{len(inputs)} input tensors; the model takes {len(self._specs)} ({names})")
        for spec, data, step_bytes in zip(self._specs, inputs, self.step_bytes, strict=True):
            if len(data) != steps * step_bytes:
                raise InvalidInput(
                    f"input {spec.name!r} has {len(data)} bytes; {steps} steps of {spec.dtype}{list(spec.shape)} "
                    f"are {steps * step_bytes} bytes"
                )

    def values(self, first_step: int, inputs: Sequence[bytes | memoryview]) -> None:
        """Raise InvalidInput unless every value of these consecutive steps is finite and within its bounds."""
        for spec, data in zip(self._specs, inputs, strict=True):
            values = np.frombuffer(data, dtype=spec.dtype)
            if not _sound(spec, values):
                raise _fault(spec, values, first_step)

    def faults(
        self, first_steps: Sequence[int], lanes: Sequence[Sequence[bytes | memoryview]]
    ) -> dict[int, InvalidInput]:
        """What is wrong with the values of single steps, one of each lane, by lane: all are looked at in one go."""
        found: dict[int, InvalidInput] = {}
        for place, spec in enumerate(self._specs):
            together = np.frombuffer(b"".join([lane[place] for lane in lanes]), dtype=spec.dtype)
            if _sound(spec, together):
                continue
            for lane, values in enumerate(together.reshape(len(lanes), -1)):
                if not _sound(spec, values):
                    found.setdefault(lane, _fault(spec, values, first_steps[lane]))
        return found


def _sound(spec: TensorSpec, values: npt.NDArray[Any]) -> bool:
    if values.dtype.kind == "f":
        return bool(np.isfinite(values).all())
    low, high = spec.minimum, spec.maximum
    return (low is None or int(values.min()) >= low) and (high is None or int(values.max()) <= high)


def _fault(spec: TensorSpec, values: npt.NDArray[Any], first_step: int) -> InvalidInput:
    """What is wrong with the first bad value."""
    low, high = spec.minimum, spec.maximum
    if values.dtype.kind == "f":
        where = int(np.argmin(np.isfinite(values)))
        rule = "every value must be finite"
    elif low is not None and int(values.min()) < low:
        where, rule = int(np.argmax(values < low)), f"the smallest value is {low}"
    else:
        where, rule = int(np.argmax(values > high)), f"the largest value is {high}"
    step, offset = divmod(where, spec.elements)
    place = [int(index) for index in np.unravel_index(offset, spec.shape)]
    element = place if len(place) > 1 else offset
    return InvalidInput(
        f"input {spec.name!r} holds {values[where]} in the step numbered {first_step + step}, element {element}; {rule}"
    )
