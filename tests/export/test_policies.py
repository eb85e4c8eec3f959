"""Recurrent policies: masks that reset a state, of any dtype and either sense, are drawn so that both sides show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.module import export_module
from export.module_calls import ModuleError
from export.module_code import first_state
from export.module_find_plan import find_plan
from export.module_plan import parse_input
from export.module_streams import check_streams
from tests import modules, policies

STEP, SEQUENCE = "obs=float32[batch,4]", "obs=float32[batch,time,4]"
ROWS = "(float32[1,batch,8],float32[1,batch,8])"

MASKED: list[tuple[Any, list[str], dict[str, str], dict[str, tuple[float, float]]]] = [
    (policies.Done, [STEP, "done=bool[batch]"], {"h": "float32[batch,8]"}, {}),
    (policies.DoneSequence, [SEQUENCE, "done=bool[batch,time]"], {"h": "float32[batch,8]"}, {}),
    *(
        (policies.NotDone, ["inputs=float32[batch,4]", f"masks={kind}[batch,1]"], {"rnn_hxs": "float32[batch,8]"}, {})
        for kind in ("float32", "int32", "uint8", "bool")
    ),
    (policies.Starts, ["x=float32[batch,4]", "done=int64[batch]"], {"lstm_state": ROWS}, {"done": (0, 1)}),
    (policies.Starts, ["x=float32[batch,4]", "done=float32[batch]"], {"lstm_state": ROWS}, {"done": (0, 1)}),
]


@pytest.mark.parametrize(("make", "inputs", "state", "ranges"), MASKED)
def test_a_mask_hides_no_state(
    make: Any, inputs: list[str], state: dict[str, str], ranges: dict[str, tuple[float, float]]
) -> None:
    """Forward's state is found to be its own, whatever the mask's dtype and sense."""
    module = modules.seeded(make).eval()
    plan = find_plan(module, [parse_input(text) for text in inputs], first_state(state), ranges)
    assert all(found.slot is None for found in plan.states)
    check_streams(plan, module)


def test_a_policy_is_proved_with_masks_of_both_values(tmp_path: Path) -> None:
    """What is exported resets a state where its mask says so, and carries it where it doesn't."""
    made = export_module(
        modules.seeded(policies.Done),
        tmp_path / "policy" / "1",
        name="policy",
        inputs=[STEP, "done=bool[batch]"],
        first_state=first_state({"h": "float32[batch,8]"}),
        steps=(1, 10),
    )
    assert made.contract.inputs[1].dtype == "bool"
    assert min(made.evidence.controls.values()) > 1


def test_a_reset_between_its_own_steps_is_refused() -> None:
    """A layer's state is carried past what a loop does to it, so the loop may do nothing."""
    module = modules.seeded(policies.ResetInside).eval()
    with pytest.raises(ModuleError, match=r"gru is changed between two steps.*forward\(x, mask, h\)"):
        find_plan(module, [parse_input(text) for text in (SEQUENCE, "done=bool[batch,time]")])
