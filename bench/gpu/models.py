"""The models that are measured: random weights from a seed, their graphs written by the exporter but not proved.

A proof takes longer than all the measuring; the runs check every contestant's answers against float64 instead, and
parity on the device has a section of its own. Owns names and places of the artifacts.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.gpu.plan import Job, Work

if TYPE_CHECKING:
    from model.lstm import LSTM

_SEED = 20_261_125
_IN_PARTS = "resident-parts.onnx"


class NoModelError(RuntimeError):
    """A model isn't there and can't be made; the text says what to do."""


def name_of(job: Job) -> str:
    """What the job's model is called."""
    head = "" if job.outputs is None else f"o{job.outputs}"
    return f"f{job.features}h{job.hidden}l{job.layers}{head}g{job.gain:g}-{job.precision}"


def module_of(job: Job) -> LSTM:
    """The module, the same for the same sizes."""
    import torch  # noqa: PLC0415  not there on every machine

    from model.lstm import LSTM, Spec  # noqa: PLC0415

    spec = Spec(input_size=job.features, hidden_size=job.hidden, layers=job.layers, output_size=job.outputs)
    torch.manual_seed(_SEED)
    module = LSTM.from_state_dict(LSTM(spec).state_dict(), spec).eval()
    for parameter in module.parameters():
        parameter.mul_(job.gain)
    return module


def repository_of(job: Job, models: Path) -> Path:
    """The model repository that the job's model lies in: a served model's has no other, as a server loads them all."""
    return models / f"served-{name_of(job)}" if job.work is Work.SERVED else models


def artifact_of(job: Job, models: Path) -> Path:
    """The model's artifact under `models`; written if it isn't there. Raises NoModelError."""
    final = repository_of(job, models) / name_of(job) / "1"
    if final.exists():
        return final
    if importlib.util.find_spec("torch") is None:
        raise NoModelError(
            f"there is no {final}, and making it needs torch: run `python -m bench.gpu --prepare --models {models}`"
            " where that is installed, and bring the folder"
        )
    from export.pipeline import write_graphs  # noqa: PLC0415  needs torch
    from export.precision import Precision  # noqa: PLC0415
    from model.checkpoint import Checkpoint  # noqa: PLC0415

    final.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=models, prefix=".making-"))
    try:
        write_graphs(Checkpoint(module_of(job)), staged, name_of(job), Precision(job.precision))
        staged.rename(final)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return final


def in_parts(job: Job, models: Path) -> Path:
    """The graph of the job's model with rows in parts of some 32 elements, beside the one with whole rows."""
    folder = artifact_of(job, models)
    path = folder / _IN_PARTS
    if not path.exists():
        from export import artifact, resident  # noqa: PLC0415  only where somebody races with it
        from export.row_parts import PART, with_parts  # noqa: PLC0415

        model, contract = artifact.read_graph(folder / artifact.MODEL, weights=False)
        # At least two, so that a rehearsal's tiny rows are cut, too.
        contract = with_parts(contract, max(2, max(slab.width for slab in contract.slabs()) // PART))
        staged = path.with_suffix(".making")
        artifact.write_graph(resident.derive(model, contract), staged, contract)
        staged.rename(path)
    return path


def needs_model(job: Job) -> bool:
    """Whether the job is about a model at all."""
    return job.work in (Work.PARCELS, Work.STEPS, Work.PARITY, Work.COMPANY, Work.SERVED)
