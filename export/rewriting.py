"""A model's nodes on their way into a resident graph: renamed, dropped, with others before and after.

Owns the graph under construction, and the shortcut that takes layers straight from a row. Knows slabs not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, helper

from export.subgraphs import rename, used_names
from model.contract import StatePair

PREFIX = "resident."  # of every tensor that the model itself doesn't have
STATE_FIRST = [1, 0, 2]  # the permutation between [B, L, H] and [L, B, H]


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor [1, B, size] that stands for `size` neighbouring elements of a row."""

    name: str
    size: int


@dataclass(slots=True)
class Wrapped:
    """The resident graph under construction: what goes before and after the model's own nodes."""

    model: list[NodeProto]
    given: frozenset[str] = frozenset()  # what the model gives out: no node that makes one may be dropped
    before: list[NodeProto] = field(default_factory=list)
    after: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def constant(self, name: str, values: Sequence[int]) -> str:
        """An int64 constant [n], made once."""
        self.constants[PREFIX + name] = np.array(values, dtype=np.int64)
        return PREFIX + name

    def scalar(self, name: str, value: int) -> str:
        """An int64 constant without axes, made once."""
        self.constants[PREFIX + name] = np.array(value, dtype=np.int64)
        return PREFIX + name

    def rename(self, old: str, new: str) -> None:
        """Let the model's nodes call the tensor `old` by the name `new`."""
        rename(self.model, {old: new})

    def consumers(self, name: str) -> list[NodeProto]:
        """The model's nodes that take the tensor, themselves or in a subgraph."""
        return [node for node in self.model if name in used_names([node])]

    def producer(self, name: str) -> NodeProto | None:
        """The model's node that gives the tensor."""
        return next((node for node in self.model if name in node.output), None)

    def drop(self, nodes: Iterable[NodeProto]) -> None:
        """Remove nodes from the model."""
        gone = [id(node) for node in nodes]
        self.model = [node for node in self.model if id(node) not in gone]


def layers_read(wrapped: Wrapped, state: StatePair) -> list[Piece] | None:
    """Where a state [B, L, H] is only ever cut into layers [1, B, H], cut the row itself so; None elsewhere.

    A row's neighbouring elements [1, B, H] are just what each layer takes: transpose and split become no work.
    """
    if state.batch_axis != 0 or len(state.shape) != 2:
        return None
    layers, size = state.shape
    takers = wrapped.consumers(state.input)
    if len(takers) != 1 or not _swaps_batch_and_layers(takers[0]):
        return None
    together = takers[0].output[0]
    if layers == 1 and together not in wrapped.given:
        wrapped.drop(takers)
        return [Piece(together, size)]
    splits = wrapped.consumers(together)
    if together in wrapped.given or len(splits) != 1 or splits[0].op_type != "Split" or len(splits[0].output) != layers:
        return None
    if attribute(splits[0], "axis", 0) != 0:
        return None
    wrapped.drop([takers[0], splits[0]])
    return [Piece(name, size) for name in splits[0].output]


def layers_written(wrapped: Wrapped, state: StatePair) -> list[Piece] | None:
    """The inverse for a new state that is only ever joined from layers [1, B, H]; None elsewhere."""
    if state.batch_axis != 0 or len(state.shape) != 2:
        return None
    layers, size = state.shape
    last = wrapped.producer(state.output)
    if last is None or wrapped.consumers(state.output) or not _swaps_batch_and_layers(last):
        return None
    together = last.input[0]
    if layers == 1:
        wrapped.drop([last])
        return [Piece(together, size)]
    joint = wrapped.producer(together)
    if joint is None or joint.op_type != "Concat" or len(joint.input) != layers or attribute(joint, "axis", 0) != 0:
        return None
    if len(wrapped.consumers(together)) != 1 or together in wrapped.given:
        return None
    wrapped.drop([last, joint])
    return [Piece(name, size) for name in joint.input]


def _swaps_batch_and_layers(node: NodeProto) -> bool:
    return node.op_type == "Transpose" and list(attribute(node, "perm", [])) == STATE_FIRST


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """A node's attribute, or what it defaults to."""
    found: list[AttributeProto] = [attribute for attribute in node.attribute if attribute.name == name]
    return helper.get_attribute_value(found[0]) if found else default
