"""Trains the demo model, a byte-level language model, on the source text of Python's own standard library.

Owns the training loop, its settings and its command line. Files come from model.corpus, the network from model.lstm.
"""

from __future__ import annotations

import sys

from model import interruption

if __name__ == "__main__":
    interruption.while_importing()  # PyTorch takes seconds

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from model import checkpoint, corpus
from model.cell import State
from model.lstm import LSTM, Spec

BYTE_LM = Spec(vocabulary=corpus.SYMBOLS, encoder_size=64, hidden_size=256, layers=2, output_size=corpus.SYMBOLS)
NOTES = {"tokens": "bytes", "training data": "source text of Python's standard library"}
TARGET_BITS = 3.0  # above this on held-out files, something went wrong
EVALUATION_STEPS = 2048
MOST_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train. The defaults take about 65 s of one core; time grows in proportion to `steps`.

    `windows` tracks of text are read side by side, `window_steps` bytes at a time: fewer windows mean noisier
    steps, shorter ones a shorter memory. `reset_share` of the tracks start from zero again at each step, so that
    the model also learns how to begin. One thread: two gain little at these sizes, and lose tenfold by waiting
    for each other where the second core is busy; also, one gives the same weights whatever the number of cores.
    """

    steps: int = 1400
    windows: int = 16
    window_steps: int = 32
    peak_rate: float = 8e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    reset_share: float = 0.01
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out: bits per byte on held-out text, beside two codes of order 0 (one learnt, one ideal)."""

    model_bits: float
    learnt_order0_bits: float
    ideal_order0_bits: float
    held_out_bytes: int
    training_bytes: int
    seconds: float


def rate_at(step: int, settings: Settings) -> float:
    """The learning rate at a step: a linear warm-up, then half a cosine down to nothing."""
    warmup = max(1, round(settings.steps * settings.warmup_share))
    if step < warmup:
        return settings.peak_rate * (step + 1) / warmup
    return settings.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def tracks(text: Tensor, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets [windows, window_steps], each track going on where it was one step before."""
    length = settings.windows * settings.window_steps
    starts = torch.linspace(0, len(text) - 1, settings.windows + 1)[:-1].long()
    offsets = torch.arange(settings.window_steps + 1)
    for step in range(settings.steps):
        window = text[(starts[:, None] + step * settings.window_steps + offsets) % len(text)].long()
        assert window[:, 1:].numel() == length
        yield window[:, :-1], window[:, 1:]


def train(module: LSTM, text: Tensor, settings: Settings) -> Iterator[float]:
    """Train in place by truncated backpropagation through time; yields each step's loss in bits per byte."""
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=settings.weight_decay)
    state = module.zero_state(settings.windows)
    module.train()
    for step, (inputs, targets) in enumerate(tracks(text, settings)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, settings)
        goes_on = (torch.rand(settings.windows, 1, 1, generator=generator) >= settings.reset_share).float()
        logits, state = module(inputs, State(*(part.detach() * goes_on for part in state)))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        optimizer.step()
        yield loss.item() / math.log(2)
    module.eval()


@torch.inference_mode()
def held_out_bits(module: LSTM, texts: Tensor) -> float:
    """Bits per byte on texts [B, T], each from a zero state; its first byte is the input and isn't counted."""
    logits, _ = module(texts[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())
    return loss.item() / math.log(2)


def new_module(spec: Spec, seed: int) -> LSTM:
    """An untrained module; its forget gates start open (bias 1), so that it remembers from the first step."""
    torch.manual_seed(seed)
    module = LSTM(spec)
    with torch.no_grad():
        for name, bias in module.lstm.named_parameters():
            if name.startswith("bias_ih"):
                bias[spec.hidden_size : 2 * spec.hidden_size] = 1.0
    return module


def run(settings: Settings, console: Console) -> tuple[LSTM, Outcome]:
    """Train the demo model with a progress bar and measure it on held-out files."""
    torch.set_num_threads(settings.threads)
    text = corpus.read_all(corpus.training_files())
    files = corpus.held_out_files(min_bytes=EVALUATION_STEPS)
    held_out = np.stack([corpus.read_tokens(path, max_bytes=EVALUATION_STEPS) for path in files])
    module = new_module(BYTE_LM, settings.seed)
    started = time.monotonic()
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=settings.steps)
        smooth = 8.0
        for loss in train(module, torch.from_numpy(text.copy()), settings):
            smooth += 0.05 * (loss - smooth)
            progress.update(task, advance=1, description=f"{smooth:.2f} bits per byte")
    frequencies = corpus.byte_frequencies(text)
    outcome = Outcome(
        model_bits=held_out_bits(module, torch.from_numpy(held_out)),
        learnt_order0_bits=corpus.bits_per_byte(held_out[:, 1:], frequencies),
        ideal_order0_bits=corpus.bits_per_byte(held_out[:, 1:], corpus.byte_frequencies(held_out[:, 1:])),
        held_out_bytes=held_out.size,
        training_bytes=settings.steps * settings.windows * settings.window_steps,
        seconds=time.monotonic() - started,
    )
    return module, outcome


def table(outcome: Outcome) -> Table:
    """The outcome for people."""
    view = Table(title=f"held-out files, first {EVALUATION_STEPS} bytes of each ({outcome.held_out_bytes:,} bytes)")
    view.add_column("code")
    view.add_column("bits per byte", justify="right")
    view.add_row("byte frequencies of the training text", f"{outcome.learnt_order0_bits:.3f}")
    view.add_row(
        "byte frequencies of the held-out text itself (its entropy of order 0)", f"{outcome.ideal_order0_bits:.3f}"
    )
    view.add_row("[bold]the model[/bold]", f"[bold]{outcome.model_bits:.3f}[/bold]")
    view.caption = f"trained on {outcome.training_bytes:,} bytes in {outcome.seconds:.0f} s"
    return view


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; its help teaches."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m model.train",
        description="Train the demo model: a byte-level language model (embedding, 2x256 LSTM, 256 logits) on the"
        " source text of this Python's standard library. Files are split into training and held-out ones by name;"
        " the same seed, steps and machine give the same weights.",
        epilog="examples:\n"
        "  python -m model.train --out checkpoints/bytelm.safetensors\n"
        "  python -m model.train --out checkpoints/quick.safetensors --steps 60   # seconds, and still a real model\n"
        "then:\n"
        "  python -m export checkpoints/bytelm.safetensors --name bytelm",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write (.safetensors)"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimizer steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of weights and resets (default %(default)s)")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="of the CPU (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".safetensors":
        parser.error(f"--out {options.out}: the name must end in .safetensors")
    if options.steps < 1 or options.threads < 1:
        parser.error("--steps and --threads must be at least 1")
    if options.threads > MOST_THREADS or not 0 <= options.seed < 2**63:
        parser.error(f"--threads must be at most {MOST_THREADS}, and --seed from 0 to 2^63 - 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Train, show the outcome, write the checkpoint; exit code 1 where the model learnt too little."""
    options = parse(arguments)
    console = Console()
    interruption.begin()
    try:
        checkpoint.check_writable(options.out)
        settings = Settings(steps=options.steps, seed=options.seed, threads=options.threads)
        module, outcome = run(settings, console)
        checkpoint.save(module, options.out, notes=NOTES | {"held-out bits per byte": f"{outcome.model_bits:.3f}"})
    except (corpus.CorpusError, checkpoint.CheckpointError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{interruption.message()}\n")
        return interruption.exit_status(error)
    console.print(table(outcome))
    console.print(
        f"wrote {options.out}; next: python -m export {options.out} --name {options.out.stem}", highlight=False
    )
    if settings.steps >= Settings().steps and outcome.model_bits > TARGET_BITS:
        console.print(
            f"[red]error:[/red] {outcome.model_bits:.3f} bits per byte is above {TARGET_BITS}", highlight=False
        )
        return 1
    return 0


def _command() -> int:
    interruption.while_running()
    status = main()
    interruption.afterwards()
    return status


if __name__ == "__main__":
    sys.exit(_command())
