"""What a contestant gives once it's ready for a batch of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


class Runs(NamedTuple):
    """Ways of computing T steps of B lanes, None for one that isn't there; each returns when the device has ended."""

    answers: Callable[[], Array]  # outputs [B, T, O] from the first state
    device: Callable[[], object] | None  # inputs and states on the device already, outputs left there
    host: Callable[[], object] | None  # from host memory to host memory


class Contestant(Protocol):
    """Who can be made ready for inputs [B, T, F]."""

    def ready(self, x: Array) -> Runs:
        """Whatever may take long is done here."""
