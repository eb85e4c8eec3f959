"""Weights that a module computes from others: found, and put in their place as plain values.

Owns PyTorch's ways of it: parametrizations, and the hooks of weight_norm, spectral_norm and pruning.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def settle_weights(module: nn.Module) -> None:
    """Give every weight that PyTorch's own tools compute its value of eval mode, for good; changes the module."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            _settle_parametrized(part)
        for hook in list(part._forward_pre_hooks.values()):  # noqa: SLF001  that is where PyTorch keeps them
            if isinstance(hook, WeightNorm):
                remove_weight_norm(part, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(part, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(part, hook._tensor_name)  # type: ignore[no-untyped-call]  # noqa: SLF001  its only name


def _settle_parametrized(part: nn.Module) -> None:
    """As `remove_parametrizations` does, but it leaves the class as it is, which all copies of the module have."""
    values = {name: getattr(part, name).detach().clone() for name in part.parametrizations}  # type: ignore[union-attr]
    del part.parametrizations
    part.__class__ = type(part).__bases__[0]
    for name, value in values.items():
        setattr(part, name, nn.Parameter(value, requires_grad=False))
