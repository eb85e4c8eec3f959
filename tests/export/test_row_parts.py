"""Rows in parts: how many are chosen, and a resident graph that gives the bytes of one with whole rows, in place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export import __main__ as command
from export import artifact, checks, effort, faults, parity, pipeline, resident, run_faults
from export.invariance import invariances
from export.row_parts import AUTO, RowParts, describe, nearest_divisor, row_parts, with_parts
from export.runtime import Array, Resident
from model import checkpoint
from model.checkpoint import Checkpoint
from model.contract import Contract, ParityRecord, StatePair
from model.lstm import Spec
from tests import wrapped
from tests.export.conftest import ENCODED, PROJECTED, SINGLE, TOKENS, VECTORS, seeded
from tests.export.test_resident import FUSED, fused_contract, written_text

WIDE = Spec(input_size=3, hidden_size=512)  # rows of 1024
PARTED = [(VECTORS, 4), (TOKENS, 6), (ENCODED, 12), (PROJECTED, 5), (SINGLE, 2), (VECTORS, 28)]  # the last: one element


Made = tuple[Path, Contract]  # an artifact's folder and contract
Both = Callable[..., tuple[Made, Made]]


@pytest.fixture
def both(tmp_path: Path) -> Both:
    """A module's artifact with whole rows, and with rows in parts."""

    def made(spec: Spec, name: str, parts: RowParts) -> Made:
        (tmp_path / name).mkdir()
        return tmp_path / name, pipeline.write_graphs(
            Checkpoint(seeded(spec)), tmp_path / name, "test", row_parts=parts
        )

    def written(spec: Spec, parts: RowParts) -> tuple[Made, Made]:
        return made(spec, "whole", 1), made(spec, "parts", parts)

    return written


def test_the_nearest_divisor_is_nearest_by_ratio() -> None:
    """Parts near to what is wanted, whatever the width."""
    assert nearest_divisor(1024, 32) == 32
    assert nearest_divisor(1024, 40) == 32
    assert nearest_divisor(1024, 50) == 64
    assert nearest_divisor(134, 134 / 32) == 2  # parts of 67, not of 2
    assert nearest_divisor(7, 3) == 7
    assert nearest_divisor(1, 99) == 1


@pytest.mark.parametrize(
    ("precision", "wanted", "expected"),
    [
        ("fp32", AUTO, {}),
        ("int8", AUTO, {}),
        ("tf32", AUTO, {"float32": 64, "int64": 2}),
        ("fp16", AUTO, {"float32": 64, "int64": 2}),
        ("fp32", 1, {}),
        ("fp32", 7, {"float32": 8, "int64": 6}),
        ("int8", 1000, {"float32": 1024, "int64": 66}),
    ],
)
def test_every_slab_has_parts_of_its_own(precision: str, wanted: RowParts, expected: dict[str, int]) -> None:
    """By its width; `auto` cuts only where the precision is one for GPUs."""
    states = (
        StatePair("h", "h_out", "float32", (2048,)),
        StatePair("n", "n_out", "int64", (66,)),
        StatePair("b", "b_out", "bool", ()),
    )
    contract = replace(fused_contract(), states=states, precision=precision)
    found = with_parts(contract, wanted)
    assert found.row_parts == expected
    found.check()
    assert len(describe(found)) == len(expected)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "²"])
def test_what_is_no_number_of_parts_is_wrong_usage(text: str) -> None:
    """It is named, and what would do."""
    with pytest.raises(argparse.ArgumentTypeError, match="neither a number of parts"):
        row_parts(text)
    assert (row_parts("7"), row_parts("auto")) == (7, AUTO)


@pytest.mark.parametrize(("spec", "parts"), PARTED, ids=str)
def test_parts_give_the_bytes_of_whole_rows(spec: Spec, parts: int, both: Both) -> None:
    """Single steps and ragged chunks, from row to row: the same outputs, and every byte of the slab the same."""
    whole, cut = both(spec, parts)
    assert cut[1].row_parts["float32"] == parts
    random, answers = np.random.default_rng(0), []
    start = random.standard_normal((12, cut[1].slabs()[0].width)).astype(np.float32)
    runs = [([1] * 4, [1, 2, 3, 1], [8, 7, 6, 5]), ([5, 1, 3, 2], [8, 7, 6, 5], [11, 2, 9, 4])]
    given = [_inputs(spec, len(lengths), max(lengths), random) for lengths, _, _ in runs]
    for folder, contract in (whole, cut):
        session = Resident(folder / artifact.RESIDENT, contract, rows=12)
        session.slabs["float32"][:] = start
        found = [
            session.run({"x": x}, lengths, read, write)["y"][lane, :length].tobytes()
            for x, (lengths, read, write) in zip(given, runs, strict=True)
            for lane, length in enumerate(lengths)
        ]
        answers.append((found, session.slabs["float32"].tobytes()))
    assert answers[0] == answers[1]


def _inputs(spec: Spec, lanes: int, steps: int, random: np.random.Generator) -> Array:
    if spec.vocabulary is not None:
        return random.integers(0, spec.vocabulary, (lanes, steps))
    return random.standard_normal((lanes, steps, spec.input_size or 0)).astype(np.float32)


def test_parts_are_written_in_place_and_others_are_untouched(both: Both) -> None:
    """A run changes all parts of the rows it writes, in the very buffer that was bound, and no other byte of it."""
    _, (folder, contract) = both(VECTORS, 7)
    session = Resident(folder / artifact.RESIDENT, contract, rows=50)
    slab = session.slabs["float32"]
    slab[:] = np.random.default_rng(0).standard_normal(slab.shape)
    before = slab.copy()
    session.run({"x": np.ones((3, 4, 5), np.float32)}, [4, 1, 2], read=[7, 3, 7], write=[40, 8, 49])
    changed = (slab != before).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [8, 40, 49]
    assert (slab != before)[changed].all()
    assert not slab.base
    with pytest.raises(Exception, match="invalid indice"):
        session.run({"x": np.zeros((1, 1, 5), np.float32)}, [1], read=[1], write=[50])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory there is in use")
def test_nothing_copies_the_slab(both: Both) -> None:
    """Neither the view that is read nor the scattering: a run of a slab of 256 MB takes no memory for another one."""
    rows = 65_536
    for folder, contract in both(WIDE, 32):
        session = Resident(folder / artifact.RESIDENT, contract, rows=2)
        x = np.ones((1, 1, 3), np.float32)
        session.run({"x": x}, [1], read=[0], write=[1])
        session.reset(rows=rows)
        before = _memory()
        session.run({"x": x}, [1], read=[0], write=[rows - 1])
        assert session.slabs["float32"][-1].all()
        assert _memory() - before < session.slabs["float32"].nbytes / 8, "what is copied stays in the session's arena"


def _memory() -> int:
    """Bytes that this process has in use."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


@pytest.mark.parametrize("one_by_one", [False, True])
def test_slabs_of_any_dtype_are_cut(one_by_one: bool, tmp_path: Path) -> None:
    """Two slabs, each with a K of its own, or one whole; the lanes together or in a Scan."""
    answers = []
    ways: tuple[dict[str, int], ...] = ({}, {"int64": 3, "float32": 2}, {"float32": 4}, {"int64": 3})
    for number, parts in enumerate(ways):
        folder, contract = tmp_path / str(number), replace(fused_contract(), row_parts=parts)
        folder.mkdir()
        model, _ = written_text(FUSED, contract, folder)
        made = resident.derive(model, contract, one_by_one=one_by_one)
        artifact.write_graph(made, folder / artifact.RESIDENT, contract)
        subject = checks.resident_subject(folder / artifact.RESIDENT, made, contract)
        for check in (checks.check_valid, checks.check_signature):
            check(subject)
        session = Resident(folder / artifact.RESIDENT, contract, rows=6)
        x = np.random.default_rng(0).standard_normal((2, 1, 2)).astype(np.float32)
        found = session.run({"x": x}, [1, 1], read=[0, 0], write=[4, 2])["y"]
        again = session.run({"x": x[::-1]}, [1, 1], read=[4, 2], write=[1, 3])["y"]
        slabs = [session.slabs[dtype].tobytes() for dtype in ("int64", "float32")]
        answers.append((found.tobytes(), again.tobytes(), *slabs))
    assert len(set(answers)) == 1


def test_faults_in_how_it_is_run_are_found(both: Both) -> None:
    """Every one of them, and nothing of a stream's circumstances makes a difference, as with whole rows."""
    (_, plain), (folder, contract) = both(VECTORS, 4)
    assert contract.digest() != plain.digest()
    found = {name: run_faults.missed_by(records) for name, records in run_faults.planted(folder, contract)}
    assert len(found) == len(run_faults.run_faults(contract))
    assert min(found.values()) > 1
    assert all(invariances(folder / artifact.RESIDENT, contract).values())


def test_parts_in_a_wrong_place_are_found(both: Both) -> None:
    """Where a row's first part is counted with K - 1 parts a row, parity says so."""
    _, (folder, contract) = both(VECTORS, 4)
    assert all(record.passed for record in _compared(folder, contract))
    model, _ = artifact.read_graph(folder / artifact.RESIDENT, weights=False)
    (count,) = (one for one in model.graph.initializer if one.name == "resident.slab_float32.parts")
    count.raw_data = np.int64(3).tobytes()
    artifact.write_graph(model, folder / artifact.RESIDENT, contract)
    assert not all(record.passed for record in _compared(folder, contract))


def _compared(folder: Path, contract: Contract) -> list[ParityRecord]:
    levels = parity.Levels(seeded(VECTORS), folder, (artifact.MODEL, artifact.RESIDENT), contract)
    return levels.bit_for_bit(0, most_steps=faults.MOST_STEPS)


def test_wrapped_graphs_and_modules_take_the_option_too(tmp_path: Path) -> None:
    """Somebody else's graph, its lanes one by one, and a GRU's weights; proved with parts, and again."""
    out, gru = tmp_path / "out", tmp_path / "gru.pt"
    torch.save(torch.nn.GRU(5, 6, 2).state_dict(), gru)
    theirs = wrapped.save(wrapped.FUSED, tmp_path / "theirs.onnx")
    for name, arguments in (
        ("alone", ["wrap", str(theirs), "--batch", "alone"]),
        ("weights", [str(gru)]),
    ):
        assert command.main([*arguments, "--name", name, "--out", str(out), "--row-parts", "3"]) == 0
        _, contract = artifact.read_graph(out / name / "1" / artifact.RESIDENT, weights=False)
        assert contract.row_parts == {"float32": 3}
        assert contract.certificate is not None
        assert all(ratio > 1 for ratio in contract.certificate.controls.values())
        assert command.main(["prove", str(out / name)]) == 0


def test_the_command_records_the_parts_and_proves_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--row-parts auto` says what it chose; contract and digests have it, and the artifact proves itself alone."""
    monkeypatch.setattr(effort, "LONGEST", (1, 10))
    weights, out = tmp_path / "weights.safetensors", tmp_path / "artifacts"
    checkpoint.save(seeded(Spec(input_size=3, hidden_size=32)), weights, notes={})
    asked = [str(weights), "--name", "cut", "--out", str(out), "--precision", "tf32", "--row-parts", "auto"]
    assert command.main(asked) == 0
    assert "rows of float32 are 2 parts of 32 elements" in capsys.readouterr().out
    for name in (artifact.MODEL, artifact.RESIDENT):
        _, contract = artifact.read_graph(out / "cut" / "1" / name, weights=False)
        assert contract.row_parts == {"float32": 2}
    assert contract.certificate is not None
    assert all(contract.certificate.invariances.values())
    assert all(ratio > 1 for ratio in contract.certificate.controls.values())
    assert command.main(["prove", str(out / "cut")]) == 0
