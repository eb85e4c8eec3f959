"""The order of exporting a user's own module: understood, checked to stream, traced, wrapped, proved, written.

Owns that order. Whatever raises, nothing appears under the final name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from export import artifact, checks, machine, module_faults, triton, wrap
from export.invariance import invariances
from export.module_calls import ModuleError
from export.module_copies import copied, prepared
from export.module_errors import told
from export.module_find_plan import find_plan
from export.module_graph import to_onnx
from export.module_parity import STEPS, Levels
from export.module_plan import Plan, parse_input
from export.module_streams import check_streams
from export.page import artifact_page
from export.pipeline import Evidence, ParityError, refuse_failed
from export.ranges import outside
from export.row_parts import WHOLE_ROWS, RowParts
from export.theirs import one_line
from model.contract import Certificate, Contract, ParityRecord

MODULE = "module"  # the note that tells an artifact made from a user's module
NOT_AGAIN = (
    "parity with the module, whose code isn't in the artifact; its certificate says what was found at the export"
)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished artifact: where it is, what was understood, what it promises, and what was found."""

    folder: Path
    plan: Plan
    contract: Contract
    evidence: Evidence
    remarks: tuple[str, ...]

    @property
    def records(self) -> tuple[ParityRecord, ...]:
        """All comparisons."""
        return self.evidence.records


def export_module(
    module: nn.Module,
    final: Path,
    *,
    name: str,
    inputs: Sequence[str] = (),
    first_state: Callable[[int], Any] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    successors: Mapping[str, str] | None = None,
    origin: str = "",
    notes: Mapping[str, str] | None = None,
    row_parts: RowParts = WHOLE_ROWS,
    progress: Progress = wrap.silent,
    steps: tuple[int, ...] = STEPS,
) -> Exported:
    """Export `module` to the folder `final`, which appears only when every check has passed.

    `inputs` say what forward takes, as in `x=float32[batch,time,5]`; where its first layer says it, they may be left
    out. `first_state` gives a nested first state for a number of streams; `ranges` are inputs' lowest and highest
    values; `successors` say where a state's new value is in what forward gives, as in {"h": "1"}. The module is left
    as it is.
    Raises ModuleError, WrapError, ResidentError, StructureError, ParityError or ArtifactError, and then leaves nothing.
    """
    module, remarks = prepared(module)
    progress("understanding", 0, 1)
    plan = find_plan(module, [parse_input(text) for text in inputs], first_state, ranges, successors)
    progress("comparing steps with whole sequences", 0, 1)
    check_streams(plan, module)
    notes = {wrap.MARK: origin or type(module).__name__, MODULE: type(module).__name__, **(notes or {})}
    with artifact.staged(final) as folder, tempfile.TemporaryDirectory() as scratch:
        progress("tracing", 0, 1)
        path = Path(scratch) / artifact.MODEL
        plan, more = traced(plan, module, path)
        asked = plan.asked()
        made = wrap.make(path, folder, name=name, asked=asked, row_parts=row_parts, progress=progress, notes=notes)
        contract = replace(made.contract, precision="fp32")
        _rewrite(folder, contract)
        evidence = _prove(plan, module, folder, contract, records=made.records, progress=progress, steps=steps)
        contract = artifact.seal(folder, contract, _certificate(plan, evidence, contract, steps))
        assert contract.certificate is not None
        page = artifact_page(f"{name}/{final.name}", contract.certificate, evidence.curves)
        (folder / artifact.PAGE).write_text(page, encoding="utf-8")
        artifact.check_digest(folder, contract)
    remarks = (*remarks, *plan.remarks, *more, *made.remarks, *triton.describe(final))
    return Exported(final, plan, contract, evidence, remarks)


def traced(plan: Plan, module: nn.Module, path: Path) -> tuple[Plan, tuple[str, ...]]:
    """Write the graph, with time if it can be free; the plan that it is of."""
    if plan.stepwise:
        to_onnx(plan, copied(module), path)
        return plan, ()
    try:
        to_onnx(plan, copied(module), path)
    except ModuleError as error:
        single = replace(plan, stepwise=True)
        to_onnx(single, copied(module), path)
        return single, (f"single steps only, not chunks: {error}",)
    return plan, ()


def _rewrite(folder: Path, contract: Contract) -> None:
    """Both graphs under this contract, which they must keep: valid ONNX, and just its inputs and outputs."""
    subjects = {artifact.MODEL: checks.portable_subject, artifact.RESIDENT: checks.resident_subject}
    for name, subject_of in subjects.items():
        model, _ = artifact.read_graph(folder / name, weights=False)
        artifact.write_graph(model, folder / name, contract)
        subject = subject_of(folder / name, model, contract)
        for check in (checks.check_valid, checks.check_opset, checks.check_signature, checks.check_weights_outside):
            try:
                check(subject)
            except checks.StructureError as error:
                raise checks.StructureError(f"{name}: {check.__name__}: {one_line(error)}") from error


def _prove(
    plan: Plan,
    module: nn.Module,
    folder: Path,
    contract: Contract,
    *,
    records: tuple[ParityRecord, ...],
    progress: Progress,
    steps: tuple[int, ...],
) -> Evidence:
    """All evidence; raises ParityError where a comparison failed."""
    try:
        levels = Levels(plan, module, folder, contract, steps)
        total = levels.batches + 1 + module_faults.count(contract)
        found: list[ParityRecord] = []
        curves: dict[str, list[float]] = {}
        for done, batch in enumerate(levels.records(), start=1):
            found += batch
            if batch and batch[0].steps == max(steps):
                curves = {subject: errors.tolist() for subject, errors in levels.curves.items()}
            progress("parity", done, total)
    except (IndexError, RuntimeError) as error:
        raise ParityError(f"forward fails with inputs that its contract allows, {told(error)}: say --range") from error
    found += records
    refuse_failed(found)
    held = invariances(folder / artifact.RESIDENT, contract)
    controls = {}
    for done, (name, ratio) in enumerate(module_faults.controls(levels, folder), start=levels.batches + 2):
        controls[name] = ratio
        progress("planted faults", done, total)
    return Evidence(tuple(found), held, controls, curves)


def _certificate(plan: Plan, evidence: Evidence, contract: Contract, steps: tuple[int, ...]) -> Certificate:
    left_out = [spec.name for spec in contract.outputs if np.dtype(spec.dtype).kind != "f"]
    not_checked = [
        "execution providers other than the CPU's (CUDA)",
        "processors other than the one named under machine",
        f"sequences of more than {max(steps)} steps",
        "the answers over gRPC",
    ]
    if left_out:
        not_checked.insert(0, f"{', '.join(left_out)} against the module: integers are compared between graphs")
    not_checked += outside(contract)
    if any(np.dtype(tensor.dtype).kind in "iu" and tensor.bounds is None for tensor in plan.inputs):
        not_checked.append("integers beyond those that were drawn: no range was found or given")
    return Certificate(
        **machine.provenance(torch, onnx, ort, np),
        weights_digest=contract.weights_digest,
        records=evidence.records,
        not_checked=tuple(not_checked),
        invariances=evidence.invariances,
        controls=evidence.controls,
    )
