"""An ONNX graph under construction: nodes in order, weights by name. Owns how nodes are named, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Array = npt.NDArray[Any]
Keep = Callable[[str, Array], TensorProto]  # where a weight's values go; what the graph then has of it


def embedded(name: str, value: Array) -> TensorProto:
    """Keep a weight in the graph itself."""
    return numpy_helper.from_array(np.ascontiguousarray(value), name)


@dataclass(slots=True)
class Graph:
    """A graph under construction; one that stands within another shares its weights."""

    keep: Keep = embedded
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, TensorProto] = field(default_factory=dict)
    values: list[ValueInfoProto] = field(default_factory=list)  # shapes that ONNX can't infer by itself

    def add(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Append a node named after its first output, and return that output's name."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{outputs[0]}/{op}", **attributes))
        return outputs[0]

    def weight(self, name: str, value: Array) -> str:
        """Add a weight, unless one of that name is there, and return its name."""
        if name not in self.weights:
            self.weights[name] = self.keep(name, value)
        return name

    def constant(self, name: str, values: list[int]) -> str:
        """Add a small int64 constant [n], and return its name."""
        return self.weight(name, np.array(values, dtype=np.int64))

    def within(self) -> Graph:
        """A graph inside this one, with nodes of its own and the same weights."""
        return Graph(keep=self.keep, weights=self.weights)


def value(name: str, shape: list[str | int]) -> ValueInfoProto:
    """A float32 tensor's name, type and shape."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
