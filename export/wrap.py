"""The order of a wrapping: somebody else's graph, understood, made resident, proved against itself, written.

Owns that order and what is asked of it. Whatever raises, nothing appears under the final name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from export import artifact, checks, ranges, resident, starts, state_notes, triton, whole_runs, wrap_parity, wrap_proof
from export.branches import decide
from export.layouts import AmbiguousError
from export.one_by_one import BATCHES, ONE_BY_ONE
from export.page import artifact_page
from export.pairs import StateQuestionError
from export.row_parts import WHOLE_ROWS, RowParts, describe, with_parts
from export.run_faults import missed_by, planted, run_faults
from export.settled import Settled, settle_states
from export.start_states import add_starts, check_starts
from export.theirs import Theirs, WrapError, fold, name_nodes, one_line, read, restore
from export.unbatched import add_batch
from export.understanding import Asked, Understood, constants_of, fitted, loosened, understand
from export.wrap_parity import ByHand
from model.contract import Contract, ParityRecord

UNPROVED = "not proved of the connected states"
MARK = "wrapped"  # the note that tells a wrapped artifact from an exported one


class Batching(StrEnum):
    """How the graph takes several streams: at once, or one after the other within a run."""

    AUTO = "auto"
    TOGETHER = "together"
    ALONE = "alone"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to make a graph resident."""

    together: bool
    ragged: bool

    def __str__(self) -> str:
        return f"streams {'together' if self.together else 'one by one'}, {'chunks' if self.ragged else 'single steps'}"


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A finished artifact: where it is, what it promises, and what was given up on the way to it."""

    folder: Path
    contract: Contract
    records: tuple[ParityRecord, ...]
    remarks: tuple[str, ...]


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


def wrap(
    path: Path,
    final: Path,
    *,
    name: str,
    asked: Asked | None = None,
    batching: Batching = Batching.AUTO,
    row_parts: RowParts = WHOLE_ROWS,
    progress: wrap_proof.Progress = silent,
) -> Wrapped:
    """Make the ONNX file `path` a resident artifact in the folder `final`, which appears only when it is proved.

    Raises WrapError, ResidentError, StructureError or ArtifactError, and then leaves nothing.
    """
    with artifact.staged(final) as folder:
        asked = asked or Asked()
        made = make(path, folder, name=name, asked=asked, batching=batching, row_parts=row_parts, progress=progress)
        controls = {}
        total = len(run_faults(made.contract))
        for done, (fault, records) in enumerate(planted(folder, made.contract), start=1):
            controls[fault] = missed_by(records)
            progress("planted faults", done, total)
        certificate = wrap_proof.certificate(made.records, made.contract, controls)
        certificate = replace(
            certificate,
            states=state_notes.noted(made.contract),
            not_checked=(*certificate.not_checked, *(line for line in made.remarks if line.startswith(UNPROVED))),
        )
        contract = artifact.seal(folder, made.contract, certificate)
        page = artifact_page(f"{name}/{final.name}", certificate, {})
        (folder / artifact.PAGE).write_text(page, encoding="utf-8")
    return replace(made, folder=final, contract=contract, remarks=(*made.remarks, *triton.describe(final)))


def make(
    path: Path,
    folder: Path,
    *,
    name: str,
    asked: Asked,
    batching: Batching = Batching.AUTO,
    row_parts: RowParts = WHOLE_ROWS,
    progress: wrap_proof.Progress = silent,
    notes: Mapping[str, str] | None = None,
) -> Wrapped:
    """Write both graphs of the ONNX file `path` into `folder`, proved against that file but not yet certified.

    `notes` are people's, instead of the file's own name and digest. Raises what `wrap` does.
    """
    work = _Work(read(path), asked, row_parts, progress, list(asked.remarks))
    _check_theirs(path)
    ways = [True, False] if batching is Batching.AUTO else [batching is Batching.TOGETHER]
    notes = {MARK: path.name, "source": _digest(path)} if notes is None else notes
    contract, records = _first_that_holds(work, folder, name, ways, notes)
    return Wrapped(folder, contract, records, (*work.remarks, *describe(contract)))


def is_wrapped(path: Path) -> bool:
    """Whether the artifact at `path` is a wrapped one; raises ArtifactError where there is none."""
    _, contract = artifact.read_graph(artifact.find(path) / artifact.MODEL, weights=False)
    return MARK in contract.notes


def prove(path: Path, *, progress: wrap_proof.Progress = silent) -> Wrapped:
    """Prove a wrapped artifact again from itself alone: digest, structure, and resident.onnx against model.onnx.

    Raises ArtifactError, StructureError or WrapError; changes nothing.
    """
    folder = artifact.find(path)
    model, contract = artifact.read_graph(folder / artifact.MODEL, weights=False)
    made, same = artifact.read_graph(folder / artifact.RESIDENT, weights=False)
    if same != contract:
        raise artifact.ArtifactError(f"{folder}: {artifact.MODEL} and {artifact.RESIDENT} have different contracts")
    artifact.check_digest(folder, contract)
    wrap_proof.check_structure(folder, model, made, contract)
    by_hand = ByHand(folder / artifact.MODEL, contract)
    return Wrapped(folder, contract, wrap_proof.proved(folder, artifact.MODEL, by_hand, progress), ())


@dataclass(slots=True)
class _Work:
    """What one wrapping has read, was asked, and has found out."""

    theirs: Theirs
    asked: Asked
    row_parts: RowParts
    progress: wrap_proof.Progress
    remarks: list[str] = field(default_factory=list)
    states: Settled = field(default_factory=Settled)


def _check_theirs(path: Path) -> None:
    try:
        wrap_parity.session(path)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise WrapError(f"ONNX Runtime refuses {path}: {one_line(error)}") from error


def _first_that_holds(
    work: _Work, folder: Path, name: str, ways: list[bool], notes: Mapping[str, str]
) -> tuple[Contract, tuple[ParityRecord, ...]]:
    """The best way that proves itself: together before one by one, chunks before single steps."""
    restore(work.theirs, [*work.asked.states, *work.asked.constants, *work.asked.starts])
    if decide(work.theirs.model, constants_of(work.theirs, work.asked)):
        name_nodes(work.theirs.model.graph)
    check_starts(work.theirs, work.asked)
    work.states = settle_states(work.theirs, work.asked)
    work.asked = work.states.asked(work.asked)
    work.remarks += work.states.remarks
    work.asked = add_starts(work.theirs, work.asked)
    folded = _fold_constants(work)
    add_batch(work.theirs, work.asked)
    work.remarks += [f"input {name!r} is left out: every run takes all its steps" for name in work.theirs.lengths]
    weights = artifact.move_weights(work.theirs.model)
    (folder / artifact.WEIGHTS).write_bytes(weights)
    last: WrapError | None = None
    for together in ways:
        try:
            found = understand(work.theirs, work.asked, folder, together=together)
        except (AmbiguousError, StateQuestionError):
            raise
        except WrapError as error:
            if not together and last is not None:
                raise last from error
            last = error
            if together and len(ways) > 1:
                work.remarks.append(f"not together: {error}")
            continue
        contract = replace(found.contract, name=name, weights_digest=artifact.digest(weights), notes=notes)
        contract = with_parts(contract, work.row_parts)
        for way in [Way(together, True)] * contract.ragged + [Way(together, False)]:
            try:
                return _try(work, folder, found, replace(contract, ragged=way.ragged), way, folded=folded)
            except (resident.BackwardsError, StateQuestionError):
                raise
            except (WrapError, resident.ResidentError, checks.StructureError) as error:
                last = error if isinstance(error, WrapError) else WrapError(str(error))
                work.remarks.append(f"not {way}: {error}")
    assert last is not None
    raise last


def _fold_constants(work: _Work) -> bool:
    """Make weights of the constants that aren't mere settings; whether there were any."""
    values = {value.name: value for value in work.theirs.inputs}
    given = {name: fitted(values[name], value) for name, value in work.asked.constants.items() if name in values}
    return fold(
        work.theirs, {name: value for name, value in given.items() if value.dtype.kind == "f" and value.size > 1}
    )


def _try(
    work: _Work, folder: Path, found: Understood, contract: Contract, way: Way, *, folded: bool
) -> tuple[Contract, tuple[ParityRecord, ...]]:
    """Write both graphs in one way and prove them."""
    batches = {BATCHES: "together" if way.together else ONE_BY_ONE}
    drawn = {s.name: work.asked.ranges[s.name] for s in contract.inputs if s.name in work.asked.ranges}
    floats = {s.name: drawn[s.name] for s in contract.inputs if s.name in drawn and np.dtype(s.dtype).kind == "f"}
    notes = {
        **contract.notes,
        **batches,
        **starts.note(work.asked.starts),
        **ranges.note(floats),
        **state_notes.note(work.states.evidence),
    }
    contract = replace(contract, notes=notes)
    contract.check()
    model = loosened(work.theirs.model, found)
    artifact.write_graph(model, folder / artifact.MODEL, contract)
    made = resident.derive(model, contract, one_by_one=not way.together)
    artifact.write_graph(made, folder / artifact.RESIDENT, contract)
    wrap_proof.check_structure(folder, model, made, contract)
    if found.contract.ragged:
        wrap_proof.check_steps_are_steps(folder, contract)
    if folded or work.states.connected or (found.fixed_streams > 1 and not way.together):
        by_hand, name = ByHand(folder / artifact.MODEL, contract), artifact.MODEL
    else:
        by_hand = ByHand(
            work.theirs.path,
            contract,
            found.fixed_streams,
            found.fixed_steps,
            theirs=work.theirs.renamed | work.theirs.added,
            lengths=tuple(work.theirs.lengths),
            bare=frozenset(work.theirs.bare),
            start_ranks=work.theirs.start_ranks,
        )
        name = work.theirs.path.name
    records = wrap_proof.proved(folder, name, by_hand, work.progress, str(way))
    return contract, (*records, *_whole_runs(work, folder, found, contract))


def _whole_runs(work: _Work, folder: Path, found: Understood, contract: Contract) -> tuple[ParityRecord, ...]:
    """Records of a reference that carries no state, where we connected states; raises WrapError where there is none."""
    if not work.states.connected:
        return ()
    if any(spec.time_axis is not None for spec in contract.inputs) and found.fixed_steps == 1:
        theirs = work.theirs.renamed | work.theirs.added
        whole = whole_runs.Whole(work.theirs.path, found.fixed_streams, theirs, tuple(work.theirs.lengths))
        return tuple(whole_runs.records(folder, whole, contract))
    if not work.states.told:
        raise work.states.refusal()
    work.remarks.append(f"{UNPROVED}: {work.theirs.path.name} takes no sequence of any length to compare with")
    return ()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
