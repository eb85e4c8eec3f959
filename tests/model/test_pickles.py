"""Training scripts' files: read past whatever isn't weights, without running it, or refused by its name."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import enum
import functools
import os
import pathlib
import types
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model import checkpoint
from model.checkpoint import Picked

ran: list[str] = []


class Kind(enum.Enum):
    BEST = 1


class Config(dict[str, Any]):
    def __setstate__(self, state: Any) -> None:
        ran.append("Config")


class Names(list[str]):
    pass


@dataclass
class Options:
    rate: float = 0.1

    def __reduce__(self) -> Any:
        return (run, ("Options",))


def run(what: str) -> None:
    """What mustn't happen."""
    ran.append(what)


class Attack:
    def __reduce__(self) -> Any:
        return (os.system, ("exit 1",))


THINGS: dict[str, Any] = {
    "numpy scalar": np.float64(0.3),
    "numpy array": np.zeros(3),
    "namespace": argparse.Namespace(lr=1),
    "path": pathlib.PurePosixPath("/x"),
    "datetime": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1]),
    "enum": {Kind.BEST: 1},
    "dict": Config(a=1),
    "list": Names(["a"]),
    "options": Options(),
    "partial": functools.partial(run, "partial"),
    "decimal": decimal.Decimal(1),
    "uuid": uuid.uuid4(),
    "simple": types.SimpleNamespace(a=1),
    "optimizer": torch.optim.Adam(nn.Linear(2, 2).parameters()),
    "function": torch.relu,
    "version": torch.__version__,
    "method": Names.append,
    "set": frozenset([1]),
}


@pytest.fixture
def layer() -> dict[str, Any]:
    """A layer's weights."""
    torch.manual_seed(0)
    return dict(nn.LSTM(5, 8).state_dict())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("thing", THINGS)
def test_what_lies_beside_the_weights_is_read_past(
    thing: str, zipped: bool, layer: dict[str, Any], tmp_path: Path
) -> None:
    """In both of torch.save's formats; nothing of the file runs, and what was left out is told."""
    content = {"net": layer, "thing": THINGS[thing]}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = checkpoint.load(tmp_path / "a.pt")
    assert torch.equal(found.module.state_dict()["lstm.weight_hh_l0"], layer["weight_hh_l0"])
    assert found.remarks[0].startswith("left out, beside the weights: thing")
    assert ran == []


def test_a_class_is_named_where_it_was_read_past(layer: dict[str, Any], tmp_path: Path) -> None:
    """Argparse's, here."""
    torch.save({"net": layer, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    assert checkpoint.load(tmp_path / "a.pt").remarks == ("left out, beside the weights: args (argparse.Namespace)",)


def refusal(path: Path, picked: Picked = checkpoint.EVERYTHING) -> str:
    """What is said, in one line."""
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.load_any(path, picked)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    return str(error.value)


class Averages:
    """An EMA's object, with copies of all weights."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.shadow_params = [2 * value for value in weights.values()]


def test_what_runs_programs_is_refused(layer: dict[str, Any], tmp_path: Path) -> None:
    """A file that calls os.system isn't somebody's training."""
    torch.save({"net": layer, "x": Attack()}, tmp_path / "a.pt")
    assert "it calls posix.system when it is loaded" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_are_named(zipped: bool, tmp_path: Path) -> None:
    """At the top, and among other things."""
    module = nn.Sequential(nn.LSTM(5, 8))
    for content in (module, {"model": module, "epoch": 1}):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        said = refusal(tmp_path / "a.pt")
        assert "whole pickled module" in said
        assert "state_dict()" in said


def test_weights_of_numpy_are_named(layer: dict[str, Any], tmp_path: Path) -> None:
    """They aren't tensors."""
    torch.save({key: value.numpy() for key, value in layer.items()}, tmp_path / "a.pt")
    assert "a numpy array" in refusal(tmp_path / "a.pt")


def test_another_pickle_protocol_is_named(layer: dict[str, Any], tmp_path: Path) -> None:
    """PyTorch's reader without code knows one."""
    torch.save(layer, tmp_path / "a.pt", pickle_protocol=4)
    assert "pickle_protocol" in refusal(tmp_path / "a.pt")


def test_copies_beside_the_weights_are_asked_about(layer: dict[str, Any], tmp_path: Path) -> None:
    """An averaged copy may be what is meant; a prefix that names the set settles it, and copies that are equal."""
    copies = [2 * value for value in layer.values()]
    for beside in ({"shadow_params": copies}, Averages(layer)):
        torch.save({"model": layer, "ema": beside}, tmp_path / "a.pt")
        assert "ema.shadow_params.1" in (said := refusal(tmp_path / "a.pt"))
        assert "--prefix model for the former" in said
        assert torch.equal(
            checkpoint.load(tmp_path / "a.pt", Picked("model")).module.state_dict()["lstm.bias_hh_l0"],
            layer["bias_hh_l0"],
        )
    torch.save({"model": layer, "last": dict(layer), "list": list(layer.values())}, tmp_path / "b.pt")
    assert checkpoint.load(tmp_path / "b.pt").module.spec.hidden_size == 8


def test_one_of_several_sets_is_picked_by_its_name(layer: dict[str, Any], tmp_path: Path) -> None:
    """As a prefix."""
    other = {key: 2 * value for key, value in layer.items()}
    torch.save({"state_dict": {f"lstm.{k}": v for k, v in layer.items()}, "ema": {"w": other}}, tmp_path / "a.pt")
    assert "several sets of weights (state_dict, ema.w): name one, as in --prefix state_dict" in refusal(
        tmp_path / "a.pt"
    )
    found = checkpoint.load(tmp_path / "a.pt", Picked("ema.w"))
    assert torch.equal(found.module.state_dict()["lstm.weight_hh_l0"], other["weight_hh_l0"])
    assert torch.equal(
        checkpoint.load(tmp_path / "a.pt", Picked("state_dict.lstm")).module.state_dict()["lstm.weight_hh_l0"],
        layer["weight_hh_l0"],
    )
    assert "there are --prefix ema.w., --prefix state_dict.lstm." in refusal(tmp_path / "a.pt", Picked("lstm"))


def test_an_optimizers_moments_are_no_copies(layer: dict[str, Any], tmp_path: Path) -> None:
    """They have the weights' shapes, and are known by what else is there."""
    module = nn.LSTM(5, 8)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(2, 1, 5))[0].sum().backward()
    optimizer.step()
    state = {"opt": optimizer.state_dict(), "object": optimizer, "optimizer_states": [optimizer.state_dict()]}
    torch.save({"model": layer, **state}, tmp_path / "a.pt")
    assert checkpoint.load(tmp_path / "a.pt").module.spec.hidden_size == 8
