"""The models that are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.gpu import models
from bench.gpu.models import artifact_of, in_parts, module_of, name_of, repository_of
from bench.gpu.plan import Job, Work, full
from export.artifact import MODEL, read_graph
from export.portable import read_module

JOB = Job(work=Work.STEPS, limit=1, layers=2)


def test_the_graph_has_the_modules_weights(tmp_path: Path) -> None:
    """Whoever makes the module later makes the same one."""
    model, contract = read_graph(artifact_of(JOB, tmp_path) / MODEL, weights=True)
    assert contract.name == name_of(JOB)
    assert contract.certificate is None
    written, made = read_module(model).state_dict(), module_of(JOB).state_dict()
    assert written.keys() == made.keys()
    assert all(np.array_equal(written[name], made[name]) for name in made)


def test_rows_in_parts_are_the_same_model(tmp_path: Path) -> None:
    """The graph lies beside the one with whole rows, has its weights, and is made once."""
    path = in_parts(JOB, tmp_path)
    made, contract = read_graph(path, weights=False)
    whole, plain = read_graph(path.parent / "resident.onnx", weights=False)
    assert contract == replace(plain, row_parts={"float32": 2})
    assert plain.row_parts == {}
    outside = [tensor for tensor in made.graph.initializer if tensor.external_data]
    assert outside == [tensor for tensor in whole.graph.initializer if tensor.external_data]
    before = path.stat().st_mtime_ns
    assert in_parts(JOB, tmp_path).stat().st_mtime_ns == before
    wide = read_graph(in_parts(replace(JOB, hidden=128), tmp_path), weights=False)[1]
    assert wide.row_parts == {"float32": 2 * 2 * 128 // 32}


def test_other_sizes_have_other_names() -> None:
    """Every job of the plan with its own model; served ones each in a repository of its own."""
    jobs = [job for job in full() if models.needs_model(job)]
    sizes = {(job.features, job.hidden, job.layers, job.outputs, job.gain, job.precision) for job in jobs}
    assert len({name_of(job) for job in jobs}) == len(sizes)
    served = replace(JOB, work=Work.SERVED)
    assert repository_of(served, Path("m")) != repository_of(JOB, Path("m")) == Path("m")
    assert repository_of(served, Path("m")) != repository_of(replace(served, hidden=9), Path("m"))


def test_half_a_model_is_never_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that couldn't be written is made anew."""

    def full_disk(*_arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("export.pipeline.write_graphs", full_disk)
    with pytest.raises(OSError, match="no space"):
        artifact_of(JOB, tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [tmp_path / name_of(JOB)]
    assert (artifact_of(JOB, tmp_path) / MODEL).exists()
