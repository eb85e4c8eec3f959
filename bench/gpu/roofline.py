"""What a step can't be faster than: bytes of weights, operations, bytes of state, and launches. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from bench.gpu.records import Rates

GATES = 4
FLOAT = 4  # bytes: inputs, outputs and states are float32 in every precision
WEIGHT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2}
AROUND = 2  # kernels besides the layers': one that gathers rows, one that scatters them


@dataclass(frozen=True, slots=True)
class Size:
    """A run of T steps of B lanes; F = H."""

    hidden: int
    layers: int
    precision: str
    steps: int
    batch: int

    @property
    def weight_bytes(self) -> int:
        """Read in every time step: products and both biases."""
        values = GATES * self.hidden * (2 * self.hidden + 2)
        return self.layers * values * WEIGHT_BYTES[self.precision]

    @property
    def operations(self) -> int:
        """Multiplications and additions of a run."""
        return 2 * self.layers * GATES * self.hidden * 2 * self.hidden * self.batch * self.steps

    @property
    def state_bytes(self) -> int:
        """Inputs read and outputs written in each step, rows read and written once a run."""
        rows = 2 * (2 * self.layers * self.hidden)
        return FLOAT * self.batch * (2 * self.hidden * self.steps + rows)

    @property
    def kernels(self) -> int:
        """The fewest that depend on each other: one for each layer and step, and two around."""
        return self.layers * self.steps + AROUND


@dataclass(frozen=True, slots=True)
class Floor:
    """The terms, in microseconds of a run."""

    weights: float
    operations: float
    state: float
    launches: float

    @property
    def us(self) -> float:
        """The largest."""
        return max(self.weights, self.operations, self.state, self.launches)

    @property
    def bound(self) -> str:
        """Which that is."""
        return max(("weights", "operations", "state", "launches"), key=lambda name: float(getattr(self, name)))


def floor(size: Size, rates: Rates) -> Floor:
    """What a run of this size takes at least, at the rates measured; without one, its term is 0.

    Weights that fit the cache are counted at its bandwidth, as they may stay there.
    """
    memory, launches = rates.memory, rates.launches
    cached = size.weight_bytes <= memory.cache_bytes
    bandwidth = max(memory.bandwidth, memory.cache_bandwidth) if cached else memory.bandwidth
    rate = rates.matrix.get(size.precision)
    return Floor(
        weights=size.steps * size.weight_bytes / bandwidth * 1e6,
        operations=size.operations / rate * 1e6 if rate else 0.0,
        state=size.state_bytes / memory.bandwidth * 1e6,
        launches=launches.replay_us + (size.kernels - 1) * launches.kernel_us,
    )
