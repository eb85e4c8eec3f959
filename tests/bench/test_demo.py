"""The demo: what it compares, that it finds what is off, and the whole of it on a small model."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import demo
from bench.demo import Outcome, bits_per_byte, differing_steps
from bench.demo_streams import LARGEST_CHUNK, LONGEST, SHORTEST, Plan, make_plans
from bench.server_process import ServerFailedError, server
from export.pipeline import export
from model.checkpoint import load, save
from model.lstm import LSTM, Spec

GOOD = Outcome(
    streams=64,
    steps=1000,
    steps_per_second=1.0,
    bits_per_byte_served=2.0,
    bits_per_byte_pytorch=2.0,
    max_abs_diff_pytorch=1e-5,
    steps_not_bitwise_equal_alone=0,
)


def test_nothing_is_off() -> None:
    """Rounding alone isn't a problem."""
    assert GOOD.problems(64) == []


@pytest.mark.parametrize(
    ("off", "text"),
    [
        ({"streams": 63}, "only 63 of 64"),
        ({"steps_not_bitwise_equal_alone": 1}, "1 steps differ"),
        ({"max_abs_diff_pytorch": 0.1}, "up to 0.1"),
        ({"max_abs_diff_pytorch": math.nan}, "up to nan"),
        ({"bits_per_byte_served": 2.1}, "bits per byte"),
        ({"bits_per_byte_served": math.nan}, "bits per byte"),
    ],
)
def test_each_thing_that_can_be_off_is_found(off: dict[str, float], text: str) -> None:
    """One wrong figure is one problem, named."""
    (problem,) = replace(GOOD, **off).problems(64)  # type: ignore[arg-type]
    assert text in problem


def test_bits_per_byte_of_known_distributions() -> None:
    """Equal scores cost 8 bits; a certain and right prediction costs none."""
    plan = Plan(np.array([5, 9, 200]), 0.0, (3,))
    equal = np.zeros((3, 256), np.float32)
    assert bits_per_byte([plan], [equal]) == pytest.approx(8.0)
    certain = np.full((3, 256), -1000.0, np.float32)
    certain[0, 9] = certain[1, 200] = 0.0
    assert bits_per_byte([plan], [certain]) == pytest.approx(0.0)


def test_one_bit_in_one_step_is_seen() -> None:
    """A step counts as different as soon as one of its bits is, a zero's sign among them."""
    ours = [np.zeros((4, 256), np.float32), np.ones((3, 256), np.float32)]
    theirs = [array.copy() for array in ours]
    assert differing_steps(ours, theirs) == 0
    theirs[0][2, 17] = -0.0
    theirs[1][0, 0] = np.nextafter(np.float32(1), np.float32(2))
    assert differing_steps(ours, theirs) == 2


def test_plans_differ_and_add_up() -> None:
    """Lengths, moments and cuts vary; the cuts of each text add up to it; the same seed gives the same plans."""
    plans = make_plans(64, 0)
    for plan in plans:
        assert SHORTEST <= len(plan.text) <= LONGEST
        assert sum(plan.chunks) == len(plan.text)
        assert max(plan.chunks) <= LARGEST_CHUNK
    assert len({len(plan.text) for plan in plans}) > 32
    assert len({plan.begins for plan in plans}) == 64
    assert make_plans(64, 0)[7].chunks == plans[7].chunks


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small byte model that has learned nothing: its repository and its checkpoint."""
    root = tmp_path_factory.mktemp("demo")
    checkpoint, repository = root / "small.safetensors", root / "artifacts"
    torch.manual_seed(1)
    save(LSTM(Spec(vocabulary=256, encoder_size=8, hidden_size=64, output_size=256)), checkpoint)
    export(load(checkpoint), repository / demo.MODEL / "1", name=demo.MODEL)
    return repository, checkpoint


def test_the_demo_on_a_small_model(
    small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Streams at once, alone and by PyTorch agree; the table and demo.json say the same."""
    repository, checkpoint = small
    options = ["--artifacts", str(repository), "--checkpoint", str(checkpoint), "--streams", "12"]
    monkeypatch.setattr(sys, "argv", ["demo", *options])
    assert demo.main() == 0
    written = json.loads((repository / "demo.json").read_text())
    assert written["streams"] == 12
    assert written["steps_not_bitwise_equal_alone"] == 0
    assert 0 <= written["max_abs_diff_pytorch"] < 1e-4
    assert f"{written['bits_per_byte_served']:.6f}" in capsys.readouterr().out


def test_the_demo_fails_when_another_model_is_served(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Served weights that aren't the checkpoint's are noticed, and the exit status says so."""
    repository, _ = small
    torch.manual_seed(2)
    other = tmp_path / "other.safetensors"
    save(LSTM(Spec(vocabulary=256, encoder_size=8, hidden_size=64, output_size=256)), other)
    options = ["--artifacts", str(repository), "--checkpoint", str(other), "--streams", "3"]
    monkeypatch.setattr(sys, "argv", ["demo", *options])
    assert demo.main() == 1
    assert "outputs differ from PyTorch's" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The server's own words reach whoever started it."""
    with pytest.raises(ServerFailedError, match="make export"), server(tmp_path):
        pass
