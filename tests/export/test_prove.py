"""What was just exported is proved again: every small model that the tests have, by whatever command it came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import pipeline, wrap
from export.module import export_module
from export.module_code import first_state
from export.precision import Precision
from export.understanding import Asked
from model.checkpoint import Checkpoint
from tests import modules, starting, wrapped
from tests.export.conftest import PROJECTED, SPECS, seeded
from tests.export.test_module import KINDS, SHORT

FLAGS = {"START": (np.array(0), np.array(1))}
STATE = Asked(states={"h": "h_out"})
TOLD = Asked(starts=FLAGS)
RATE = Asked(constants={"sr": np.array(16000)}, shapes={"input": ("batch", 6)})
MODELS: dict[str, tuple[Any, Asked]] = {
    "GRU": (wrapped.recurrent("GRU"), Asked()),
    "LSTM": (wrapped.recurrent("LSTM"), Asked()),
    "peepholes": (wrapped.recurrent("LSTM", peepholes=True), Asked()),
    "RNN": (wrapped.recurrent("RNN"), Asked()),
    "fused": (wrapped.FUSED, Asked()),
    "counts": (wrapped.COUNTS, Asked()),
    "convolved": (wrapped.CONVOLVED, Asked()),
    "rated": (wrapped.RATED, RATE),
    "fixed": (wrapped.FIXED, Asked()),
    "framed": (wrapped.FRAMED, STATE),
    "fusible": (wrapped.FUSIBLE, STATE),
    "bands": (wrapped.BANDS, STATE),
    "bands, timed": (wrapped.TIMED_BANDS, STATE),
    "simple": (starting.SIMPLE, TOLD),
    "flagged": (starting.FLAGGED, TOLD),
    "flat": (starting.FLAT, TOLD),
    "bare": (starting.BARE, TOLD),
    "stateless": (starting.STATELESS, TOLD),
    "branched": (starting.BRANCHED, TOLD),
    "scalar": (starting.SCALAR, TOLD),
    "timed": (starting.TIMED, TOLD),
    "reset": (starting.RESET, TOLD),
}
LSTMS = [
    *((spec, Precision.FP32) for spec in [*SPECS, PROJECTED]),
    (SPECS[0], Precision.INT8),
    (PROJECTED, Precision.FP16),
]


@pytest.mark.parametrize("name", MODELS)
def test_a_wrapped_graph(name: str, tmp_path: Path) -> None:
    """The artifact's own graphs give the same bytes, in runs as long as it promises."""
    model, asked = MODELS[name]
    made = wrap.wrap(wrapped.save(model, tmp_path / "given.onnx"), tmp_path / "a" / "1", name="a", asked=asked)
    again = wrap.prove(tmp_path / "a")
    assert again.contract == made.contract
    assert len(again.records) >= 2 * len(made.contract.outputs)
    assert all(record.passed for record in (*made.records, *again.records))


@pytest.mark.parametrize("name", KINDS)
def test_a_module(name: str, tmp_path: Path) -> None:
    """A module's artifact is a wrapped one, whatever its kind."""
    kind = KINDS[name]
    first = first_state(kind.state)
    user = modules.seeded(kind.make).eval()
    made = export_module(user, tmp_path / "a" / "1", name="a", inputs=kind.inputs, first_state=first, steps=SHORT)
    again = wrap.prove(tmp_path / "a")
    assert again.contract == made.contract
    assert all(record.passed for record in again.records)


@pytest.mark.parametrize(("spec", "precision"), LSTMS, ids=lambda value: str(value)[:40])
def test_a_checkpoint(spec: Any, precision: Precision, tmp_path: Path) -> None:
    """An LSTM's artifact has all that its proof needs, in float32 and in 8 or 16 bits."""
    made = pipeline.export(Checkpoint(seeded(spec)), tmp_path / "a" / "1", name="a", precision=precision)
    again = pipeline.prove(tmp_path / "a")
    assert again.contract == made.contract
    assert made.contract.max_steps == 512
    assert any("runs of every length" in record.subject for record in again.records)
    assert all(record.passed for record in again.records)
