"""The command line: an export from a checkpoint to a proved artifact, and every way it is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from export import __main__ as command
from export import artifact, effort, pipeline, portable
from export.parity import EMULATED
from export.precision import Precision
from export.resident import ResidentError
from model import checkpoint, interruption
from model.contract import certificate_to_plain
from tests.export.conftest import TOKENS, VECTORS, seeded


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "LONGEST", (1, 10))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of ours."""
    path = tmp_path / "weights.safetensors"
    checkpoint.save(seeded(TOKENS), path, notes={"tokens": "letters"})
    return path


def export(*arguments: object) -> int:
    """Run the command with these arguments."""
    return command.main([str(argument) for argument in arguments])


def test_an_export_and_a_second_proof(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The artifact has its five files, its contract the notes, the digest and the certificate, and it proves again."""
    out = tmp_path / "artifacts"
    assert export(weights, "--name", "letters", "--out", out) == 0
    shown = capsys.readouterr().out
    assert "bit for bit" in shown
    assert "make serve" in shown
    assert f"wrote {out / 'letters' / 'config.pbtxt'}: Triton serves letters, too" in shown
    folder = out / "letters" / "1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
        "parity.html",
        "parity.json",
        "resident.onnx",
    ]
    for name in (artifact.MODEL, artifact.RESIDENT):
        _, contract = artifact.read_graph(folder / name, weights=False)
        assert contract.name == "letters"
        assert contract.notes == {"tokens": "letters"}
        assert contract.certificate is not None
        assert contract.certificate.passed
        assert any("CUDA" in text for text in contract.certificate.not_checked)
        data = (folder / artifact.WEIGHTS).read_bytes()
        assert contract.weights_digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert json.loads((folder / artifact.PARITY).read_text()) == json.loads(
            json.dumps(certificate_to_plain(contract.certificate))
        )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert export("prove", out / "letters") == 0
    assert "proved again" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("precision", ["int8", "tf32", "fp16"])
def test_a_reduced_precision_says_what_it_costs(
    precision: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contract, table, page and certificate say the precision, its bar and what never ran; it proves again alone."""
    out = tmp_path / "artifacts"
    assert export(weights, "--name", "letters", "--out", out, "--precision", precision) == 0
    shown = capsys.readouterr().out
    assert f"{precision}: {Precision(precision).terms.means}" in shown
    assert "and the limit is" in shown
    folder = out / "letters" / "1"
    _, contract = artifact.read_graph(folder / artifact.RESIDENT, weights=False)
    assert contract.precision == precision
    assert {state.dtype for state in contract.states} == {"float32"}
    assert contract.certificate is not None
    assert contract.certificate.not_checked[0] == Precision(precision).terms.not_checked[0]
    judged = [record for record in contract.certificate.records if record.share_bar > 0]
    assert {record.subject for record in judged} >= {EMULATED, artifact.MODEL, artifact.RESIDENT}
    assert max(record.share for record in judged) <= Precision(precision).terms.share
    assert min(contract.certificate.controls.values()) > 1
    page = (folder / artifact.PAGE).read_text()
    assert "emulated in float64" in page
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert export("prove", out / "letters") == 0
    shown = capsys.readouterr().out
    assert "proved again by" in shown
    assert ("their own" in shown) == (precision != "tf32")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_eight_bit_weights_that_were_changed_are_not_proved(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One changed byte of scales is found by the digest."""
    out = tmp_path / "artifacts"
    assert export(weights, "--name", "a", "--out", out, "--precision", "int8") == 0
    data = out / "a" / "1" / artifact.WEIGHTS
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    capsys.readouterr()
    assert export("prove", out / "a") == 1
    assert "was changed: its digest" in capsys.readouterr().err


def test_a_projected_lstm_from_a_pt_file(tmp_path: Path) -> None:
    """The state dict of a torch.nn.LSTM with proj_size is exported and proved, h and c of their own sizes."""
    torch.manual_seed(0)
    torch.save(torch.nn.LSTM(3, 5, 2, proj_size=2).state_dict(), tmp_path / "theirs.pt")
    assert export(tmp_path / "theirs.pt", "--name", "theirs", "--out", tmp_path / "artifacts") == 0
    _, contract = artifact.read_graph(tmp_path / "artifacts/theirs/1/resident.onnx", weights=False)
    assert [(state.input, state.shape) for state in contract.states] == [("h", (2, 2)), ("c", (2, 5))]
    assert contract.precision == "fp32"
    assert contract.certificate is not None
    assert "units of the projection shifted" in contract.certificate.controls
    assert export("prove", tmp_path / "artifacts" / "theirs") == 0


def test_versions_count_up_and_never_change(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second export is version 2 with the same weights file; asking for version 1 again is refused in one line."""
    out = tmp_path / "artifacts"
    assert export(weights, "--name", "a", "--out", out) == 0
    assert export(weights, "--name", "a", "--out", out) == 0
    assert artifact.versions(out / "a") == [1, 2]
    first, second = ((out / "a" / version / artifact.WEIGHTS).read_bytes() for version in ("1", "2"))
    assert first == second
    capsys.readouterr()
    assert export(weights, "--name", "a", "--out", out, "--version", 1) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert artifact.versions(out / "a") == [1, 2]


def test_a_plain_torch_lstm_from_a_pt_file(tmp_path: Path) -> None:
    """The state dict of any torch.nn.LSTM is exported without a word about its sizes."""
    torch.manual_seed(0)
    torch.save(torch.nn.LSTM(3, 5, 2, bias=False).state_dict(), tmp_path / "theirs.pt")
    assert export(tmp_path / "theirs.pt", "--name", "theirs", "--out", tmp_path / "artifacts") == 0
    _, contract = artifact.read_graph(tmp_path / "artifacts/theirs/1/resident.onnx", weights=False)
    assert [state.shape for state in contract.states] == [(2, 5), (2, 5)]


def test_a_failed_proof_leaves_nothing(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gates in the wrong order the table shows it, the message names the worst, and no file appears."""
    monkeypatch.setattr(portable, "onnx_gates", lambda rows: rows)
    assert export(weights, "--name", "a", "--out", tmp_path / "artifacts") == 1
    shown = capsys.readouterr()
    assert "FAILED" in shown.out
    assert "comparisons failed; worst: " in shown.err
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_tampered_artifact_is_not_proved(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One changed byte of weights is found by the digest, a swapped graph by its contract."""
    out = tmp_path / "artifacts"
    for name in ("a", "b"):
        assert export(weights, "--name", name, "--out", out) == 0
    data = out / "a" / "1" / artifact.WEIGHTS
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    (out / "b" / "1" / artifact.RESIDENT).write_bytes((out / "a" / "1" / artifact.RESIDENT).read_bytes())
    capsys.readouterr()
    assert export("prove", out / "a") == 1
    assert "was changed: its digest" in capsys.readouterr().err
    assert export("prove", out / "b" / "1") == 1
    assert "different contracts" in capsys.readouterr().err


def test_a_graph_that_computes_something_else_is_not_proved(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph that pairs its states wrongly is found by its digest; with that forged too, it is found by parity."""
    out = tmp_path / "artifacts"
    assert export(weights, "--name", "a", "--out", out) == 0
    folder, graphs = out / "a" / "1", {}
    for name in (artifact.MODEL, artifact.RESIDENT):
        graphs[name], contract = artifact.read_graph(folder / name, weights=False)
        for node in graphs[name].graph.node:
            if node.op_type == "LSTM":
                node.input[5], node.input[6] = node.input[6], node.input[5]
        artifact.write_graph(graphs[name], folder / name, contract)
    assert export("prove", out / "a") == 1
    assert "was changed since its proof" in capsys.readouterr().err
    assert contract.certificate is not None
    forged = artifact.certify(contract, contract.certificate, graphs)
    for name, model in graphs.items():
        artifact.write_graph(model, folder / name, forged)
    assert export("prove", out / "a") == 1
    assert "comparisons failed" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted export says so in one line, exits as shells expect, and leaves the repository empty."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_prove", interrupt)
    assert export(weights, "--name", "a", "--out", tmp_path / "artifacts") == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert list((tmp_path / "artifacts").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.pt", "--name", "a"], "none.pt doesn't exist"),
        (["none.pt", "--name", "a/b"], "letters, digits"),
        (["none.pt", "--name", "n" * 300], "a name of 300 letters: at most 128"),
        (["none.pt", "--name", "a", "--version", "0"], "versions count from 1"),
        (["none.pt", "--name", "a", "--version", str(2**63)], "at most 9223372036854775807"),
        (["prove", "nowhere"], "no artifact at nowhere"),
    ],
)
def test_faults_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's mistake is one line on stderr and exit code 1, never a traceback."""
    assert export(*arguments) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """--help has examples and says what is written; a missing name is wrong usage, code 2."""
    for arguments, words in ((["--help"], "model.onnx.data"), (["prove", "--help"], "artifacts/bytelm")):
        with pytest.raises(SystemExit) as stop:
            export(*arguments)
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "examples:" in shown
        assert words in shown
    with pytest.raises(SystemExit) as stop:
        export("weights.pt")
    assert stop.value.code == 2


def test_every_step_can_stop_an_export(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in any step, down to the last one, leaves the repository as it was."""
    found = checkpoint.load(weights)
    for step in ("_write_portable", "_write_resident", "_prove", "_certificate", "_read_back"):

        def fail(*_: object) -> None:
            raise ResidentError("planted")

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, step, fail)
            with pytest.raises(ResidentError, match="planted"):
                pipeline.export(found, tmp_path / "artifacts" / "a" / "1", name="a")
        assert list((tmp_path / "artifacts").iterdir()) == []


def test_two_exports_differ_in_nothing_but_the_certificate(tmp_path: Path) -> None:
    """Graphs and weights of one checkpoint are the same bytes each time, certificates (ratios, dates) aside."""
    found = checkpoint.Checkpoint(seeded(VECTORS), {})
    folders = [pipeline.export(found, tmp_path / "a" / version, name="a").folder for version in ("1", "2")]
    for name in (artifact.MODEL, artifact.RESIDENT):
        graphs = [artifact.read_graph(folder / name, weights=False)[0] for folder in folders]
        for graph in graphs:
            del graph.metadata_props[:]
        assert graphs[0].SerializeToString(deterministic=True) == graphs[1].SerializeToString(deterministic=True)
    data = [(folder / artifact.WEIGHTS).read_bytes() for folder in folders]
    assert data[0] == data[1]


@pytest.mark.parametrize("step", ["_write_portable", "_write_resident", "_prove", "_read_back"])
def test_a_full_disk_is_one_line(
    step: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is met, the folder, the reason and what to do are told, and nothing is left."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pipeline, step, full)
    out = tmp_path / "artifacts"
    assert export(weights, "--name", "a", "--out", out) == 1
    error = capsys.readouterr().err
    assert f"can't write into {out / 'a'}: No space left on device; free some space" in error
    assert error.count("\n") == 1
    assert list(out.iterdir()) == []


def test_an_error_of_a_file_elsewhere_names_that_file(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full folder for temporary files isn't the repository's fault."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/file")

    monkeypatch.setattr(pipeline, "_prove", full)
    assert export(weights, "--name", "a", "--out", tmp_path / "artifacts") == 1
    assert capsys.readouterr().err.startswith("error: /scratch/file: No space left on device")


def test_sigterm_is_an_interruption(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves nothing and has the exit status that shells expect."""

    def terminate(*_: object) -> None:
        raise interruption.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(pipeline, "_prove", terminate)
    assert export(weights, "--name", "a", "--out", tmp_path / "artifacts") == 143
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_what_nobody_expects_is_one_line_too(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names its kind and how to see the traceback, which the environment can ask for."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(pipeline, "_prove", fail)
    arguments = (weights, "--name", "a", "--out", tmp_path / "artifacts")
    assert export(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ZeroDivisionError: division by zero; ")
    assert error.count("\n") == 1
    monkeypatch.setenv("CELLSTREAM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        export(*arguments)
    assert list((tmp_path / "artifacts").iterdir()) == []


@pytest.mark.parametrize(("layer", "what"), [(torch.nn.LSTM, "an LSTM"), (torch.nn.GRU, "a GRU")])
def test_a_nonlinearity_is_for_plain_rnns(
    layer: type[torch.nn.LSTM] | type[torch.nn.GRU], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that changes nothing is refused, not ignored."""
    torch.save(layer(3, 5).state_dict(), tmp_path / "theirs.pt")
    assert export(tmp_path / "theirs.pt", "--name", "a", "--out", tmp_path, "--nonlinearity", "relu") == 1
    assert f"holds the weights of {what}; leave it out" in capsys.readouterr().err


def test_a_chaotic_network_is_refused_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own float32 and float64 part: the reason and the table say so, with figures that are over their bars."""
    monkeypatch.setattr(effort, "LONGEST", (100, 1000))
    torch.manual_seed(0)
    torch.save({key: 20 * value for key, value in torch.nn.LSTM(5, 16, 2).state_dict().items()}, tmp_path / "wild.pt")
    assert export(tmp_path / "wild.pt", "--name", "a", "--out", tmp_path / "artifacts") == 1
    shown = capsys.readouterr()
    assert "chaotic" in shown.out  # beside FAILED, on a line of its own where the terminal is narrow
    assert re.search(r"chaotic: PyTorch's own float32 is off its float64 by [\d.]+% .* beyond 1% ", shown.err)
    assert "train it with smaller recurrent weights" in shown.err
    assert shown.err.count("\n") == 1
