"""Weights that aren't the weights: computed as the real module computes them, or refused by what they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune

from model import checkpoint
from model.checkpoint import Picked

WEIGHT = "weight_hh_l0"
l1_unstructured: Any = prune.l1_unstructured
quantize_dynamic: Any = torch.ao.quantization.quantize_dynamic
pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's, for the older spellings


def lstm() -> nn.LSTM:
    """A small layer, the same each time."""
    torch.manual_seed(0)
    return nn.LSTM(5, 8)


class WeightDrop(nn.Module):
    """As fastai's AWD-LSTM has it: the raw weight beside the wrapped layer, the dropped-out one within."""

    def __init__(self) -> None:
        super().__init__()
        self.module = lstm()
        raw = self.module.state_dict()[WEIGHT]
        self.weight_hh_l0_raw = nn.Parameter(raw.clone())
        self.module.weight_hh_l0 = nn.Parameter(nn.functional.dropout(raw, 0.5))

    def forward(self, x: Tensor) -> Any:
        """In evaluation the raw weight is what counts."""
        weights: dict[str, Any] = {**dict(self.module.named_parameters()), WEIGHT: self.weight_hh_l0_raw}
        return torch.func.functional_call(self.module, weights, (x,))


def averaged() -> nn.Module:
    """An average of two models."""
    module = torch.optim.swa_utils.AveragedModel(lstm())
    module.update_parameters(lstm())
    other = lstm()
    other.load_state_dict({key: 2 * value for key, value in lstm().state_dict().items()})
    module.update_parameters(other)
    return module


def moved(module: nn.Module) -> nn.Module:
    """The module after its weights have moved, as training does, so that nothing is as it was made."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    module(torch.randn(3, 2, 5, generator=generator))
    return module


MADE: dict[str, Callable[[], nn.Module]] = {
    "weight_norm, of .*_g and .*_v": lambda: utils.weight_norm(lstm(), WEIGHT),
    "weight_norm, of .*_g and .*_v ": lambda: utils.weight_norm(lstm(), WEIGHT, dim=1),
    "weight_norm, of .*_g and .*_v  ": lambda: utils.weight_norm(lstm(), WEIGHT, dim=None),  # type: ignore[arg-type]
    "weight_norm, of .*original0 and": lambda: parametrizations.weight_norm(lstm(), WEIGHT),
    "weight_norm, of .*original0 and ": lambda: parametrizations.weight_norm(lstm(), WEIGHT, dim=1),
    "spectral_norm, of .*_orig": lambda: utils.spectral_norm(lstm(), WEIGHT),
    "spectral_norm, of .*original": lambda: parametrizations.spectral_norm(lstm(), WEIGHT),
    "pruning, of .*_orig": lambda: l1_unstructured(lstm(), WEIGHT, 0.4),
    "weight drop, of .*_raw": WeightDrop,
    "an average of 2 models": averaged,
}


@pytest.mark.parametrize("how", MADE)
@torch.no_grad()
def test_what_a_module_computes_its_weights_from(how: str, tmp_path: Path) -> None:
    """The layer that is built answers, bit for bit, as the real module does, and what was computed is told."""
    with torch.enable_grad():
        module = moved(MADE[how]()).eval()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    found = checkpoint.load(tmp_path / "w.pt")
    x = torch.randn(4, 3, 5)
    assert torch.equal(found.module.lstm(x.transpose(0, 1))[0].transpose(0, 1), module(x)[0])
    assert len(found.remarks) == 1
    assert re.search(how.strip(), found.remarks[0])


def test_weight_drop_is_understood_before_a_prefix_picks(tmp_path: Path) -> None:
    """Fastai's raw weight lies outside of the prefix that picks its layer."""
    weights = {f"0.rnns.{i}.{key}": value for i in (0, 1) for key, value in WeightDrop().state_dict().items()}
    weights["0.encoder.weight"] = torch.randn(9, 5)
    torch.save(weights, tmp_path / "awd.pth")
    for prefix in ("0.rnns.0.module", "0.rnns.0"):
        found = checkpoint.load(tmp_path / "awd.pth", Picked(prefix, encoder="0.encoder"))
        assert torch.equal(found.module.state_dict()["lstm.weight_hh_l0"], plain()[WEIGHT])
        assert len(found.remarks) == 1


def plain() -> dict[str, Any]:
    """A layer's own weights."""
    return dict(lstm().state_dict())


def with_head(**more: Tensor) -> dict[str, Any]:
    """A layer, a head, and something more."""
    head = {"fc.weight": torch.randn(3, 8), "fc.bias": torch.zeros(3)}
    return {f"lstm.{key}": value for key, value in plain().items()} | head | more


def sibling(name: str) -> dict[str, Any]:
    """A layer with something beside its weights."""
    return with_head(**{f"lstm.{name}": torch.ones(32, 8)})


def quantised() -> dict[str, Any]:
    """A layer quantised by torch.ao."""
    return dict(quantize_dynamic(nn.Sequential(lstm()), {nn.LSTM}).state_dict())


def quantised_tensors() -> dict[str, Any]:
    """Each weight as a quantised tensor."""
    return {key: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8) for key, value in plain().items()}


PICKED = Picked("lstm", head="fc")
REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], Picked, str]] = {
    "orthogonal": (
        lambda: dict(parametrizations.orthogonal(lstm(), WEIGHT).state_dict()),
        Picked(),
        "a parametrization whose formula isn't in the file",
    ),
    "spectral over columns, square": (
        lambda: dict(parametrizations.spectral_norm(nn.LSTM(32, 8), "weight_ih_l0", dim=1).state_dict()),
        Picked(),
        "parametrization",
    ),
    "weight_norm beside the weight": (
        lambda: sibling("weight_hh_l0_g") | sibling("weight_hh_l0_v"),
        PICKED,
        "weight_norm",
    ),
    "half of weight_norm": (lambda: sibling("weight_hh_l0_g"), PICKED, "weight_norm"),
    "a mask": (lambda: sibling("weight_hh_l0_mask"), PICKED, "pruning"),
    "LoRA in the layer": (lambda: sibling("lora_A.default.weight"), PICKED, "LoRA"),
    "LoRA in the head": (lambda: with_head(**{"fc.lora_A": torch.ones(2, 8)}), PICKED, "LoRA"),
    "peft's head": (lambda: with_head(**{"fc.base_layer.weight": torch.ones(3, 8)}), PICKED, "LoRA"),
    "LoRA, no prefix": (lambda: plain() | {"lora_A": torch.ones(2, 8)}, Picked(), "LoRA"),
    "an EMA within": (lambda: sibling("ema.weight_hh"), PICKED, "averaged"),
    "a norm within": (lambda: sibling("ln.weight"), PICKED, "lstm.ln.weight beside .* module of another kind"),
    "anything within": (lambda: sibling("scale"), PICKED, "lstm.scale beside .* module of another kind"),
    "two candidates": (lambda: with_head(**{"ema.weight_hh_l0": torch.ones(32, 8)}), Picked(), "several LSTMs"),
    "quantised": (quantised, Picked(), "of a quantised module"),
    "quantised tensors": (quantised_tensors, Picked(), r"a quantised tensor \(torch.qint8\)"),
    "integers": (lambda: {k: v.to(torch.int8) for k, v in plain().items()}, Picked(), r"torch.int8.*quantised"),
    "complex": (lambda: {k: v.to(torch.complex64) for k, v in plain().items()}, Picked(), "complex64"),
    "meta": (lambda: {k: v.to("meta") for k, v in plain().items()}, Picked(), "no values"),
    "nothing averaged": (
        lambda: dict(torch.optim.swa_utils.AveragedModel(nn.ModuleDict({"lstm": lstm()})).state_dict()),
        Picked("module.lstm"),
        "n_averaged is 0",
    ),
    "an encoder that is either": (
        lambda: with_head(**{"e.weight": torch.ones(5, 5)}),
        Picked("lstm", "e", "fc"),
        "either|may be",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_named(case: str, tmp_path: Path) -> None:
    """Nothing beside a layer's weights is dropped unread; the refusal names it and says what to do."""
    make, picked, words = REFUSED[case]
    torch.save(make(), tmp_path / "w.pt")
    with pytest.raises(checkpoint.CheckpointError, match=words) as refusal:
        checkpoint.load_any(tmp_path / "w.pt", picked)
    assert "\n" not in str(refusal.value)


def test_other_layers_are_left_out_and_told(tmp_path: Path) -> None:
    """Whatever they are, they aren't in the layer's own prefix."""
    others = {"ema.lstm.weight_hh_l0": torch.ones(32, 8), "conv.weight_g": torch.ones(1), "fc.lora_A": torch.ones(1)}
    torch.save(with_head(**others), tmp_path / "w.pt")
    found = checkpoint.load(tmp_path / "w.pt", Picked("lstm"))
    assert set(found.ignored) == {"fc.weight", "fc.bias", *others}


@pytest.mark.parametrize(
    ("dtype", "said"), [(torch.float64, "rounded to"), (torch.float16, "taken as"), (torch.bfloat16, "taken as")]
)
def test_weights_of_another_dtype_are_told(dtype: torch.dtype, said: str, tmp_path: Path) -> None:
    """What is computed is float32."""
    torch.save({key: value.to(dtype) for key, value in plain().items()}, tmp_path / "w.pt")
    found = checkpoint.load(tmp_path / "w.pt")
    assert found.remarks == (f"weights of {str(dtype).removeprefix('torch.')} are {said} float32",)
    assert found.module.lstm.weight_hh_l0.dtype == torch.float32


def test_an_encoder_without_a_bias_is_told_by_its_size(tmp_path: Path) -> None:
    """Where the layer takes as many features as it has rows it is a linear map, and no embedding."""
    torch.save(with_head(**{"e.weight": torch.ones(5, 3), "f.weight": torch.ones(3, 4)}), tmp_path / "w.pt")
    spec = checkpoint.load(tmp_path / "w.pt", Picked("lstm", "e")).module.spec
    assert (spec.input_size, spec.encoder_size, spec.vocabulary) == (3, 5, None)
    with pytest.raises(checkpoint.CheckpointError, match=r": f.weight has shape \(3, 4\), and .* takes 5 features"):
        checkpoint.load(tmp_path / "w.pt", Picked("lstm", "f"))
