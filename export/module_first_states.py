"""A user's module's first states: a method that makes them, None that begins them, a proposal where there is neither.

Owns what is tried for them, and that one method's states and None's agree.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from export.module_calls import Convention, ModuleError, leaves
from export.module_errors import told
from export.module_probe import STREAMS, Begin, Probe, alike, same

_BEGINNER = re.compile(
    r"(?i)_?((get|make|create)_?)?(init|initial|initiali[sz]e|zero|begin|start|empty)(_?(hidden|state|carry|memory|cache))+s?"
    r"(_?states?)?|initial"
)
_BATCH = re.compile(r"(?i)^(b|bs|bsz|n|num|size)$|batch|streams?|envs?|num_|n_|^nb")
_GIVEN = {"device": torch.device("cpu"), "dtype": torch.float32}
_TRIED = 256  # combinations of values that a state may begin with


def by_none(_batch: int) -> None:
    """The choice that forward begins its state by itself, whatever methods there are."""


def beginner(module: nn.Module) -> Begin | None:
    """The module's own way to make a first state, where it has a method that is called so."""
    for name in sorted(name for kind in type(module).__mro__ for name in vars(kind) if _BEGINNER.fullmatch(name)):
        method = getattr(module, name, None)
        if callable(method) and (begin := _calling(method)) is not None:
            return begin
    return None


def named_beginner(module: nn.Module, name: str) -> Begin:
    """The method that --begin names; raises ModuleError where there is none."""
    if name == "None":
        return by_none
    method = getattr(module, name, None)
    begin = _calling(method) if callable(method) else None
    if begin is None:
        raise ModuleError(f"--begin {name}: {type(module).__name__} has no method {name}(batch)")
    return begin


def _calling(method: Callable[..., Any]) -> Begin | None:
    """A method as one of a batch size; None where it needs something else."""
    parameters = [
        p for p in inspect.signature(method).parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    fixed = {p.name: _GIVEN[p.name] for p in parameters if p.name in _GIVEN}
    needed = [p.name for p in parameters if p.default is p.empty and p.name not in fixed]
    maybe = [p.name for p in parameters if p.name not in fixed and (p.name in needed or _BATCH.search(p.name))]
    if len(needed) > 1:
        return None
    batch = needed[0] if needed else maybe[0] if maybe else None

    def begin(streams: int) -> Any:
        if batch is None:
            return _repeated(method(**fixed), streams)
        return method(**{batch: streams, **fixed})

    begin.__name__ = method.__name__
    return begin


def _repeated(value: Any, streams: int) -> Any:
    """A nested state of one stream for several: on its axis of size 1, or on a new first one."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        axes = [axis for axis in ((1, 0) if value.ndim > 2 else (0,)) if value.ndim > 1 and value.shape[axis] == 1]
        return value.repeat_interleave(streams, axes[0]) if axes else value.expand(streams, *value.shape)
    if isinstance(value, Mapping):
        return {key: _repeated(part, streams) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_repeated(part, streams) for part in value))
    return type(value)(_repeated(part, streams) for part in value) if isinstance(value, (tuple, list)) else value


def begun(begin: Begin) -> Any:
    """A nested first state of STREAMS streams; raises ModuleError where making one fails, or is random."""
    name = getattr(begin, "__name__", "the first state")
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            state = begin(STREAMS)
            torch.manual_seed(1)
            again = begin(STREAMS)
    except Exception as error:  # whatever a user's code raises
        raise ModuleError(f"making a first state for {STREAMS} streams fails: {name}: {told(error)}") from error
    if not leaves(state):
        raise ModuleError(f"{name}({STREAMS}) gives no first state")
    if not all(map(same, leaves(state), leaves(again))):
        raise ModuleError(f"{name} gives random numbers, and a stream's first state is a fixed one: let it give zeros")
    return state


def check_agrees(module: nn.Module, probe: Probe, convention: Convention, first: list[torch.Tensor] | None) -> None:
    """Raise ModuleError where the module has a method for first states that gives others than None does."""
    begin = beginner(module)
    if begin is None or first is None:
        return
    try:
        made = [leaf.detach() for leaf in leaves(begun(begin))]
        probe.see(convention, probe.values(), made)
    except ModuleError:
        return  # it makes something else
    if alike(first, made) and not all(map(same, first, made)):
        name, states = getattr(begin, "__name__", ""), ", ".join(convention.states)
        raise ModuleError(
            f"forward begins from other values where {states} is None than {name} gives: say --begin {name}, or --begin"
            " None"
        )


def first_of_none(probe: Probe, convention: Convention) -> list[torch.Tensor]:
    """The first state that None means: zeros, or what a layer or a parameter of the module has; raises ModuleError."""
    states = probe.see(convention, probe.values(), None).states
    options = [list(_first_values(probe, convention, leaf)) for leaf in states]
    for chosen in itertools.islice(itertools.product(*options), _TRIED):
        if _begins_with(probe, convention, list(chosen)):
            return [value.detach() for value in chosen]
    names = ", ".join(convention.states)
    raise ModuleError(
        f"where {names} is None, forward begins from a state that is neither zero nor one of its parameters: give it a"
        " method initial_state(batch) that makes it"
    )


def _first_values(probe: Probe, convention: Convention, leaf: torch.Tensor) -> Iterator[torch.Tensor]:
    """What a leaf may begin with."""
    yield torch.zeros_like(leaf)
    for call in probe.see(convention, probe.values(), None).calls:
        for given in call.given or ():
            ways = (given.transpose(0, 1), given, given[:, 0])
            yield from (way.contiguous() for way in ways if way.shape == leaf.shape)
    for value in itertools.chain(probe.module.parameters(), probe.module.buffers()):
        for way in (value, value.unsqueeze(-2) if value.ndim else value):
            if value.dtype == leaf.dtype and _fits(way, leaf):
                yield way.detach().expand(leaf.shape).contiguous()
                yield torch.tanh(way.detach()).expand(leaf.shape).contiguous()


def _fits(value: torch.Tensor, leaf: torch.Tensor) -> bool:
    sizes = zip(reversed(value.shape), reversed(leaf.shape), strict=False)
    return value.ndim <= leaf.ndim and all(a in (1, b) for a, b in sizes)


def _begins_with(probe: Probe, convention: Convention, first: list[torch.Tensor]) -> bool:
    """Whether None means these values, for several inputs."""
    for seed in range(3):
        none, begun_so = (probe.see(convention, probe.values(seed), states) for states in (None, first))
        pairs = zip(leaves(none.answer), leaves(begun_so.answer), strict=True)
        if not all(same(a, b) for a, b in pairs):
            return False
    return True


def proposed(probe: Probe, names: tuple[str, ...]) -> str:
    """Options for first states that a module needs, by its recurrent layers where they say it."""
    shapes = []
    for core in probe.cores:
        axes = f"batch,{core.hidden_size}" if core.cell else f"{core.layers},batch,{core.hidden_size}"
        shapes.append([f"float32[{axes}]"] * len(core.states))
    flat = [shape for layer in shapes for shape in layer]
    if len(names) == len(flat):
        forms = flat
    elif len(names) == len(shapes):
        forms = [layer[0] if len(layer) == 1 else f"({','.join(layer)})" for layer in shapes]
    else:
        forms = ["float32[batch,7]"] * len(names)
    return " ".join(f"--state '{name}={form}'" for name, form in zip(names, forms, strict=True))
