"""Faults in how a resident graph is run, whatever the model: each must show in the bytes of its answers.

Owns these ways of running wrongly, and how they are found: against every stream alone, states carried by hand. Knows
neither PyTorch nor what the graph is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export import artifact
from export.runtime import Resident
from export.samples import NON_ZERO, Arrays
from export.starts import noted
from export.wrap_parity import ByHand, draw, in_changing_batches
from export.yardstick import compare_bits
from model.contract import Contract, ParityRecord, SlabSpec, StatePair

STREAMS, STEPS, MOST_STEPS = 5, 10, 5
Array = npt.NDArray[Any]


class HalfState(Resident):
    """The states go through half precision between runs."""

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """Round what is read, and run."""
        for slab in self.slabs.values():
            if slab.dtype.kind == "f":
                slab[read] = slab[read].astype(np.float16)
        return super().run(inputs, lengths, read, write)


class LostChunkEnd(Resident):
    """In each of the first runs, a chunk of several steps leaves its last one out of the state."""

    lost = 0

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """Run, and write the state of a step before the last."""
        answer = super().run(inputs, lengths, read, write)
        long = [place for place, length in enumerate(lengths) if length > 1]
        if long and self.lost < STREAMS:
            shorter = [length - (place == long[0]) for place, length in enumerate(lengths)]
            super().run(inputs, shorter, read, write)
            self.lost += 1
        return answer


class LostStep(Resident):
    """In each of the first runs, one stream's new state isn't written: one that is reset next would show nothing."""

    lost = 0

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """Run, and put an old state back."""
        answer = super().run(inputs, lengths, read, write)
        if self.lost < STREAMS:
            for slab in self.slabs.values():
                slab[write[0]] = slab[read[0]]
            self.lost += 1
        return answer


class StaleRow(Resident):
    """In each of the first runs, a stream reads the row of its state before last."""

    def __init__(self, path: Path, contract: Contract, *, rows: int) -> None:
        super().__init__(path, contract, rows=rows)
        self._before: dict[int, int] = {}  # where a row's state was made from
        self._done = 0

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """Run from the rows given, or one of them older."""
        old = [place for place, row in enumerate(read) if row in self._before]
        rows = list(read)
        if old and self._done < STREAMS:
            rows[old[0]] = self._before[read[old[0]]]
            self._done += 1
        self._before.update(zip(write, read, strict=True))
        return super().run(inputs, lengths, rows, write)


class NotCarried(Resident):
    """The first state isn't carried: every run finds it as a new stream's."""

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """Run from a first state that is made new."""
        slab = self._contract.slabs()[0]
        rows = self.slabs[slab.dtype]
        rows[read, : slab.states[0].elements] = rows[0, : slab.states[0].elements]
        return super().run(inputs, lengths, read, write)


class Exchanged(Resident):
    """Two states of one shape stand in each other's place, as where states are paired by the order of names."""

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """Run with both exchanged on their way in."""
        found = alike(self._contract)
        assert found is not None
        slab, first, second = found
        rows, (a, b) = self.slabs[slab.dtype], (_place(slab, first), _place(slab, second))
        old = rows[read]  # a copy
        rows[read, a], rows[read, b] = old[:, b], old[:, a]
        return super().run(inputs, lengths, read, write)


class NeverStarted(Resident):
    """No step is told that its sequence starts."""

    first = False

    def run(self, inputs: Mapping[str, Array], lengths: list[int], read: list[int], write: list[int]) -> Arrays:
        """Run from rows that say what they shouldn't."""
        for slab in self._contract.slabs():
            for start in noted(self._contract):
                if start.state in slab.states:
                    said = start.said(first=self.first).reshape(-1)
                    self.slabs[slab.dtype][read, _place(slab, start.state)] = said
        return super().run(inputs, lengths, read, write)


class AlwaysStarted(NeverStarted):
    """Every step is told that its sequence starts."""

    first = True


def alike(contract: Contract) -> tuple[SlabSpec, StatePair, StatePair] | None:
    """Two states that could be taken for each other."""
    for slab in contract.slabs():
        for place, first in enumerate(slab.states):
            for second in slab.states[place + 1 :]:
                if first.shape == second.shape:
                    return slab, first, second
    return None


def _place(slab: SlabSpec, state: StatePair) -> slice:
    begin = sum(before.elements for before in slab.states[: slab.states.index(state)])
    return slice(begin, begin + state.elements)


def run_faults(contract: Contract) -> dict[str, type[Resident]]:
    """The faults that such a model can have, by name."""
    starts = [start.state for start in noted(contract)]
    chosen: dict[str, type[Resident]] = {"a state not carried": NotCarried, "a stale row read": StaleRow}
    if starts:
        chosen |= {"a start never told": NeverStarted, "a start told at every step": AlwaysStarted}
    if alike(contract) is not None:
        chosen["two states exchanged"] = Exchanged
    if any(state.dtype in ("float32", "float64") for state in contract.states if state not in starts):
        chosen["a float16 rounding of the state"] = HalfState
    if contract.ragged:
        chosen["a step lost at a chunk's border"] = LostChunkEnd
    else:
        chosen["a step lost"] = LostStep
    return chosen


def planted(folder: Path, contract: Contract) -> Iterator[tuple[str, list[ParityRecord]]]:
    """Every fault's name with what comparing bytes says of it, for the artifact in `folder`."""
    sample = draw(contract, STREAMS, STEPS, NON_ZERO, seed=5)
    truth = ByHand(folder / artifact.MODEL, contract).run(sample)
    most = MOST_STEPS if contract.ragged else 1
    for name, runs in run_faults(contract).items():
        answer = in_changing_batches(folder / artifact.RESIDENT, contract, sample, most, 0, runs=runs)
        yield name, compare_bits(subject=name, sample=sample, answer=answer, truth_name="", truth=truth)


def missed_by(records: list[ParityRecord]) -> float:
    """By how much the worst record misses its bar: above 1 times it, or in epsilons where the bar is equality.

    0 where every record passes: the fault isn't seen.
    """
    failed = [record for record in records if not record.passed]
    return max((max(r.rms_ratio / (r.rms_bar or 1), r.max_ratio / (r.max_bar or 1)) for r in failed), default=0.0)
