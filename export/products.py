"""How a product x·Wᵀ stands in a graph at each precision, and the weights read back from such products.

Owns the operators of a product and the names of their weights. Knows no LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto

from export.graph import Array, Graph, value
from export.precision import Precision
from export.quantization import BLOCK, Quantized, dequantize, quantize
from export.rewriting import attribute
from export.subgraphs import all_nodes

MICROSOFT = "com.microsoft"
NBITS = "MatMulNBits"
STEPS, SCALES = ".steps", ".scales"  # + a weight's name: its 8-bit form
INT8_SUMS = 4  # the accuracy level: activations in 8 bits too, and integer sums, whatever the batch the same bits
MOST_HALF = float(np.finfo(np.float16).max)
FLOAT, FLOAT16 = 1, 10  # ONNX's numbers for them


def product(
    graph: Graph,
    precision: Precision,
    weight: tuple[str, Array],
    x: str,
    y: str,
    *,
    front: list[str | int],
    bounded: bool = False,
) -> str:
    """Add y = x·Wᵀ for x [*front, K] of rank 3 and the named weight W [N, K]; returns y.

    `bounded` says that x lies within ±1.
    """
    name, values = weight
    if precision is Precision.INT8:
        graph.values.append(value(y, [*front, len(values)]))
        return _int8(graph, name, values, x, y)
    if precision is Precision.FP16:
        return _fp16(graph, name, values, x, y, bounded=bounded)
    return graph.add("MatMul", [x, graph.weight(name, values.T)], [y])


def _int8(graph: Graph, name: str, values: Array, x: str, y: str) -> str:
    quantized = quantize(values)
    weights = [graph.weight(name + STEPS, quantized.steps), graph.weight(name + SCALES, quantized.scales)]
    rows, columns = values.shape
    sizes = {"N": rows, "K": columns, "bits": 8, "block_size": BLOCK, "accuracy_level": INT8_SUMS}
    return graph.add(NBITS, [x, *weights], [y], domain=MICROSOFT, **sizes)


def _fp16(graph: Graph, name: str, values: Array, x: str, y: str, *, bounded: bool) -> str:
    """Rounded to float16, with a row of zeros beside, and a single column of y twice.

    ONNX Runtime's CPU casts float16 weights to float32 (and leaves out the other casts), can't pack them, and
    multiplies what isn't packed with a single row, or into a single column, by kernels that round otherwise: the bits
    of a stream would depend on the batch. What float16 can't hold becomes its largest number: infinity would make NaN.
    """
    if not bounded:
        limits = [graph.weight(f"float16.{end}", np.array(sign * MOST_HALF, np.float32)) for end, sign in _ENDS]
        x = graph.add("Clip", [x, *limits], [f"{y}.limited"])
    padded = graph.add("Pad", [x, graph.constant("float16.another_row", [0, 0, 0, 0, 1, 0])], [f"{y}.padded"])
    half = graph.add("Cast", [padded], [f"{y}.x16"], to=FLOAT16)
    weight = graph.weight(name, values.T.astype(np.float16))
    alone = len(values) == 1
    if alone:
        weight = graph.add("Concat", [weight, weight], [f"{y}.weights"], axis=1)
    made = graph.add("MatMul", [half, weight], [f"{y}.y16"])
    single = graph.add("Cast", [made], [f"{y}.all"], to=FLOAT)
    kind, axes = ("row_and_column", [1, 2]) if alone else ("row", [1])
    cut = (("first", [0] * len(axes)), ("last", [-1] * len(axes)), ("axes", axes))
    return graph.add("Slice", [single, *(graph.constant(f"float16.{kind}.{at}", place) for at, place in cut)], [y])


_ENDS = (("least", -1.0), ("most", 1.0))


def read_products(model: ModelProto, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Every product's weight [N, K] in float32, by name; dequantized where it is 8-bit."""
    found: dict[str, Array] = {}
    nodes = list(all_nodes(model.graph.node))
    twice = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Concat"}
    for node in nodes:
        if node.op_type == NBITS and node.input[1] in arrays:
            found[node.input[1].removesuffix(STEPS)] = _read_int8(node, arrays)
        elif node.op_type == "MatMul":
            name = twice.get(node.input[1], node.input[1])
            found |= {name: arrays[name].T} if name in arrays else {}
    return {name: np.ascontiguousarray(weight, np.float32) for name, weight in found.items()}


def _read_int8(node: NodeProto, arrays: Mapping[str, Array]) -> Array:
    quantized = Quantized(arrays[node.input[1]], arrays[node.input[2]])
    return dequantize(quantized, int(attribute(node, "K", 0)))
