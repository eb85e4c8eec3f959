# mypy: disable-error-code="no-any-return"
"""Modules as users write them, each kind of forward once, and those that can't stream; FILE.py for the command line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    """Tokens through stacked layers of two kinds with a norm and a residual; two heads, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.rnn1 = nn.LSTM(5, 6, num_layers=2, batch_first=True, dropout=0.3)
        self.norm = nn.LayerNorm(6)
        self.rnn2 = nn.GRU(6, 6, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.logits, self.value = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        self.rnn1.flatten_parameters()
        y, _ = self.rnn1(self.embed(tokens))
        z, _ = self.rnn2(self.drop(self.norm(y)))
        z = z + y
        return {"logits": self.logits(z), "value": torch.tanh(self.value(z)).squeeze(-1)}


class Carrying(nn.Module):
    """Gives and takes its state, time first; None begins it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, 2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.gru(x, state)
        return self.head(y), state


class Cells(nn.Module):
    """One call is one step; a nested state, begun by a method, not from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(5, 4), nn.GRUCell(4, 4)

    def initial_state(self, batch: int) -> Any:
        return (torch.zeros(batch, 4), torch.full((batch, 4), 0.5)), torch.zeros(batch, 4)

    def forward(self, x: Tensor, state: Any) -> Any:
        (h, c), g = state
        h, c = self.first(x, (h, c))
        g = self.second(h, g)
        return torch.cat([h, g], -1), ((h, c), g)


class Looping(nn.Module):
    """A Python loop over time around a cell, from zeros that it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 6)
        found = []
        for step in range(x.size(1)):
            h = self.cell(x[:, step], h)
            found.append(self.head(h))
        return torch.stack(found, dim=1)


class Classifier(nn.Module):
    """One answer for a sequence, from learned first states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.h0, self.c0 = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 1, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = [state.expand(-1, x.shape[0], -1).contiguous() for state in (self.h0, self.c0)]
        out, _ = self.lstm(x, tuple(first))
        return self.head(out[:, -1])


class Mixed(nn.Module):
    """Two inputs, a 1x1 convolution, a plain RNN; a tuple with its state, which nobody is to get."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 4, 1)
        self.kinds = nn.Embedding(3, 4)
        self.rnn = nn.RNN(4, 6, batch_first=True, nonlinearity="relu")

    def forward(self, x: Tensor, kind: Tensor) -> Any:
        encoded = self.conv(x.transpose(1, 2)).transpose(1, 2) + self.kinds(kind)
        out, last = self.rnn(functional.gelu(encoded))
        return out, out.argmax(-1), last


class Own(nn.Module):
    """A recurrence of its own, h and a count of steps, as two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor, h: Tensor, count: Tensor) -> Any:
        h = torch.tanh(self.inner(x) + self.outer(h))
        return h.sum(-1), h, count + 1


class Speaking(nn.Module):
    """An input without time beside one with it, bytes, a norm that has learned its means."""

    def __init__(self) -> None:
        super().__init__()
        self.speakers = nn.Embedding(4, 5)
        self.gru, self.norm = nn.GRU(5, 6, batch_first=True), nn.BatchNorm1d(6)

    def forward(self, x: Tensor, speaker: Tensor) -> Tensor:
        y, _ = self.gru(x.float() / 255 + self.speakers(speaker)[:, None])
        return self.norm(y.transpose(1, 2)).transpose(1, 2)


class HandWritten(nn.Module):
    """A loop over time around layers that don't recur; its state may be None."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if h is None:
            h = torch.zeros(x.size(0), 6)
        found = []
        for step in range(x.size(1)):
            h = torch.tanh(self.inner(x[:, step]) + self.outer(h))
            found.append(h)
        return torch.stack(found, 1), h


class Quiet(nn.Module):
    """It could be given a state, but gives none; and lengths, which are no state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor, hidden: Any = None, lengths: Any = None) -> Tensor:
        return self.lstm(x, hidden)[0]


class Bidirectional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(5, 6, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)[0]


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, proj_size=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.full((x.shape[0],), x.shape[1]), batch_first=True)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


class OverTime(nn.Module):
    """`kind` says which way it looks beyond its step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.conv = nn.Conv1d(5, 5, 3)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "flip":
            x = x.flip(1)
        if self.kind == "causal convolution":
            x = self.conv(functional.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        if self.kind == "convolution":
            x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        y, _ = self.lstm(x)
        if self.kind == "mean":
            y = y - y.mean(1, keepdim=True)
        if self.kind == "attention":
            y, _ = self.attention(y, y, y)
        return y


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(5, 6, batch_first=True), nn.GRU(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        return self.decoder(x, state)[0]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return y if y.sum() > 1e9 else y * 2  # the same for whole sequences and steps, but up to values


class Remembering(nn.Module):
    """Keeps its state in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 6)
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.cell(x, self.h)
        return self.h


class OverBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return y - y.mean(0, keepdim=True)


class Overridden(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class Stateless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class NeedsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 6)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        h, c = state
        h, c = self.cell(x, (h, c))
        return h, (h, c)


def seeded(make: Any) -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(1)
    made: nn.Module = make()
    return made


def make_tagger() -> nn.Module:
    """What a user's file has for the command line."""
    return seeded(Tagger)


not_a_module = 3
