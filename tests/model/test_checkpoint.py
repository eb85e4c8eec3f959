"""Checkpoints on disk: what is written comes back, and what isn't one is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model import checkpoint
from model.lstm import LSTM, Spec

SPEC = Spec(vocabulary=5, encoder_size=2, hidden_size=3, layers=2, output_size=5, proj_size=2)


@pytest.fixture
def module() -> LSTM:
    """A small module with an embedding and a head."""
    torch.manual_seed(0)
    return LSTM(SPEC)


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    """Whether two modules have the same weights, bit for bit."""
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_saved_is_loaded(module: LSTM, tmp_path: Path) -> None:
    """Weights, spec and notes come back as they were, and nothing else is left in the folder."""
    checkpoint.save(module, tmp_path / "deep" / "a.safetensors", notes={"tokens": "bytes"})
    found = checkpoint.load(tmp_path / "deep" / "a.safetensors")
    assert found.module.spec == SPEC
    assert found.notes == {"tokens": "bytes"}
    assert same(found.module, module)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]


def test_pickled_state_dicts(module: LSTM, tmp_path: Path) -> None:
    """Our own state dict, a bare torch.nn.LSTM's, and one wrapped as {'state_dict': …} all load from .pt files."""
    bare = torch.nn.LSTM(2, 3)
    torch.save(module.state_dict(), tmp_path / "ours.pt")
    torch.save(bare.state_dict(), tmp_path / "bare.pth")
    torch.save({"state_dict": bare.state_dict(), "epoch": 3}, tmp_path / "wrapped.pt")
    assert checkpoint.load(tmp_path / "ours.pt").module.spec == SPEC
    for name in ("bare.pth", "wrapped.pt"):
        assert same(checkpoint.load(tmp_path / name).module.lstm, bare)


def test_foreign_safetensors_are_a_bare_lstm(tmp_path: Path) -> None:
    """A safetensors file without our spec is read as the weights of a torch.nn.LSTM."""
    bare = torch.nn.LSTM(2, 3, bias=False)
    save_file(bare.state_dict(), tmp_path / "bare.safetensors")
    found = checkpoint.load(tmp_path / "bare.safetensors")
    assert found.module.spec == Spec(input_size=2, hidden_size=3, bias=False)
    assert same(found.module.lstm, bare)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """A whole pickled module isn't loaded: that would run what is in it."""
    torch.save(torch.nn.LSTM(2, 3), tmp_path / "module.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"module\.pt: holds a whole pickled module .*state_dict"):
        checkpoint.load(tmp_path / "module.pt")


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pt", "empty.safetensors", "empty.pt"])
def test_files_that_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    """Junk and empty files are refused with the file's name, whatever their suffix."""
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"not a checkpoint at all" * 10)
    with pytest.raises(checkpoint.CheckpointError, match=name):
        checkpoint.load(tmp_path / name)


def test_a_truncated_checkpoint(module: LSTM, tmp_path: Path) -> None:
    """Half a checkpoint is refused, not read as far as it goes."""
    path = tmp_path / "half.safetensors"
    checkpoint.save(module, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(checkpoint.CheckpointError, match=r"half\.safetensors"):
        checkpoint.load(path)


def test_missing_folder_and_suffix(tmp_path: Path) -> None:
    """A missing file, a folder and an unknown suffix each say what they are."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    for path, words in (
        (tmp_path / "none.pt", "doesn't exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "model.onnx", "is an ONNX model: python -m export wrap"),
    ):
        with pytest.raises(checkpoint.CheckpointError, match=words):
            checkpoint.load(path)


def test_keys_beside_the_spec_are_named(module: LSTM, tmp_path: Path) -> None:
    """Weights that the spec has no place for are refused by name, and so are missing ones."""
    weights = {name: value for name, value in module.state_dict().items() if name != "head.bias"}
    save_file(weights, tmp_path / "a.safetensors", metadata={checkpoint.SPEC_KEY: SPEC.to_json()})
    with pytest.raises(checkpoint.CheckpointError, match=r"missing head\.bias"):
        checkpoint.load(tmp_path / "a.safetensors")
    weights = {**module.state_dict(), "attention": torch.zeros(1)}
    save_file(weights, tmp_path / "b.safetensors", metadata={checkpoint.SPEC_KEY: SPEC.to_json()})
    with pytest.raises(checkpoint.CheckpointError, match="unknown keys attention"):
        checkpoint.load(tmp_path / "b.safetensors")


def test_a_pickled_thing_that_is_no_mapping(tmp_path: Path) -> None:
    """A tensor in a .pt file isn't a state dict, and the message says what it is."""
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    with pytest.raises(checkpoint.CheckpointError, match="holds a Tensor"):
        checkpoint.load(tmp_path / "tensor.pt")


def test_weights_among_other_things_are_found(tmp_path: Path) -> None:
    """A training script saves an epoch, an optimizer and the weights under a name of its own: the weights are taken."""
    lstm = torch.nn.LSTM(3, 5)
    path = tmp_path / "training.pt"
    torch.save({"model": lstm.state_dict(), "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    module = checkpoint.load(path).module
    assert torch.equal(module.state_dict()["lstm.weight_hh_l0"], lstm.state_dict()["weight_hh_l0"])


def test_several_sets_of_weights_are_refused(tmp_path: Path) -> None:
    """Which of two networks is meant can't be guessed."""
    path = tmp_path / "two.pt"
    torch.save({"a": torch.nn.LSTM(3, 5).state_dict(), "b": torch.nn.LSTM(3, 5).state_dict()}, path)
    with pytest.raises(checkpoint.CheckpointError, match=r"several sets of weights \(a, b\)"):
        checkpoint.load(path)


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    """What PyTorch can't build from is said in one line."""
    path = tmp_path / "sparse.pt"
    torch.save({name: value.to_sparse() for name, value in torch.nn.LSTM(3, 5).state_dict().items()}, path)
    with pytest.raises(checkpoint.CheckpointError, match=r"sparse\.pt"):
        checkpoint.load(path)


class Bigger(nn.Module):
    """As people train them: other names, other parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.lstm, self.other = nn.LSTM(5, 6, 2), nn.LSTM(5, 6)
        self.fc = nn.Linear(6, 3)


@pytest.fixture
def lightning(tmp_path: Path) -> Path:
    """A training script's checkpoint in Lightning's form."""
    torch.manual_seed(0)
    weights = {f"model.{name}": value for name, value in Bigger().state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": weights, "hyper_parameters": {"lr": 0.1}, "optimizer_states": []}, path)
    return path


def test_a_layer_is_picked_by_its_prefix(lightning: Path) -> None:
    """With an encoder and a head by their names; what is left out is said."""
    for prefix in ("model.lstm", "model.lstm."):
        found = checkpoint.load(lightning, checkpoint.Picked(prefix, encoder="model.embed", head="model.fc"))
        spec = found.module.spec
        assert (spec.vocabulary, spec.encoder_size, spec.layers, spec.output_size) == (9, 5, 2, 3)
        assert [name.split(".")[1] for name in found.ignored] == ["other"] * 4
    weights = torch.load(lightning)["state_dict"]
    assert torch.equal(found.module.lstm.state_dict()["weight_hh_l1"], weights["model.lstm.weight_hh_l1"])
    assert found.module.head is not None
    assert torch.equal(found.module.head.bias, weights["model.fc.bias"])


@pytest.mark.parametrize(
    ("picked", "text"),
    [
        (checkpoint.Picked(), "several LSTMs .*'model.lstm.', 'model.other.'.* --prefix model.lstm"),
        (checkpoint.Picked("model.lsm"), "--prefix model.lsm: no recurrent layer there; there are --prefix model.lstm"),
        (checkpoint.Picked("model.lstm", head="model.out"), "--head model.out: no such keys"),
        (checkpoint.Picked("model"), "several LSTMs"),
    ],
)
def test_a_choice_that_is_none_is_refused(lightning: Path, picked: checkpoint.Picked, text: str) -> None:
    """With the options that settle it."""
    with pytest.raises(checkpoint.CheckpointError, match=text):
        checkpoint.load(lightning, picked)


def test_nothing_is_left_out_without_a_prefix(tmp_path: Path) -> None:
    """Keys of other modules are refused, and the refusal names the option that leaves them out."""
    path = tmp_path / "a.pt"
    torch.save({**nn.LSTM(5, 6).state_dict(), "decoder.weight": torch.zeros(2, 6)}, path)
    with pytest.raises(checkpoint.CheckpointError, match=r"unknown keys decoder.weight.*--head.*--prefix"):
        checkpoint.load(path)
    assert checkpoint.load(path, checkpoint.Picked(head="decoder")).module.spec.output_size == 2


@torch.no_grad()
def test_a_cell_is_a_layer_of_one_step(tmp_path: Path) -> None:
    """nn.LSTMCell's weights make the same function; several cells are somebody's own module."""
    cell = nn.LSTMCell(5, 6)
    torch.save(cell.state_dict(), tmp_path / "cell.pt")
    module = checkpoint.load(tmp_path / "cell.pt").module
    x = torch.randn(3, 5)
    y, _ = module(x[:, None])
    torch.testing.assert_close(y[:, 0], cell(x)[0])
    torch.save(nn.ModuleList([cell, cell]).state_dict(), tmp_path / "cells.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"several cells .*'0\.', '1\.'.*export module"):
        checkpoint.load(tmp_path / "cells.pt")
    one = checkpoint.load(tmp_path / "cells.pt", checkpoint.Picked("1"))
    assert len(one.ignored) == 4


def test_weights_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    """A GRU's are given as such, and are no LSTM."""
    torch.save(nn.GRU(5, 6).state_dict(), tmp_path / "gru.pt")
    found = checkpoint.load_any(tmp_path / "gru.pt")
    assert isinstance(found, checkpoint.Others)
    assert found.kind == "GRU"
    with pytest.raises(checkpoint.CheckpointError, match="of GRU, not of an LSTM"):
        checkpoint.load(tmp_path / "gru.pt")
