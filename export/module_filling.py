"""A file's weights, put into a module: under its own keys, computed where the file has what they are made of.

Owns which of a file's keys are meant, and every refusal of keys and values that aren't the module's. Runs no code.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.module_calls import ModuleError
from export.theirs import one_line
from model.checkpoint import read_weights
from model.reparametrized import resolve, unknown
from model.weights import WeightsError, check_finite, dotted, listed, refuse_strange

_COMPILED = "_orig_mod."
_PARALLEL = "module."
_COMPUTED = re.compile(
    r"^(?P<layer>.*?)parametrizations\.(?P<name>[^.]+)\..+$|^(?P<weight>.*)_(g|v|u|orig|mask|raw|bar)$"
)

_SPELLINGS = ((("g", "v"), ("original0", "original1")), (("orig", "u", "v"), ("original", "0._u", "0._v")))


def fill(module: nn.Module, path: Path, prefix: str | None) -> tuple[str, ...]:
    """Load the file's weights into the module; gives the keys that the prefix left out.

    Raises ModuleError where keys, shapes, dtypes or tied weights don't fit, CheckpointError for the file.
    """
    weights, _ = read_weights(path, prefix)
    start = dotted(prefix or "")
    given = {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
    wanted = module.state_dict(keep_vars=True)
    try:
        chosen = _with_twins(_under_its_keys(given, wanted), wanted)
        _check_keys(path, chosen, wanted, start)
        _check_values(chosen, wanted)
        module.load_state_dict(chosen)
    except (RuntimeError, WeightsError, AttributeError) as error:
        raise ModuleError(f"{path} doesn't fit the module: {one_line(error)}") from error
    _check_ties(path, chosen, module.state_dict(keep_vars=True))
    return tuple(key for key in weights if not key.startswith(start))


def _under_its_keys(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The weights under the module's keys, out of PyTorch's wrappers and computed, as far as these make them fit."""
    if given.keys() == wanted.keys():
        return dict(given)
    names, resolved = _bare(wanted), resolve(given)
    computed = {_plain(name) for name in names} - {None}
    kept = {key for key in given if key in resolved.weights or key in wanted or _plain(_inside(key)) in computed}
    found = {key: value for key, value in given.items() if key in kept}
    found |= {key: value for key, value in resolved.weights.items() if _inside(key) not in computed}
    bare = _bare(found)
    if all(name.startswith(_PARALLEL) for name in bare) and not any(name.startswith(_PARALLEL) for name in names):
        bare = {name.removeprefix(_PARALLEL): key for name, key in bare.items()}
    if len(bare) < len(found) or len(names) < len(wanted):
        return found  # two keys would become one
    bare = _respelled(bare, names)
    return {names.get(name, key): found[key] for name, key in bare.items()}


def _respelled(bare: dict[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """The keys, those of weight_norm and spectral_norm in the module's spelling where the file has the other one."""
    for plain in {_plain(name) for name in names} - {None}:
        prefix, dot, last = str(plain).rpartition(".")
        for suffixes, parts in _SPELLINGS:
            hooks = [f"{plain}_{suffix}" for suffix in suffixes]
            new = [f"{prefix}{dot}parametrizations.{last}.{part}" for part in parts]
            for theirs, ours in ((hooks, new), (new, hooks)):
                if all(key in bare for key in theirs) and all(key in names and key not in bare for key in ours):
                    bare |= {our: bare.pop(their) for our, their in zip(ours, theirs, strict=True)}
    return bare


def _plain(key: str) -> str | None:
    """The weight that a key's value is a part of, by its name."""
    match = _COMPUTED.match(key)
    return None if match is None else match["weight"] or f"{match['layer']}{match['name']}"


def _inside(key: str) -> str:
    """A key as it is without torch.compile's and the parallel wrappers' names."""
    return key.replace(_COMPILED, "").removeprefix(_PARALLEL)


def _bare(keys: Iterable[str]) -> dict[str, str]:
    """Keys by what they are without torch.compile's name."""
    return {key.replace(_COMPILED, ""): key for key in keys}


def _with_twins(chosen: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The weights, with those that the file leaves out because the module has the same tensor under another key."""
    twins: dict[Any, list[str]] = defaultdict(list)
    for key, value in wanted.items():
        if isinstance(value, Tensor):
            twins[_place(value)].append(key)
    for keys in twins.values():
        there = [key for key in keys if key in chosen]
        chosen |= {key: chosen[there[0]] for key in keys if there and key not in chosen}
    return chosen


def _place(value: Tensor) -> Any:
    """What two tensors have alike that are one in memory."""
    if value.is_meta or nn.parameter.is_lazy(value) or value.layout is not torch.strided or not value.numel():
        return id(value)
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def _check_keys(path: Path, chosen: Mapping[str, Any], wanted: Mapping[str, Any], start: str) -> None:
    """Raise ModuleError for missing and unknown keys, by what they are where their names tell."""
    missing, strange = sorted(wanted.keys() - chosen.keys()), sorted(chosen.keys() - wanted.keys())
    if not missing and not strange:
        return
    for key in missing:
        if (plain := _plain(key)) in chosen:
            raise ModuleError(
                f"{path} has {plain} itself, which the module computes from {key}: make the module without what"
                " computes it (weight_norm, spectral_norm, pruning, weight drop), as it was when these were saved"
            )
    firsts = sorted({key.removesuffix(f".{name}") for key in chosen for name in wanted if key.endswith(f".{name}")})
    hint = f"; try --prefix {start}{firsts[0]}" if len(firsts) == 1 else ""
    if not hint and (kinds := [(key, what) for key in strange if (what := unknown(key)) is not None]):
        key, what = kinds[0]
        raise ModuleError(f"{path} has other keys than the module: {key} is {what}")
    parts = [f"{kind} {listed(keys)}" for kind, keys in (("missing", missing), ("unknown", strange)) if keys]
    raise ModuleError(f"{path} has other keys than the module: {'; '.join(parts)}{hint}")


def _check_values(chosen: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise WeightsError for what PyTorch would convert into numbers that aren't the weights."""
    values = {key: value for key, value in chosen.items() if isinstance(wanted[key], Tensor)}
    refuse_strange({key: value for key, value in values.items() if not wanted[key].is_complex()})
    for key, value in values.items():
        if value.is_floating_point() != wanted[key].is_floating_point():
            raise WeightsError(
                f"{key} is {_dtype(value)}, and the module's is {_dtype(wanted[key])}: save the weights as the module"
                " computes with them"
            )
    check_finite({key: value for key, value in values.items() if value.is_floating_point()})


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _check_ties(path: Path, chosen: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Raise ModuleError where two keys are one memory in the module, and the file has different values for them."""
    storages = {key: _storage(value) for key, value in loaded.items() if isinstance(value, Tensor)}
    for key, storage in storages.items():
        others = [name for name, other in storages.items() if other == storage is not None and name != key]
        if others and not torch.equal(loaded[key].detach().cpu(), chosen[key].to(loaded[key].dtype).cpu()):
            raise ModuleError(
                f"{path} has different values for {key} and {others[-1]}, which are one tensor in the module (tied):"
                " make the module without the tie, or save the weights of one that has it"
            )


def _storage(value: Tensor) -> int | None:
    if value.is_meta or nn.parameter.is_lazy(value) or value.layout is not torch.strided or not value.numel():
        return None
    return value.untyped_storage().data_ptr()
