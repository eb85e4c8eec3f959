"""Failing controls: parity that is known to fail where it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export import faults, portable
from export.faults import FAULTS, Fault
from model.contract import ParityRecord
from model.lstm import Spec
from tests.export.conftest import TOKENS, VECTORS, seeded

FAR = 10.0  # times the bar


def records_of(fault: Fault, spec: Spec, folder: Path) -> list[ParityRecord]:
    """What parity says of a small model with this fault planted."""
    contract = portable.contract_of(spec, name="a", weights_digest="sha256:0", notes={})
    return faults.plant(fault, seeded(spec), contract, folder)


@pytest.mark.parametrize("spec", [VECTORS, TOKENS], ids=["vectors", "tokens"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_planted_fault_is_caught_by_far(fault: Fault, spec: Spec, tmp_path: Path) -> None:
    """Each fault of the table misses its bar many times over, in vectors and in tokens."""
    if not fault.fits(spec):
        assert (fault.layers, spec.layers) == (2, 1) or fault.projected or Precision.FP32 not in fault.within
        return
    assert faults.found(records_of(fault, spec, tmp_path)) > FAR


@pytest.mark.parametrize("runs", [False, True], ids=["graphs", "runs"])
def test_nothing_is_found_where_nothing_is_planted(runs: bool, tmp_path: Path) -> None:
    """The same copy without a fault passes, so what is caught above is the fault and not the copying."""
    fault = Fault("none") if runs else Fault("none", lambda _model: None)
    records = records_of(fault, VECTORS, tmp_path)
    assert records
    assert faults.found(records) == 0


def test_a_fault_needs_what_it_breaks() -> None:
    """Models without biases or with one layer aren't accused of hiding what they can't have."""
    bare = seeded(Spec(input_size=3, hidden_size=4, bias=False))
    missing = {fault.name for fault in FAULTS if not fault.fits(bare.spec)}
    assert missing == {
        "a bias dropped",
        "a bias added twice",
        "layers exchanged",
        "units of the projection shifted",
        "8-bit weights off by one step",
    }
    contract = portable.contract_of(bare.spec, name="a", weights_digest="sha256:0", notes={})
    found = dict(faults.controls(bare, contract))
    assert found.keys() == {fault.name for fault in FAULTS} - missing
    assert min(found.values()) > FAR


def test_rounding_keeps_so_many_bits() -> None:
    """Ten bits of fraction are what float16 has in its normal range."""
    values = np.random.default_rng(0).uniform(-4, 4, 1000).astype(np.float32)
    values = values[np.abs(values) > 1e-3]
    assert np.array_equal(faults._fewer_bits(values, 10), values.astype(np.float16).astype(np.float32))
