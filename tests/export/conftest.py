"""Small modules and their graphs, written but not yet proved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from onnx import ModelProto

from export import pipeline
from export.precision import Precision
from model.checkpoint import Checkpoint
from model.contract import Contract
from model.lstm import LSTM, Spec

VECTORS = Spec(input_size=5, hidden_size=7, layers=2)
TOKENS = Spec(vocabulary=11, encoder_size=3, hidden_size=6, output_size=4)
ENCODED = Spec(input_size=5, encoder_size=3, hidden_size=4, layers=3, bias=False, output_size=2)
PROJECTED = Spec(input_size=5, hidden_size=7, layers=2, proj_size=3)
SINGLE = Spec(input_size=1, hidden_size=1)
SPECS = [VECTORS, TOKENS, ENCODED, SINGLE]


class Written(NamedTuple):
    """Both graphs of a module in a folder, with the contract that they keep."""

    module: LSTM
    folder: Path
    contract: Contract
    model: ModelProto
    resident: ModelProto


def seeded(spec: Spec) -> LSTM:
    """A module with random weights, the same each time."""
    torch.manual_seed(0)
    return LSTM.from_state_dict(LSTM(spec).state_dict(), spec)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # these tensors are small, and other processes want the other cores


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Written]:
    """Write both graphs of a module into the test's folder, structure checks included."""

    def written(module: LSTM, precision: Precision = Precision.FP32) -> Written:
        model, contract = pipeline._write_portable(Checkpoint(module), tmp_path, "test", precision)
        resident = pipeline._write_resident(model, contract, tmp_path)
        return Written(module, tmp_path, contract, model, resident)

    return written
