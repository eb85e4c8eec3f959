"""Where batch and time stand in the tensors of a graph: by what was asked, by names, and by trying.

Owns the candidates and the choice between them. A choice is made by running the graph: a wrong axis doesn't run, or
lets streams see each other. Knows no states' meaning and writes nothing.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ValueInfoProto

from export.theirs import Dim, WrapError, dims

BATCH, TIME = "batch", "time"
Layout = tuple[int | str, ...]  # per axis: a size, BATCH or TIME
Layouts = dict[str, Layout]
Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Arrays]  # raises anything where the graph doesn't run
_BATCH_NAME = re.compile(r"(?i)batch|^b(s|sz)?$|^n$|streams?$")
_TIME_NAME = re.compile(r"(?i)time|seq|len|frames?|steps?|^t$")
_TRIED = 256  # combinations
STREAMS, STEPS = 3, 5  # of a trial: sizes that nothing else is likely to have
_CLOSE = 1e-2  # of the largest value: two streams that see each other differ by more


class AmbiguousError(WrapError):
    """Two choices of axes are as good; the text says which option settles it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a graph can do under a choice of layouts, and the layouts of its outputs."""

    inputs: Layouts
    outputs: Layouts
    steps: int  # the most steps that one run was seen to take: 1 or STEPS


def candidates(
    value: ValueInfoProto, asked: Mapping[str, Layout], *, state: bool, batch_names: frozenset[str]
) -> list[Layout]:
    """The layouts that a tensor may have; raises WrapError where there is none."""
    if value.name in asked:
        return [_checked(value.name, dims(value), asked[value.name], state=state)]
    declared = dims(value)
    free = [axis for axis, size in enumerate(declared) if not isinstance(size, int)]
    ones = [axis for axis, size in enumerate(declared) if size == 1]
    choices = [{axis: BATCH} for axis in free] if len(free) == 1 else []
    if not free:
        choices = [{axis: BATCH} for axis in ones]
    elif len(free) == 1 and not state:
        choices += [{free[0]: TIME, axis: BATCH} for axis in ones]
    elif len(free) > 1 and not state:
        choices = [{batch: BATCH, time: TIME} for batch, time in itertools.permutations(free, 2)]
    choices = _by_names(choices, declared, batch_names)
    choices = [choice for choice in choices if all(axis in choice for axis in free)]
    if not choices:
        raise WrapError(_no_layout(value.name, declared, state=state))
    return [_filled(declared, choice) for choice in choices]


def _filled(declared: list[Dim], choice: Mapping[int, str]) -> Layout:
    return tuple(choice[axis] if axis in choice else int(size or 0) for axis, size in enumerate(declared))


def batch_names(states: Iterable[ValueInfoProto]) -> frozenset[str]:
    """What the states call their only free axis."""
    names = [[size for size in dims(value) if not isinstance(size, int)] for value in states]
    return frozenset(name[0] for name in names if len(name) == 1 and name[0] is not None)


def choose(
    choices: Mapping[str, Sequence[Layout]],
    states: Mapping[str, str],
    make: Callable[[str, tuple[int, ...]], npt.NDArray[Any]],
    run: Run,
    *,
    together: bool,
) -> Trial:
    """The layouts under which the graph runs and keeps streams apart; `together` False tries one stream only.

    `make` gives values of a shape for an input. Raises WrapError where nothing runs, or where two choices do.
    """
    trials: list[Trial] = []
    fault = "nothing was tried"
    for combination in itertools.islice(itertools.product(*choices.values()), _TRIED):
        layouts = dict(zip(choices, combination, strict=True))
        try:
            trials.append(_try(layouts, states, make, run, together=together))
        except Exception as error:  # noqa: BLE001  ONNX Runtime's own, or a shape that doesn't fit
            fault = " ".join(str(error).split())[:200]
    if not trials:
        tried = " ".join(f"--shape {name}={spell(options[0])}" for name, options in choices.items())
        raise WrapError(f"the graph runs with no choice of batch and time axes ({fault}); say better ones than {tried}")
    best = max(trial.steps for trial in trials)
    trials = [trial for trial in trials if trial.steps == best]
    first = trials[0]
    for other in trials[1:]:
        differing = [
            name
            for name in choices
            if _meaning(first.inputs[name], choices[name]) != _meaning(other.inputs[name], choices[name])
        ]
        if differing:
            name = differing[0]
            raise AmbiguousError(
                f"the axes of {name!r} are ambiguous: say --shape {name}={spell(first.inputs[name])} or --shape"
                f" {name}={spell(other.inputs[name])}"
            )
    return first


def spell(layout: Layout) -> str:
    """A layout as --shape takes it."""
    return ",".join(map(str, layout))


def sized(layout: Layout, streams: int, steps: int) -> tuple[int, ...]:
    """The shape for so many streams and steps."""
    sizes = {BATCH: streams, TIME: steps}
    return tuple(sizes[size] if isinstance(size, str) else size for size in layout)


def _meaning(layout: Layout, choices: Sequence[Layout]) -> Layout:
    """A layout, but for which of several axes of size 1 the batch stands on: that changes no byte."""
    free = {axis for other in choices for axis, size in enumerate(other) if size == TIME}
    ones = [axis for axis in range(len(layout)) if any(other[axis] == 1 for other in choices)]
    return tuple(1 if axis in ones and axis not in free else size for axis, size in enumerate(layout))


def _try(
    layouts: Layouts,
    states: Mapping[str, str],
    make: Callable[[str, tuple[int, ...]], npt.NDArray[Any]],
    run: Run,
    *,
    together: bool,
) -> Trial:
    streams, steps = STREAMS if together else 1, STEPS
    timed = any(TIME in layout for layout in layouts.values())
    try:
        feeds = _feeds(layouts, make, streams, steps)
        answer = run(feeds)
    except Exception:
        if not timed:
            raise
        steps = 1
        feeds = _feeds(layouts, make, streams, steps)
        answer = run(feeds)
    for name, successor in states.items():
        if answer[successor].shape != feeds[name].shape:
            raise WrapError(f"state {name!r} is {feeds[name].shape} before a run and {answer[successor].shape} after")
    shapes = [value.shape for value in answer.values()]
    fewer = run(_feeds(layouts, make, streams - 1, steps)) if together else answer
    shorter = run(_feeds(layouts, make, streams, steps - 1)) if timed and steps > 1 else answer
    outputs = {
        name: _layout_of(name, shape, fewer[name].shape, shorter[name].shape, together=together)
        for name, shape in zip(answer, shapes, strict=True)
    }
    if together:
        _check_apart(layouts, outputs, feeds, answer, run)
    return Trial(layouts, outputs, steps if timed else 1)


def _feeds(
    layouts: Layouts, make: Callable[[str, tuple[int, ...]], npt.NDArray[Any]], streams: int, steps: int
) -> Arrays:
    return {name: make(name, sized(layout, streams, steps)) for name, layout in layouts.items()}


def _layout_of(
    name: str, shape: tuple[int, ...], fewer: tuple[int, ...], shorter: tuple[int, ...], *, together: bool
) -> Layout:
    """An output's layout, from how its shape follows the numbers of streams and of steps."""
    if not len(shape) == len(fewer) == len(shorter):
        raise WrapError(f"output {name!r} changes its number of axes")
    layout: list[int | str] = list(shape)
    for axis, (size, less) in enumerate(zip(shape, shorter, strict=True)):
        if less != size:
            if (size, less) != (STEPS, STEPS - 1) or TIME in layout:
                raise WrapError(
                    f"output {name!r} has {size} on axis {axis} for {STEPS} steps: not one per step, so call several"
                    " steps one, with a number for time in --shape"
                )
            layout[axis] = TIME
    places = [axis for axis, (size, less) in enumerate(zip(shape, fewer, strict=True)) if less != size]
    if not together:
        places = [axis for axis, size in enumerate(layout) if size == 1][:1]
    if len(places) != 1 or (together and shape[places[0]] != STREAMS):
        raise WrapError(
            f"output {name!r} {list(shape)} has no axis that is one per stream; --output chooses among outputs"
        )
    layout[places[0]] = BATCH
    return tuple(layout)


def _check_apart(layouts: Layouts, outputs: Layouts, feeds: Arrays, answer: Arrays, run: Run) -> None:
    """Raise WrapError where a stream's answer depends on the others."""
    one = {name: np.take(value, [0], layouts[name].index(BATCH)) for name, value in feeds.items()}
    alone = run(one)
    for name, value in answer.items():
        mine = np.take(value, [0], outputs[name].index(BATCH)).astype(np.float64)
        error, most = np.abs(mine - alone[name]), np.max(np.abs(mine), initial=0)
        if mine.shape != alone[name].shape or (math.isfinite(most) and np.max(error, initial=0) > _CLOSE * most):
            raise WrapError(f"output {name!r} of one stream depends on the other streams")


def _by_names(choices: list[dict[int, str]], declared: list[Dim], known: frozenset[str]) -> list[dict[int, str]]:
    """The choices that fit the axes' names, or all where none does."""

    def fits(choice: dict[int, str]) -> bool:
        for axis, kind in choice.items():
            name = declared[axis]
            if isinstance(name, str):
                batch, time = name in known or _BATCH_NAME.search(name), _TIME_NAME.search(name)
                if (kind == TIME and batch) or (kind == BATCH and time and not batch):
                    return False
                if kind == BATCH and known and not batch and any(other in known for other in declared):
                    return False
        return True

    return [choice for choice in choices if fits(choice)] or choices


def _checked(name: str, declared: list[Dim], asked: Layout, *, state: bool) -> Layout:
    text = f"--shape {name}={spell(asked)}"
    if len(asked) != len(declared):
        raise WrapError(f"{text}: the graph declares {len(declared)} axes, {declared}")
    for axis, (size, found) in enumerate(zip(asked, declared, strict=True)):
        if isinstance(size, int) and isinstance(found, int) and size != found:
            raise WrapError(f"{text}: axis {axis} has size {found} in the graph")
    if asked.count(BATCH) != 1 or asked.count(TIME) > 1 - state:
        raise WrapError(
            f"{text}: it needs 'batch' once" + (", and a state has no 'time'" if state else ", 'time' at most once")
        )
    return asked


def _no_layout(name: str, declared: list[Dim], *, state: bool) -> str:
    what = "state" if state else "input"
    shape = "[" + ", ".join("?" if size is None else str(size) for size in declared) + "]"
    if not declared and not state:
        return f"input {name!r} is a single number for all streams: say which one, --constant {name}=VALUE"
    if all(isinstance(size, int) for size in declared):
        constant = "" if state else f", or that it never changes, --constant {name}=VALUE"
        return (
            f"{what} {name!r} {shape} has no free axis and none of size 1 for the streams: say which it is, --shape"
            f" {name}=…{constant}"
        )
    return (
        f"{what} {name!r} {shape} has more free axes than it can be told what for: say which is the batch, and the"
        f" sizes of others, --shape {name}=batch,…"
    )
