"""Modules around a user's module: what only calls another is taken off, what can't be taken apart is refused.

Owns PyTorch's own wrappers, and the kinds of modules and weights whose arithmetic ONNX's operators don't have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.optim.swa_utils import AveragedModel

from export.module_calls import ModuleError

_INSIDE: dict[type[nn.Module], str] = {
    OptimizedModule: "_orig_mod",
    nn.DataParallel: "module",
    nn.parallel.DistributedDataParallel: "module",
    AveragedModel: "module",
}
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "bitsandbytes")


def unwrapped(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The module inside of PyTorch's wrappers, which compute what it computes; with what was taken off."""
    remarks: tuple[str, ...] = ()
    while (inner := _inside(module)) is not None:
        remarks += (f"taken out of its {type(module).__name__}",)
        module = inner
    return module, remarks


def unwrap_parts(module: nn.Module) -> tuple[str, ...]:
    """Put the inside of every wrapper within the module in the wrapper's place; what was taken off."""
    remarks: tuple[str, ...] = ()
    for name, part in list(module.named_modules(remove_duplicate=False)):
        for key, child in list(part._modules.items()):  # noqa: SLF001  named_children leaves out what is there twice
            if child is not None and _inside(child) is not None:
                inner, _ = unwrapped(child)
                part._modules[key] = inner  # noqa: SLF001
                remarks += (f"{name}.{key}".lstrip(".") + f" is taken out of its {type(child).__name__}",)
    return remarks


def _inside(module: nn.Module) -> nn.Module | None:
    for kind, name in _INSIDE.items():
        if isinstance(module, kind):
            inner: nn.Module = getattr(module, name)
            return inner
    return None


def refuse_foreign(module: nn.Module) -> None:
    """Raise ModuleError, by its name, for a part or a weight that isn't computed by float operators of PyTorch."""
    for name, part in module.named_modules():
        where = name or "the module"
        if isinstance(part, torch.jit.ScriptModule):
            raise ModuleError(_scripted(name, part))
        if type(part).__module__.startswith(_QUANTIZED):
            raise ModuleError(
                f"{where} is a {type(part).__name__} of {type(part).__module__.partition('.modules')[0]}, quantised,"
                " whose rounding ONNX's operators don't have: export the float module that it was made of (a bare"
                " LSTM's weights can be quantised here: python -m export weights.pt --precision int8)"
            )
        if isinstance(part, (FakeQuantizeBase, ObserverBase)):
            raise ModuleError(
                f"{where} is a {type(part).__name__}: the module is prepared for quantisation, and measures its values"
                " as it runs; export the float module that it was made of"
            )
        for key, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if value.is_quantized or type(value) not in (Tensor, nn.Parameter, nn.Buffer, nn.UninitializedParameter):
                kind = str(value.dtype).removeprefix("torch.") if value.is_quantized else type(value).__name__
                raise ModuleError(
                    f"the weight {f'{name}.{key}'.lstrip('.')} is a quantised or special tensor ({kind}), no plain"
                    " floats: make the module for the export with the float weights that it was made of"
                )


def _scripted(name: str, part: torch.jit.ScriptModule) -> str:
    """What is said of TorchScript."""
    what = f"{name} ({part.original_name})" if name else "it"
    return (
        f"{what} is TorchScript, compiled code whose recurrent layers can't be taken apart: give the Python class that"
        " it was scripted from, as FILE.py:CLASS, with --weights, its state dict or TorchScript file"
    )
