"""LSTM layers as cells of plain operators in a Scan over time, for what ONNX's LSTM operator can't say.

That is a projection of h, and products in other precisions than the gates. Gates stand in PyTorch's order. Owns the
cell's nodes and the names of its weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, helper

from export.graph import Array, Graph, value
from export.precision import Precision
from export.products import product
from export.time_scan import FRONT_AXIS, STEP, time_scan
from model.cell import LayerWeights

GATES = ("i", "f", "g", "o")
_WEIGHT = re.compile(r"lstm\.(?P<layer>\d+)\.(?P<kind>W_ih|W_hh|W_hr|b_ih|b_hh)")
_KEYS = {"W_ih": "weight_ih", "W_hh": "weight_hh", "W_hr": "weight_hr", "b_ih": "bias_ih", "b_hh": "bias_hh"}


def layer(
    graph: Graph, precision: Precision, index: int, weights: LayerWeights, *, x: str, state: tuple[str, str]
) -> str:
    """One layer: x [T, B, F] and states [1, B, ·] give [T, B, H] (or P), and new states lstm.INDEX.h_out and c_out.

    The inputs' share of all steps' gates is one product outside the Scan.
    """
    name = f"lstm.{index}"
    own = (f"{name}.W_ih", _array(weights.w_ih))
    gates = product(graph, precision, own, x, f"{name}.x_gates", front=["time", "batch"])
    if weights.b_ih is not None and weights.b_hh is not None:
        biases = [graph.weight(f"{name}.{kind}", _array(getattr(weights, kind))) for kind in ("b_ih", "b_hh")]
        bias = graph.add("Add", biases, [f"{name}.b"])  # of constants: made once, when the graph is loaded
        gates = graph.add("Add", [gates, bias], [f"{name}.gates"])
    new = [f"{name}.h_out", f"{name}.c_out"]
    graph.nodes.append(time_scan(_step(graph, name, weights, precision), list(state), gates, new, f"{name}.y"))
    return f"{name}.y"


def _step(graph: Graph, name: str, weights: LayerWeights, precision: Precision) -> GraphProto:
    """One step: h [1, B, P], c [1, B, H] and the inputs' gates [B, 4H] give the new h and c, and h [B, P] as y."""
    step, inner = graph.within(), f"{name}.step"
    hidden, features = weights.w_hh.shape[0] // len(GATES), weights.w_hh.shape[1]
    own = (f"{name}.W_hh", _array(weights.w_hh))
    bounded = weights.w_hr is None
    front: list[str | int] = [1, "batch"]
    share = product(step, precision, own, f"{inner}.h", f"{inner}.h_gates", front=front, bounded=bounded)
    total = step.add("Add", [f"{inner}.x_gates", share], [f"{inner}.gates"])
    step.add("Split", [total], [f"{inner}.{gate}" for gate in GATES], axis=2, num_outputs=len(GATES))
    i, f, g, o = (
        step.add("Tanh" if gate == "g" else "Sigmoid", [f"{inner}.{gate}"], [f"{inner}.{gate}_open"]) for gate in GATES
    )
    kept = step.add("Mul", [f, f"{inner}.c"], [f"{inner}.kept"])
    c_next = step.add("Add", [kept, step.add("Mul", [i, g], [f"{inner}.taken"])], [f"{inner}.c_next"])
    h_next = f"{inner}.h_next"
    shown = step.add("Tanh", [c_next], [f"{inner}.shown"])
    if weights.w_hr is None:
        step.add("Mul", [o, shown], [h_next])
    else:
        whole = step.add("Mul", [o, shown], [f"{inner}.whole"])
        own = (f"{name}.W_hr", _array(weights.w_hr))
        product(step, precision, own, whole, h_next, front=front, bounded=True)
    y = step.add("Squeeze", [h_next, step.constant(FRONT_AXIS, [0])], [f"{inner}.y"])
    return helper.make_graph(
        step.nodes,
        STEP,
        [
            value(f"{inner}.h", [1, "batch", features]),
            value(f"{inner}.c", [1, "batch", hidden]),
            value(f"{inner}.x_gates", ["batch", len(GATES) * hidden]),
        ],
        [value(h_next, [1, "batch", features]), value(c_next, [1, "batch", hidden]), value(y, ["batch", features])],
        value_info=[made for made in step.values if made.name != h_next],
    )


def read_layers(products: Mapping[str, Array], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The weights of all cells under PyTorch's keys (`lstm.weight_ih_l0`, …), from products' and other arrays."""
    found = {}
    for name, array in {**arrays, **products}.items():
        match = _WEIGHT.fullmatch(name)
        if match is not None:
            found[f"lstm.{_KEYS[match['kind']]}_l{match['layer']}"] = np.asarray(array, np.float32)
    return found


def _array(weight: object) -> Array:
    return np.asarray(weight.detach().numpy())  # type: ignore[attr-defined]
