"""What is around a user's module or within it: wrappers are taken off, quantised and scripted parts refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.optim.swa_utils import AveragedModel

from export.module_calls import ModuleError
from export.module_copies import prepared
from export.module_find_plan import find_plan
from export.module_streams import check_streams


class Net(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, wrap: Any = None) -> None:
        super().__init__()
        lstm = nn.LSTM(4, 5, batch_first=True)
        self.lstm = lstm if wrap is None else wrap(lstm)
        self.head = nn.Linear(5, 2)

    def forward(self, input: Tensor) -> Any:  # noqa: A002
        return self.head(self.lstm(input)[0])


def _twice(module: nn.Module) -> nn.Module:
    made: Any = torch.compile(nn.DataParallel(module))
    return made  # type: ignore[no-any-return]


WRAPPERS: dict[str, Any] = {
    "torch.compile": (torch.compile, "OptimizedModule"),
    "DataParallel": (nn.DataParallel, "DataParallel"),
    "an average of weights": (AveragedModel, "AveragedModel"),
    "one in the other": (_twice, "DataParallel"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize(("wrap", "name"), WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_taken_off(wrap: Any, name: str) -> None:
    """Around the module and within it; the module computes what it computed, and it is told."""
    torch.manual_seed(0)
    module, remarks = prepared(wrap(Net()))
    assert isinstance(module, Net)
    assert f"taken out of its {name}" in remarks
    check_streams(find_plan(module, []), module)
    outer = Net(wrap)
    module, remarks = prepared(outer)
    assert isinstance(module.get_submodule("lstm"), nn.LSTM)
    assert any(remark.startswith("lstm is taken out of its ") for remark in remarks)
    assert not isinstance(outer.lstm, nn.LSTM)
    check_streams(find_plan(module, []), module)


def _prepared_for_quantisation() -> nn.Module:
    net: Any = nn.Sequential(nn.Linear(2, 2)).train()
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[no-untyped-call]
    made: nn.Module = quantization.prepare_qat(net)  # type: ignore[no-untyped-call]
    return made


FOREIGN: dict[str, Any] = {
    "dynamic": (
        lambda: quantization.quantize_dynamic(Net(), {nn.LSTM, nn.Linear}),  # type: ignore[no-untyped-call]
        "lstm is a LSTM of torch.ao.nn.quantized.dynamic, quantised, .*export the float module",
    ),
    "prepared": (_prepared_for_quantisation, "prepared for quantisation"),
    "a scripted part": (lambda: Net(torch.jit.script), r"lstm \(LSTM\) is TorchScript, .*FILE.py:CLASS"),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 2)), "it is TorchScript, .*--weights, its state dict"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("make", "text"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_computed_by_float_operators_is_refused(make: Any, text: str) -> None:
    """By what it is, and with what to give instead."""
    with pytest.raises(ModuleError, match=text) as refusal:
        prepared(make())
    assert "\n" not in str(refusal.value)


def test_a_quantised_weight_is_refused() -> None:
    """By its name and kind."""
    net = nn.Linear(2, 2)
    net.register_buffer("table", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    with pytest.raises(ModuleError, match=r"the weight table is a quantised or special tensor \(qint8\)"):
        prepared(net)
