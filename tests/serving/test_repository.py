"""The model repository: what is found, and what may be served."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from model.contract import Certificate, Contract, ParityRecord, graph_digest
from serving.errors import ConfigError
from serving.graph_files import WEIGHTS, GraphFiles
from serving.repository import GRAPH, Artifact, check_proof, find_artifacts
from tests.serving.test_streams import CONTRACT

RECORD = ParityRecord(
    subject="model.onnx",
    truth="cell64",
    tensor="y",
    steps=1,
    initial="zero",
    rms_error=1e-8,
    max_error=1e-8,
    rms_ratio=1.0,
    max_ratio=1.0,
    rms_bar=2.0,
    max_bar=4.0,
    passed=True,
)


def make_artifact(root: Path, weights: bytes = b"weights") -> Artifact:
    """An artifact with these weights and an empty graph."""
    path = root / "sum" / "1"
    path.mkdir(parents=True)
    (path / GRAPH).touch()
    (path / WEIGHTS).write_bytes(weights)
    return Artifact("sum", 1, path)


def certificate(weights: bytes = b"weights", *records: ParityRecord) -> Certificate:
    """A certificate for these weights."""
    digest = "sha256:" + hashlib.sha256(weights).hexdigest()
    digests = {"contract": CONTRACT.digest(), GRAPH: graph_digest(b"")}
    return Certificate("2026-11-24", "here", {}, digest, records or (RECORD,), digests=digests)


def check(artifact: Artifact, contract: Contract, *, allow_unproved: bool) -> str | None:
    """check_proof on the artifact as it is now."""
    return check_proof(artifact, contract, GraphFiles.read(artifact.graph), allow_unproved=allow_unproved)


def test_versions_are_numbers_and_everything_else_is_passed_over(tmp_path: Path) -> None:
    """Only <name>/<number>/resident.onnx counts, so a half-written export is never served."""
    for version in ("1", "2", "10", "0", "01", "٣", "9" * 20, "latest", ".tmp-3"):
        (tmp_path / "a" / version).mkdir(parents=True)
        (tmp_path / "a" / version / GRAPH).touch()
    (tmp_path / "a" / "4").mkdir()
    assert sorted(artifact.version for artifact in find_artifacts(tmp_path)) == [1, 2, 10]


def test_an_empty_repository_says_what_to_do(tmp_path: Path) -> None:
    """No model is an error of configuration that names the next command."""
    with pytest.raises(ConfigError, match="make export"):
        find_artifacts(tmp_path)


def test_a_proved_artifact_is_served(tmp_path: Path) -> None:
    """A certificate that passed, for these very weights, is all it takes."""
    contract = replace(CONTRACT, certificate=certificate())
    assert check(make_artifact(tmp_path), contract, allow_unproved=False) is None


@pytest.mark.parametrize(
    ("proof", "text"),
    [
        (None, "no parity certificate"),
        (certificate(b"other weights"), "is for weights sha256:"),
        (certificate(b"weights", replace(RECORD, passed=False)), "something else than PyTorch"),
        (Certificate("2026-11-24", "here", {}, certificate().weights_digest, ()), "something else than PyTorch"),
        (replace(certificate(), digests={}), "is for the contract None"),
        (
            replace(certificate(), digests={"contract": CONTRACT.digest(), GRAPH: "sha256:0"}),
            "is for the resident.onnx",
        ),
    ],
    ids=["missing", "other weights", "failed", "nothing checked", "other contract", "other graph"],
)
def test_an_unproved_artifact_is_refused_unless_allowed(tmp_path: Path, proof: Certificate | None, text: str) -> None:
    """A certificate that is missing, failed, empty or for other weights is refused, naming the way round."""
    artifact, contract = make_artifact(tmp_path), replace(CONTRACT, certificate=proof)
    with pytest.raises(ConfigError, match=text) as error:
        check(artifact, contract, allow_unproved=False)
    assert "--allow-unproved" in str(error.value)
    problem = check(artifact, contract, allow_unproved=True)
    assert problem is not None
    assert text.split(":", maxsplit=1)[0] in problem


def test_a_graph_that_was_changed_after_its_proof_is_refused(artifacts: Path, tmp_path: Path) -> None:
    """H and c exchanged in the resident graph, or in the contract: neither is served as proved, the original is."""
    folder = shutil.copytree(artifacts / "vectors", tmp_path / "vectors")
    artifact = Artifact("vectors", 1, folder / "1")
    model = onnx.load(artifact.graph, load_external_data=False)
    contract = Contract.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    assert check(artifact, contract, allow_unproved=False) is None
    swapped = replace(contract, states=contract.states[::-1])
    with pytest.raises(ConfigError, match="is for the contract"):
        check(artifact, swapped, allow_unproved=False)
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    node.input[5], node.input[6] = node.input[6], node.input[5]
    artifact.graph.write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(ConfigError, match=r"is for the resident\.onnx"):
        check(artifact, contract, allow_unproved=False)


def test_weights_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    """A missing weights file is an error that says which."""
    artifact = make_artifact(tmp_path)
    (artifact.path / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=WEIGHTS):
        check(artifact, replace(CONTRACT, certificate=certificate()), allow_unproved=False)
