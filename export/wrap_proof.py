"""The proof of a wrapped artifact: structure, steps that are steps, equal bytes, and the certificate that says so.

Owns what must hold before a wrapped graph counts as proved. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto

from export import artifact, checks, machine, ranges, wrap_parity
from export.theirs import WrapError, one_line
from export.wrap_parity import ByHand, Truths
from model.contract import Certificate, Contract, ParityRecord

NOT_CHECKED = (
    "PyTorch, or anything in float64: the comparison is with the graph itself, as ONNX Runtime runs it",
    "execution providers other than the CPU's (CUDA)",
    "processors other than the one named under machine",
    "the answers over gRPC",
)
_DIVERGES = 0.05  # of the largest value: a graph that sees several steps as one differs by more
_GROWN = 1e-3  # likewise: before a step that differs by more, none has differed by so much, or it has grown
_WHOLE = 6  # steps of that comparison, at least
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


def check_steps_are_steps(folder: Path, contract: Contract, most: int) -> None:
    """Raise WrapError where a sequence at once and step by step are different things to the graph.

    A short one, and one of `most` steps, which are more than any lag or window that the graph could have.
    """
    _check_whole(folder, contract, _WHOLE)
    if most > _WHOLE:
        _check_whole(folder, contract, most)


def _check_whole(folder: Path, contract: Contract, steps: int) -> None:
    sample = wrap_parity.draw(contract, 1, steps, wrap_parity.INITIAL, seed=1)
    # A start is told to a whole run, so a graph may rightly answer otherwise to several steps that begin with one.
    runner = ByHand(folder / artifact.MODEL, contract, from_start=False)
    try:
        whole = replace(runner, steps=steps).run(sample)
    except Exception as error:
        if steps > _WHOLE:
            return  # it takes no such runs: their limit is found where lengths are proved
        raise WrapError(f"the graph doesn't run {steps} steps at once: {one_line(error)}") from error
    try:
        single = runner.run(sample)
    except Exception as error:
        raise WrapError(f"the graph runs sequences, but no single steps: {one_line(error)}") from error
    for name, value in whole.items():
        outputs = [spec.name for spec in contract.outputs]
        error_found, step = _apart(value, single[name], stepwise=name in outputs)
        if step is not None and (steps == _WHOLE or name in outputs):
            raise WrapError(
                f"{name!r} of {steps} steps in one run is {error_found:.2g} off from the same steps one by one"
                f"{f', first at step {step}' if name in outputs else ''}: the graph lets a step see later ones, or"
                " forgets between runs what it needs of earlier ones; if a call of n steps is one step of the stream,"
                " give the time axis that number, as in --shape x=batch,16,40"
            )


def _apart(whole: npt.NDArray[Any], single: npt.NDArray[Any], *, stepwise: bool) -> tuple[float, int | None]:
    """The largest error [1, T, …] of a whole run, and the first step, from 1, at which it is one; None: at none.

    An error that has grown out of roundings, as in a chaotic net, is none: the steps before it are a little off, too.
    """
    first, second = whole.astype(np.float64), single.astype(np.float64)
    if not stepwise:
        first, second = first[:, None], second[:, None]
    size = float(np.nanmax(np.abs(first), initial=0))
    errors = np.nan_to_num(np.abs(first - second)).max(axis=(0, *range(2, first.ndim)))
    beyond = np.flatnonzero(errors > _DIVERGES * size)
    if not len(beyond):
        return 0.0, None
    step = int(beyond[0])
    grown = step >= _WHOLE and float(errors[:step].max()) > _GROWN * size
    return float(errors.max()), None if grown else step + 1


def proved(
    path: Path, contract: Contract, asked: Truths, progress: Progress, what: str = "parity"
) -> tuple[ParityRecord, ...]:
    """All records of the resident graph at `path`; raises WrapParityError where one failed."""
    found: list[ParityRecord] = []
    total = wrap_parity.batches(contract)
    progress(what, 0, total)
    try:
        for done, batch in enumerate(wrap_parity.records(path, contract, asked), start=1):
            found += batch
            progress(what, done, total)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise WrapParityError(f"it doesn't run: {one_line(error)}", tuple(found)) from error
    return refuse_failed(found)


def refuse_failed(found: Sequence[ParityRecord]) -> tuple[ParityRecord, ...]:
    """The records; raises WrapParityError, naming the worst, where one failed."""
    failed = [record for record in found if not record.passed]
    if failed:
        worst = max(failed, key=lambda record: record.max_error)
        how = "differ in their bytes" if worst.rms_bar == 0 else f"are over {worst.rms_bar:g} (rms), {worst.max_bar:g}"
        raise WrapParityError(
            f"{len(failed)} of {len(found)} comparisons {how}; most: {worst.subject}, {worst.tensor},"
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
