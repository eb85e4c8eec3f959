"""model.onnx: the module as a portable, batch-first ONNX graph, and the module read back from such a graph.

Built node by node from the weights: the stock exporter freezes the time axis and leaves slices of weights behind.
Owns the names of its tensors and ONNX's gate order. Knows no files and no slab.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import cells
from export.graph import Array, Graph, Keep, embedded, value
from export.precision import Precision
from export.products import MICROSOFT, product, read_products
from model.cell import LayerWeights
from model.contract import Contract, StatePair, TensorSpec
from model.lstm import LSTM, Spec

OPSET = 20
IR_VERSION = 10  # the one that belongs to opset 20's time: every runtime that has the opset reads it
PRODUCER = "cellstream"
MICROSOFT_OPSET = 1  # the only one there is


def onnx_gates(rows: Array) -> Array:
    """PyTorch's gates i, f, g, o along the first axis, in ONNX's order i, o, f, c (PyTorch's g is ONNX's c)."""
    i, f, g, o = np.split(rows, 4)
    return np.concatenate([i, o, f, g])


def torch_gates(rows: Array) -> Array:
    """The inverse of onnx_gates."""
    i, o, f, c = np.split(rows, 4)
    return np.concatenate([i, f, c, o])


def contract_of(
    spec: Spec,
    *,
    name: str,
    weights_digest: str,
    notes: Mapping[str, str],
    precision: Precision = Precision.FP32,
) -> Contract:
    """The contract that the graph of this spec keeps."""
    if spec.vocabulary is None:
        x = TensorSpec("x", "float32", (spec.input_size or 0,))
    else:
        x = TensorSpec("x", "int64", (), minimum=0, maximum=spec.vocabulary - 1)
    h, c = (spec.layers, spec.state_size), (spec.layers, spec.hidden_size)
    contract = Contract(
        name=name,
        inputs=(x,),
        outputs=(TensorSpec("y", "float32", (spec.outputs,)),),
        states=(StatePair("h", "h_out", "float32", h), StatePair("c", "c_out", "float32", c)),
        weights_digest=weights_digest,
        precision=str(precision),
        notes=notes,
    )
    contract.check()
    return contract


def build(module: LSTM, precision: Precision = Precision.FP32, keep: Keep = embedded) -> ModelProto:
    """The portable graph: x [B, T, F] (or tokens [B, T]), h and c [B, L, H] give y [B, T, O], h_out and c_out.

    B and T are symbolic. `keep` says where weights go, one at a time, so that a large module's are never held twice:
    by default they are embedded. Layers are LSTM nodes where that operator can say what they are, and cells in a Scan
    elsewhere.
    """
    graph = Graph(keep)
    spec = module.spec
    top = _encode(graph, module, precision)
    h, c = _split_state(graph, "h", spec.layers), _split_state(graph, "c", spec.layers)
    for index, weights in enumerate(module.layer_weights()):
        states = (h[index], c[index])
        if needs_cells(spec, precision):
            top = cells.layer(graph, precision, index, weights, x=top, state=states)
        else:
            top = _layer(graph, index, weights, top, states)
    _join_state(graph, "h", spec.layers)
    _join_state(graph, "c", spec.layers)
    _decode(graph, module, top, precision)
    return _model(graph, spec, precision)


def needs_cells(spec: Spec, precision: Precision) -> bool:
    """Whether ONNX's LSTM operator can't say it: it has no projection, and no products of another precision."""
    return spec.proj_size is not None or precision in (Precision.INT8, Precision.FP16)


def _encode(graph: Graph, module: LSTM, precision: Precision) -> str:
    """Encode x and put time first, as the LSTM operator wants it: [T, B, F]."""
    if module.spec.vocabulary is not None:
        assert module.encoder is not None
        tokens = graph.add("Transpose", ["x"], ["tokens"], perm=[1, 0])
        return graph.add("Gather", [graph.weight("encoder.weight", _array(module.encoder.weight)), tokens], ["lstm.x"])
    encoded = "x" if module.encoder is None else _linear(graph, "encoder", module.encoder, "x", precision)
    return graph.add("Transpose", [encoded], ["lstm.x"], perm=[1, 0, 2])


def _split_state(graph: Graph, name: str, layers: int) -> list[str]:
    """A state [B, L, H] as one [1, B, H] per layer."""
    by_layer = [f"lstm.{layer}.{name}" for layer in range(layers)]
    if layers == 1:
        return [graph.add("Transpose", [name], by_layer, perm=[1, 0, 2])]
    together = graph.add("Transpose", [name], [f"lstm.{name}"], perm=[1, 0, 2])
    graph.add("Split", [together], by_layer, axis=0, num_outputs=layers)
    return by_layer


def _join_state(graph: Graph, name: str, layers: int) -> None:
    """The inverse, for the new state."""
    by_layer = [f"lstm.{layer}.{name}_out" for layer in range(layers)]
    together = by_layer[0] if layers == 1 else graph.add("Concat", by_layer, [f"lstm.{name}_out"], axis=0)
    graph.add("Transpose", [together], [f"{name}_out"], perm=[1, 0, 2])


def _layer(graph: Graph, index: int, weights: LayerWeights, x: str, state: tuple[str, str]) -> str:
    """One LSTM node: x [T, B, F] gives [T, B, H]."""
    name = f"lstm.{index}"
    w = graph.weight(f"{name}.W", onnx_gates(_array(weights.w_ih))[None])  # [1, 4H, F]
    r = graph.weight(f"{name}.R", onnx_gates(_array(weights.w_hh))[None])  # [1, 4H, H]
    b = ""
    if weights.b_ih is not None and weights.b_hh is not None:
        both = np.concatenate([onnx_gates(_array(weights.b_ih)), onnx_gates(_array(weights.b_hh))])
        b = graph.weight(f"{name}.B", both[None])  # [1, 8H]
    outputs = [f"{name}.y_directions", f"{name}.h_out", f"{name}.c_out"]
    graph.add("LSTM", [x, w, r, b, "", *state], outputs, hidden_size=weights.w_hh.shape[1])
    return graph.add("Squeeze", [outputs[0], _directions_axis(graph)], [f"{name}.y"])  # [T, 1, B, H] -> [T, B, H]


def _directions_axis(graph: Graph) -> str:
    """The constant that names the axis of directions, which we have one of."""
    return graph.weight("directions_axis", np.array([1], dtype=np.int64))


def _decode(graph: Graph, module: LSTM, top: str, precision: Precision) -> None:
    """Put the batch first again and run the head: y [B, T, O]."""
    if module.head is None:
        graph.add("Transpose", [top], ["y"], perm=[1, 0, 2])
        return
    batch_first = graph.add("Transpose", [top], ["head.x"], perm=[1, 0, 2])
    _linear(graph, "head", module.head, batch_first, precision)


def _linear(graph: Graph, name: str, module: torch.nn.Module, x: str, precision: Precision) -> str:
    """The encoder, or the head, which gives y."""
    weight = (f"{name}.weight", _array(module.weight))
    made = product(graph, precision, weight, x, f"{name}.product", front=["batch", "time"])
    y = "y" if name == "head" else f"{name}.y"
    return graph.add("Add", [made, graph.weight(f"{name}.bias", _array(module.bias))], [y])


def _model(graph: Graph, spec: Spec, precision: Precision) -> ModelProto:
    states: dict[str, list[str | int]] = {
        "h": ["batch", spec.layers, spec.state_size],
        "c": ["batch", spec.layers, spec.hidden_size],
    }
    x = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", spec.input_size])
        if spec.vocabulary is None
        else helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", "time"])
    )
    made = helper.make_graph(
        graph.nodes,
        "lstm",
        [x, *(value(name, shape) for name, shape in states.items())],
        [
            value("y", ["batch", "time", spec.outputs]),
            *(value(f"{name}_out", shape) for name, shape in states.items()),
        ],
        list(graph.weights.values()),
        value_info=graph.values,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in opsets_of(precision).items()]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name=PRODUCER)


def opsets_of(precision: Precision) -> dict[str, int]:
    """The operators that a graph of this precision may have, by domain."""
    return {"": OPSET} | ({MICROSOFT: MICROSOFT_OPSET} if precision is Precision.INT8 else {})


def _array(weight: Any) -> Array:
    return np.asarray(weight.detach().numpy())


def read_module(model: ModelProto, arrays: Mapping[str, Array] | None = None) -> LSTM:
    """The module whose graph this is, from its weights (None: those embedded in it): the inverse of `build`.

    It is so bit for bit where weights are float32, and what they stand for where they aren't. An artifact so
    suffices to prove itself again. Raises WeightsError where the weights aren't an LSTM's.
    """
    arrays = arrays or {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = read_products(model, arrays)
    state_dict: dict[str, torch.Tensor] = {}

    def put(name: str, array: Array) -> None:
        own = array.flags.owndata and array.flags.writeable and array.flags.c_contiguous
        state_dict[name] = torch.from_numpy(array if own else array.copy())

    for node in model.graph.node:
        if node.op_type == "LSTM":
            layer = node.input[1].split(".")[1]  # lstm.LAYER.W
            put(f"lstm.weight_ih_l{layer}", torch_gates(arrays[node.input[1]][0]))
            put(f"lstm.weight_hh_l{layer}", torch_gates(arrays[node.input[2]][0]))
            if node.input[3]:
                b_ih, b_hh = np.split(arrays[node.input[3]][0], 2)
                put(f"lstm.bias_ih_l{layer}", torch_gates(b_ih))
                put(f"lstm.bias_hh_l{layer}", torch_gates(b_hh))
    for name, weight in cells.read_layers(products, arrays).items():
        put(name, weight)
    for name in ("encoder.weight", "encoder.bias", "head.weight", "head.bias"):
        if name in products or name in arrays:
            put(name, products[name] if name in products else arrays[name])
    return LSTM.from_state_dict(state_dict)
