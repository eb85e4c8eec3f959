"""Faults in how a graph is run: each shows in bytes, for whatever model, and none is seen where none is planted."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import ModelProto

from export import run_faults, wrap
from export.runtime import Resident
from export.understanding import Asked
from model.contract import Contract
from tests import wrapped


def made(model: ModelProto | str, folder: Path) -> Contract:
    """Both graphs of somebody else's model in a folder."""
    path = wrapped.save(model, folder / "theirs.onnx")
    return wrap.make(path, folder, name="a", asked=Asked()).contract


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (
            wrapped.recurrent("LSTM"),
            {
                "a state not carried",
                "a stale row read",
                "two states exchanged",
                "a float16 rounding of the state",
                "a step lost at a chunk's border",
            },
        ),
        (
            wrapped.recurrent("RNN"),
            {"a state not carried", "a stale row read", "a float16 rounding of the state", "a step lost"},
        ),
        (wrapped.COUNTS, {"a state not carried", "a stale row read", "a step lost"}),
    ],
    ids=["LSTM in chunks", "RNN in single steps", "integers, booleans and float16"],
)
def test_every_fault_is_seen(model: ModelProto | str, names: set[str], tmp_path: Path) -> None:
    """Whatever the states are, a wrong way of running gives other bytes."""
    contract = made(model, tmp_path)
    found = {name: run_faults.missed_by(records) for name, records in run_faults.planted(tmp_path, contract)}
    assert found.keys() == names
    assert all(ratio > 1 for ratio in found.values()), found


def test_nothing_is_seen_where_nothing_is_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same comparisons with the plain way of running: what is caught above is the fault."""
    contract = made(wrapped.recurrent("GRU"), tmp_path)
    monkeypatch.setattr(run_faults, "run_faults", lambda _contract: {"none": Resident})
    (found,) = run_faults.planted(tmp_path, contract)
    assert found[0] == "none"
    assert found[1]
    assert run_faults.missed_by(found[1]) == 0
