"""What changes no bit: stream against stream, by hypothesis and by the export's own quick set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export import artifact, invariance, pipeline
from export.invariance import ROWS, STEPS, STREAMS, Circumstances, answer_of, same_bytes
from export.runtime import Resident
from export.samples import NON_ZERO, Arrays, Sample, draw
from model.checkpoint import Checkpoint
from model.contract import Contract
from model.lstm import Spec
from tests.export.conftest import TOKENS, VECTORS, seeded

ALL = {
    "batch size",
    "position in the batch",
    "chunking",
    "row placement",
    "neighbours' lengths",
    "neighbours of 1e30",
    "number of threads",
    "process",
}
ODD = Spec(input_size=37, hidden_size=131, layers=2, output_size=19)


class Ready:
    """A model with runners of one and several threads, and what its streams answer alone."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        model, self.contract = pipeline._write_portable(Checkpoint(seeded(spec)), folder, "test")
        pipeline._write_resident(model, self.contract, folder)
        self.path = folder / artifact.RESIDENT
        self.runners = {count: Resident(self.path, self.contract, rows=1, threads=count) for count in (1, 2, 3)}
        self.sample: Sample = draw(self.contract, STEPS, NON_ZERO, STREAMS, 3)
        self.alone = [self.run(1, lane, Circumstances()) for lane in range(STREAMS)]

    def run(self, threads: int, lane: int, how: Circumstances) -> Arrays:
        return answer_of(self.runners[threads], self.contract, self.sample, lane, how)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> list[Ready]:
    """Three models, of vectors, of tokens and of odd sizes."""
    return [Ready(spec, tmp_path_factory.mktemp("model")) for spec in (VECTORS, TOKENS, ODD)]


@st.composite
def circumstances(draw_: st.DrawFn) -> Circumstances:
    """Any batch, place, chunking, rows and neighbours."""
    batch = draw_(st.integers(1, 40))
    borders = sorted(draw_(st.sets(st.integers(1, STEPS - 1))))
    return Circumstances(
        batch=batch,
        position=draw_(st.integers(0, batch - 1)),
        chunks=tuple(np.diff([0, *borders, STEPS]).tolist()),
        first_row=draw_(st.integers(1, ROWS // 2 - 1)),
        wild=draw_(st.booleans()),
        lengths=draw_(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), how=circumstances(), lane=st.integers(0, STREAMS - 1), threads=st.sampled_from([1, 2, 3]))
def test_a_stream_depends_on_its_own_inputs_only(
    ready: list[Ready], data: st.DataObject, how: Circumstances, lane: int, threads: int
) -> None:
    """Outputs and states are the same bytes whatever surrounds a stream and however it is cut and placed."""
    model = data.draw(st.sampled_from(ready))
    assert same_bytes(model.run(threads, lane, how), model.alone[lane])


def test_the_quick_set_holds_here(ready: list[Ready]) -> None:
    """On this machine every circumstance makes no difference, and each has a name."""
    assert invariance.invariances(ready[1].path, ready[1].contract) == dict.fromkeys(ALL, True)


def test_a_difference_is_told(ready: list[Ready], monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime whose answers depend on the batch's size by one bit, or on chunks, is found out, and only in that."""
    original = Resident.run

    def depending(self: Resident, inputs: Mapping[str, Any], lengths: Any, read: Any, write: Any) -> Arrays:
        answer = original(self, inputs, lengths, read, write)
        if len(lengths) == 5:
            answer = {name: np.nextafter(value, np.float32(9)) for name, value in answer.items()}
        return answer

    monkeypatch.setattr(Resident, "run", depending)
    found = invariance.invariances(ready[1].path, ready[1].contract)
    assert {name for name, held in found.items() if not held} == {
        "batch size",
        "neighbours' lengths",
        "neighbours of 1e30",
    }


def test_the_certificate_carries_it(artifacts: Path) -> None:
    """What was found, invariances and planted faults, is in the graph that the server reads."""
    _, contract = artifact.read_graph(artifacts / "tokens" / "1" / artifact.RESIDENT, weights=False)
    assert contract.certificate is not None
    assert contract.certificate.invariances == dict.fromkeys(ALL, True)
    assert contract.certificate.controls
    assert all(ratio > 1 for ratio in contract.certificate.controls.values())


def test_older_certificates_still_load(artifacts: Path) -> None:
    """A contract written before certificates had these fields reads with nothing in them."""
    _, contract = artifact.read_graph(artifacts / "tokens" / "1" / artifact.RESIDENT, weights=False)
    ((key, text),) = contract.to_metadata().items()
    import json  # noqa: PLC0415

    plain = json.loads(text)
    for name in ("invariances", "controls"):
        del plain["certificate"][name]
    old = Contract.from_metadata({key: json.dumps(plain)})
    assert old.certificate is not None
    assert old.certificate.passed
    assert old.certificate.invariances == {}
    assert old.certificate.controls == {}
