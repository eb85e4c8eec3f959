# mypy: disable-error-code="no-any-return"
"""Recurrent layers across frequency: within one frame, over time for every frequency, and along the streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export import artifact
from export.layouts import BATCH
from export.module import export_module
from export.module_calls import ModuleError
from export.module_code import first_state
from export.module_copies import prepared
from export.module_find_plan import find_plan
from export.module_plan import Plan, parse_input
from export.module_streams import check_streams
from tests.modules import seeded

FRAMES, FRAME = "x=float32[batch,time,6,4]", "x=float32[batch,6,4]"


class Frame(nn.Module):
    """One frame [B, F, C]: both ways across its frequencies, then a cell over time for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.intra, self.fc = nn.GRU(4, 4, batch_first=True, bidirectional=True), nn.Linear(8, 4)
        self.inter = nn.GRUCell(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        y = self.fc(self.intra(x)[0])
        new = self.inter(y.reshape(-1, 4), h.reshape(-1, 4)).view(h.shape)
        return y + new, new


class Looped(Frame):
    """The same in a loop over time, from zeros of its own."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        found, h = [], torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):
            y, h = super().forward(x[:, step], h)
            found.append(y)
        return torch.stack(found, 1)


class DualPath(nn.Module):
    """Without loops, as GTCRN and DPCRN are: frames folded into one batch, frequencies into the other."""

    def __init__(self, order: str = "btf") -> None:
        super().__init__()
        self.order = order
        self.intra, self.fc = nn.LSTM(4, 3, batch_first=True, bidirectional=True), nn.Linear(6, 4)
        self.inter = nn.LSTM(4, 4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, freqs, size = x.shape
        h = x.new_zeros(2, batch * steps, 3)
        x = x + self.fc(self.intra(x.reshape(batch * steps, freqs, size), (h, h))[0]).view(x.shape)
        if self.order == "btf":
            y = self.inter(x.transpose(1, 2).reshape(batch * freqs, steps, size))[0]
            return x + y.view(batch, freqs, steps, size).transpose(1, 2)
        y = self.inter(x.permute(2, 0, 1, 3).reshape(freqs * batch, steps, size))[0]
        return x + y.view(freqs, batch, steps, size).permute(1, 2, 0, 3)


def planned(make: Any, inputs: str, state: dict[str, str] | None = None) -> Plan:
    """What is understood, once it is proved to stream."""
    module, _ = prepared(seeded(make))
    plan = find_plan(module, [parse_input(inputs)], first_state(state or {}))
    check_streams(plan, module)
    return plan


def test_a_layer_within_a_frame_has_no_state() -> None:
    """It begins anew in every frame, by the module's own code; the cell has a state for every frequency."""
    plan = planned(Frame, FRAME, {"h": "float32[batch,6,4]"})
    assert {state.name: state.layout for state in plan.states} == {"h": (BATCH, 6, 4)}
    plan = planned(Looped, FRAMES)
    assert {state.name: state.layout for state in plan.states} == {"inter.h": (BATCH, 6, 1, 4)}
    assert plan.states[0].origin == "inter: GRU h, 6 for each stream"


@pytest.mark.parametrize("order", ["btf", "fbt"])
def test_frequencies_in_the_batch_are_states_of_their_stream(order: str) -> None:
    """In whichever order they are folded."""
    plan = planned(lambda: DualPath(order), FRAMES)
    assert {state.name: state.layout for state in plan.states} == {
        "inter.h": (BATCH, 6, 2, 4),
        "inter.c": (BATCH, 6, 2, 4),
    }
    assert plan.states[0].lanes.streams_first == (order == "btf")
    assert plan.stepwise


def test_a_dual_path_network_is_exported(tmp_path: Path) -> None:
    """The graphs compute what the untouched module does; a stream's state has a row for each frequency and layer."""
    made = export_module(
        seeded(lambda: DualPath("fbt")), tmp_path / "d" / "1", name="d", inputs=[FRAMES], steps=(1, 10)
    )
    model, contract = artifact.read_graph(made.folder / artifact.MODEL, weights=False)
    assert [state.shape for state in contract.states] == [(6, 2, 4), (6, 2, 4)]
    nodes = [node for node in model.graph.node if node.op_type == "LSTM"]
    assert [len(node.output) > 0 and "direction" in {a.name for a in node.attribute} for node in nodes] == [
        True,
        False,
        False,
    ]


class Mixing(nn.Module):
    """A layer whose sequence is the streams, or whose batch isn't so many for each."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        if self.lstm.batch_first:
            x = torch.cat([x, x[:1]])
        y: Tensor = self.lstm(x)[0]
        return y[:-1] if self.lstm.batch_first else y


def test_a_layer_along_the_streams_is_refused() -> None:
    """The commonest mistake with nn.LSTM: batch_first."""
    with pytest.raises(ModuleError, match="lstm runs along the streams: its sequence axis has 3 steps for 3 streams"):
        planned(lambda: Mixing(batch_first=False), "x=float32[batch,time,4]")
    with pytest.raises(ModuleError, match="its batch isn't the streams, nor so many for each"):
        planned(lambda: Mixing(batch_first=True), "x=float32[batch,time,4]")


def test_both_ways_along_time_is_refused() -> None:
    """For the reason that its sequence is the stream's time."""
    with pytest.raises(ModuleError, match="bidirectional: it reads a sequence from its end too, and its sequence is"):
        planned(lambda: nn.GRU(4, 5, bidirectional=True, batch_first=True), "input=float32[batch,time,4]")
