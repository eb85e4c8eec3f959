"""The states of a user's module, found by calling it: leaves of forward's own, and those of its recurrent layers.

Owns what is tried and concluded of states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from export.layouts import BATCH, Layout
from export.module_calls import ModuleError, leaf_names
from export.module_find_axes import Runs, fewer_streams, lanes_of, runs_within_a_step
from export.module_plan import State
from export.module_probe import Caller, Seen, moved, same
from model.recurrent_calls import Called


def explicit_states(caller: Caller) -> list[State]:
    """The leaves of forward's own state."""
    found = []
    fewer = [] if caller.first is None else fewer_streams(caller)
    arguments = zip(caller.convention.states, caller.convention.structure, strict=True)
    names = [leaf for name, structure in arguments for leaf in leaf_names(name, structure)]
    for place, (leaf, less) in enumerate(zip(caller.first or [], fewer, strict=True)):
        axes = [axis for axis, (a, b) in enumerate(zip(leaf.shape, less.shape, strict=True)) if a != b]
        name = names[place]
        if len(axes) != 1:
            raise ModuleError(f"state {name!r} {list(leaf.shape)} has no axis that is one per stream")
        layout: Layout = tuple(BATCH if axis == axes[0] else int(size) for axis, size in enumerate(leaf.shape))
        dtype = str(leaf.dtype).removeprefix("torch.")
        initial = _one(leaf, axes[0], f"state {name!r}")
        found.append(State(name, f"forward's {name}", dtype, layout, initial, None, place))
    return found


def check_carried(caller: Caller) -> None:
    """Raise ModuleError where a loop over steps changes a layer's state between two of them.

    A layer's state is carried as the layer gave it, and what happens to it outside of the layer would be lost.
    """
    one, two = _by_layer(caller.see().calls), _by_layer(caller.see(steps=2).calls)
    for name, calls in two.items():
        count = len(one.get(name, ()))
        if len(calls) != 2 * count or (not calls[0].core.cell and calls[count].given is None):
            continue
        for before, after in zip(calls, calls[count:], strict=False):
            if before.given is not None and after.given is not None and all(map(same, before.given, after.given)):
                continue  # it begins anew in each step
            if after.given is None or not all(map(same, before.new, after.given)):
                raise ModuleError(
                    f"the state of {name} is changed between two steps, outside of the layer (a reset by a mask, a"
                    " scaling): let forward take and give it, as in forward(x, mask, h) -> (y, h)"
                )


def _by_layer(calls: Sequence[Called]) -> dict[str, list[Called]]:
    found: dict[str, list[Called]] = {}
    for call in calls:
        found.setdefault(call.slot.partition("#")[0], []).append(call)
    return found


def _one(value: torch.Tensor, axis: int, what: str) -> Any:
    """One stream's value of a first state; None where it is zero."""
    one = value.select(axis, 0)
    if not same(value, one.unsqueeze(axis).expand_as(value)):
        raise ModuleError(f"{what} begins differently for each stream: a first state can't depend on the batch")
    return None if not bool(one.any()) else one.detach().numpy().copy()


def layer_states(caller: Caller) -> list[State]:
    """The states of recurrent layers that begin by themselves, or from something that never changes."""
    base, other = caller.see(), caller.see(seed=1)
    changed = base if caller.first is None else caller.see_from(moved(caller.first))
    found = []
    if len({tuple(call.slot for call in seen.calls) for seen in (base, other, changed)}) > 1:
        raise ModuleError("which of its recurrent layers run depends on the input: data-dependent control flow")
    _refuse_changing_weights(base, other)
    runs = Runs.of(caller, base)
    for place, (call, elsewhere, after) in enumerate(zip(base.calls, other.calls, changed.calls, strict=True)):
        within = runs_within_a_step(runs, place)
        if call.given is not None and after.given is not None and not all(map(same, call.given, after.given)):
            continue  # it is a part of forward's own state
        initial: tuple[Any, ...] = (None,) * len(call.core.states)
        if within:
            continue
        lanes = lanes_of(runs, place)
        if call.given is not None:
            if elsewhere.given is None or not all(map(same, call.given, elsewhere.given)):
                raise ModuleError(
                    f"the state that {call.slot} begins from depends on the input (an encoder's last state, or a layer"
                    " called twice): it would begin anew at every step, so it can't be carried"
                )
            initial = tuple(_one(lanes.unfolded(value), 0, f"{call.slot}'s state") for value in call.given)
        for number, name in enumerate(call.core.states):
            layers = f", {call.core.layers} layers" if call.core.layers > 1 else ""
            each = f", {lanes.count} for each stream" if lanes.count > 1 else ""
            found.append(
                State(
                    f"{call.slot.replace('#', '.')}.{name}",
                    f"{call.slot}: {call.core.kind} {name}{layers}{each}",
                    "float32",
                    (BATCH, *(() if lanes.count == 1 else (lanes.count,)), call.core.layers, call.core.hidden_size),
                    initial[number],
                    call.slot,
                    number,
                    lanes,
                )
            )
    return found


def _refuse_changing_weights(base: Seen, other: Seen) -> None:
    """Raise ModuleError where a layer's weights aren't the same in two calls with different inputs."""
    for call, elsewhere in zip(base.calls, other.calls, strict=True):
        for one, two in zip(call.weights, elsewhere.weights, strict=True):
            if not all(a is None or b is None or a is b or same(a, b) for a, b in zip(one, two, strict=True)):
                raise ModuleError(
                    f"the weights of {call.layer} change from call to call (they are computed from the input, or by"
                    " chance): an export has one set of weights"
                )
