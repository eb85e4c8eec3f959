"""`make demo`: the whole product on real input, and the proof that what was served is what PyTorch computes.

A server process serves the byte-level language model; 64 streams at once send it source text it has never seen, each
of another length, cut into chunks at random and begun at another moment. Then every stream is served again, alone and
in one piece, and computed by PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.demo_streams import Logits, Plan, Served, make_plans, serve_alone, serve_together
from bench.server_process import ServerFailedError, server
from cellstream import CellstreamError
from model.checkpoint import CheckpointError, load
from model.lstm import LSTM

MODEL = "bytelm"
# A wrong export shows differences of its outputs' own size (about 10); float32 rounding shows about 1e-5.
PYTORCH_BATCH = 16
MOST_DIFFERENCE = 1e-3
MOST_BITS_DIFFERENCE = 1e-4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What artifacts/demo.json holds."""

    streams: int
    steps: int
    steps_per_second: float
    bits_per_byte_served: float
    bits_per_byte_pytorch: float
    max_abs_diff_pytorch: float
    steps_not_bitwise_equal_alone: int

    def problems(self, asked: int) -> list[str]:
        """What is off; empty if nothing is. `asked` streams should have been open at once."""
        found = []
        if self.streams < asked:
            found.append(f"only {self.streams} of {asked} streams were open at once")
        if self.steps_not_bitwise_equal_alone:
            found.append(f"{self.steps_not_bitwise_equal_alone} steps differ from the same stream served alone")
        if not self.max_abs_diff_pytorch <= MOST_DIFFERENCE:
            found.append(f"outputs differ from PyTorch's by up to {self.max_abs_diff_pytorch:.3g}")
        if not abs(self.bits_per_byte_served - self.bits_per_byte_pytorch) <= MOST_BITS_DIFFERENCE:
            found.append("the bits per byte served aren't PyTorch's")
        return found


@torch.inference_mode()
def by_pytorch(module: LSTM, plans: Sequence[Plan], progress: Callable[[int], None]) -> list[Logits]:
    """What the checkpoint's own module answers, a few plans at a time: [T, 256] each."""
    logits: list[Logits] = []
    for start in range(0, len(plans), PYTORCH_BATCH):
        texts = [torch.from_numpy(plan.text) for plan in plans[start : start + PYTORCH_BATCH]]
        padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)  # [B, T]; what comes behind changes nothing
        y, _ = module(padded, module.zero_state(len(texts)))
        logits += [answer[: len(text)].numpy() for answer, text in zip(y, texts, strict=True)]
        progress(sum(len(text) for text in texts))
    return logits


def bits_per_byte(plans: Sequence[Plan], logits: Sequence[Logits]) -> float:
    """Cross-entropy of each next byte under the logits before it, in bits, over all streams."""
    bits, count = 0.0, 0
    for plan, answer in zip(plans, logits, strict=True):
        scores = answer[:-1].astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        log_p = scores[np.arange(len(scores)), plan.text[1:]] - np.log(np.exp(scores).sum(axis=1))
        bits -= float(log_p.sum()) / np.log(2)
        count += len(scores)
    return bits / count


def differing_steps(ours: Sequence[Logits], theirs: Sequence[Logits]) -> int:
    """Steps whose bytes aren't the same."""
    pairs = zip(ours, theirs, strict=True)
    return sum(int((a.view(np.uint32) != b.view(np.uint32)).any(axis=1).sum()) for a, b in pairs)


def outcome_of(plans: Sequence[Plan], together: Served, alone: Sequence[Logits], own: Sequence[Logits]) -> Outcome:
    """Everything compared with everything."""
    steps = sum(len(plan.text) for plan in plans)
    differences = (float(np.abs(a - b).max()) for a, b in zip(together.logits, own, strict=True))
    return Outcome(
        streams=together.open_at_once,
        steps=steps,
        steps_per_second=round(steps / together.seconds, 1),
        bits_per_byte_served=bits_per_byte(plans, together.logits),
        bits_per_byte_pytorch=bits_per_byte(plans, own),
        max_abs_diff_pytorch=max(differences),
        steps_not_bitwise_equal_alone=differing_steps(together.logits, alone),
    )


def run(repository: Path, checkpoint: Path, streams: int, seed: int) -> Outcome:
    """The demo, with a progress bar for each part. Raises ServerFailedError, CellstreamError or CheckpointError."""
    module = load(checkpoint).module.eval()
    torch.set_num_threads(1)  # steps as small as these gain nothing from a second one, and lose much where it is busy
    plans = make_plans(streams, seed)
    total = sum(len(plan.text) for plan in plans)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:

        def task(text: str) -> tuple[Progress, int]:
            return progress, progress.add_task(text, total=total)

        def tell(task: tuple[Progress, int], steps: int) -> None:
            task[0].advance(task[1], steps)  # type: ignore[arg-type]

        with server(repository) as running:
            at_once = task(f"served, {streams} streams at once")
            together = serve_together(running.address, MODEL, plans, lambda steps: tell(at_once, steps))
            by_itself = task("served, each stream alone")
            alone = serve_alone(running.address, MODEL, plans, lambda steps: tell(by_itself, steps))
        computing = task("computed by PyTorch")
        own = by_pytorch(module, plans, lambda steps: tell(computing, steps))
    return outcome_of(plans, together, alone, own)


def table_of(outcome: Outcome) -> Table:
    """The outcome for people."""
    table = Table(title="served by Cellstream, beside PyTorch", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("streams open at once", f"{outcome.streams}"),
        ("steps", f"{outcome.steps:,}"),
        ("steps per second (arrivals, clients and server on this machine)", f"{outcome.steps_per_second:,.0f}"),
        ("bits per byte, as served", f"{outcome.bits_per_byte_served:.6f}"),
        ("bits per byte, PyTorch", f"{outcome.bits_per_byte_pytorch:.6f}"),
        ("largest difference from PyTorch (logits)", f"{outcome.max_abs_diff_pytorch:.2e}"),
        ("steps whose bytes differ from the stream served alone", f"{outcome.steps_not_bitwise_equal_alone}"),
    ):
        table.add_row(name, value)
    return table


def main() -> int:
    """The command line; the exit status is 1 if anything is off."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__.split("\n\n")[1])
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="default: %(default)s")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("checkpoints/bytelm.safetensors"), help="default: %(default)s"
    )
    parser.add_argument("--streams", type=int, default=64, help="at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of texts, lengths, chunks and arrivals (%(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="save the table as a picture too")
    arguments = parser.parse_args()
    if arguments.streams < 1:
        parser.error(f"--streams is {arguments.streams}; it must be at least 1")
    try:
        outcome = run(arguments.artifacts, arguments.checkpoint, arguments.streams, arguments.seed)
    except (ServerFailedError, CellstreamError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    console = Console(record=arguments.picture is not None, width=None if arguments.picture is None else 78)
    console.print(table_of(outcome))
    if arguments.picture is not None:
        console.save_svg(str(arguments.picture), title="make demo")
    path = arguments.artifacts / "demo.json"
    path.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
    problems = outcome.problems(arguments.streams)
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if not problems:
        print(f"all as it should be; wrote {path}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
