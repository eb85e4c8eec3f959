"""Sets of weights in what a training script saved: the one that is meant, and what else lies beside it.

Owns finding a state dict among epochs, optimizers and averaged copies. Knows no layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.pickles import Foreign
from model.weights import WeightsError, dotted, listed

_RECURRENT = ("weight_hh", "weight_ih", "_all_weight_values", "_packed_weight", "hgates.")
_DEEP = 12
_SAVE = "save the weights with torch.save(module.state_dict(), path)"


class WeightSet(NamedTuple):
    """A state dict and the names of what lies beside it."""

    weights: Mapping[str, Any]
    beside: tuple[str, ...] = ()


def choose(content: Any, prefix: str | None = None) -> WeightSet:
    """The set of weights in a file's content; where there are several, `prefix` begins with the name of one.

    Raises WeightsError for content that holds none, or for several sets of which none is named.
    """
    if isinstance(content, Foreign):
        raise WeightsError(f"holds {content.what}, whose code isn't run: {_SAVE}")
    if not isinstance(content, Mapping):
        raise WeightsError(f"holds a {type(content).__name__}, not a state dict: {_SAVE}")
    sets = {path: found for path, found in _mappings(content) if any(_is_recurrent(*item) for item in found.items())}
    if prefix is None or not any(path and _names(prefix, path) for path in sets):
        sets = _different(sets)
    sets = sets or _plain_sets(content)
    if not sets:
        _refuse_modules(content)
        return WeightSet(content)
    if len(sets) > 1:
        return _named(sets, prefix)
    (path, weights), *_ = sets.items()
    if path and prefix is not None and _names(prefix, path) and not _has(weights, prefix):
        return WeightSet(_flat({path: weights}), _beside(content, path))
    _refuse_copies(content, path, weights, prefix)
    return WeightSet(weights, _beside(content, path))


def _refuse_modules(content: Mapping[str, Any]) -> None:
    """Raise WeightsError where the only weights are those in whole modules."""
    modules = [path for path, value in _parts(content) if isinstance(value, Foreign) and value.is_module]
    if modules:
        raise WeightsError(f"holds a whole pickled module under {listed(modules)}, whose code isn't run: {_SAVE}")


def _different(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The sets without those that have the same weights as one before."""
    found: dict[str, Mapping[str, Any]] = {}
    for path, part in sets.items():
        if not any(_equal(part, other) for other in found.values()):
            found[path] = part
    return found


def _equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())


def _same(left: Any, right: Any) -> bool:
    if left is right:
        return True
    return _comparable(left) and _comparable(right) and left.dtype == right.dtype and torch.equal(left, right)


def _comparable(value: Any) -> bool:
    return isinstance(value, Tensor) and not (value.is_meta or value.is_quantized) and value.layout is torch.strided


def _has(weights: Mapping[str, Any], prefix: str) -> bool:
    return any(str(key).startswith(dotted(prefix)) for key in weights)


def _named(sets: Mapping[str, Mapping[str, Any]], prefix: str | None) -> WeightSet:
    """All sets as one, each under its name, for a prefix that picks from it."""
    shown = [path or "the top" for path in sets]
    if prefix is None:
        example = next(path for path in sets if path)
        raise WeightsError(
            f"holds several sets of weights ({', '.join(shown)}): name one, as in --prefix {example}, or save just one"
        )
    return WeightSet(_flat(sets))


def _flat(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{path}.{key}" if path else str(key): value for path, part in sets.items() for key, value in part.items()}


def _names(prefix: str, path: str) -> bool:
    return f"{prefix}.".startswith(f"{path}.")


def _refuse_copies(content: Mapping[str, Any], path: str, weights: Mapping[str, Any], prefix: str | None) -> None:
    """Raise WeightsError where other tensors of the layer's shapes lie beside the set: which are meant isn't known."""
    recurrent = [v for k, v in weights.items() if "weight_hh" in str(k) and isinstance(v, Tensor) and v.ndim > 1]
    mine = [value for value in weights.values() if isinstance(value, Tensor)]
    copies = [
        where
        for where, value in _parts(content, inside=True)
        if isinstance(value, Tensor)
        and any(value.shape == part.shape for part in recurrent)
        and not any(value.shape == part.shape and _same(value, part) for part in mine)
    ]
    if copies:
        whole = f"{path}.{prefix}" if prefix else path
        raise WeightsError(
            f"holds weights under {path or 'its top'} and tensors of their shapes under {listed(copies)}, as an"
            " averaged copy (EMA) has: which are meant can't be known; save the ones meant alone"
            + (f", or say --prefix {whole} for the former" if path else "")
        )


def _beside(content: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """The top-level names of what isn't the set, with the classes of what was read past."""
    if not path:
        return ()
    others = {str(key): value for key, value in content.items() if str(key) != path.partition(".")[0]}
    return tuple(f"{key} ({v.origin})" if isinstance(v, Foreign) else key for key, v in others.items())


def _is_recurrent(key: Any, value: Any) -> bool:
    return any(part in str(key) for part in _RECURRENT) and isinstance(value, (Tensor, Foreign))


def _plain_sets(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """State dicts without a recurrent layer of PyTorch's."""
    if any(isinstance(value, Tensor) for value in content.values()):
        return {"": content}
    return {
        path: found
        for path, found in _mappings(content)
        if found and all(isinstance(value, Tensor) for value in found.values())
    }


def _mappings(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", content
    yield from ((path, value) for path, value in _parts(content) if isinstance(value, Mapping))


def _parts(value: Any, path: str = "", depth: int = 0, *, inside: bool = False) -> Iterator[tuple[str, Any]]:
    """Everything in a content with its dotted name, optimizers' states left out; of whole modules if `inside`."""
    if depth > _DEEP:
        return
    for key, part in _items(value, inside=inside):
        name = f"{path}.{key}" if path else str(key)
        if "optim" in name.lower() or (isinstance(part, Mapping) and "param_groups" in part):
            continue
        yield name, part
        yield from _parts(part, name, depth + 1, inside=inside)


def _items(value: Any, *, inside: bool) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif isinstance(value, Foreign) and (inside or not value.is_module):
        for part in value.parts:
            if not (isinstance(part, Mapping) and "param_groups" in part):
                yield from _items(part, inside=inside)
