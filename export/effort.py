"""How much proof a model's size allows: what is asked of a large model, so that its proof ends in minutes.

Owns the sizes of samples by a model's cost. Knows no runtime.
"""

from __future__ import annotations

from typing import NamedTuple

from export.samples import WIDE
from model.contract import Contract
from model.lstm import Spec

LONGEST = (1, 10, 100, 1000)  # steps that are compared
WORK = 4 * 10**10  # recurrent weights times steps, of the longest course: minutes on two cores
ALONE = 11 * 10**9  # recurrent weights times steps of single streams, which each read all weights
LARGE = 2**24  # recurrent weights, or elements of an output's weights, above which no two copies stay in memory
SMALL = 2**22  # recurrent weights below which one thread is faster
GIVEN = 2**22  # elements of all answers that are held at once to compare their bytes


class Effort(NamedTuple):
    """What is asked. `steps`: after how many steps outputs and states are compared, in ascending order."""

    steps: tuple[int, ...]
    double_steps: int  # up to which nn.LSTM in float64 is asked: it is the formula's check, not the export's
    ragged_streams: int
    ragged_steps: int
    budget: int | None  # elements compared at once
    threads: int  # of PyTorch; 0: all
    large: bool  # whether copies are freed between levels
    wide: bool  # whether an output has more elements than are all compared at every step

    @property
    def thorough(self) -> bool:
        """Whether nothing is asked less of it than of a small model."""
        return self.steps == LONGEST and not self.wide


def recurrent_weights(spec: Spec) -> int:
    """How many weights each step reads, one step after the other."""
    features, count = spec.core_size, 0
    for _ in range(spec.layers):
        count += 4 * spec.hidden_size * (features + spec.state_size)
        features = spec.state_size
    return count


def effort_for(spec: Spec, contract: Contract) -> Effort:
    """The effort for a model of these sizes."""
    weights = recurrent_weights(spec)
    widest = max(tensor.elements for tensor in contract.outputs)
    longest = LONGEST[-1]
    if weights * longest > WORK:
        longest = max(LONGEST[-2], WORK // weights // 100 * 100)
    lane_steps = max(32, min(280, ALONE // weights, GIVEN // widest))
    streams = 7 if lane_steps == 280 else 4
    heavy = longest < LONGEST[-1]
    return Effort(
        steps=(*(steps for steps in LONGEST if steps < longest), longest),
        double_steps=LONGEST[1] if heavy else longest,
        ragged_streams=streams,
        ragged_steps=lane_steps // streams,
        budget=2**22 if heavy else None,
        threads=1 if weights < SMALL else 0,
        large=weights > LARGE or widest * spec.state_size > LARGE,
        wide=widest > WIDE,
    )
