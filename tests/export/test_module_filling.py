"""Weights put into a module: tied ones, computed ones, wrapped ones, and what PyTorch would convert in silence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from export.module_calls import ModuleError
from export.module_filling import fill


class Net(nn.Module):
    """An embedding, a layer and a decoder."""

    def __init__(self, tie: str = "") -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 4)
        self.lstm = nn.LSTM(4, 4)
        self.decode = nn.Linear(4, 4, bias=False)
        if tie == "parameter":
            self.decode.weight = self.embed.weight
        if tie == "data":
            self.decode.weight.data = self.embed.weight.data
        if tie == "transposed":
            self.decode.weight = nn.Parameter(self.embed.weight.detach().t())


def _random() -> dict[str, Any]:
    torch.manual_seed(3)
    return {key: torch.randn_like(value) for key, value in Net().state_dict().items()}


def _saved(weights: Any, tmp_path: Path) -> Path:
    torch.save(weights, tmp_path / "w.pt")
    return tmp_path / "w.pt"


@pytest.mark.parametrize("tie", ["parameter", "data", "transposed"])
def test_tied_weights_with_different_values_are_refused(tie: str, tmp_path: Path) -> None:
    """PyTorch would let the last one win."""
    with pytest.raises(ModuleError, match=r"different values for embed.weight and decode.weight, .*\(tied\): make"):
        fill(Net(tie), _saved(_random(), tmp_path), None)
    fill(Net(), _saved(_random(), tmp_path), None)


def test_a_tied_weight_that_is_left_out_is_its_twins(tmp_path: Path) -> None:
    """As safetensors' save_model writes it; an untied module needs both."""
    weights = _random()
    del weights["decode.weight"]
    net: Any = Net("parameter")
    fill(net, _saved(weights, tmp_path), None)
    assert torch.equal(net.decode.weight, weights["embed.weight"])
    assert torch.equal(net.lstm.weight_hh_l0, weights["lstm.weight_hh_l0"])
    with pytest.raises(ModuleError, match=r"missing decode.weight$"):
        fill(Net(), _saved(weights, tmp_path), None)


def _by(change: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    def changed(net: Any) -> Any:
        change(net.lstm, "weight_hh_l0", **options)
        return net.eval()

    return changed


COMPUTED = {
    "weight_norm": _by(weight_norm),
    "spectral_norm": _by(spectral_norm),
    "pruning": _by(prune.l1_unstructured, amount=0.5),
    "new weight_norm": _by(parametrizations.weight_norm),
    "new spectral_norm": _by(parametrizations.spectral_norm),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", COMPUTED.values(), ids=COMPUTED)
def test_a_plain_module_takes_weights_that_are_computed(change: Any, tmp_path: Path) -> None:
    """As the module computes that they are of; the other way round is refused."""
    theirs = change(Net())
    theirs.lstm(torch.zeros(1, 1, 4))  # hooks compute the weight
    net: Any = Net()
    fill(net, _saved(theirs.state_dict(), tmp_path), None)
    assert torch.equal(net.lstm.weight_hh_l0, theirs.lstm.weight_hh_l0)
    with pytest.raises(ModuleError, match=r"has lstm.weight_hh_l0 itself, which the module computes from lstm"):
        fill(change(Net()), _saved(_random(), tmp_path), None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("new", [True, False])
def test_both_spellings_of_a_norm_are_one(norm: str, new: bool, tmp_path: Path) -> None:
    """Each goes into a module of the other."""
    theirs, ours = (COMPUTED[f"{'new ' * is_new}{norm}"](Net()) for is_new in (not new, new))
    fill(ours, _saved(theirs.state_dict(), tmp_path), None)
    for net in (theirs, ours):
        net.lstm(torch.zeros(1, 1, 4))
    assert torch.allclose(ours.lstm.weight_hh_l0, theirs.lstm.weight_hh_l0, rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("start", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_pytorchs_wrappers_are_taken_off_the_keys(start: str, tmp_path: Path) -> None:
    """Around the whole module, or a part; and where the module has the wrapper."""
    weights = _random()
    net: Any = Net()
    fill(net, _saved({start + key: value for key, value in weights.items()}, tmp_path), None)
    assert torch.equal(net.lstm.weight_hh_l0, weights["lstm.weight_hh_l0"])
    part = {key.replace("lstm.", "lstm._orig_mod."): value for key, value in weights.items()}
    net = Net()
    fill(net, _saved(part, tmp_path), None)
    assert torch.equal(net.lstm.weight_hh_l0, weights["lstm.weight_hh_l0"])
    compiled: Any = torch.compile(Net())
    fill(compiled, _saved(weights, tmp_path), None)
    assert torch.equal(compiled.lstm.weight_hh_l0, weights["lstm.weight_hh_l0"])


def test_a_deeper_prefix_is_named(tmp_path: Path) -> None:
    """With all of its names."""
    path = _saved({f"model.net.{key}": value for key, value in _random().items()}, tmp_path)
    with pytest.raises(ModuleError, match=r"try --prefix model\.net$"):
        fill(Net(), path, None)
    fill(Net(), path, "model.net")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_plain_weight_is_refused_by_what_it_is(tmp_path: Path) -> None:
    """Quantised values and keys, integers, adapters."""
    weights = _random()
    matrix = weights["lstm.weight_hh_l0"]
    for strange, text in (
        ({"lstm.weight_hh_l0": matrix.to(torch.int8)}, "lstm.weight_hh_l0 is int8, and the module's is float32"),
        ({"lstm.weight_hh_l0": torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8)}, "a quantised tensor"),
        ({"lstm._all_weight_values.0.param": matrix}, "_all_weight_values.0.param is of a quantised module"),
        ({"lstm.lora_A": matrix}, "lstm.lora_A is a LoRA"),
    ):
        with pytest.raises(ModuleError, match=text):
            fill(Net(), _saved(copy.copy(weights) | strange, tmp_path), None)
