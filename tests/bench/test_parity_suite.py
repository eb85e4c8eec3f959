"""The parity suite: the chain up to a real server's answers, and that a wrong server or a wrong export shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

import cellstream
from bench import parity_cases, parity_suite
from bench.parity_cases import GridCase
from bench.parity_page import suite_page
from bench.parity_served import SUBJECT, served
from bench.parity_suite import Outcome, run, table_of
from bench.server_process import server
from export import artifact, faults
from export.parity import EMULATED
from export.precision import Precision
from model.lstm import Spec

CASES = [
    GridCase("vectors", (1, 12), Spec(input_size=3, hidden_size=5, layers=2), 3.0),
    GridCase("tokens", (3,), Spec(vocabulary=11, encoder_size=3, hidden_size=6, output_size=4)),
    GridCase("reduced", (3,), Spec(input_size=3, hidden_size=5, proj_size=2), reduced=Precision.INT8),
]
SUBJECTS = {
    "nn.LSTM float64",
    "nn.LSTM float32",
    "model.onnx",
    "model.onnx, by onnx's own evaluator",
    "resident.onnx",
    "resident.onnx, step by step",
    "resident.onnx, ragged chunks of 1 to 8",
    SUBJECT,
}


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """The suite over two small models."""
    with Progress(disable=True) as bars:
        found = run(CASES, 0, bars)
        assert all(task.finished for task in bars.tasks)
    return found


def test_the_chain_is_complete(outcome: Outcome) -> None:
    """Every form of both models is compared, the answers over gRPC among them, and everything passes."""
    assert outcome.passed
    for name, records in outcome.records.items():
        reduced = {EMULATED} if name == "reduced" else set()
        without = {"model.onnx, by onnx's own evaluator"} if name == "reduced" else set()
        assert {record.subject for record in records} == (SUBJECTS | reduced) - without
        assert {record.initial for record in records} == {"zero", "non-zero"}
    assert outcome.controls.keys() == {name for name, *_ in parity_suite.plantable()}
    for kind in ("", ", projected", ", int8", ", tf32", ", fp16"):
        assert f"two gates swapped{kind}" in outcome.controls
    planted = {fault.name for _, fault, *_ in parity_suite.plantable()}
    assert planted == {fault.name for fault in faults.FAULTS}
    assert all(outcome.invariances.values())


def test_the_table_and_the_page_say_it(outcome: Outcome) -> None:
    """One line per case within 80 columns; the page shows every case, and needs nothing from elsewhere."""
    console = Console(width=80, record=True, file=None)
    with console.capture() as shown:
        console.print(table_of(outcome))
    lines = [line for line in shown.get().splitlines() if line.strip().startswith(("vectors", "tokens", "reduced"))]
    assert len(lines) == 3
    assert all("equal" in line and line.strip().endswith("ok") for line in lines)
    text = suite_page(outcome.records, outcome.invariances, outcome.controls)
    assert text.count("<svg") == 3
    assert "3 of 3 equal" in text
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", text)


def test_an_unseen_fault_fails_the_suite(outcome: Outcome) -> None:
    """A suite that no longer sees a fault isn't passed, and its page says so."""
    blind = Outcome(outcome.records, outcome.invariances, outcome.controls | {"a stale row read": 0.0})
    assert not blind.passed
    assert "FAILED" in suite_page(blind.records, blind.invariances, blind.controls)
    assert not Outcome(outcome.records, outcome.invariances).passed


def test_a_server_that_answers_something_else_is_found_out(tmp_path: Path) -> None:
    """Streams served from another model's weights differ from model.onnx; from its own they don't."""
    first, second = (parity_suite.write(CASES[0], tmp_path / name, seed) for name, seed in (("a", 0), ("b", 1)))
    with server(tmp_path / "b", ["--allow-unproved"]) as running:
        assert not any(r.passed for r in served(running.address, "vectors", first.folder, first.contract))
        assert all(r.passed for r in served(running.address, "vectors", second.folder, second.contract))


def test_the_grid_covers_what_it_promises() -> None:
    """Sizes of 1, odd ones and 1024, with and without biases, gains of 1 and 3, long runs; names are models' names."""
    quick, full = parity_cases.quick(None), parity_cases.full(None)
    for cases in (quick, full):
        specs = [case.spec for case in cases if case.spec is not None]
        assert {1, 7, 131, 512, 1024} <= {spec.hidden_size for spec in specs}
        assert {None, 1, 3} <= {spec.proj_size for spec in specs}
        assert {case.precision for case in cases} == set(Precision)
        assert {1, 2, 3} <= {spec.layers for spec in specs}
        assert {True, False} == {spec.bias for spec in specs}
        assert {1.0, 3.0} == {case.gain for case in cases}
        assert max(max(case.steps) for case in cases) == 10_000
        assert len({artifact.check_name(case.name) for case in cases}) == len(cases)
    assert len(full) > 100
    assert [case.name for case in full[: len(quick)]] == [case.name for case in quick]


def test_trained_weights_come_from_an_artifact(artifacts: Path, tmp_path: Path) -> None:
    """The artifact under proof is the grid's first model, with its own weights."""
    case = parity_cases.quick(artifacts / "tokens")[0]
    written = parity_suite.write(case, tmp_path, 0)
    _, contract = artifact.read_graph(artifacts / "tokens" / "1" / artifact.MODEL, weights=False)
    assert written.contract.weights_digest == contract.weights_digest


def test_the_command_ends_with_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcome: Outcome
) -> None:
    """Status 0 and the page's place where all passed, 1 where not, 2 where there is nothing to ask."""
    blind = Outcome(outcome.records, outcome.invariances, dict.fromkeys(outcome.controls, 0.0))
    for found, status in ((outcome, 0), (blind, 1)):
        monkeypatch.setattr(parity_suite, "run", lambda *_, found=found: found)
        monkeypatch.setattr("sys.argv", ["parity", "--page", str(tmp_path / "new" / "page.html")])
        assert parity_suite.main() == status
        assert ("all passed" if status == 0 else "FAILED") in capsys.readouterr().out
        assert (tmp_path / "new" / "page.html").is_file()
    monkeypatch.setattr("sys.argv", ["parity", "--trained", str(tmp_path / "nothing")])
    assert parity_suite.main() == 2
    assert "no artifact at" in capsys.readouterr().err


def test_the_server_shows_what_changes_no_bit(artifacts: Path) -> None:
    """A model's description holds its certificate: invariances, planted faults, and that it passed."""
    with server(artifacts) as running, cellstream.connect(running.address) as client:
        certificate = client.model("tokens").certificate
    assert certificate is not None
    assert certificate["passed"] is True
    assert all(certificate["invariances"].values())
    assert {"chunking", "process"} <= certificate["invariances"].keys()
    assert all(ratio > 1 for ratio in certificate["controls"].values())
