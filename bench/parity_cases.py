"""The grid of parity: models of every shape that an LSTM takes, and how long each is asked.

Owns the cases. Knows nothing of how they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from export.artifact import MODEL, find, read_graph
from export.portable import read_module
from export.precision import Precision
from model.lstm import LSTM, Spec

REDUCED = (Precision.INT8, Precision.TF32, Precision.FP16)
SHORT, LONG, LONGEST = (1, 10, 100), (1, 10, 100, 1000), (10, 10_000)


@dataclass(frozen=True, slots=True)
class GridCase:
    """One model and its numbers of steps: a spec with random weights times `gain`, or the weights of an artifact."""

    name: str
    steps: tuple[int, ...]
    spec: Spec | None = None
    gain: float = 1.0
    artifact: Path | None = None
    reduced: Precision | None = None

    @property
    def precision(self) -> Precision:
        """How its products are computed; an artifact says it itself."""
        if self.artifact is None:
            return self.reduced or Precision.FP32
        return Precision(read_graph(find(self.artifact) / MODEL, weights=False)[1].precision)

    def module(self, seed: int) -> LSTM:
        """The module, the same for the same seed."""
        if self.artifact is not None:
            model, _ = read_graph(find(self.artifact) / MODEL, weights=True)
            return read_module(model).eval()
        assert self.spec is not None
        torch.manual_seed(seed)
        module = LSTM.from_state_dict(LSTM(self.spec).state_dict(), self.spec).eval()
        for parameter in module.parameters():
            parameter.mul_(self.gain)
        return module


def _vectors(features: int, hidden: int, layers: int, steps: tuple[int, ...], gain: float, *, bias: bool) -> GridCase:
    name = f"F{features}-H{hidden}-L{layers}-gain{gain:g}" + ("" if bias else "-nobias")
    spec = Spec(input_size=features, hidden_size=hidden, layers=layers, bias=bias)
    return GridCase(name, steps, spec, gain)


def _projected(sizes: tuple[int, int, int, int], steps: tuple[int, ...], gain: float, *, bias: bool) -> GridCase:
    features, hidden, projection, layers = sizes
    name = f"F{features}-H{hidden}P{projection}-L{layers}-gain{gain:g}" + ("" if bias else "-nobias")
    spec = Spec(input_size=features, hidden_size=hidden, proj_size=projection, layers=layers, bias=bias)
    return GridCase(name, steps, spec, gain)


def _in(precision: Precision, case: GridCase) -> GridCase:
    return replace(case, name=f"{case.name}-{precision}", reduced=precision)


def quick(trained: Path | None) -> list[GridCase]:
    """Every kind of size once, in about a minute of two cores; `trained` is an artifact with trained weights."""
    tokens = Spec(vocabulary=11, encoder_size=3, hidden_size=6, output_size=4)
    encoded = Spec(input_size=5, encoder_size=3, hidden_size=4, layers=3, bias=False, output_size=2)
    first = [] if trained is None else [GridCase("trained", LONG, artifact=trained)]
    return [
        *first,
        _vectors(1, 1, 1, LONG, 1, bias=True),
        _vectors(1, 1, 1, SHORT, 3, bias=False),
        _vectors(5, 7, 2, LONGEST, 1, bias=True),
        _vectors(5, 7, 2, LONG, 3, bias=True),
        _vectors(37, 37, 3, LONG, 3, bias=False),
        _vectors(257, 3, 1, LONG, 1, bias=True),
        _vectors(3, 131, 1, LONG, 1, bias=False),
        _vectors(64, 128, 2, LONG, 3, bias=True),
        _vectors(17, 255, 1, SHORT, 1, bias=True),
        _vectors(33, 512, 2, SHORT, 1, bias=True),
        _vectors(64, 1024, 1, (1, 10, 50), 3, bias=True),
        GridCase("tokens-H6-O4-gain3", LONG, tokens, 3.0),
        GridCase("encoder-H4-L3-O2", LONG, encoded),
        _projected((3, 2, 1, 1), SHORT, 1, bias=False),
        _projected((5, 7, 3, 2), LONG, 3, bias=True),
        _projected((37, 131, 40, 3), SHORT, 3, bias=True),
        *(_in(precision, case) for precision in REDUCED for case in _reducible()),
    ]


def _reducible() -> Iterator[GridCase]:
    """What every reduced precision is asked."""
    tokens = Spec(vocabulary=11, encoder_size=3, hidden_size=6, output_size=1)
    yield _vectors(1, 1, 1, SHORT, 1, bias=True)
    yield _vectors(37, 70, 2, SHORT, 1, bias=True)
    yield _projected((5, 33, 1, 2), SHORT, 3, bias=True)
    yield GridCase("tokens-H6-O1", SHORT, tokens)


def full(trained: Path | None) -> list[GridCase]:
    """The quick grid, then all sizes with each other; the longest runs last. Tens of minutes."""
    return [*quick(trained), *_slow(trained)]


def _slow(trained: Path | None) -> Iterator[GridCase]:
    known = {case.name for case in quick(trained)}
    for hidden in (1, 2, 7, 64, 129, 512, 1024):
        for features in (1, 3, 65):
            for layers in (1, 2, 3):
                for gain, bias in ((1.0, True), (3.0, False)):
                    case = _vectors(features, hidden, layers, SHORT if hidden > 129 else LONG, gain, bias=bias)
                    if case.name not in known:
                        yield case
        for precision in REDUCED:
            case = _vectors(65, hidden, 2, SHORT if hidden > 129 else LONG, 1.0, bias=True)
            yield _in(precision, case)
            yield _in(precision, replace(case, name=case.name.replace("gain1", "gain3"), gain=3.0))
        if hidden > 2:
            yield _projected((65, hidden, hidden // 2, 2), SHORT if hidden > 129 else LONG, 3.0, bias=True)
    if trained is not None:
        yield GridCase("trained-10000", (10_000,), artifact=trained)
    for features, hidden, layers, gain in ((1, 1, 1, 3.0), (5, 64, 2, 3.0), (3, 131, 1, 1.0), (64, 512, 2, 1.0)):
        spec = Spec(input_size=features, hidden_size=hidden, layers=layers)
        yield GridCase(f"F{features}-H{hidden}-L{layers}-gain{gain:g}-10000", (10_000,), spec, gain)
