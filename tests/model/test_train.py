"""Training: it learns, it is reproducible, and its command line says what it did."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from model import checkpoint, train
from model.lstm import Spec

SMALL = Spec(vocabulary=256, encoder_size=8, hidden_size=16, output_size=256)
TEXT = torch.frombuffer(bytearray(b"def step(self, row):\n    return self.rows[row]\n" * 200), dtype=torch.uint8)


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    """The learning rate starts low, has its peak at the end of the warm-up, and ends near zero."""
    settings = train.Settings(steps=100, peak_rate=1.0, warmup_share=0.1)
    rates = [train.rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01


def test_tracks_go_on_where_they_were() -> None:
    """A target is the next byte of its input, and a track's next window starts where the last one ended."""
    settings = train.Settings(steps=3, windows=2, window_steps=5)
    windows = list(train.tracks(TEXT, settings))
    for (inputs, targets), (later, _) in pairwise(windows):
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(targets[:, -1], later[:, 0])


def losses(seed: int) -> list[float]:
    """Losses of a short training of a small model."""
    settings = train.Settings(steps=30, windows=4, window_steps=16, seed=seed)
    return list(train.train(train.new_module(SMALL, seed), TEXT, settings))


def test_it_learns_and_the_seed_decides() -> None:
    """The loss falls by more than a bit in 30 steps, equally for an equal seed and differently for another."""
    first = losses(0)
    assert first[-1] < first[0] - 1
    assert losses(0) == first
    assert losses(1) != first


def test_command_line_writes_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A very short training writes the demo model with its notes and prints bits per byte beside the entropy."""
    monkeypatch.setattr(train, "EVALUATION_STEPS", 64)
    path = tmp_path / "quick.safetensors"
    assert train.main(["--out", str(path), "--steps", "2"]) == 0
    found = checkpoint.load(path)
    assert found.module.spec == train.BYTE_LM
    assert found.notes["tokens"] == "bytes"
    shown = capsys.readouterr().out
    assert "bits per byte" in shown
    assert "entropy" in shown
    assert "python -m export" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "x.pt"],
        ["--out", "x.safetensors", "--steps", "0"],
        ["--out", "x.safetensors", "--seed", str(2**64)],
        [],
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong suffix, no steps and no name end with usage and code 2."""
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is too long, and a folder in the way, are one line each, without a minute's training."""
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("it trained"))
    (tmp_path / "folder.safetensors").mkdir()
    for path, reason in (
        (tmp_path / f"{'n' * 300}.safetensors", "too long"),
        (tmp_path / "folder.safetensors", "folder"),
    ):
        assert train.main(["--out", str(path)]) == 1
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1
