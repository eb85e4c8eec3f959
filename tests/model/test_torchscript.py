"""TorchScript files: their weights are those of the module's state dict, and their code doesn't run."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from export.module_calls import ModuleError
from export.module_code import load_module
from model import checkpoint, torchscript
from model.pickles import PickleError

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and its tracer warns


class Policy(nn.Module):
    """A recurrent policy, as a simulator's tools save it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.actor = nn.LSTM(3, 4), nn.Sequential(nn.Linear(4, 2), nn.Tanh())
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The actions of a sequence."""
        out, _ = self.rnn(x)
        actions: torch.Tensor = self.actor(out) * self.scale
        return actions


@pytest.mark.parametrize("traced", [True, False])
def test_weights_are_read_and_code_is_not(traced: bool, tmp_path: Path) -> None:
    """Scripted or traced, with code that wouldn't compile, as a checkpoint and for the module."""
    policy, whole, path = Policy(), tmp_path / "whole.pt", tmp_path / "policy.pt"
    trace: Any = torch.jit.trace
    made = trace(policy, torch.zeros(2, 1, 3)) if traced else torch.jit.script(policy)
    torch.jit.save(made, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as broken:
        for entry in archive.infolist():
            broken.writestr(entry.filename, b"no code" if "/code/" in entry.filename else archive.read(entry))
    found, wanted = torchscript.weights(path), policy.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    loaded = checkpoint.load(path, checkpoint.Picked(prefix="rnn"))
    assert torch.equal(loaded.module.state_dict()["lstm.weight_hh_l0"], wanted["rnn.weight_hh_l0"])
    module, _ = load_module(f"{__file__}:Policy", path)
    assert torch.equal(module.state_dict()["rnn.weight_hh_l0"], wanted["rnn.weight_hh_l0"])
    for where in (str(path), f"{path}:Policy"):
        with pytest.raises(ModuleError, match=r"is TorchScript, .*FILE.py:CLASS --weights .*--prefix rnn\. --name"):
            load_module(where)


def test_a_frozen_file_has_no_weights(tmp_path: Path) -> None:
    """They are constants of its code."""
    frozen = torch.jit.freeze(torch.jit.script(Policy().eval()))
    torch.jit.save(frozen, tmp_path / "a.pt")
    with pytest.raises(PickleError, match=r"frozen into its code"):
        torchscript.weights(tmp_path / "a.pt")
