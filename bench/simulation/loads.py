"""What work there is, beside what could be done: load as a share of capacity.

Capacity is what a server reaches whose every run is as good as the limits allow: for each slice the number of lanes
that costs least per lane. No policy can beat it with the same limits; how near one comes is what is measured.
"""

from __future__ import annotations

import functools

import numpy as np

from bench.simulation.arrivals import Floats, Ints
from bench.simulation.machine import Machine
from bench.simulation.scenarios import Scenario
from bench.simulation.variants import Variant


class Capacity:
    """What chunks cost at best, by their steps."""

    def __init__(self, machine: Machine, variant: Variant) -> None:
        self._machine = machine
        self._variant = variant
        self._cost = functools.cache(self._work)

    def load(self, steps: Ints, weights: Floats | None = None) -> float:
        """Seconds that chunks keep the busier thread busy, each counted `weights` times."""
        lengths, place = np.unique(steps, return_inverse=True)
        counts = np.bincount(place, weights)
        messages, compute = (counts @ np.array([self._cost(int(n)) for n in lengths])).tolist()
        return float(max(messages, compute) if self._variant.in_flight else messages + compute)

    def rate(self, scenario: Scenario, streams: int, load: float, seed: int) -> float:
        """Chunks a second of each stream that make this load."""
        weights, steps = scenario.sample(seed)
        return load / (self.load(steps, weights) * streams)

    def streams(self, scenario: Scenario, rate: float, load: float, seed: int) -> int:
        """Streams that make about this load at a rate."""
        weights, steps = scenario.sample(seed)
        return max(1, round(load / (self.load(steps, weights) * rate)))

    def _work(self, steps: int) -> tuple[float, float]:
        batching = self._variant.batching
        longest = min(batching.slice_steps, batching.max_run_steps)
        slices, rest = divmod(steps, longest)
        compute = (slices * self._best(longest) if slices else 0.0) + (self._best(rest) if rest else 0.0)
        return (1 + slices + bool(rest)) * self._machine.half_message, compute

    def _best(self, steps: int) -> float:
        batching = self._variant.batching
        most = max(1, min(batching.max_batch, batching.max_run_steps // steps))
        sizes = {1 << exponent for exponent in range(most.bit_length())} | {most}
        return min(self._machine.costs.seconds(lanes, steps) / lanes for lanes in sizes)
