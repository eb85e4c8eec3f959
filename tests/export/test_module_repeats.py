"""What a module does when it is run twice, its inputs' domain and axes: refusals that name the true cause."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from export.module_calls import ModuleError
from export.module_find_plan import find_plan
from export.module_plan import Plan, parse_input
from export.module_streams import check_streams
from tests import impure, modules

X = "x=float32[batch,time,4]"

REFUSED = [
    (impure.AlwaysDropout, r"random numbers \(dropout in impure.py line \d+\).*self.training"),
    (impure.Sampling, r"random numbers \(multinomial in impure.py line \d+\).*logits"),
    (impure.RandomStart, r"random numbers \(randn in impure.py line \d+\)"),
    (impure.PythonRandom, r"random numbers \(not by PyTorch\)"),
    (impure.Counter, r"a state in the module's own attributes \(count\)"),
    (impure.NumberCounter, r"attributes \(steps\).*forward\(x, steps\) -> \(y, steps\)"),
    (impure.SelfHidden, r"attributes \(hidden\)"),
    (impure.Window, r"attributes \(past\)"),
    (impure.OneRobot, r"attributes \(h, c\)"),
    (impure.OneStream, "forward runs with one stream, and not with 3"),
    (impure.Failing, r"ValueError: the sensor's frame is odd \(impure.py line \d+\)"),
    (lambda: impure.Domain("log"), "NaN or infinity .*--range x=0.1:10, which gives none"),
    (lambda: impure.Domain("acos"), r"--range x=0.1:0.9, which gives none"),
    (lambda: impure.Domain("acosh"), r"--range x=1.1:10, which gives none"),
]


def planned(
    make: Any, inputs: list[str], ranges: dict[str, tuple[float, float]] | None = None
) -> tuple[nn.Module, Plan]:
    """A module with seeded weights, and what is understood of it."""
    module = modules.seeded(make).eval()
    return module, find_plan(module, [parse_input(text) for text in inputs], None, ranges)


@pytest.mark.parametrize(("make", "text"), REFUSED)
def test_each_refusal_names_its_cause(make: Any, text: str) -> None:
    """In one line."""
    with pytest.raises(ModuleError, match=text) as refusal:
        planned(make, [X])
    assert "\n" not in str(refusal.value)


def test_what_is_kept_and_never_read_is_no_state() -> None:
    """An attribute may change from call to call, if no answer does."""
    module, plan = planned(impure.Watched, [X])
    check_streams(plan, module)


def test_inputs_are_drawn_from_the_range_that_is_told() -> None:
    """In every draw: a logarithm never sees what it doesn't take."""
    module, plan = planned(lambda: impure.Domain("log"), [X], {"x": (0.5, 20.0)})
    check_streams(plan, module)
    with pytest.raises(ModuleError, match=r"x from -1 to 1: .*--range x=0.1:10"):
        planned(lambda: impure.Domain("log"), [X], {"x": (-1.0, 1.0)})


@pytest.mark.parametrize("swaps", [False, True])
def test_a_language_models_axes_are_found(swaps: bool) -> None:
    """By its recurrent layer, or where that is wrong, by which streams see each other."""
    module, plan = planned(lambda: impure.TimeFirst(swaps=swaps), [])
    assert plan.inputs[0].layout == (("batch", "time") if swaps else ("time", "batch"))
    check_streams(plan, module)


def test_exchanged_axes_are_no_traceback() -> None:
    """What is told wrongly is refused, with what was told."""
    with pytest.raises(ModuleError, match=r"along the streams.*tokens=int64\[batch,time\] are in the wrong order"):
        planned(impure.TimeFirst, ["tokens=int64[batch,time]"])


def test_joined_axes_are_a_single_steps() -> None:
    """A forward that joins streams and steps is refused with the input of one step, which it takes."""
    with pytest.raises(ModuleError, match=r"streams and steps on one axis.*--input tokens=int64\[1,batch\]"):
        planned(impure.Flattened, [])
    module, plan = planned(impure.Flattened, ["tokens=int64[1,batch]"])
    assert plan.bare
    check_streams(plan, module)
