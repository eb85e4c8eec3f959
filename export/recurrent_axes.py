"""What the recurrent nodes of a graph read one after the other: a stream's steps, or something inside one step.

A layer across frequency reads the bands of one frame, backwards too, and a layer over time may have the bands in its
batch. Neither is seen in an attribute, but in how the sizes of its input follow the numbers of streams and of steps.
Owns that trial. Knows no slab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto, NodeProto, helper

from export import wrap_parity
from export.resident import RECURRENT, Reads
from export.rewriting import attribute
from export.wrap_parity import Arrays, model_axes
from model.contract import Contract

STREAMS, STEPS = 3, 5  # of the trial: sizes that nothing else is likely to have
_FILE = "axes.onnx"
_STATE_PLACES = (5, 6)  # initial_h and initial_c among the inputs of all three
# What leaves a carried state a carried state, on its way to a node.
_PASSING = frozenset(
    [
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)


def reads(model: ModelProto, contract: Contract, folder: Path, *, together: bool) -> dict[str, Reads]:
    """What each recurrent node of the outermost graph reads, by the node's name; its weights lie in `folder`."""
    nodes = [node for node in model.graph.node if node.op_type in RECURRENT]
    if not nodes:
        return {}
    streams = STREAMS if together else 1
    shapes = _shapes(model, contract, folder, [node.input[0] for node in nodes], streams)
    carried = _carried(model, contract)
    return {node.name: _read(node, [shape[node.input[0]] for shape in shapes], streams, carried) for node in nodes}


def _read(node: NodeProto, shapes: Sequence[tuple[int, ...]], streams: int, carried: set[str]) -> Reads:
    """By the shapes [S, B, F] of its input for STEPS steps and for one less, or for a single step."""
    sizes = {shape[0] for shape in shapes}
    if len(shapes) > 1 and len(sizes) == 1:
        return Reads.WITHIN
    if len(shapes) == 1 and sizes != {1} and not _carries_backwards(node, carried):
        return Reads.WITHIN
    return Reads.STEPS if shapes[0][1] == streams else Reads.FOLDED


def _carries_backwards(node: NodeProto, carried: set[str]) -> bool:
    """Whether a node that reads backwards begins from a stream's state, as one over the stream's time does."""
    given = [node.input[place] for place in _STATE_PLACES if place < len(node.input)]
    return attribute(node, "direction", b"forward") != b"forward" and not carried.isdisjoint(given)


def _carried(model: ModelProto, contract: Contract) -> set[str]:
    """The states, and what is made of them by moving their values only."""
    names = {state.input for state in contract.states}
    for node in model.graph.node:  # in the order of computing
        if node.op_type in _PASSING and not names.isdisjoint(node.input):
            names.update(node.output)
    return names


def _shapes(
    model: ModelProto, contract: Contract, folder: Path, names: Sequence[str], streams: int
) -> list[Mapping[str, tuple[int, ...]]]:
    """The shapes of these tensors for STEPS steps and for one less; for a single step where a run takes no more."""
    shown = ModelProto()
    shown.CopyFrom(model)
    known = {value.name for value in (*shown.graph.input, *shown.graph.output)}
    wanted = sorted(set(names) - {value.name for value in shown.graph.input})
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in known)
    path = folder / _FILE
    try:
        path.write_bytes(shown.SerializeToString())
        session = wrap_parity.session(path)
    finally:
        path.unlink(missing_ok=True)

    def shapes(steps: int) -> Mapping[str, tuple[int, ...]]:
        feeds = _feeds(contract, streams, steps)
        found = {name: value.shape for name, value in feeds.items()}
        names = [value.name for value in shown.graph.output]
        return found | {n: v.shape for n, v in zip(names, session.run(names, feeds), strict=True)}

    if any(spec.time_axis is not None for spec in contract.inputs):
        try:
            return [shapes(STEPS), shapes(STEPS - 1)]
        except Exception:  # noqa: BLE001, S110  ONNX Runtime's own: the graph takes single steps only
            pass
    return [shapes(1)]


def _feeds(contract: Contract, streams: int, steps: int) -> Arrays:
    """Values for so many streams and steps, on the model's axes."""
    sample = wrap_parity.draw(contract, streams, steps, wrap_parity.INITIAL, seed=2)
    feeds = {spec.name: model_axes(spec, sample.inputs[spec.name]) for spec in contract.inputs}
    feeds |= {s.input: wrap_parity.state_axes(s, sample.states[s.input]) for s in contract.states}
    return feeds | wrap_parity.constants(contract)
