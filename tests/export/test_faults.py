"""Failing controls: parity that is known to fail where it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export import artifact, faults, portable
from export.faults import FAULTS, Fault
from export.parity import Levels
from export.precision import Precision
from export.run_faults import missed_by
from model.contract import ParityRecord
from model.lstm import LSTM, Spec
from tests.export.conftest import PROJECTED, TOKENS, VECTORS, Written, seeded

FAR = 10.0  # times the bar
NEAR = 3.0  # the same in a reduced precision, whose bar is its own roundings


def records_of(fault: Fault, spec: Spec, folder: Path, precision: Precision = Precision.FP32) -> list[ParityRecord]:
    """What parity says of a small model with this fault planted."""
    contract = portable.contract_of(spec, name="a", weights_digest="sha256:0", notes={}, precision=precision)
    return faults.plant(fault, seeded(spec), contract, folder)


@pytest.mark.parametrize("spec", [VECTORS, TOKENS], ids=["vectors", "tokens"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_planted_fault_is_caught_by_far(fault: Fault, spec: Spec, tmp_path: Path) -> None:
    """Each fault of the table misses its bar many times over, in vectors and in tokens."""
    if not fault.fits(spec):
        assert (fault.layers, spec.layers) == (2, 1) or fault.projected or Precision.FP32 not in fault.within
        return
    assert missed_by(records_of(fault, spec, tmp_path)) > FAR


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("spec", [VECTORS, PROJECTED], ids=["vectors", "projected"])
def test_reduced_precisions_hide_no_fault(spec: Spec, precision: Precision, tmp_path: Path) -> None:
    """Under the bars of int8, TF32 and float16 too, in LSTM nodes and in cells, each fault that fits is caught."""
    planted = [fault for fault in FAULTS if fault.fits(spec, precision) and fault.in_graphs]
    assert len(planted) >= 6
    for place, fault in enumerate(planted):
        folder = tmp_path / str(place)
        folder.mkdir()
        assert missed_by(records_of(fault, spec, folder, precision)) > NEAR, fault.name


def test_what_a_precision_hides_is_not_planted() -> None:
    """Rounding weights to TF32 is a fault in float32 only, and 8-bit weights are only where there are any."""
    by_name = {fault.name: fault for fault in FAULTS}
    noise, step = by_name["TF32-sized noise in the weights"], by_name["8-bit weights with their neighbours' scales"]
    assert [noise.fits(VECTORS, precision) for precision in Precision] == [True, False, False, False]
    assert [step.fits(VECTORS, precision) for precision in Precision] == [False, True, False, False]


@pytest.mark.parametrize("runs", [False, True], ids=["graphs", "runs"])
def test_nothing_is_found_where_nothing_is_planted(runs: bool, tmp_path: Path) -> None:
    """The same copy without a fault passes, so what is caught above is the fault and not the copying."""
    fault = Fault("none") if runs else Fault("none", lambda _model, _weights: None)
    records = records_of(fault, VECTORS, tmp_path)
    assert records
    assert missed_by(records) == 0


def test_a_fault_needs_what_it_breaks(write: Callable[[LSTM], Written]) -> None:
    """Models without biases or with one layer aren't accused of hiding what they can't have."""
    bare = seeded(Spec(input_size=3, hidden_size=4, bias=False))
    missing = {fault.name for fault in FAULTS if not fault.fits(bare.spec)}
    assert missing == {
        "a bias dropped",
        "a bias added twice",
        "layers exchanged",
        "units of the projection shifted",
        "8-bit weights with their neighbours' scales",
    }
    written = write(bare)
    levels = Levels(bare, written.folder, (artifact.MODEL, artifact.RESIDENT), written.contract)
    found = dict(faults.controls(levels))
    assert found.keys() == {fault.name for fault in FAULTS} - missing
    assert min(found.values()) > FAR
