"""Met or missed, at the worst size."""

from __future__ import annotations

from bench.gpu.plan import Who
from bench.gpu.records import Record
from bench.gpu.targets import Target, targets
from tests.bench.gpu.figures import a_document, parity, step


def _found(*more: Record) -> dict[str, Target]:
    names = ("parity", "floor", "matrix", "eager", "host")
    return dict(zip(names, targets(a_document(*more)), strict=True))


def test_the_worst_size_counts() -> None:
    """A floor of 7 µs (5, and two more kernels): 13 are 1.86 times as much; a third size spoils it."""
    near = _found()["floor"]
    assert near.met
    assert near.found is not None
    assert round(near.found, 2) == 1.86
    assert near.where == "H 1024, L 1, tf32, T 1, B 64; met at 2 of 2 sizes"
    far = _found(step(8, device=70.0))["floor"]
    assert (far.met, far.where) == (False, "H 1024, L 1, tf32, T 1, B 8; met at 2 of 3 sizes")


def test_large_batches_and_chunks_are_no_matter_of_the_floor() -> None:
    """Only T = 1 and up to 64 lanes are."""
    assert _found(step(256, device=1e5), step(8, device=1e5, steps=16))["floor"].met


def test_matrix_rate() -> None:
    """1,024 lanes of 1,024 are 17.2 GFLOP: 86 µs would be half of 400 TFLOP/s."""
    assert _found()["matrix"].met is None
    assert _found(step(1024, device=80.0))["matrix"].met
    slow = _found(step(1024, device=80.0), step(8192, device=2000.0, steps=16))["matrix"]
    assert not slow.met
    assert slow.where == "H 1024, L 1, tf32, T 16, B 8192; met at 1 of 2 sizes"


def test_ahead_of_torch_at_every_batch() -> None:
    """On the device and from host memory, each by itself."""
    found = _found()
    assert (found["eager"].found, found["host"].found) == (4.0, 2.5)
    behind = _found(step(8), step(8, Who.EAGER, device=9.0))
    assert (behind["eager"].met, behind["host"].met) == (False, True)
    assert _found(step(8), step(8, Who.CELL, device=1.0))["eager"].met  # the tuned cell is no target


def test_parity_of_the_worst_precision() -> None:
    """As a share of its bar."""
    assert _found()["parity"].found == 0.25
    assert _found(parity("tf32", 1.8))["parity"].met
    failed = _found(parity("tf32", 3.0))["parity"]
    assert (failed.met, failed.found) == (False, 1.5)
    assert failed.where == "tf32, F64 H256 L2, T 10; passed 1 of 2"


def test_without_figures_nothing_is_claimed() -> None:
    """Neither met nor missed."""
    empty = a_document()
    empty.records.clear()
    assert {(one.met, one.found, one.where) for one in targets(empty)} == {(None, None, "no figures")}
    assert empty.rates is None
