"""The model repository on disk: `<root>/<name>/<version>/resident.onnx`, and whether each may be served.

Owns the layout and the check of the certificate against the weights. Reads files; runs nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from model.contract import Contract
from serving.errors import ConfigError
from serving.graph_files import GraphFiles

_VERSION = re.compile("[1-9][0-9]*")
MAX_VERSION = 2**63 - 1  # the protocol's int64
GRAPH = "resident.onnx"
CERTIFICATE = "parity.json"  # for people: what the server checks is in the graph


@dataclass(frozen=True, slots=True)
class Artifact:
    """One version of one model on disk."""

    name: str
    version: int
    path: Path

    @property
    def graph(self) -> Path:
        """The resident graph."""
        return self.path / GRAPH


def find_artifacts(root: Path) -> list[Artifact]:
    """Every artifact under `root`, by name and version. Raises ConfigError if there is none.

    One whose certificate is there and whose graph isn't counts too: it can't be served, and that is to be said.
    """
    folders = {path.parent for file in (GRAPH, CERTIFICATE) for path in root.glob(f"*/*/{file}")}
    found = [
        Artifact(name=folder.parent.name, version=int(folder.name), path=folder)
        for folder in folders
        if _VERSION.fullmatch(folder.name) and int(folder.name) <= MAX_VERSION
    ]
    if not found:
        raise ConfigError(f"no model under {root}/ (looked for <name>/<version>/{GRAPH}); make one with `make export`")
    return sorted(found, key=lambda one: (one.name, one.version))


def check_proof(artifact: Artifact, contract: Contract, files: GraphFiles, *, allow_unproved: bool) -> str | None:
    """What is wrong with the proof of an artifact that was read as `files`; None if nothing is.

    Raises ConfigError unless that is allowed.
    """
    problem = _problem(contract, files)
    if problem is None:
        return None
    text = f"{artifact.name}/{artifact.version}: {problem}"
    if not allow_unproved:
        raise ConfigError(f"{text}; export it again, or serve it unproved with --allow-unproved", public=problem)
    return text


def _problem(contract: Contract, files: GraphFiles) -> str | None:
    certificate = contract.certificate
    if certificate is None:
        return "it has no parity certificate"
    if not certificate.passed:
        return "its parity certificate says that the export computes something else than PyTorch"
    digest = files.weights_digest
    if certificate.weights_digest != digest:
        return f"its parity certificate is for weights {certificate.weights_digest}, and it has {digest}"
    for name, found in (("contract", contract.digest()), (GRAPH, files.graph_digest())):
        proved = certificate.digests.get(name)
        if proved != found:
            return f"its parity certificate is for the {name} {proved}, and it has {found}"
    return None
