"""Modules whose weights are computed: what counts is what they compute with in eval mode."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

from export.module_calls import ModuleError
from export.module_copies import copied, prepared
from export.module_find_plan import find_plan
from export.module_graph import to_onnx
from export.module_plan import parse_input
from export.module_streams import Whole, check_streams

X = "x=float32[batch,time,4]"


class Under(nn.Module):
    """A recurrent layer under something that computes its weights, which training has moved since it was made."""

    def __init__(self, change: Any, layer: Any = nn.LSTM) -> None:
        super().__init__()
        self.layer, self.head = layer(4, 5, batch_first=True), nn.Linear(5, 3)
        change(self)
        with torch.no_grad():
            for value in self.parameters():
                value.mul_(1.5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer(x)[0])


class Pair(nn.Module):
    """A low-rank pair that is added to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(20, 2)), nn.Parameter(torch.randn(2, 5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Dropping(nn.Module):
    """Weight drop as fastai and salesforce have it: the wrapped layer gets its weight before each call."""

    def __init__(self, layer: Any, *, into_parameters: bool) -> None:
        super().__init__()
        self.layer, self.into_parameters = layer, into_parameters
        self.raw = nn.Parameter(layer.weight_hh_l0.detach())
        del layer._parameters["weight_hh_l0"]
        layer.weight_hh_l0 = functional.dropout(self.raw, 0.5, training=True)
        layer.flatten_parameters = self._nothing

    def _nothing(self) -> None:
        pass

    def forward(self, *given: Any) -> Any:
        weight = functional.dropout(self.raw, 0.5, self.training)
        if self.into_parameters:
            self.layer._parameters["weight_hh_l0"] = weight
        else:
            self.layer.weight_hh_l0 = weight
        return self.layer(*given)


def _set_forward(net: Any) -> None:
    """Weight drop as torchnlp has it: a function set as the layer's forward."""
    layer = net.layer
    layer.register_parameter("raw", nn.Parameter(layer.weight_hh_l0.detach()))
    del layer._parameters["weight_hh_l0"]
    own = layer.forward

    def forward(*given: Any) -> Any:
        layer.weight_hh_l0 = functional.dropout(layer.raw, 0.5, layer.training)
        return own(*given)

    layer.forward = forward


def _old_weight_norm(net: Any) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net.layer, "weight_hh_l0")
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net.head)


def _old_spectral_norm(net: Any) -> None:
    nn.utils.spectral_norm(net.layer, "weight_hh_l0")
    nn.utils.spectral_norm(net.head)


def _weight_norm(net: Any) -> None:
    parametrizations.weight_norm(net.layer, "weight_hh_l0")
    parametrizations.weight_norm(net.head)


def _low_rank(net: Any) -> None:
    parametrize.register_parametrization(net.layer, "weight_hh_l0", Pair())


def _pruned(net: Any) -> None:
    prune.l1_unstructured(net.layer, "weight_hh_l0", 0.5)  # type: ignore[no-untyped-call]
    prune.random_unstructured(net.head, "weight", 0.3)  # type: ignore[no-untyped-call]


def _dropped(net: Any) -> None:
    net.layer = Dropping(net.layer, into_parameters=False)


def _dropped_into_parameters(net: Any) -> None:
    net.layer = Dropping(net.layer, into_parameters=True)


KINDS = {
    "old weight_norm": _old_weight_norm,
    "weight_norm": _weight_norm,
    "old spectral_norm": _old_spectral_norm,
    "spectral_norm": lambda net: parametrizations.spectral_norm(net.layer, "weight_hh_l0"),
    "orthogonal": lambda net: parametrizations.orthogonal(net.layer, "weight_hh_l0"),
    "a low-rank pair": _low_rank,
    "pruning": _pruned,
    "weight drop": _dropped,
    "weight drop into the parameters": _dropped_into_parameters,
    "weight drop by a set forward": _set_forward,
}


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS)
def test_computed_weights_are_those_of_eval_mode(change: Any, tmp_path: Path) -> None:
    """Steps give what the untouched module gives, and the graph's constants are the weights that it runs with."""
    torch.manual_seed(2)
    made: Any = Under(change)
    module, _ = prepared(made)
    plan = find_plan(module, [parse_input(X)])
    assert [state.origin for state in plan.states] == [
        f"{name}: LSTM {letter}" for name in {state.slot for state in plan.states} for letter in "hc"
    ]
    check_streams(plan, module)
    to_onnx(plan, copied(module), tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    made.eval()
    with torch.no_grad():
        made(torch.zeros(1, 1, 4))
        layer = made.layer.layer if isinstance(made.layer, Dropping) else made.layer
        wanted = layer.weight_hh_l0.detach().numpy()
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    found = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == node.input[2])[0]
    gates = [found[5 * gate : 5 * gate + 5] for gate in (0, 2, 3, 1)]  # i, o, f, c -> i, f, g, o
    np.testing.assert_allclose(np.concatenate(gates), wanted, rtol=1e-6)


def test_the_users_module_stays_as_it_is(tmp_path: Path) -> None:
    """Its classes and its parametrizations: those of copies are taken off."""
    module, _ = prepared(Under(_weight_norm))
    plan = find_plan(module, [parse_input(X)])
    to_onnx(plan, copied(module), tmp_path / "a.onnx")
    assert parametrize.is_parametrized(module.get_submodule("layer"), "weight_hh_l0")
    x = np.ones((2, 3, 4), np.float32)
    Whole(plan, module).run({"x": x}, {}, every=True)


class Generated(nn.Module):
    """A recurrent weight that is computed from the input, or by chance."""

    def __init__(self, *, by_chance: bool) -> None:
        super().__init__()
        self.by_chance = by_chance
        self.lstm, self.make = nn.LSTM(4, 5, batch_first=True), nn.Linear(4, 100)
        del self.lstm._parameters["weight_hh_l0"]

    def forward(self, x: Tensor) -> Any:
        made = torch.rand(20, 5) if self.by_chance else self.make(x.mean((0, 1))).view(20, 5)
        self.lstm.weight_hh_l0 = made
        return self.lstm(x)[0]


@pytest.mark.parametrize("by_chance", [False, True])
def test_weights_that_change_are_refused(by_chance: bool) -> None:
    """One export has one set of weights."""
    with pytest.raises(ModuleError, match="the weights of lstm change from call to call"):
        find_plan(prepared(Generated(by_chance=by_chance))[0], [parse_input(X)])


def test_what_cannot_be_copied_is_named() -> None:
    """An object in an attribute, by its place, in one line."""
    net: Any = nn.Sequential(nn.Linear(2, 2))
    net[0].lock = threading.Lock()
    with pytest.raises(ModuleError, match=r"it holds a lock in 0.lock, which can't be copied \(cannot pickle"):
        prepared(net)
    with pytest.raises(ModuleError, match="weights can't be brought to the CPU"):
        prepared(nn.Linear(2, 2, device="meta"))


def test_tensors_beside_the_parameters_follow_the_dtype() -> None:
    """A plain attribute is cast as a parameter is, and a tensor computed with gradients is copied by its values."""
    net: Any = nn.Linear(2, 2)
    net.scale, net.computed = torch.ones(2), net.weight * 2
    made: Any = copied(net, torch.float64)
    assert made.scale.dtype == made.computed.dtype == torch.float64
    torch.testing.assert_close(made.computed, net.weight.detach().double() * 2)
    assert net.scale.dtype == torch.float32
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
