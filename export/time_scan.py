"""A Scan over time as our cell graphs have it, and in resident graphs: every row's state at its own last step.

Owns how such a Scan is known and what it gives. Knows no weights and no formula.
"""

from __future__ import annotations

from onnx import GraphProto, NodeProto, helper

from export.graph import value
from export.rewriting import PREFIX, Wrapped
from export.subgraphs import used_names
from model.contract import LENGTHS

STEP = "cellstream.step"  # the name of the body, by which such a Scan is known
FRONT_AXIS = "front_axis"  # the constant [0]


def is_time_scan(node: NodeProto) -> bool:
    """Whether this is one of ours: states h and c [1, B, ·] in front, one scan over the steps, y [T, B, ·] behind."""
    return node.op_type == "Scan" and body_of(node).name == STEP


def body_of(node: NodeProto) -> GraphProto:
    """The graph that a Scan runs at each step."""
    return next(attribute.g for attribute in node.attribute if attribute.name == "body")


def time_scan(body: GraphProto, states: list[str], gates: str, new_states: list[str], y: str) -> NodeProto:
    """The node: from the states and the gates [T, B, 4H] of all steps to the new states and y."""
    name = f"{y}/Scan"
    return helper.make_node("Scan", [*states, gates], [*new_states, y], name=name, body=body, num_scan_inputs=1)


def captured(node: NodeProto) -> set[str]:
    """The names that a Scan's body takes from outside."""
    body = body_of(node)
    inner = {given.name for given in body.input} | {name for made in body.node for name in made.output}
    return {name for name in used_names(body.node) if name and name not in inner}


def take_own_last_steps(wrapped: Wrapped) -> None:
    """Let every such Scan give each row's states after the row's own last step.

    Steps beyond it are computed from padding and given to nobody: time goes one way. So all steps' states are kept,
    put in reverse order row by row, and the first is taken.
    """
    for scan in [node for node in wrapped.model if is_time_scan(node)]:
        h_out, c_out, y = scan.output
        every_c = f"{PREFIX}{c_out}.every"
        _give_every_c(body_of(scan), every_c)
        scan.output[:] = [f"{PREFIX}{h_out}.longest", f"{PREFIX}{c_out}.longest", y, every_c]
        added = [*_lengths(wrapped), *_last(wrapped, y, h_out), *_last(wrapped, every_c, c_out)]
        place = wrapped.model.index(scan) + 1
        wrapped.model[place:place] = added


def _give_every_c(body: GraphProto, name: str) -> None:
    """Let the body give its new c [B, H] as a second scan output."""
    c_next = body.output[1]
    rows, size = [dim.dim_param or dim.dim_value for dim in c_next.type.tensor_type.shape.dim][1:]
    step = f"{name}.step"
    body.node.append(helper.make_node("Squeeze", [c_next.name, FRONT_AXIS], [step], name=f"{step}/Squeeze"))
    body.output.append(value(step, [rows, size]))


def _lengths(wrapped: Wrapped) -> list[NodeProto]:
    """The lengths as ReverseSequence wants them, made once."""
    name = f"{PREFIX}lengths"
    if wrapped.producer(name) is not None:
        return []
    return [helper.make_node("Cast", [LENGTHS], [name], name=f"{name}/Cast", to=7)]


def _last(wrapped: Wrapped, every: str, state: str) -> list[NodeProto]:
    """From [T, B, ·] to [1, B, ·]."""
    turned = f"{PREFIX}{state}.turned"
    lengths = f"{PREFIX}lengths"
    reverse = helper.make_node(
        "ReverseSequence", [every, lengths], [turned], name=f"{turned}/ReverseSequence", time_axis=0, batch_axis=1
    )
    first = wrapped.constant("front", [0])
    return [reverse, helper.make_node("Gather", [turned, first], [state], name=f"{state}/Gather", axis=0)]
