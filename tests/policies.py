# mypy: disable-error-code="no-any-return"
"""Recurrent policies as users write them: a state that goes in and comes out, and a mask that resets it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Done(nn.Module):
    """A bool mask that is true where an episode begins; one call is one step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRUCell(4, 8), nn.Linear(8, 2)

    def forward(self, obs: Tensor, done: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.where(done.unsqueeze(-1), torch.zeros_like(h), h)
        h = self.gru(obs, h)
        return self.out(h), h


class DoneSequence(Done):
    """The same over sequences, a mask for each step."""

    def forward(self, obs: Tensor, done: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for step in range(obs.shape[1]):
            y, h = super().forward(obs[:, step], done[:, step], h)
            found.append(y)
        return torch.stack(found, 1), h


class NotDone(nn.Module):
    """Masks [B, 1] that multiply the state, 1 where it is kept (a2c-ppo-acktr's way)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.critic, self.actor = nn.GRU(4, 8), nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, inputs: Tensor, rnn_hxs: Tensor, masks: Tensor) -> Any:
        x, hxs = self.gru(inputs.unsqueeze(0), (rnn_hxs * masks).unsqueeze(0))
        x = x.squeeze(0)
        return self.critic(x), self.actor(x), hxs.squeeze(0)


class Starts(nn.Module):
    """An LSTM's two states [L, B, H] in a tuple, reset by (1 - done) (CleanRL's and RecurrentPPO's way)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.actor = nn.LSTM(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, lstm_state: tuple[Tensor, Tensor], done: Tensor) -> Any:
        keep = (1.0 - done.to(x.dtype)).view(1, -1, 1)
        y, lstm_state = self.lstm(x.unsqueeze(0), (keep * lstm_state[0], keep * lstm_state[1]))
        return self.actor(y.squeeze(0)), lstm_state


class ResetInside(nn.Module):
    """Takes no state: begins from zeros, and resets between its own steps, where no stand-in sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRUCell(4, 8)

    def forward(self, obs: Tensor, done: Tensor) -> Tensor:
        h = obs.new_zeros(obs.shape[0], 8)
        found = []
        for step in range(obs.shape[1]):
            h = self.gru(obs[:, step], torch.where(done[:, step, None], torch.zeros_like(h), h))
            found.append(h)
        return torch.stack(found, 1)
