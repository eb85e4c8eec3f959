"""The model that is benchmarked: made, exported and proved once, into a repository of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from export import pipeline
from model.checkpoint import Checkpoint
from model.lstm import LSTM, Spec

SPEC = Spec(input_size=64, hidden_size=256, layers=2, output_size=16)
NAME = "lstm"
REPOSITORY = Path("artifacts/.bench")  # a level deeper than what `make serve` serves


def artifact(repository: Path = REPOSITORY, progress: pipeline.Progress = pipeline.silent) -> Path:
    """The artifact's folder; exports it if it isn't there."""
    final = repository / NAME / "1"
    if not final.exists():
        torch.manual_seed(0)
        module = LSTM.from_state_dict(LSTM(SPEC).state_dict(), SPEC).eval()
        pipeline.export(Checkpoint(module), final, name=NAME, progress=progress)
    return final


if __name__ == "__main__":
    print(artifact())
