"""One way to make a given graph resident, tried: both graphs written, and proved against the given file.

Owns which ways there are, and what must hold before one counts: the resident graph gives the given file's bytes, runs
of several steps those of single ones, and the artifact's own model.onnx is compared with the given file, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from export import (
    artifact,
    ranges,
    recurrent_axes,
    resident,
    run_lengths,
    starts,
    state_notes,
    whole_runs,
    wrap_parity,
    wrap_proof,
)
from export.one_by_one import AS_GIVEN, BATCHES, ONE_BY_ONE
from export.row_parts import RowParts
from export.settled import Settled
from export.theirs import Theirs, WrapError
from export.understanding import Asked, Understood, loosened
from export.wrap_parity import ByHand, Truths
from model.contract import Contract, ParityRecord

UNPROVED = "not proved of the connected states"
_KEPT = "model.onnx keeps the given file's fixed sizes: with free ones ONNX Runtime gives other last bits"


class Lanes(Enum):
    """How a run meets the lanes of a batch; where each is alone, in one graph or in a call of it."""

    TOGETHER = "together"
    SCANNED = "one by one"
    CALLED = "one by one, a call for each"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to make a graph resident."""

    lanes: Lanes
    ragged: bool

    @property
    def together(self) -> bool:
        """Whether the graph sees several streams at once."""
        return self.lanes is Lanes.TOGETHER

    def __str__(self) -> str:
        return f"streams {self.lanes.value}, {'chunks' if self.ragged else 'single steps'}"


@dataclass(slots=True)
class Work:
    """What one wrapping has read, was asked, and has found out."""

    theirs: Theirs
    asked: Asked
    row_parts: RowParts
    progress: wrap_proof.Progress
    remarks: list[str] = field(default_factory=list)
    states: Settled = field(default_factory=Settled)
    folded: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # inputs that have become weights


class Attempts:
    """The ways to make what was understood resident, one after the other, into one folder."""

    def __init__(self, work: Work, folder: Path, found: Understood, contract: Contract) -> None:
        """`contract` is what was found, under its name and with its weights, which lie in `folder`."""
        self._work, self._folder, self._found, self._contract = work, folder, found, contract
        self._model, self._resident = folder / artifact.MODEL, folder / artifact.RESIDENT
        self._given = work.theirs.path.name
        self._truths: Truths | None = None  # of the given file: the same for every way
        self._checked = False

    def hold(self, way: Way) -> tuple[Contract, tuple[ParityRecord, ...]]:
        """Write both graphs in one way and prove them; raises WrapError, ResidentError or StructureError."""
        model = loosened(self._work.theirs.model, self._found)
        contract = self._promised(way)
        artifact.write_graph(model, self._model, contract)
        reads = recurrent_axes.reads(model, contract, self._folder, together=way.together)
        made = resident.derive(model, contract, one_by_one=way.lanes is Lanes.SCANNED, reads=reads)
        artifact.write_graph(made, self._resident, contract)
        wrap_proof.check_structure(self._folder, model, made, contract)
        numbers = run_lengths.numbers(model, self._folder)
        self._check_steps(contract, numbers)
        # Where the given file can't be run as ours is, the resident graph is compared with our own model.onnx.
        apart = bool(self._work.folded or self._work.states.connected) or (
            self._found.fixed_streams > 1 and not way.together
        )
        given = self._by_hand(contract)
        if apart:
            by_hand, name = ByHand(self._model, contract), artifact.MODEL
            asked = wrap_parity.truths(by_hand, name)
        else:
            by_hand, name, asked = given, self._given, self._asked(given)
        records = list(wrap_proof.proved(self._resident, contract, asked, self._work.progress, str(way)))
        longest, lengths = self._prove_lengths(by_hand, name, contract, numbers)
        records += lengths
        contract = replace(contract, max_steps=longest)
        if self._work.states.connected:
            records += self._whole_runs(contract)
        elif apart:
            records += self._close(ByHand(self._model, contract), given)
        else:
            model, same = self._same_portable(model, given, contract)
            records += same
            if model is self._work.theirs.model:
                contract = replace(contract, notes={**contract.notes, AS_GIVEN: "as given"})
                self._work.remarks.append(_KEPT)
        for graph, path in ((model, self._model), (made, self._resident)):
            artifact.write_graph(graph, path, contract)
        if by_hand.steps > 1 or by_hand.streams > 1:  # `prove` asks in another way than was asked here
            own = wrap_parity.of_portable(self._model, model, contract)
            mine = wrap_parity.truths(own, artifact.MODEL)
            records += wrap_proof.proved(self._resident, contract, mine, self._work.progress, str(way))
        return contract, tuple(records)

    def _promised(self, way: Way) -> Contract:
        """The contract of a way, before it is known how long its runs may be."""
        batches = {BATCHES: "together" if way.together else ONE_BY_ONE}
        asked = self._work.asked
        drawn = {s.name: s for s in self._contract.inputs if s.name in asked.ranges}
        floats = {name: asked.ranges[name] for name, s in drawn.items() if np.dtype(s.dtype).kind == "f"}
        notes = {**self._contract.notes, **batches, **starts.note(asked.starts), **ranges.note(floats)}
        notes |= state_notes.note(self._work.states.evidence)
        contract = replace(
            self._contract, notes=notes, ragged=way.ragged, single_lane=way.lanes is Lanes.CALLED, max_steps=1
        )
        if way.ragged:
            contract = replace(contract, max_steps=self._most(contract))
        contract.check()
        return contract

    def _most(self, contract: Contract) -> int:
        return run_lengths.most_steps(contract, (self._folder / artifact.WEIGHTS).stat().st_size)

    def _check_steps(self, contract: Contract, numbers: set[int]) -> None:
        """Where the graph takes several steps at once, see that they are what they are one by one."""
        if self._found.contract.ragged and not self._checked:
            most = self._most(replace(contract, ragged=True))
            longest = max([*run_lengths.tried(numbers, most)], default=1)
            wrap_proof.check_steps_are_steps(self._folder, contract, longest)
            self._checked = True

    def _by_hand(self, contract: Contract) -> ByHand:
        """The given file, as anybody would run it."""
        theirs = self._work.theirs
        return ByHand(
            theirs.path,
            contract,
            self._found.fixed_streams,
            self._found.fixed_steps,
            theirs=theirs.renamed | theirs.added,
            lengths=tuple(theirs.lengths),
            bare=frozenset(theirs.bare),
            fixed={theirs.renamed.get(name, name): value for name, value in self._work.folded.items()},
            start_ranks=theirs.start_ranks,
        )

    def _asked(self, given: ByHand) -> Truths:
        """What the given file answers, asked once."""
        if self._truths is None:
            self._truths = wrap_parity.truths(given, self._given)
        return self._truths

    def _prove_lengths(
        self, by_hand: ByHand, name: str, contract: Contract, numbers: set[int]
    ) -> tuple[int, tuple[ParityRecord, ...]]:
        """The longest run that holds, and the records that say so; raises WrapError where no chunk does."""
        if not contract.ragged:
            return 1, ()
        lengths = run_lengths.tried(numbers, contract.max_steps, by_hand.steps)
        found = run_lengths.prove(self._folder, (name, artifact.RESIDENT), by_hand, lengths)
        if found.longest < min(2 * by_hand.steps, contract.max_steps):
            raise WrapError(found.fault or "no run of several steps was tried")
        if found.fault:
            self._work.remarks.append(f"a run takes {found.longest} steps of a stream at most: {found.fault}")
        return found.longest, wrap_proof.refuse_failed(found.records)

    def _same_portable(
        self, model: ModelProto, given: ByHand, contract: Contract
    ) -> tuple[ModelProto, list[ParityRecord]]:
        """The graph for model.onnx that gives the given file's bytes: with free sizes, or else with those given."""
        asked = self._asked(given)
        for graph in (model, self._work.theirs.model):
            artifact.write_graph(graph, self._model, contract)
            try:
                records = wrap_parity.portable_records(wrap_parity.of_portable(self._model, graph, contract), asked)
            except Exception as error:  # noqa: BLE001  ONNX Runtime's own: sizes that don't fit
                fault = WrapError(f"{artifact.MODEL} doesn't run as {self._given} does: {error}")
                continue
            if all(record.passed for record in records):
                return graph, records
            try:
                wrap_proof.refuse_failed(records)
            except WrapError as error:
                fault = error
        raise fault

    def _close(self, ours: ByHand, given: ByHand) -> list[ParityRecord]:
        """Records of model.onnx against a given file that isn't run as it is: equal bytes, or a bar."""
        asked = self._asked(given)
        records = wrap_parity.portable_records(ours, asked)
        if not all(record.passed for record in records):
            records = wrap_parity.close_records(ours, given, asked)
        return list(wrap_proof.refuse_failed(records))

    def _whole_runs(self, contract: Contract) -> tuple[ParityRecord, ...]:
        """Records of a reference that carries no state, for states that were connected; raises WrapError for none."""
        work, theirs = self._work, self._work.theirs
        if any(spec.time_axis is not None for spec in contract.inputs) and self._found.fixed_steps == 1:
            names = theirs.renamed | theirs.added
            whole = whole_runs.Whole(theirs.path, self._found.fixed_streams, names, tuple(theirs.lengths))
            return tuple(whole_runs.records(self._folder, whole, contract))
        if not work.states.told:
            raise work.states.refusal()
        work.remarks.append(f"{UNPROVED}: {theirs.path.name} takes no sequence of any length to compare with")
        return ()
