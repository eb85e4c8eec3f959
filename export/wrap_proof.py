"""The proof of a wrapped artifact: structure, steps that are steps, equal bytes, and the certificate that says so.

Owns what must hold before a wrapped graph counts as proved. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto

from export import artifact, checks, machine, ranges, wrap_parity
from export.theirs import WrapError, one_line
from export.wrap_parity import ByHand
from model.contract import Certificate, Contract, ParityRecord

NOT_CHECKED = (
    "PyTorch, or anything in float64: the comparison is with the graph itself, as ONNX Runtime runs it",
    "execution providers other than the CPU's (CUDA)",
    "processors other than the one named under machine",
    "the answers over gRPC",
)
_DIVERGES = 0.05  # of the largest value: a graph that sees several steps as one differs by more
_WHOLE = 6  # steps of that comparison
Progress = Callable[[str, int, int], None]  # what is being done, how far, of how much


class WrapParityError(WrapError):
    """The wrapped graph doesn't give the bytes of theirs; `records` say where."""

    def __init__(self, message: str, records: tuple[ParityRecord, ...]) -> None:
        super().__init__(message)
        self.records = records


def check_structure(folder: Path, model: ModelProto, made: ModelProto, contract: Contract) -> None:
    """What must hold of anybody's graph: valid and covered by the digest, and ours is as the contract says."""
    theirs = checks.portable_subject(folder / artifact.MODEL, model, contract)
    ours = checks.resident_subject(folder / artifact.RESIDENT, made, contract)
    for subject in (theirs, ours):
        wanted = [checks.check_weights_outside, checks.check_loads]
        if subject is ours:
            wanted.insert(0, checks.check_signature)
        for check in wanted:
            try:
                check(subject)
            except checks.StructureError as error:
                raise checks.StructureError(f"{subject.path.name}: {check.__name__}: {one_line(error)}") from error


def check_steps_are_steps(folder: Path, contract: Contract) -> None:
    """Raise WrapError where a sequence at once and step by step are different things to the graph."""
    sample = wrap_parity.draw(contract, 1, _WHOLE, wrap_parity.INITIAL, seed=1)
    try:
        # A start is told to a whole run, so a graph may rightly answer otherwise to several steps that begin with one.
        whole = ByHand(folder / artifact.MODEL, contract, steps=_WHOLE, from_start=False).run(sample)
        steps = ByHand(folder / artifact.MODEL, contract, from_start=False).run(sample)
    except Exception as error:
        raise WrapError(f"the graph runs sequences, but no single steps: {one_line(error)}") from error
    for name, value in whole.items():
        error_found, most = _apart(value, steps[name])
        if error_found > _DIVERGES * most:
            raise WrapError(
                f"{name!r} after {_WHOLE} steps in one run is {error_found:.2g} off from the same steps one by one: the"
                " graph lets a step see later ones, or forgets between runs; if a call of n steps is one step of the"
                " stream, give the time axis that number, as in --shape x=batch,16,40"
            )


def _apart(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> tuple[float, float]:
    first, second = one.astype(np.float64), other.astype(np.float64)
    return float(np.nanmax(np.abs(first - second), initial=0)), float(np.nanmax(np.abs(first), initial=0))


def proved(
    folder: Path, name: str, by_hand: ByHand, progress: Progress, what: str = "parity"
) -> tuple[ParityRecord, ...]:
    """All records; raises WrapParityError where one failed."""
    contract = by_hand.contract
    found: list[ParityRecord] = []
    batches: Iterator[list[ParityRecord]] = wrap_parity.records(folder, (name, artifact.RESIDENT), by_hand, contract)
    total = wrap_parity.batches(contract)
    progress(what, 0, total)
    try:
        for done, batch in enumerate(batches, start=1):
            found += batch
            progress(what, done, total)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise WrapParityError(f"it doesn't run: {one_line(error)}", tuple(found)) from error
    failed = [record for record in found if not record.passed]
    if failed:
        worst = max(failed, key=lambda record: record.max_error)
        raise WrapParityError(
            f"{len(failed)} of {len(found)} comparisons differ in their bytes; most: {worst.subject}, {worst.tensor},"
            f" by {worst.max_error:.2g}",
            tuple(found),
        )
    return tuple(found)


def certificate(records: tuple[ParityRecord, ...], contract: Contract, controls: Mapping[str, float]) -> Certificate:
    """What was compared and which planted faults showed, with today's date, this machine and the versions in use."""
    return Certificate(
        **machine.provenance(onnx, ort, np),
        weights_digest=contract.weights_digest,
        records=records,
        not_checked=(*NOT_CHECKED, *ranges.outside(contract)),
        invariances=wrap_parity.invariances(contract),
        controls=controls,
    )
