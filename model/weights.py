"""What a state dict holds: picks and names its weights, reads the LSTM's sizes from them, says clearly what is wrong.

Owns the naming of weights (`lstm.*`, `encoder.*`, `head.*`) and every refusal of weights. Knows no modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.reparametrized import unknown

CORE = "lstm."
GATES = 4
_LAYER_KEY = re.compile(
    r"^(?P<prefix>.*?)(?P<kind>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(?P<layer>\d+)(?P<reverse>_reverse)?$"
)


_CELL_KEY = re.compile(r"^(?P<prefix>.*?)(?P<kind>weight_ih|weight_hh|bias_ih|bias_hh)$")
_GATES_OF = {4: "LSTM", 3: "GRU", 1: "RNN"}


class WeightsError(ValueError):
    """These weights aren't those of an LSTM that can be built."""


class UnsupportedLSTMError(WeightsError):
    """A torch.nn.LSTM of a kind that isn't supported: bidirectional."""


class CoreSpec(NamedTuple):
    """The sizes of the LSTM itself: F, H, L, whether it has biases, and P where it projects its h."""

    input_size: int
    hidden_size: int
    layers: int
    bias: bool
    proj_size: int | None = None


class Selection(NamedTuple):
    """What was picked out of a bigger module's weights, under our names, and the keys that were left."""

    weights: dict[str, Any]
    ignored: tuple[str, ...]


def select(
    state_dict: Mapping[str, Any], *, prefix: str | None = None, encoder: str | None = None, head: str | None = None
) -> Selection:
    """Pick one recurrent layer by the prefix of its keys, an encoder and a head by their names.

    Without a prefix nothing is left out: what isn't picked stays, and is refused later. Raises WeightsError where a
    name isn't there.
    """
    weights: dict[str, Any] = {}
    rest = dict(state_dict)
    for option, name, ours in (("encoder", encoder, "encoder."), ("head", head, "head.")):
        if name is not None:
            found = {key: rest.pop(key) for key in list(rest) if key.startswith(dotted(name))}
            _check_linear(option, name, found, state_dict)
            weights |= {ours + key.removeprefix(dotted(name)): value for key, value in found.items()}
    weight = weights.get("head.weight")
    if isinstance(weight, Tensor) and weight.ndim and "head.bias" not in weights:
        weights["head.bias"] = weight.new_zeros(weight.shape[0])  # the same function
    if prefix is None:
        return Selection(weights | rest, ())
    within = {key.removeprefix(dotted(prefix)): key for key in rest if key.startswith(dotted(prefix))}
    layers = [key for key in within if _LAYER_KEY.match(key) or _CELL_KEY.match(key)]
    if not layers:
        raise WeightsError(f"--prefix {prefix}: {_no_layer(list(within.values()), state_dict)}")
    bare = any("." not in key for key in layers)
    taken = [key for key in layers if "." not in key or not bare]
    taken += [key for key in within if key.startswith(("encoder.", "head.")) and key not in taken and not bare]
    weights |= {key: rest.pop(within[key]) for key in taken if key not in weights}
    for key in layers:
        match = _LAYER_KEY.match(key) or _CELL_KEY.match(key)
        if match is not None and key in taken:
            _refuse_siblings(dotted(prefix) + match["prefix"], rest)
    _refuse_unaveraged(dotted(prefix), rest)
    return Selection(weights, tuple(rest))


def _refuse_siblings(own: str, rest: Mapping[str, Any]) -> None:
    """Raise WeightsError for keys within the layer's prefix that aren't its weights: they may change its answers."""
    siblings = [key for key in rest if key.startswith(own)]
    if siblings:
        raise WeightsError(_beside(siblings, f"the layer {own.removesuffix('.')}" if own else "the layer"))


def _refuse_unaveraged(prefix: str, rest: Mapping[str, Any]) -> None:
    """Raise WeightsError for a layer of an AveragedModel into which nothing was averaged."""
    for key, count in rest.items():
        owner, found, last = key.rpartition("n_averaged")
        if found and not last and prefix.startswith(f"{owner}module.") and not bool(torch.as_tensor(count).any()):
            raise WeightsError(
                f"{key} is 0: nothing was averaged into this AveragedModel, whose weights are still those it was made"
                " with; save the model's own"
            )


def _beside(keys: list[str], where: str) -> str:
    """The refusal of keys that lie beside a layer's weights, by what they are if their names tell."""
    for key in keys:
        if (what := unknown(key)) is not None:
            return f"{key}, beside {where}, is {what}"
    return (
        f"{listed(keys)} beside the weights of {where}: an nn.LSTM, nn.GRU or nn.RNN has no such weights, so these"
        " belong to a module of another kind, which `python -m export module FILE.py:CLASS` takes"
    )


def _check_linear(option: str, name: str, found: Mapping[str, Any], state_dict: Mapping[str, Any]) -> None:
    """Raise WeightsError unless the keys under an option's name are one layer's weight and bias."""
    names = {key.removeprefix(dotted(name)) for key in found}
    if "weight" in names and names <= {"weight", "bias"}:
        return
    strange = [key for key in found if key.removeprefix(dotted(name)) not in ("weight", "bias")]
    for key in strange:
        if (what := unknown(key)) is not None:
            raise WeightsError(f"--{option} {name}: {key} is {what}")
    linear = [layer for layer in _linear_layers(state_dict) if not found or layer.startswith(dotted(name))]
    if not found:
        there = f"; there are {listed(f'--{option} {layer}' for layer in linear)}" if linear else ""
        raise WeightsError(f"--{option} {name}: no such keys among {listed(state_dict)}{there}")
    if linear:
        raise WeightsError(
            f"--{option} {name} is more than one layer ({listed(strange)}), and an activation in it would have no"
            f" weights to show: if it is a linear layer alone, say --{option} {linear[-1]}; otherwise `python -m export"
            " module FILE.py:CLASS` takes the whole module"
        )
    linear = _linear_layers(state_dict)
    there = f"; there are {listed(f'--{option} {layer}' for layer in linear)}" if linear else ""
    raise WeightsError(f"--{option} {name}: no linear layer there, but {listed(found)}{there}")


def _linear_layers(state_dict: Mapping[str, Any]) -> list[str]:
    """Names of layers that have a matrix `weight`, and at most a `bias` beside it."""
    keys = [key for key, value in state_dict.items() if key.endswith(".weight") and getattr(value, "ndim", 0) == 2]
    names = [key.removesuffix(".weight") for key in keys]
    return [
        name
        for name in names
        if {key for key in state_dict if key.startswith(dotted(name))} <= {f"{name}.weight", f"{name}.bias"}
    ]


def _no_layer(within: list[str], state_dict: Mapping[str, Any]) -> str:
    """Why a prefix has no recurrent layer, and which prefixes have one."""
    for key in within:
        if (what := unknown(key)) is not None:
            return f"{key} is {what}"
    instead = f", but {listed(within)}" if within else ""
    return f"no recurrent layer there{instead}; {_found_layers(state_dict) or 'nor is one anywhere else'}"


def dotted(name: str) -> str:
    """A prefix with its dot."""
    return name if not name or name.endswith(".") else f"{name}."


def _found_layers(state_dict: Mapping[str, Any]) -> str:
    """Where recurrent layers are, as options that pick them."""
    matches = [match for name in state_dict if (match := _LAYER_KEY.match(name) or _CELL_KEY.match(name))]
    prefixes = sorted({match["prefix"] for match in matches})
    return "there are " + listed(f"--prefix {prefix}" for prefix in prefixes) if prefixes else ""


def kind_of(weights: Mapping[str, Tensor]) -> str:
    """LSTM, GRU or RNN, by the rows of normalized weights; raises WeightsError where they are none's."""
    weight = weights.get(f"{CORE}weight_hh_l0")
    if weight is None or weight.ndim != 2 or weight.shape[0] % weight.shape[1]:
        return "LSTM"  # core_spec says what is wrong
    return _GATES_OF.get(weight.shape[0] // weight.shape[1], "LSTM")


def _cells_as_layers(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights of one cell (nn.LSTMCell, …) as those of a layer: it is the same function."""
    if any(_LAYER_KEY.match(name) for name in state_dict):
        return state_dict
    matches = {name: match for name in state_dict if (match := _CELL_KEY.match(name))}
    prefixes = sorted({match["prefix"] for match in matches.values()})
    if len(prefixes) > 1:
        raise WeightsError(
            f"several cells under the prefixes {', '.join(map(repr, prefixes))}: weights don't say how they are put"
            " together; --prefix picks one, and `python -m export module FILE.py:CLASS` takes a module of all"
        )
    return {f"{name}_l0" if name in matches else name: value for name, value in state_dict.items()}


def normalize(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under our names: the LSTM's keys under `lstm.`, whatever single prefix they had.

    The keys of an nn.LSTMCell, which have no layer number, are those of a layer.

    Raises UnsupportedLSTMError for bidirectional layers, WeightsError for anything else unexpected.
    """
    refuse_strange(state_dict)
    state_dict = _cells_as_layers(state_dict)
    matches = {name: match for name in state_dict if (match := _LAYER_KEY.match(name))}
    if not matches:
        for key in state_dict:
            if (what := unknown(key)) is not None:
                raise WeightsError(f"{key} is {what}")
        raise WeightsError(f"no weights of an LSTM (weight_ih_l0, …) among {listed(state_dict)}")
    _refuse_unsupported(matches)
    prefixes = sorted({match["prefix"] for match in matches.values()})
    if len(prefixes) > 1:
        raise WeightsError(
            f"several LSTMs under the prefixes {', '.join(map(repr, prefixes))}: give one of them, as in --prefix"
            f" {prefixes[0]}"
        )
    prefix = prefixes[0]
    weights = {}
    for name, value in state_dict.items():
        if name in matches:
            weights[CORE + name.removeprefix(prefix)] = value
        elif name.startswith(("encoder.", "head.")):
            weights[name] = value
        else:
            strangers = [
                other for other in state_dict if other not in matches and not other.startswith(("encoder.", "head."))
            ]
            if any(unknown(other) for other in strangers):
                raise WeightsError(
                    _beside(strangers, f"the layer {prefix.removesuffix('.')}" if prefix else "the layer")
                )
            raise WeightsError(
                f"unknown keys {listed(strangers)}: besides the LSTM's own, an encoder is named encoder.weight and"
                " encoder.bias, and a head head.weight and head.bias; --encoder and --head take others' names, and"
                f" --prefix {prefix or 'PREFIX'} leaves out what is neither"
            )
    return _biased_encoder(weights)


def _biased_encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with a bias of zeros for an encoder whose size says that it is a linear map without one.

    A weight [E, F] without a bias is an embedding's of E tokens where a layer takes F features, a linear map's where it
    takes E. Raises WeightsError where it could be either.
    """
    weight, below = weights.get("encoder.weight"), weights.get(f"{CORE}weight_ih_l0")
    if weight is None or below is None or "encoder.bias" in weights or weight.ndim != 2 or below.ndim != 2:
        return weights
    rows, columns = weight.shape
    if below.shape[1] == rows != columns:
        return weights | {"encoder.bias": weight.new_zeros(rows)}  # the same function
    if below.shape[1] not in (rows, columns):
        raise WeightsError(
            f"encoder.weight has shape {(rows, columns)}, and the layer behind it takes {below.shape[1]} features: an"
            f" embedding for it has the shape [tokens, {below.shape[1]}], a linear map [{below.shape[1]}, features]"
        )
    return weights


def refuse_strange(state_dict: Mapping[str, Any]) -> None:
    """Raise WeightsError for what holds no plain numbers: other objects, quantised, sparse or empty tensors."""
    for name, value in state_dict.items():
        if isinstance(value, Tensor):
            if (kind := _unusable(value)) is not None:
                raise WeightsError(f"{name} is {kind}")
        elif (what := unknown(str(name))) is not None:
            raise WeightsError(f"{name} is {what}")
    strange = {str(name): value for name, value in state_dict.items() if not isinstance(value, Tensor)}
    if strange:
        kinds = sorted({getattr(value, "what", f"a {type(value).__name__}") for value in strange.values()})
        raise WeightsError(
            f"not tensors: {listed(strange)} ({listed(kinds)}); save the layer's own weights with"
            " torch.save(module.state_dict(), path)"
        )


def _unusable(value: Tensor) -> str | None:
    """What kind of tensor it is, if it can't be read as numbers as it is."""
    if value.is_quantized:
        return (
            f"a quantised tensor ({value.dtype}): give the state dict of the module before it was quantised;"
            " --precision int8 makes 8-bit weights of it"
        )
    if value.is_meta:
        return "a tensor on the device meta, which has no values: save the state dict of a module that has its weights"
    if value.layout is not torch.strided:
        return f"a tensor in the layout {value.layout}: save it with to_dense()"
    if value.is_complex():
        return f"a tensor of {value.dtype}, and an LSTM's weights are real"
    return None


def _refuse_unsupported(matches: Mapping[str, re.Match[str]]) -> None:
    reverse = [name for name, match in matches.items() if match["reverse"]]
    if reverse:
        raise UnsupportedLSTMError(
            f"bidirectional layers ({listed(reverse)}): they read a sequence from its end, which a stream doesn't have"
        )


def core_spec(weights: Mapping[str, Tensor]) -> CoreSpec:
    """Read F, H, L, bias and P from normalized weights; raises WeightsError where they don't belong to one LSTM."""
    layers = 1 + max(int(match["layer"]) for name in weights if (match := _LAYER_KEY.match(name)))
    bias = any(name.startswith(f"{CORE}bias_") for name in weights)
    projected = any(name.startswith(f"{CORE}weight_hr_") for name in weights)
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if bias else []), *(["weight_hr"] if projected else [])]
    missing = [
        f"{CORE}{kind}_l{layer}" for layer in range(layers) for kind in kinds if f"{CORE}{kind}_l{layer}" not in weights
    ]
    if missing:
        raise WeightsError(
            f"keys missing: {listed(missing)} (an LSTM of {layers} layers {'with' if bias else 'without'} biases)"
        )
    w_ih, w_hh = weights[f"{CORE}weight_ih_l0"], weights[f"{CORE}weight_hh_l0"]
    if projected:
        return _projected(w_ih, w_hh, weights[f"{CORE}weight_hr_l0"], layers, bias=bias)
    if w_ih.ndim != 2 or w_hh.ndim != 2 or w_hh.shape[0] != GATES * w_hh.shape[1]:
        raise WeightsError(
            f"weight_hh_l0 has shape {tuple(w_hh.shape)} and weight_ih_l0 {tuple(w_ih.shape)}: an LSTM's are [4H, H]"
            " and [4H, F] (3H would be a GRU's, H a plain RNN's)"
        )
    return CoreSpec(int(w_ih.shape[1]), int(w_hh.shape[1]), layers, bias)


def _projected(w_ih: Tensor, w_hh: Tensor, w_hr: Tensor, layers: int, *, bias: bool) -> CoreSpec:
    shapes = [tuple(weight.shape) for weight in (w_ih, w_hh, w_hr)]
    fits = [len(shape) for shape in shapes] == [2, 2, 2] and shapes[1] == (GATES * shapes[2][1], shapes[2][0])
    if not fits:
        raise WeightsError(
            f"weight_ih_l0 has shape {shapes[0]}, weight_hh_l0 {shapes[1]} and weight_hr_l0 {shapes[2]}: those of an"
            " LSTM with proj_size are [4H, F], [4H, P] and [P, H]"
        )
    return CoreSpec(shapes[0][1], shapes[2][1], layers, bias, shapes[2][0])


def check_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WeightsError naming keys that are missing or unknown, or a weight whose shape isn't the expected one."""
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        parts = [f"{kind} {listed(names)}" for kind, names in (("missing", missing), ("unknown", unknown)) if names]
        raise WeightsError(f"keys {'; '.join(parts)}")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise WeightsError(f"{name} has shape {tuple(weights[name].shape)} where {shape} is needed")


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise WeightsError naming the weights that aren't real numbers, or hold NaN or infinity once in float32."""
    bad = [name for name, value in weights.items() if not value.is_floating_point()]
    if bad:
        dtypes = ", ".join(sorted({str(weights[name].dtype) for name in bad}))
        raise WeightsError(
            f"not floating point: {listed(bad)} ({dtypes}), as quantised weights are; give the state dict of the module"
            " before it was quantised: --precision int8 makes 8-bit weights of it"
        )
    bad = [name for name, value in weights.items() if not _is_finite(value)]
    if bad:
        raise WeightsError(f"NaN or infinity in {listed(bad)}")


def _is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite in float32; the extremes tell, without a copy of a large weight."""
    if not value.numel():
        return True
    known = value if value.element_size() > 1 else value.float()  # an 8-bit float has no extremes of its own
    return all(bool(torch.isfinite(extreme.float())) for extreme in known.aminmax())


def listed(names: Any) -> str:
    """Up to six names, for a message of one line."""
    names = list(names)
    return ", ".join(map(str, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "(nothing)"
