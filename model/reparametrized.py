"""Weights that a module computes from others before it uses them: computed here as its layer would, or named.

Owns the formulas of weight drop, weight_norm, spectral_norm and pruning, in both of PyTorch's spellings, and the words
for what isn't understood. A module that doesn't train is what is computed: no dropout, no power iteration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_PARAMETRIZED = re.compile(r"^(?P<prefix>.*?)parametrizations\.(?P<name>[^.]+)\.(?P<part>.+)$")
_SUFFIXED = re.compile(r"^(?P<name>.*)_(?P<part>g|v|u|orig|mask|raw)$")
_LAYER_NAME = re.compile(r"(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?$")

_ADAPTER = (
    "a LoRA or other adapter, whose scale isn't in the file: merge it where it was made (peft:"
    " model.merge_and_unload()), then save the state dict"
)
_QUANTISED = (
    "of a quantised module, whose float weights are gone: give the state dict of the module before it was quantised;"
    " --precision int8 makes 8-bit weights of it"
)
_AVERAGED = (
    "of an averaged copy (EMA), or of one into which nothing was averaged yet: save the weights that are meant alone"
)
_PARAMETRIZATION = (
    "a parametrization whose formula isn't in the file: bake it in where it was made"
    " (torch.nn.utils.parametrize.remove_parametrizations(layer, name)), then save the state dict"
)
_RAW = "what weight drop keeps: save the state dict of the layer itself, with the raw weights in their place"
_PART = "{}, in part or beside the weight itself: remove it from the layer where it was made ({}), then save"
_UNKNOWN = {
    r"lora_|lora\.|base_layer|adapter|hada_|lokr_|ia3_|\bmagnitude": _ADAPTER,
    r"_all_weight_values|_packed|[ih]gates\.|zero_point|weight_scale|\.SCB|qweight|qzeros|absmax|quant_": _QUANTISED,
    r"(^|[._])ema([._]|$)|shadow|averag": _AVERAGED,
    r"parametrizations\.": _PARAMETRIZATION,
    r"_raw$": _RAW,
    r"_(orig|mask)$": _PART.format("of pruning or spectral_norm", "prune.remove or remove_spectral_norm"),
    r"_(u|bar)$": _PART.format("of spectral_norm", "torch.nn.utils.remove_spectral_norm(layer, name)"),
    r"_(g|v)$": _PART.format("of weight_norm", "torch.nn.utils.remove_weight_norm(layer, name)"),
}


class Resolved(NamedTuple):
    """Weights as a layer uses them, and how those were made that the file doesn't have as such."""

    weights: dict[str, Any]
    made: dict[str, str]


def resolve(state_dict: Mapping[str, Any]) -> Resolved:
    """Every weight that a known formula gives, in the place of what it is made from.

    What is unknown, incomplete or ambiguous stays under its own keys.
    """
    weights, made = _averaged(state_dict)
    for target, keys, how in (*_parametrized(state_dict), *_suffixed(state_dict)):
        found = _FORMULAS[how](*(_float(state_dict[key]) for key in keys))
        if found is None or (target in weights and how != "weight drop"):
            continue
        for key in keys:
            del weights[key]
        weights[target] = found
        made[target] = f"{how}, of {' and '.join(keys)}"
    return Resolved(weights, made)


def _averaged(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The weights without the counter that torch.optim.swa_utils.AveragedModel puts beside its `module`."""
    weights, made = dict(state_dict), {}
    for key, count in state_dict.items():
        prefix, _, last = key.rpartition("n_averaged")
        if last or not isinstance(count, Tensor) or count.numel() != 1 or int(count) < 1:
            continue
        if (not prefix or prefix.endswith(".")) and any(other.startswith(f"{prefix}module.") for other in state_dict):
            del weights[key]
            made[f"{prefix}module"] = f"an average of {int(count)} models (AveragedModel)"
    return weights, made


def unknown(key: str) -> str | None:
    """What a key is that isn't a plain weight of a layer, in words, if its name tells."""
    return next((what for pattern, what in _UNKNOWN.items() if re.search(pattern, key)), None)


def _float(value: Tensor) -> Tensor:
    """In the precision that the module's own computation has, and float32 for halves, as the export computes."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


Found = tuple[str, tuple[str, ...], str]


def _parametrized(state_dict: Mapping[str, Any]) -> Iterator[Found]:
    """The spelling of torch.nn.utils.parametrize: `parametrizations.NAME.original0` and so on."""
    groups: dict[str, dict[str, str]] = {}
    for key, value in state_dict.items():
        if (match := _PARAMETRIZED.match(key)) and isinstance(value, Tensor):
            groups.setdefault(match["prefix"] + match["name"], {})[match["part"]] = key
    for target, parts in groups.items():
        if parts.keys() == {"original0", "original1"}:
            yield target, (parts["original0"], parts["original1"]), "weight_norm"
        elif parts.keys() == {"original", "0._u", "0._v"}:
            yield target, (parts["original"], parts["0._u"], parts["0._v"]), "spectral_norm"


def _suffixed(state_dict: Mapping[str, Any]) -> Iterator[Found]:
    """The spelling of hooks: NAME_g and NAME_v, NAME_orig with _u and _v or with _mask; and NAME_raw."""
    groups: dict[str, dict[str, str]] = {}
    for key, value in state_dict.items():
        if (match := _SUFFIXED.match(key)) and isinstance(value, Tensor) and not _PARAMETRIZED.match(key):
            groups.setdefault(match["name"], {})[match["part"]] = key
    for name, parts in groups.items():
        for how, wanted in _SPELLINGS.items():
            if parts.keys() == set(wanted) and (how != "weight drop" or _LAYER_NAME.search(name)):
                yield _place(name, state_dict) if how == "weight drop" else name, tuple(parts[p] for p in wanted), how


def _place(name: str, state_dict: Mapping[str, Any]) -> str:
    """Where weight drop puts a weight: beside the raw one, or in the module that it wraps (fastai)."""
    prefix, dot, last = name.rpartition(".")
    inner = f"{prefix}{dot}module."
    if any(key.startswith(inner) and _LAYER_NAME.search(key) for key in state_dict):
        return inner + last
    return name


def _weight_norm(g: Tensor, v: Tensor) -> Tensor | None:
    """g·v/|v|, the norm over all axes but the one that g has; over all where g is a scalar."""
    if g.ndim == 0:
        return torch._weight_norm(v, g, -1)  # noqa: SLF001  as the layer itself does
    if g.ndim != v.ndim:
        return None
    axes = [axis for axis, size in enumerate(g.shape) if size != 1] or [0]
    axis = axes[0]
    if len(axes) > 1 or g.shape[axis] != v.shape[axis]:
        return None
    return torch._weight_norm(v, g, axis)  # noqa: SLF001


def _spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
    """W / (u·Wv). Which axis comes first isn't in the file: the sizes tell it, or the larger norm."""
    if weight.ndim != 2 or u.ndim != 1 or v.ndim != 1:
        return None
    rows = (len(u), len(v)) == weight.shape
    columns = (len(v), len(u)) == weight.shape
    sigma = torch.dot(u, torch.mv(weight, v)) if rows else None
    other = torch.dot(u, torch.mv(weight.T, v)) if columns else None
    if sigma is None:
        return None if other is None else weight / other
    if other is not None and abs(other) > abs(sigma):
        return None
    return weight / sigma


def _pruned(weight: Tensor, mask: Tensor) -> Tensor | None:
    """Only what the mask lets through."""
    return mask.to(weight.dtype) * weight if mask.shape == weight.shape else None


_SPELLINGS = {
    "weight_norm": ("g", "v"),
    "spectral_norm": ("orig", "u", "v"),
    "pruning": ("orig", "mask"),
    "weight drop": ("raw",),
}
_FORMULAS: dict[str, Callable[..., Tensor | None]] = {
    "weight_norm": _weight_norm,
    "spectral_norm": _spectral_norm,
    "pruning": _pruned,
    "weight drop": lambda raw: raw,
}
