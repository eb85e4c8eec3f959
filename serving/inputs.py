"""The check at the edge: do these bytes fit the contract?

Owns the rules on lengths, ranges and finiteness of a chunk's tensors. Everything behind it may trust its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.contract import Contract, TensorSpec
from serving.config import Limits
from serving.errors import InvalidInput, TooLarge


class InputCheck:
    """One model's rules for what a chunk may hold."""

    def __init__(self, contract: Contract, limits: Limits) -> None:
        self._specs = contract.inputs
        self._limit = limits.max_steps_per_message
        self.step_bytes = tuple(spec.step_bytes for spec in contract.inputs)

    def __call__(self, steps: int, inputs: Sequence[bytes | memoryview]) -> None:
        """Raise InvalidInput or TooLarge unless `inputs` are `steps` steps of every model input, in order."""
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
            _check_values(spec, data)


def _check_values(spec: TensorSpec, data: bytes | memoryview) -> None:
    values = np.frombuffer(data, dtype=spec.dtype)
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            where = int(np.argmin(finite))
            step, element = divmod(where, spec.elements)
            raise InvalidInput(
                f"input {spec.name!r} holds {values[where]} at step {step} of the chunk, element {element}; "
                "every value must be finite"
            )
    elif spec.minimum is not None or spec.maximum is not None:
        low, high = int(values.min()), int(values.max())
        if spec.minimum is not None and low < spec.minimum:
            raise InvalidInput(f"input {spec.name!r} holds {low}; the smallest value is {spec.minimum}")
        if spec.maximum is not None and high > spec.maximum:
            raise InvalidInput(f"input {spec.name!r} holds {high}; the largest value is {spec.maximum}")
