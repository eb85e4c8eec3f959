"""Which arguments of a module are states, what begins them, and where their new values come out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import nn

from export.module_calls import ModuleError
from export.module_code import first_state
from export.module_find_plan import find_plan
from export.module_first_states import named_beginner
from export.module_plan import Plan, parse_input
from export.module_streams import check_streams
from tests import arguments, modules

OBS, H, TWO = "obs=float32[batch,4]", "float32[batch,8]", "float32[2,batch,8]"


class Kind(NamedTuple):
    """A module, what is said of it, and its states' names with whether each begins from zero."""

    make: Any
    states: dict[str, bool]
    state: dict[str, str] = {}  # noqa: RUF012  of a NamedTuple
    inputs: list[str] = [OBS]  # noqa: RUF012
    successors: dict[str, str] = {}  # noqa: RUF012
    begin: str = ""


BOTH = {"h_in": True, "c_in": True}
INSIDE = {"state.h": True, "state.c": True}
KINDS = {
    "one may be None": Kind(arguments.OneOptional, BOTH, {"h_in": TWO, "c_in": TWO}),
    "both may be None": Kind(arguments.BothOptional, BOTH),
    "both are told": Kind(arguments.BothOptional, BOTH, {"c_in": TWO, "h_in": TWO}),
    "oddly named": Kind(arguments.OddlyNamed, {"foo": True}),
    "None is learned": Kind(arguments.Learned, {"state0": False, "state1": False}),
    "a batch by default": Kind(arguments.ByDefault, {"h": True}),
    "ones, on a device": Kind(arguments.Ones, {"h": False}),
    "no batch": Kind(arguments.Parameter, {"h": False}),
    "a batch of one": Kind(arguments.Camel, {"h": True}),
    "the method is told": Kind(arguments.TwoBeginnings, {"h": False}, begin="init_hidden"),
    "None is told": Kind(arguments.TwoBeginnings, {"h": True}, begin="None"),
    "dicts": Kind(arguments.InDict, INSIDE, inputs=["batch.obs=float32[batch,4]", "batch.bias=float32[batch,1]"]),
    "a NamedTuple": Kind(arguments.InTuple, INSIDE),
    "a dataclass": Kind(arguments.InDataclass, INSIDE),
    "exchanged": Kind(arguments.Exchanged, {"h": True, "c": True}, {"h": H, "c": H}),
    "first": Kind(arguments.StateFirst, {"h": True}, {"h": H}),
    "first, as is told": Kind(lambda: arguments.StateFirst(8), {"h": True}, {"h": H}, successors={"h": "0"}),
    "its own, last": Kind(lambda: arguments.OwnFirst(first=False), {"h": True}, {"h": H}),
}


def planned(kind: Kind) -> tuple[nn.Module, Plan]:
    """A module with seeded weights, and what is understood of it."""
    module = modules.seeded(kind.make).eval()
    begin = named_beginner(module, kind.begin) if kind.begin else first_state(kind.state)
    return module, find_plan(module, [parse_input(text) for text in kind.inputs], begin, {}, kind.successors)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_states_are_found_among_the_arguments(kind: Kind) -> None:
    """With their first values, whatever their names, defaults and nesting; and steps stream."""
    module, plan = planned(kind)
    assert {state.name: state.initial is None for state in plan.states} == kind.states
    assert all(state.slot is None for state in plan.states)
    check_streams(plan, module)


def test_states_are_carried_from_where_they_come_out() -> None:
    """By what a recurrent layer made of them, or by what is told; the rest are outputs."""
    _, plan = planned(KINDS["exchanged"])
    assert plan.convention.successors == (2, 1)
    _, plan = planned(KINDS["first"])
    assert plan.convention.successors == (0,)
    assert [(tensor.name, tensor.layout) for tensor in plan.outputs] == [("y", ("batch", 3))]
    _, plan = planned(KINDS["dicts"])
    assert [tensor.name for tensor in plan.outputs] == ["logits"]


def test_a_learned_first_state_is_the_parameters() -> None:
    """What None means is found with its values."""
    module, plan = planned(KINDS["None is learned"])
    assert isinstance(module, arguments.Learned)
    for state, value in zip(plan.states, (module.h0.tanh(), module.c0[0]), strict=True):
        assert state.initial is not None
        np.testing.assert_array_equal(state.initial, value.detach().numpy())


REFUSED = [
    (Kind(arguments.OneOptional, {}), r"with None.* --state 'h_in=float32\[2,batch,8\]' --state 'c_in="),
    (Kind(arguments.OneOptional, {}, {"q": TWO}), "--state q: forward takes obs, h_in, c_in"),
    (Kind(arguments.OneOptional, {}, {"c_in": TWO}), "forward needs h_in, too: say --input h_in=… or --state h_in=…"),
    (Kind(arguments.OneOptional, {}, {"obs": TWO, "h_in": TWO}), "--state obs: --input says that it is an input"),
    (Kind(arguments.RandomlyBegun, {}), "init_hidden gives random numbers"),
    (Kind(arguments.TwoBeginnings, {}), "say --begin init_hidden, or --begin None"),
    (Kind(lambda: arguments.StateFirst(8), {}, {"h": H}), "say --successor h=1 .* or --successor h=0"),
    (Kind(lambda: arguments.OwnFirst(first=True), {}, {"h": H}), "say --successor h=1 .* or --successor h=0"),
    (Kind(arguments.StateFirst, {}, {"h": H}, successors={"h": "2"}), "--successor h=2: forward gives no '2' there"),
    (
        Kind(arguments.StateFirst, {}, {"h": H}, successors={"h": "1"}),
        r"the state is float32\[3, 8\], not",
    ),
    (Kind(arguments.StateFirst, {}, {"h": H}, successors={"x": "1"}), "--successor x"),
    (Kind(arguments.Begun, {}, {"h": H}, inputs=["q.obs=float32[batch,4]"]), "--input q.obs: forward takes obs, h"),
    (Kind(modules.Stateless, {}, {"h": H}, inputs=["x=float32[batch,5]"]), "--state h: forward takes x"),
]


@pytest.mark.parametrize(("kind", "text"), REFUSED)
def test_what_is_open_is_asked(kind: Kind, text: str) -> None:
    """In one line, with the option that settles it."""
    with pytest.raises(ModuleError, match=text) as refusal:
        planned(kind)
    assert "\n" not in str(refusal.value)
