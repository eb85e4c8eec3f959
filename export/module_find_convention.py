"""How a user's module is called, found by calling it: its input, its state, and where the new state comes out.

Owns what is tried and concluded of arguments and answers.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from export.layouts import BATCH, TIME
from export.module_calls import Convention, Gives, ModuleError, leaves, structure_of
from export.module_plan import Tensor
from export.module_probe import STEPS, STREAMS, Begin, Probe, alike, same
from export.theirs import one_line
from model.recurrent import CELLS

_LIKE_A_STATE = re.compile(r"(?i)state|hidden|cell|cache|memory|carry|past|^(h|c|s|hc|hx|cx|h0|c0|h_0|c_0|hc0)$")
_BEGINNERS = ("initial_state", "init_state", "zero_state", "init_hidden", "initial_hidden", "get_initial_state")


def guessed(module: nn.Module) -> Tensor:
    """The input of a module that says itself what it takes: by its only argument and its first layer."""
    found = parameters_of(module)
    names = [name for name, p in found.items() if p.default is p.empty and not _is_state(name, p)]
    names = names or list(found)[:1]
    layers = [part for part in module.modules() if not list(part.children())]
    if len(names) != 1 or not layers:
        raise ModuleError("say what forward takes, as in --input x=float32[batch,time,5]")
    first: Any = layers[0]
    if isinstance(first, nn.Embedding):
        return Tensor(names[0], "int64", (BATCH, TIME))
    size = getattr(first, "in_features", getattr(first, "input_size", None))
    if not isinstance(size, int):
        raise ModuleError(f"say what forward takes, as in --input {names[0]}=float32[batch,time,5]")
    if isinstance(first, tuple(CELLS)) and first is module:
        return Tensor(names[0], "float32", (BATCH, size))
    return Tensor(
        names[0], "float32", (BATCH, TIME, size) if getattr(first, "batch_first", True) else (TIME, BATCH, size)
    )


def parameters_of(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Forward's arguments that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(module.forward).parameters
    return {name: parameter for name, parameter in found.items() if parameter.kind in kinds}


def _is_state(name: str, parameter: inspect.Parameter) -> bool:
    """Whether an argument may be the state: it has no value of its own, or None and a state's name."""
    return parameter.default in (inspect.Parameter.empty, None) and bool(_LIKE_A_STATE.search(name))


def find_convention(
    module: nn.Module, probe: Probe, begin: Begin | None
) -> tuple[Convention, list[torch.Tensor] | None, bool]:
    """How it is called, its first state's leaves (None: it takes none), and whether it begins by itself."""
    inputs = tuple(tensor.name for tensor in probe.inputs)
    parameters = parameters_of(module)
    unknown = [name for name in inputs if name not in parameters]
    if unknown:
        raise ModuleError(f"--input {unknown[0]}: forward takes {', '.join(parameters) or 'nothing'}")
    required = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in inputs]
    candidates = required + [
        name for name, p in parameters.items() if name not in (*inputs, *required) and _is_state(name, p)
    ]
    plain = Convention(inputs)
    if not candidates:
        return plain, None, True
    begin = begin or _beginner(module)
    if begin is not None:
        return _with_first(probe, inputs, tuple(candidates), begin)
    return _begun_with_none(probe, plain, tuple(candidates), required)


def _beginner(module: nn.Module) -> Begin | None:
    """The module's own way to make a first state, where it has one that takes a batch size."""
    for name in _BEGINNERS:
        method = getattr(module, name, None)
        if callable(method):
            needed = [p for p in inspect.signature(method).parameters.values() if p.default is inspect.Parameter.empty]
            if len(needed) == 1:
                return method  # type: ignore[no-any-return]
    return None


def _with_first(
    probe: Probe, inputs: tuple[str, ...], candidates: tuple[str, ...], begin: Begin
) -> tuple[Convention, list[torch.Tensor], bool]:
    """The first state is given: where does the new one come out?"""
    try:
        state = begin(STREAMS)
    except Exception as error:
        raise ModuleError(f"making a first state for {STREAMS} streams fails: {one_line(error)}") from error
    parts = (state,) if len(candidates) == 1 else tuple(state)
    first = [leaf.detach() for leaf in leaves(parts)]
    for gives in (Gives.LAST, Gives.ALL):
        convention = Convention(inputs, candidates, structure_of(parts, itertools.count()), gives)
        try:
            seen = probe.see(convention, probe.values(), first)
        except ModuleError as error:
            if gives is Gives.ALL:
                raise ModuleError(str(error)) from error
            continue
        if seen.outputs and alike(first, seen.states):
            return convention, first, False
    raise ModuleError(
        f"forward takes {', '.join(candidates)}, and gives no new state of the same shapes last: let it give (y, state)"
    )


def _begun_with_none(
    probe: Probe, plain: Convention, candidates: tuple[str, ...], required: list[str]
) -> tuple[Convention, list[torch.Tensor] | None, bool]:
    """The module begins by itself where the state is None; the state that it then gives says what it takes."""
    nones = replace(plain, nones=candidates)
    try:
        probe.see(nones, probe.values(), None)
    except ModuleError as error:
        if not required:
            raise
        raise ModuleError(
            f"forward needs {', '.join(required)}, and fails with None ({error}); say what a first state is: a method"
            f" {_BEGINNERS[0]}(batch), or --state {required[0]}=float32[batch,7]"
        ) from error
    for gives in (Gives.LAST, Gives.ALL):
        convention = _fed_back(probe, replace(plain, states=candidates, gives=gives))
        if convention is not None:
            first = [torch.zeros_like(state) for state in probe.see(convention, probe.values(), None).states]
            if _begins_with_zeros(probe, convention, first):
                return convention, first, True
    return nones, None, True


def _fed_back(probe: Probe, convention: Convention) -> Convention | None:
    """The convention with its structure, if what comes out for None can go in, and keeps its shapes."""
    try:
        seen = probe.see(convention, probe.values(), None)
        parts = convention.state(seen.answer)
        if not seen.states or not seen.outputs or len(parts) != len(convention.states):
            return None
        found = replace(convention, structure=structure_of(parts, itertools.count()))
        again = probe.see(found, probe.values(), seen.states)
        longer = probe.see(found, probe.values(steps=STEPS), None)
    except ModuleError:
        return None
    return found if alike(seen.states, again.states) and alike(seen.states, longer.states) else None


def _begins_with_zeros(probe: Probe, convention: Convention, zeros: list[torch.Tensor]) -> bool:
    """Whether None means zeros."""
    none, zero = (probe.see(convention, probe.values(), first) for first in (None, zeros))
    pairs = [(none.outputs[name], zero.outputs[name]) for name in none.outputs]
    return all(same(a, b) for a, b in [*pairs, *zip(none.states, zero.states, strict=True)])
