"""Nodes with graphs inside (If, Loop, Scan): walking them, and renaming tensors through them.

Owns what a name means across nested graphs. Knows no contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import AttributeProto, GraphProto, NodeProto


def graphs_of(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs right inside a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those inside them, at any depth."""
    for node in nodes:
        yield node
        for graph in graphs_of(node):
            yield from all_nodes(graph.node)


def all_graphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """The graphs inside the nodes, at any depth."""
    for node in all_nodes(nodes):
        yield from graphs_of(node)


def used_names(nodes: Iterable[NodeProto]) -> set[str]:
    """Every name that the nodes take, themselves or inside."""
    used: set[str] = set()
    for node in nodes:
        used.update(node.input)
        for graph in graphs_of(node):
            used.update(value.name for value in graph.output)
            used |= used_names(graph.node)
    return used


def given_names(nodes: Iterable[NodeProto]) -> set[str]:
    """Every name that is defined by the nodes or inside them."""
    given: set[str] = set()
    for node in nodes:
        given.update(node.output)
        for graph in graphs_of(node):
            given.update(value.name for value in graph.input)
            given.update(tensor.name for tensor in graph.initializer)
            given |= given_names(graph.node)
    return given


def rename(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Call tensors by other names, at any depth (ONNX forbids that an inner name hides an outer one)."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for graph in graphs_of(node):
            rename_values(graph, names)
            rename(graph.node, names)


def rename_values(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Call a graph's own inputs, outputs and initializers by other names."""
    for value in [*graph.input, *graph.output]:
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
