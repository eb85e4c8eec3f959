"""Copies of a user's module, which itself stays as it is: out of its wrappers, in any float dtype, on the CPU.

Owns how a module is copied whose weights are computed, and what can't be copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from export.module_calls import ModuleError
from export.module_wrappers import refuse_foreign, unwrap_parts, unwrapped
from export.theirs import one_line

_CONTAINERS = frozenset({"_modules", "_parameters", "_buffers"})


def prepared(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in float32 that doesn't train, with what people should know of it.

    Raises ModuleError in one line for what can't be taken.
    """
    module, remarks = unwrapped(module)
    refuse_foreign(module)
    off = [name for name, part in module.named_modules() if type(part).__name__.startswith("Dropout")]
    off += [
        name for name, part in module.named_modules() if getattr(part, "dropout", 0) and isinstance(part, nn.RNNBase)
    ]
    if off:
        remarks += (f"dropout is off ({', '.join(off)})",)
    strange = {str(value.dtype) for value in module.parameters() if value.is_floating_point()} - {"torch.float32"}
    if strange:
        remarks += (f"weights of {', '.join(sorted(strange))} are taken as float32",)
    made = copied(module, torch.float32)
    remarks += unwrap_parts(made)
    try:
        made = made.cpu()
    except (RuntimeError, NotImplementedError) as error:
        raise ModuleError(f"its weights can't be brought to the CPU: {one_line(error)}") from error
    return made.requires_grad_(requires_grad=False), remarks


def copied(module: nn.Module, dtype: torch.dtype | None = None, *, share: bool = False) -> nn.Module:
    """A copy in eval mode, its floats of this dtype; raises ModuleError naming what can't be copied.

    `share`: the copy has the module's own parameters, which take the memory of a large one, and which no call changes.
    """
    memo: dict[int, Any] = {id(value): value for value in module.parameters()} if share else {}
    try:
        with torch.no_grad(), _Detached():
            made: nn.Module = copy.deepcopy(module, memo)
            _bind_functions(made, memo)
            if dtype is not None:
                made = made.to(dtype)
                _cast_loose_tensors(made, dtype)
    except Exception as error:  # whatever a user's objects raise
        raise ModuleError(_why_not(module, error)) from error
    return made.eval()


class _Detached(TorchFunctionMode):
    """Tensors that were computed with gradients are copied by their values: deepcopy refuses them by itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, or copy the values."""
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def _bind_functions(made: nn.Module, memo: dict[int, Any]) -> None:
    """Let functions that a module holds (a forward set on it, hooks) speak of the copies, not of the originals."""
    for part in made.modules():
        for holder in (vars(part), *(value for value in vars(part).values() if isinstance(value, dict))):
            for key, value in list(holder.items()):
                if isinstance(value, FunctionType) and any(_copied_in(cell, memo) for cell in value.__closure__ or ()):
                    holder[key] = _rebound(value, memo)


def _copied_in(cell: CellType, memo: dict[int, Any]) -> bool:
    try:
        content = cell.cell_contents
    except ValueError:  # empty
        return False
    return id(content.__self__ if isinstance(content, MethodType) else content) in memo


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    cells = tuple(
        CellType(copy.deepcopy(cell.cell_contents, memo)) if _copied_in(cell, memo) else cell
        for cell in function.__closure__ or ()
    )
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _cast_loose_tensors(module: nn.Module, dtype: torch.dtype) -> None:
    """Tensors that are plain attributes, neither parameters nor buffers, in this dtype too."""
    for part in module.modules():
        for key, value in _loose_tensors(part):
            vars(part)[key] = value.to(dtype)


def _loose_tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, value in list(vars(part).items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            yield key, value


def _why_not(module: nn.Module, error: Exception) -> str:
    """What can't be copied, by its place in the module."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key in _CONTAINERS:
                continue
            try:
                with torch.no_grad(), _Detached():
                    copy.deepcopy(value)
            except Exception as cause:  # noqa: BLE001  whatever a user's objects raise
                where = f"{name}.{key}" if name else key
                return (
                    f"it holds a {type(value).__name__} in {where}, which can't be copied ({one_line(cause)}): make the"
                    " module for the export without it"
                )
    return f"the module can't be copied: {type(error).__name__}: {one_line(error)}"
