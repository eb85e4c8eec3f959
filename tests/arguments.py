# mypy: disable-error-code="no-any-return"
"""Modules whose arguments and answers differ: states that may be None, begun in many ways, nested, given anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class OneOptional(nn.Module):
    """Two states, of which one may be None (rsl_rl's way)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 8, 2), nn.Linear(8, 3)

    def forward(self, obs: Tensor, h_in: Tensor, c_in: Tensor | None = None) -> Any:
        y, (h, c) = self.rnn(obs.unsqueeze(0), (h_in, c_in))
        return self.out(y.squeeze(0)), h, c


class BothOptional(OneOptional):
    """Both may be None; what else may be is no state."""

    def forward(
        self, obs: Tensor, h_in: Tensor | None = None, c_in: Tensor | None = None, mask: Tensor | None = None
    ) -> Any:
        state = None if h_in is None or c_in is None else (h_in, c_in)
        y, state = self.rnn(obs.unsqueeze(0), state)
        y = self.out(y.squeeze(0))
        return y if mask is None else y * mask, state


class OddlyNamed(nn.Module):
    """An argument that isn't called like a state, and is one."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 8)

    def forward(self, obs: Tensor, foo: Tensor | None = None) -> tuple[Tensor, Tensor]:
        foo = self.cell(obs, foo)
        return foo[:, :2], foo


class Learned(nn.Module):
    """None means a learned first state, of two tensors, one of them through tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.h0, self.c0 = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(1, 8))
        self.cell = nn.LSTMCell(4, 8)

    def forward(self, obs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
        if state is None:
            state = torch.tanh(self.h0).expand(len(obs), 8), self.c0.expand(len(obs), 8)
        state = self.cell(obs, state)
        return state[0], state


class Begun(nn.Module):
    """A required state; subclasses say what makes the first."""

    def __init__(self) -> None:
        super().__init__()
        self.h0, self.cell = nn.Parameter(torch.randn(8)), nn.GRUCell(4, 8)

    def forward(self, obs: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(obs, h)
        return h, h


class ByDefault(Begun):
    def initial_state(self, batch: int = 1) -> Tensor:
        return torch.zeros(batch, 8)


class Ones(Begun):
    def init_hidden(self, bsz: int, device: torch.device) -> Tensor:
        return torch.ones(bsz, 8, device=device)


class Parameter(Begun):
    def get_initial_state(self) -> Tensor:
        return self.h0


class Camel(Begun):
    def initHidden(self) -> Tensor:  # noqa: N802  a tutorial's own
        return torch.zeros(1, 8)


class RandomlyBegun(Begun):
    def init_hidden(self, batch_size: int) -> Tensor:
        return torch.randn(batch_size, 8)


class TwoBeginnings(Begun):
    """None means zeros, and its method makes ones."""

    def init_hidden(self, batch: int) -> Tensor:
        return torch.ones(batch, 8)

    def forward(self, obs: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(obs, torch.zeros(len(obs), 8) if h is None else h)


class Nested(NamedTuple):
    h: Tensor
    c: Tensor


@dataclass
class Both:
    h: Tensor
    c: Tensor


class InDict(nn.Module):
    """A dict goes in beside a state that is one, and a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(4, 8), nn.Linear(8, 3)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {"h": torch.zeros(batch, 8), "c": torch.zeros(batch, 8)}

    def forward(self, batch: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Any]:
        h, c = self.cell(batch["obs"] + batch["bias"], (state["h"], state["c"]))
        return {"logits": self.out(h), "state": {"h": h, "c": c}}


class InTuple(InDict):
    """A NamedTuple; arguments by keyword only."""

    def initial_state(self, batch: int) -> Any:
        return Nested(torch.zeros(batch, 8), torch.zeros(batch, 8))

    def forward(self, *, obs: Tensor, state: Any) -> Any:  # type: ignore[override]
        h, c = self.cell(obs, (state.h, state.c))
        return self.out(h), Nested(h, c)


class InDataclass(InDict):
    """A dataclass."""

    def initial_state(self, batch: int) -> Any:
        return Both(torch.zeros(batch, 8), torch.zeros(batch, 8))

    def forward(self, obs: Tensor, state: Any, /) -> Any:  # type: ignore[override]
        h, c = self.cell(obs, (state.h, state.c))
        return self.out(h), Both(h, c)


class Exchanged(nn.Module):
    """The states come out in another order than they go in."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(4, 8), nn.Linear(8, 3)

    def forward(self, obs: Tensor, h: Tensor, c: Tensor) -> Any:
        h, c = self.cell(obs, (h, c))
        return self.out(h), c, h


class StateFirst(nn.Module):
    """The state comes out first; `outputs` may make it ambiguous."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(4, 8), nn.Linear(8, outputs)

    def forward(self, obs: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(obs, h)
        return h, self.out(h)


class OwnFirst(nn.Module):
    """The same by a recurrence of its own, of which no layer tells."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first, self.inner, self.outer, self.out = first, nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, obs: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.inner(obs) + self.outer(h))
        return (h, self.out(h)) if self.first else (self.out(h), h)
