"""The order of an export: checkpoint, model.onnx, checks, resident.onnx, checks, parity, certificate, written.

Owns that order and nothing of the steps. Whatever raises, nothing appears under the final name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto

from export import artifact, checks, faults, machine, portable, resident, run_lengths, triton, yardstick
from export.invariance import invariances
from export.page import artifact_page
from export.parity import Levels
from export.precision import Precision
from export.row_parts import WHOLE_ROWS, RowParts, describe, with_parts
from export.samples import ALL_STEPS, WIDE
from model.checkpoint import Checkpoint
from model.contract import Certificate, Contract, ParityRecord
from model.lstm import LSTM
from model.weights import WeightsError

NOT_CHECKED = (
    "execution providers other than the CPU's (CUDA)",
    "processors other than the one named under machine",
    "the answers over gRPC (`make parity` checks them)",
)
Progress = Callable[[str, int, int], None]  # what is being done, how far, of how much


class ParityError(ValueError):
    """The export doesn't compute the same as the module; `records` say where."""

    def __init__(self, message: str, records: tuple[ParityRecord, ...] = ()) -> None:
        super().__init__(message)
        self.records = records


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was found out about one export; `curves` are the errors of y, step by step, at each level."""

    records: tuple[ParityRecord, ...]
    invariances: Mapping[str, bool] = field(default_factory=dict)
    controls: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    not_checked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proved:
    """A finished artifact: where it is, what it promises, what was found just now, and what to say of it."""

    folder: Path
    contract: Contract
    evidence: Evidence
    remarks: tuple[str, ...] = ()

    @property
    def records(self) -> tuple[ParityRecord, ...]:
        """All comparisons."""
        return self.evidence.records


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


def export(
    checkpoint: Checkpoint,
    final: Path,
    *,
    name: str,
    precision: Precision = Precision.FP32,
    row_parts: RowParts = WHOLE_ROWS,
    progress: Progress = silent,
) -> Proved:
    """Export `checkpoint` to the folder `final`, which appears only when every check has passed.

    `row_parts`: see `export.row_parts`; it changes where the resident graph writes, and no bit of what.
    Raises StructureError, ParityError or ArtifactError, and then leaves nothing.
    """
    with artifact.staged(final) as folder:
        contract = write_graphs(checkpoint, folder, name, precision, row_parts)
        evidence = _prove(checkpoint.module, folder, contract, progress)
        certified = artifact.seal(folder, contract, _certificate(evidence, contract))
        assert certified.certificate is not None
        page = artifact_page(f"{name}/{final.name}", certified.certificate, evidence.curves, precision)
        (folder / artifact.PAGE).write_text(page, encoding="utf-8")
        _read_back(folder, certified)
    return Proved(final, certified, evidence, (*describe(certified), *triton.describe(final)))


def write_graphs(
    checkpoint: Checkpoint,
    folder: Path,
    name: str,
    precision: Precision = Precision.FP32,
    row_parts: RowParts = WHOLE_ROWS,
) -> Contract:
    """Both graphs and their weights, checked but not proved: for suites that prove them in their own way."""
    model, contract = _write_portable(checkpoint, folder, name, precision, row_parts)
    _write_resident(model, contract, folder)
    return contract


def _write_portable(
    checkpoint: Checkpoint,
    folder: Path,
    name: str,
    precision: Precision = Precision.FP32,
    row_parts: RowParts = WHOLE_ROWS,
) -> tuple[ModelProto, Contract]:
    """Build, write and check model.onnx and the weights file."""
    with (folder / artifact.WEIGHTS).open("wb") as file:
        weights = artifact.WeightsWriter(file)
        model = portable.build(checkpoint.module, precision, weights.keep)
    contract = portable.contract_of(
        checkpoint.module.spec,
        name=name,
        weights_digest=weights.digest,
        notes=checkpoint.notes,
        precision=precision,
    )
    contract = with_parts(contract, row_parts)
    contract = replace(contract, max_steps=run_lengths.most_steps(contract, (folder / artifact.WEIGHTS).stat().st_size))
    artifact.write_graph(model, folder / artifact.MODEL, contract)
    checks.check_structure(checks.portable_subject(folder / artifact.MODEL, model, contract))
    return model, contract


def _write_resident(model: ModelProto, contract: Contract, folder: Path) -> ModelProto:
    """Derive, write and check resident.onnx."""
    wrapped = resident.derive(model, contract)
    artifact.write_graph(wrapped, folder / artifact.RESIDENT, contract)
    checks.check_structure(checks.resident_subject(folder / artifact.RESIDENT, wrapped, contract))
    return wrapped


def _prove(module: LSTM, folder: Path, contract: Contract, progress: Progress) -> Evidence:
    """All evidence; raises ParityError where a comparison failed."""
    levels = Levels(module, folder, (artifact.MODEL, artifact.RESIDENT), contract)
    planted = [fault for fault in faults.FAULTS if fault.fits(module.spec, Precision(contract.precision))]
    total = levels.batches + 1 + len(planted)
    records: list[ParityRecord] = []
    progress("parity", 0, total)
    for done, batch in enumerate(levels.records(), start=1):
        records += batch
        progress("parity", done, total)
    curves = {subject: errors.tolist() for subject, errors in levels.curves.items()}
    refuse_failed(records)
    held = invariances(folder / artifact.RESIDENT, contract, quick=not levels.effort.thorough)
    controls = {}
    for done, (name, ratio) in enumerate(faults.controls(levels), start=levels.batches + 2):
        controls[name] = ratio
        progress("planted faults", done, total)
    return Evidence(tuple(records), held, controls, curves, _not_checked(levels))


def _not_checked(levels: Levels) -> tuple[str, ...]:
    """What the proof says nothing of, which is more where a model is large."""
    steps, double = levels.effort.steps[-1], levels.effort.double_steps
    widest = max(tensor.elements for tensor in levels.contract.outputs)
    left = [f"sequences of more than {steps} steps"]
    if levels.effort.wide:
        left.append(f"after step {ALL_STEPS}, all but {WIDE} of the {widest} outputs of each step, which take turns")
    if double < steps:
        left.append(f"nn.LSTM in float64 for more than {double} steps")
    return (*NOT_CHECKED, *left)


def refuse_failed(records: Sequence[ParityRecord]) -> None:
    """Raise ParityError, naming the worst comparison, where one failed."""
    failed = [record for record in records if not record.passed]
    if failed:
        worst = max(failed, key=lambda record: max(record.rms_ratio, record.max_ratio))
        by = worst.failed_by.removeprefix(f"{yardstick.RATIO}: ")
        raise ParityError(
            f"{len(failed)} of {len(records)} comparisons failed; worst: {worst.subject}, {worst.tensor} after"
            f" {worst.steps} steps from a {worst.initial} state, {by}{_chaos(records)}",
            tuple(records),
        )


def _chaos(records: Sequence[ParityRecord]) -> str:
    """The end of a refusal where the network itself, in PyTorch, is more off by rounding than can be judged."""
    own = [record for record in records if "float32" in record.subject and record.share > yardstick.USABLE]
    if not own:
        return ""
    first, last = min(own, key=lambda record: record.steps), max(own, key=lambda record: record.share)
    return (
        f"; the network is chaotic: {yardstick.chaos(last.share)} ({last.tensor} after {last.steps} steps, from"
        f" {first.steps} steps on); it amplifies every rounding, on any machine: train it with smaller recurrent"
        " weights (weight decay, gradient clipping)"
    )


def _certificate(evidence: Evidence, contract: Contract) -> Certificate:
    """The evidence with today's date, this machine and the versions in use."""
    return Certificate(
        **machine.provenance(torch, onnx, ort, np),
        weights_digest=contract.weights_digest,
        records=evidence.records,
        not_checked=(*Precision(contract.precision).terms.not_checked, *evidence.not_checked),
        invariances=evidence.invariances,
        controls=evidence.controls,
    )


def _read_back(folder: Path, certified: Contract) -> None:
    """What was written is what was meant: both contracts, the certificate and the digest, read from the files."""
    for name in (artifact.MODEL, artifact.RESIDENT):
        _, found = artifact.read_graph(folder / name, weights=False)
        if found != certified or found.certificate is None or not found.certificate.passed:
            raise artifact.ArtifactError(f"{folder / name}: its contract reads back differently")
    artifact.check_digest(folder, certified)


def prove(path: Path, *, progress: Progress = silent) -> Proved:
    """Prove an artifact again from itself alone: digest, structure, and parity with a module read from its weights.

    Those are the checkpoint's own in fp32 and tf32, but can't be had back from 8-bit and float16 weights: what is
    proved again then is that the graphs compute what their own weights say. What rounding cost is in the certificate.

    Raises ArtifactError, StructureError or ParityError; changes nothing.
    """
    folder = artifact.find(path)
    model, contract = artifact.read_graph(folder / artifact.MODEL, weights=False)
    wrapped, same = artifact.read_graph(folder / artifact.RESIDENT, weights=False)
    if same != contract:
        raise artifact.ArtifactError(f"{folder}: {artifact.MODEL} and {artifact.RESIDENT} have different contracts")
    artifact.check_digest(folder, contract)
    checks.check_structure(checks.portable_subject(folder / artifact.MODEL, model, contract))
    checks.check_structure(checks.resident_subject(folder / artifact.RESIDENT, wrapped, contract))
    try:
        module = portable.read_module(model, artifact.read_weights(model, folder))
    except WeightsError as error:
        raise ParityError(f"{folder}: no PyTorch module can be read from its weights ({error})") from error
    return Proved(folder, contract, _prove(module, folder, contract, progress))
