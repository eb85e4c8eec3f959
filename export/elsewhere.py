"""`python -m export.elsewhere RESIDENT.onnx`: what a process of its own answers to a fixed sample, as a digest."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime as ort

from export.invariance import fingerprint
from model.contract import Contract


def main(path: Path) -> None:
    """Print the digest. The contract comes from the graph's own metadata."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    contract = Contract.from_metadata(session.get_modelmeta().custom_metadata_map)
    sys.stdout.write(fingerprint(path, contract) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
