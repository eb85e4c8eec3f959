"""A user's module run twice on the same input: does it draw random numbers, does it keep a state in its attributes?

Owns that check, and what it says. Whatever else is concluded of a module rests on its answers being the same again.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.module_calls import Convention, ModuleError, leaves
from export.module_copies import copied
from export.module_errors import place, told
from export.module_probe import STREAMS, Probe, Values, same

_OWN = frozenset(vars(nn.Module()))  # attributes that every module has
Attributes = dict[str, Any]


class RandomOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operators that drew random numbers, each with its place in the user's code."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, and note it if it draws."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            frames = traceback.extract_stack()
            where, called = place(frames), [frame.name for frame in frames if "dropout" in frame.name]
            name = called[0] if called else func.overloadpacket.__name__.removeprefix("native_").strip("_")
            self.seen.append(f"{name}{' in ' * bool(where)}{where}")
        return func(*args, **(kwargs or {}))


def check_repeats(module: nn.Module, probe: Probe, convention: Convention, first: list[torch.Tensor] | None) -> None:
    """Raise ModuleError where two runs on the same input differ, saying which of two reasons it has."""

    def call(part: nn.Module, values: Values) -> Any:
        return convention.call(part, values, first)

    _check(module, probe, call, STREAMS)


def explain_failure(module: nn.Module, probe: Probe, required: tuple[str, ...], failure: ModuleError) -> None:
    """Raise ModuleError for a module that doesn't run, where running one stream, or twice, says why; else return."""
    convention = Convention(tuple(tensor.name for tensor in probe.inputs), nones=required)

    def call(part: nn.Module, values: Values) -> Any:
        return convention.call(part, values, None)

    for streams in (STREAMS, 1):
        try:
            leaves(call(copied(module, share=True), probe.values(streams=streams)))
        except Exception:  # noqa: BLE001, S112  whatever a user's code raises; the failure is told already
            continue
        _check(module, probe, call, streams)
        if streams == 1:
            raise ModuleError(
                f"forward runs with one stream, and not with {STREAMS} at once ({failure}): take the batch's size from"
                " the input"
            )
        return


@torch.no_grad()
def _check(module: nn.Module, probe: Probe, call: Callable[[nn.Module, Values], Any], streams: int) -> None:
    """Raise ModuleError where runs of copies, or of the same copy again, differ."""
    values = probe.values(streams=streams)
    one, other = copied(module, share=True), copied(module, share=True)
    before = _attributes(one)
    _seed(0)
    with RandomOps() as drawn:
        answer = leaves(call(one, values))
    changed = _changed(before, _attributes(one))
    _seed(1)
    if not _equal(answer, leaves(call(other, values))):
        ways = ", ".join(dict.fromkeys(drawn.seen)) or "not by PyTorch"
        raise ModuleError(
            f"forward draws random numbers ({ways}): two runs on the same input differ, so nothing can be compared;"
            f" {_instead(drawn.seen)}"
        )
    _seed(0)
    try:
        again = [leaves(call(one, values)), leaves(call(one, probe.values(1, streams))), leaves(call(one, values))]
    except Exception as error:
        if not changed:
            raise
        raise ModuleError(_kept(changed, f"and fails when it is called again: {told(error)}")) from error
    if not (_equal(answer, again[0]) and _equal(answer, again[2])):
        raise ModuleError(_kept(_changed(before, _attributes(one)), "so that a second run on the same input differs"))


def _instead(drawn: list[str]) -> str:
    if any("dropout" in name for name in drawn):
        return "let dropout follow self.training, as nn.Dropout does"
    return "give what is drawn from as the output (logits, a mean), or take the numbers as an input"


def _kept(names: list[str], how: str) -> str:
    plain = names[0].rpartition(".")[2] if names else "state"
    where = f"the module's own attributes ({', '.join(names)})" if names else "something that isn't an attribute"
    return (
        f"forward keeps a state in {where}, {how}: one attribute is no state"
        f" of many streams; let forward take and give it, forward(x, {plain}) -> (y, {plain})"
    )


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  what a user's code may draw from


def _attributes(module: nn.Module) -> Attributes:
    """What a module keeps beside its parameters: buffers, and attributes that are tensors, numbers, or hold such."""
    found: Attributes = {}
    for name, part in module.named_modules():
        own = {**dict(part.named_buffers(recurse=False)), **{k: v for k, v in vars(part).items() if k not in _OWN}}
        for key, value in own.items():
            found |= dict(_plain(f"{name}.{key}".lstrip("."), value))
    return found


def _plain(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor):
        yield name, value.detach().clone()
    elif isinstance(value, (bool, int, float, str, type(None))):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _plain(f"{name}[{key}]", part)
    elif isinstance(value, (list, tuple)):
        yield f"{name}[]", len(value)
        for number, part in enumerate(value):
            yield from _plain(f"{name}[{number}]", part)


def _changed(before: Attributes, after: Attributes) -> list[str]:
    """The attributes, without what is inside them, that aren't what they were."""
    names = [*before, *(name for name in after if name not in before)]
    differ = [name for name in names if not _unchanged(before.get(name), after.get(name))]
    return list(dict.fromkeys(name.split("[")[0] for name in differ))


def _unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        return before.dtype == after.dtype and _equal([before], [after])
    return type(before) is type(after) and bool(before == after)


def _equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """Whether tensors are the same up to roundings; what is no number in both counts as the same."""
    if len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and same(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in pairs)
