"""The order of a wrapping: somebody else's graph, understood, made resident, proved against itself, written.

Owns that order and what is asked of it. Whatever raises, nothing appears under the final name.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy.typing as npt
from onnx import ModelProto

from export import artifact, checks, resident, run_lengths, state_notes, triton, wrap_parity, wrap_proof
from export.branches import decide
from export.layouts import AmbiguousError
from export.page import artifact_page
from export.pairs import StateQuestionError
from export.row_parts import WHOLE_ROWS, RowParts, describe, with_parts
from export.run_faults import missed_by, planted, run_faults
from export.settled import settle_states
from export.start_states import add_starts, check_starts
from export.theirs import WrapError, fold, name_nodes, one_line, read, restore
from export.unbatched import add_batch
from export.understanding import Asked, constants_of, fitted, understand
from export.wrap_attempt import UNPROVED, Attempts, Lanes, Way, Work
from export.wrap_parity import ByHand
from model.contract import Contract, ParityRecord

MARK = "wrapped"  # the note that tells a wrapped artifact from an exported one


class Batching(StrEnum):
    """How the graph takes several streams: at once, or one after the other within a run."""

    AUTO = "auto"
    TOGETHER = "together"
    ALONE = "alone"


LANES = {
    Batching.AUTO: (Lanes.TOGETHER, Lanes.SCANNED, Lanes.CALLED),
    Batching.TOGETHER: (Lanes.TOGETHER,),
    Batching.ALONE: (Lanes.SCANNED, Lanes.CALLED),
}


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
    work = Work(read(path), asked, row_parts, progress, list(asked.remarks))
    _check_theirs(path)
    notes = {MARK: path.name, "source": artifact.digest(path)} if notes is None else notes
    contract, records = _first_that_holds(work, folder, name, LANES[batching], notes)
    return Wrapped(folder, contract, records, (*work.remarks, *describe(contract)))


def is_wrapped(path: Path) -> bool:
    """Whether the artifact at `path` is a wrapped one; raises ArtifactError where there is none."""
    _, contract = artifact.read_graph(artifact.find(path) / artifact.MODEL, weights=False)
    return MARK in contract.notes


def prove(path: Path, *, progress: wrap_proof.Progress = silent) -> Wrapped:
    """Prove a wrapped artifact again from itself alone: digest, structure, and resident.onnx against model.onnx.

    Its certificate has model.onnx against the given file, which isn't needed here, by the graph's digest.
    Raises ArtifactError, StructureError or WrapError; changes nothing.
    """
    folder = artifact.find(path)
    model, contract = artifact.read_graph(folder / artifact.MODEL, weights=False)
    made, same = artifact.read_graph(folder / artifact.RESIDENT, weights=False)
    if same != contract:
        raise artifact.ArtifactError(f"{folder}: {artifact.MODEL} and {artifact.RESIDENT} have different contracts")
    artifact.check_digest(folder, contract)
    wrap_proof.check_structure(folder, model, made, contract)
    by_hand = wrap_parity.of_portable(folder / artifact.MODEL, model, contract)
    records = wrap_proof.proved(
        folder / artifact.RESIDENT, contract, wrap_parity.truths(by_hand, artifact.MODEL), progress
    )
    return Wrapped(folder, contract, (*records, *_prove_lengths(folder, model, by_hand, contract)), ())


def _prove_lengths(folder: Path, model: ModelProto, by_hand: ByHand, contract: Contract) -> tuple[ParityRecord, ...]:
    """Runs of every length that the contract promises; raises WrapError where one isn't as it says."""
    most = contract.run_steps
    if most == 1:
        return ()
    tried = run_lengths.tried(run_lengths.numbers(model, folder), most, by_hand.steps)
    found = run_lengths.prove(folder, (artifact.MODEL, artifact.RESIDENT), by_hand, tried)
    if found.fault:
        raise WrapError(f"{artifact.RESIDENT} promises runs of {most} steps: {found.fault}")
    return wrap_proof.refuse_failed(found.records)


def _check_theirs(path: Path) -> None:
    try:
        wrap_parity.session(path)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise WrapError(f"ONNX Runtime refuses {path}: {one_line(error)}") from error


def _first_that_holds(
    work: Work, folder: Path, name: str, lanes: Sequence[Lanes], notes: Mapping[str, str]
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
    work.folded = _fold_constants(work)
    add_batch(work.theirs, work.asked)
    work.remarks += [f"input {name!r} is left out: every run takes all its steps" for name in work.theirs.lengths]
    digest = artifact.write_weights(work.theirs.model, folder / artifact.WEIGHTS)
    last: WrapError | None = None
    for together, members in itertools.groupby(lanes, lambda kind: kind is Lanes.TOGETHER):
        try:
            found = understand(work.theirs, work.asked, folder, together=together)
        except (AmbiguousError, StateQuestionError):
            raise
        except WrapError as error:
            if not together and last is not None:
                raise last from error
            last = error
            if together and len(lanes) > 1:
                work.remarks.append(f"not together: {error}")
            continue
        contract = replace(found.contract, name=name, weights_digest=digest, notes=notes)
        attempts = Attempts(work, folder, found, with_parts(contract, work.row_parts))
        for way in [Way(kind, ragged) for kind in members for ragged in (True,) * contract.ragged + (False,)]:
            try:
                return attempts.hold(way)
            except (resident.BackwardsError, StateQuestionError):
                raise
            except (WrapError, resident.ResidentError, checks.StructureError) as error:
                last = error if isinstance(error, WrapError) else WrapError(str(error))
                work.remarks.append(f"not {way}: {error}")
    assert last is not None
    raise last


def _fold_constants(work: Work) -> Mapping[str, npt.NDArray[Any]]:
    """Make weights of the constants that aren't mere settings; their values by name."""
    values = {value.name: value for value in work.theirs.inputs}
    given = {name: fitted(values[name], value) for name, value in work.asked.constants.items() if name in values}
    weights = {name: value for name, value in given.items() if value.dtype.kind == "f" and value.size > 1}
    fold(work.theirs, weights)
    return weights
