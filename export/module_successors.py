"""Where a module's answer has its new states: by what was told, by where recurrent layers' states turn up, by place.

Owns that choice, and what is asked where two readings remain.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from export.module_calls import Convention, ModuleError, leaves, numbers, parts_of, paths_of, structure_of
from export.module_probe import Probe, alike, moved, same

Successors = tuple[int, ...]


class AmbiguousError(ModuleError):
    """Two of forward's answers could be its new state; the text says which option settles it."""


def find_successors(
    probe: Probe,
    convention: Convention,
    first: Sequence[torch.Tensor],
    told: Mapping[str, str],
    likely: Successors | None = None,
) -> Successors | None:
    """Which of an answer's tensors are the new states of `first`, leaf by leaf; None where none have their shapes.

    `likely` are the places that are taken for it where nothing says otherwise; without, the last ones.
    Raises ModuleError, naming --successor, where two readings remain.
    """
    answer = probe.see(convention, probe.values(), first).answer
    if told:
        return _told(answer, convention, first, told)
    tensors = leaves(answer)
    windows = _windows(tensors, first) if likely is None else [likely]
    evidence = _evidence(probe, convention, first)
    exact = _exact(evidence, windows, len(first))
    if not windows:
        return exact if exact is not None and alike(first, [tensors[place] for place in exact]) else None
    usual = windows[0]
    if not all(usual[leaf] in places for leaf, places in evidence.items()):
        if exact is None or set(exact) != set(usual):
            raise AmbiguousError(_ask(answer, convention, usual, exact or _mended(usual, evidence)))
        return exact
    if not any(tensor.timed for tensor in probe.inputs):
        _check_order(probe, convention, first, usual, set(evidence))
    return usual


def _told(answer: Any, convention: Convention, first: Sequence[torch.Tensor], told: Mapping[str, str]) -> Successors:
    """The places that were told; raises ModuleError where there is nothing, or something else."""
    unknown = [name for name in told if name not in convention.states]
    if unknown:
        raise AmbiguousError(
            f"--successor {unknown[0]}: the states that forward takes are {', '.join(convention.states)}"
        )
    missing = [name for name in convention.states if name not in told]
    if missing:
        raise ModuleError(f"--successor says where {', '.join(told)} comes out: say {missing[0]}'s place, too")
    tensors, found = leaves(answer), []
    for name, structure in zip(convention.states, convention.structure, strict=True):
        places = numbers(part_at(answer, f"{name}={told[name]}", told[name]))
        wanted, there = [first[leaf] for leaf in numbers(structure)], [tensors[place] for place in places]
        if not alike(wanted, there):
            raise ModuleError(f"--successor {name}={told[name]}: the state is {shapes(wanted)}, not {shapes(there)}")
        found += places
    return tuple(found)


def part_at(answer: Any, option: str, path: str) -> Any:
    """The structure of an answer at a place, as `1`, `1.0` or `state.h`; of several places a tuple: `1,2`."""
    if "," in path:
        return tuple(part_at(answer, option, one) for one in path.split(","))
    part = structure_of(answer, itertools.count())
    for key in path.split("."):
        inside = {} if isinstance(part, int) or part is None else dict(parts_of(part))
        if key not in inside:
            there = ", ".join(inside) or "a tensor"
            raise AmbiguousError(f"--successor {option}: forward gives no {key!r} there, but {there}")
        part = inside[key]
    return part


def shapes(tensors: Iterable[torch.Tensor]) -> str:
    """Shapes and dtypes, for people."""
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors)


def _windows(tensors: Sequence[torch.Tensor], first: Sequence[torch.Tensor]) -> list[Successors]:
    """Neighbouring tensors of an answer that could be the states, the last first: (y, state) is the usual order."""
    count = len(first)
    starts = [len(tensors) - count, *range(len(tensors) - count)]
    windows = [tuple(range(start, start + count)) for start in starts if start >= 0]
    return [places for places in windows if alike(first, [tensors[place] for place in places])]


def _evidence(probe: Probe, convention: Convention, first: Sequence[torch.Tensor]) -> dict[int, set[int]]:
    """By leaf of the state: where the new state turns up of the recurrent layer that only this leaf goes into."""
    base = moved(first)
    before = probe.see(convention, probe.values(), base)
    tensors = leaves(before.answer)
    into: dict[int, list[torch.Tensor]] = {}  # by leaf: the new states of what it goes into
    for leaf in range(len(first)):
        other = [*base[:leaf], *moved(base[leaf : leaf + 1]), *base[leaf + 1 :]]
        after = probe.see(convention, probe.values(), other)
        for call, changed in zip(before.calls, after.calls, strict=False):
            for given, now, new in zip(call.given or (), changed.given or (), call.new, strict=False):
                if not same(given, now):
                    into.setdefault(leaf, []).append(new)
    alone = {
        leaf: news[0]
        for leaf, news in into.items()
        if len(news) == 1 and not any(news[0] is new for other, there in into.items() if other != leaf for new in there)
    }
    found = {leaf: _turning_up(new, tensors) for leaf, new in alone.items()}
    return {leaf: places for leaf, places in found.items() if places}


def _turning_up(state: torch.Tensor, tensors: Sequence[torch.Tensor]) -> set[int]:
    """Which tensors hold just a state's values, on whatever axes."""
    values = state.flatten().sort().values
    same_size = [place for place, value in enumerate(tensors) if value.numel() == values.numel()]
    return {p for p in same_size if torch.equal(tensors[p].flatten().to(values.dtype).sort().values, values)}


def _exact(evidence: Mapping[int, set[int]], windows: list[Successors], count: int) -> Successors | None:
    """A place for each leaf by evidence alone, in the usual window if there is a choice; None where some have none."""
    usual = set(windows[0]) if windows else set()
    if len(evidence) < count:
        return None
    places = tuple(max(evidence[leaf] & usual or evidence[leaf]) for leaf in range(count))
    return places if len(set(places)) == count else None


def _mended(usual: Successors, evidence: Mapping[int, set[int]]) -> Successors:
    return tuple(
        place if place in evidence.get(leaf, {place}) else max(evidence[leaf]) for leaf, place in enumerate(usual)
    )


def _check_order(
    probe: Probe, convention: Convention, first: Sequence[torch.Tensor], usual: Successors, sure: set[int]
) -> None:
    """Raise AmbiguousError where a new state is computed from an output that could be it by its shape.

    A call of one step has no whole sequence to tell them apart, and an output is mostly computed from the state.
    """
    floats = [value.clone().requires_grad_() if value.is_floating_point() else value for value in first]
    probe.tape.begin({})
    with torch.enable_grad(), suppress(RuntimeError):  # what a user's code does in place may have no gradient
        answer = convention.call(probe.module, probe.values(), floats)
        tensors = leaves(answer)
        outputs = [place for place in range(len(tensors)) if place not in usual]
        for leaf, other in itertools.product(set(range(len(usual))) - sure, outputs):
            state, value = tensors[usual[leaf]], tensors[other]
            if alike([state], [value]) and not same(state, value) and _computed_from(state, value):
                swapped = (*usual[:leaf], other, *usual[leaf + 1 :])
                raise AmbiguousError(_ask(answer, convention, usual, swapped))


def _computed_from(state: torch.Tensor, value: torch.Tensor) -> bool:
    if not (state.requires_grad and value.requires_grad):
        return False
    found = torch.autograd.grad(state.sum(), value, retain_graph=True, allow_unused=True)[0]
    return found is not None


def _ask(answer: Any, convention: Convention, usual: Successors, other: Successors) -> str:
    ways = [_spelt(answer, convention, places) for places in (usual, other)]
    return (
        f"two of forward's answers could be its new {', '.join(convention.states)}: say {ways[0]} (its last, as is"
        f" usual) or {ways[1]}"
    )


def _spelt(answer: Any, convention: Convention, places: Successors) -> str:
    """Places as --successor takes them."""
    paths = [".".join(path) for path in paths_of(structure_of(answer, itertools.count()))]
    return " ".join(
        f"--successor {name}={','.join(paths[places[leaf]] for leaf in numbers(structure))}"
        for name, structure in zip(convention.states, convention.structure, strict=True)
    )
