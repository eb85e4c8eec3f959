# mypy: disable-error-code="no-any-return, no-untyped-call, operator, assignment"
"""Modules that aren't functions of their inputs: they draw random numbers, or keep something in their attributes."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("h", torch.zeros(1, 1, 8))
        self.register_buffer("c", torch.zeros(1, 1, 8))
        self.hidden: Any = None
        self.steps = 0
        self.past: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        return self.lstm(x)[0]


class AlwaysDropout(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(functional.dropout(x, 0.5, training=True))[0]


class Sampling(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=self.fc(self.lstm(x)[0])).sample()


class RandomStart(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.randn(1, len(x), 8)
        return self.lstm(x, (h, h))[0]


class PythonRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0] * random.random()


class Counter(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count += x.shape[1]
        return self.lstm(x)[0] * (1 + 0.01 * self.count)


class NumberCounter(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.lstm(x)[0] * self.steps


class SelfHidden(Base):
    def forward(self, x: Tensor) -> Tensor:
        y, self.hidden = self.lstm(x, self.hidden)
        return y


class Window(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.past.append(x.mean())
        return self.lstm(x)[0] + torch.stack(self.past).sum()


class OneRobot(Base):
    """Buffers for a batch of one (what a simulator's exporter makes)."""

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.lstm(x, (self.h, self.c))
        self.h[:], self.c[:] = h, c
        return y


class OneStream(Base):
    """A first state for a batch of one, and nothing kept."""

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x, (torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)))[0]


class Watched(Base):
    """Keeps what it saw, and never reads it."""

    def forward(self, x: Tensor) -> Tensor:
        y, self.hidden = self.lstm(x)
        self.steps += 1
        return y


class Domain(nn.Module):
    """Inputs that not every number is one of."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.lstm = kind, nn.LSTM(4, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "log":
            x = torch.log(x)
        elif self.kind == "acos":
            x = torch.acos(x)
        elif self.kind == "acosh":
            x = torch.acosh(x)
        return self.lstm(x)[0]


class Failing(Base):
    """Raises with a text of several lines."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 4:
            raise ValueError("the sensor's\n  frame is odd")
        return x


class Flattened(nn.Module):
    """A language model whose logits have streams and steps on one axis, a dropout in front (pytorch/examples)."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.encoder, self.rnn, self.decoder = nn.Embedding(30, 6), nn.LSTM(6, 10, 2), nn.Linear(10, 30)

    def init_hidden(self, bsz: int) -> tuple[Tensor, Tensor]:
        weight = next(self.parameters())
        return weight.new_zeros(2, bsz, 10), weight.new_zeros(2, bsz, 10)

    def forward(self, tokens: Tensor, hidden: Any) -> Any:
        y, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        return functional.log_softmax(self.decoder(y).view(-1, 30), dim=1), hidden


class TimeFirst(nn.Module):
    """A language model on PyTorch's default axes, which exchanges them by itself where `swaps`."""

    def __init__(self, *, swaps: bool = False) -> None:
        super().__init__()
        self.swaps, self.encoder, self.rnn = swaps, nn.Embedding(30, 6), nn.LSTM(6, 10)
        self.decoder = nn.Linear(10, 30)

    def forward(self, tokens: Tensor, hidden: Any = None) -> Any:
        x = self.encoder(tokens.t() if self.swaps else tokens)
        y, hidden = self.rnn(x, hidden)
        return self.decoder(y.transpose(0, 1) if self.swaps else y), hidden
