"""What runs cost on this machine: serving's own engine on an artifact's resident graph, timed size by size.

Owns the measuring. What counts is the thread's own time on the core, so that a busy machine's other work isn't
measured (a run has one thread here). Sizes take turns, round after round, a few runs each, of which the first, whose
weights come from afar, doesn't count; of the others the lower quartile does.
"""

from __future__ import annotations

import datetime as dt
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.simulation.costs import Costs, rising
from export import pipeline, samples
from export.artifact import RESIDENT, find
from export.machine import describe
from model.checkpoint import Checkpoint
from model.contract import Contract
from model.lstm import LSTM, Spec
from serving.engine import Engine

LANES = (1, 2, 4, 8, 16, 32, 64, 128)
STEPS = (1, 2, 4, 8, 16, 32)
ROUNDS = 8
IN_A_ROW = 5
MODEL = Spec(input_size=64, hidden_size=256, layers=2, output_size=16)  # unless an artifact is given

Run = tuple[list[tuple[bytes, ...]], list[int], list[int], list[int]]


def calibrate(artifact: Path | None, *, rounds: int = ROUNDS) -> Costs:
    """The table of an artifact, or of a model of 64 inputs, 2 layers of 256 and 16 outputs.

    Raises ArtifactError or ConfigError.
    """
    if artifact is not None:
        folder = find(artifact)
        return _measure(folder, str(artifact), rounds)
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        pipeline.write_graphs(Checkpoint(LSTM(MODEL)), Path(place), "calibration")
        return _measure(Path(place), "an LSTM of 64 inputs, 2 layers of 256, 16 outputs", rounds)


def _measure(folder: Path, name: str, rounds: int) -> Costs:
    engine = Engine(
        folder / RESIDENT,
        rows=1 + 2 * LANES[-1],
        max_batch=LANES[-1],
        slice_steps=STEPS[-1],
        max_run_steps=LANES[-1] * STEPS[-1],
        threads=1,
    )
    steps = [count for count in STEPS if count <= engine.slice_steps]
    runs = {size: _run(engine.contract, *size) for size in itertools.product(LANES, steps)}
    seconds: dict[tuple[int, int], list[float]] = {size: [] for size in runs}
    for _ in range(rounds):
        for size, run in runs.items():
            seconds[size] += [_seconds(engine, run) for _ in range(IN_A_ROW)][1:]
    micros = {size: float(np.quantile(times, 0.25)) * 1e6 for size, times in seconds.items()}
    table = [[micros[lanes, count] for count in steps] for lanes in LANES]
    if len(steps) == 1:  # a model that takes single steps only: never asked for more, but a table has two points
        steps, table = [1, 2], [[row[0], 2 * row[0]] for row in table]
    about = f"{name}; {describe()}; {dt.datetime.now(dt.UTC).date()}"
    return Costs(about, LANES, tuple(steps), rising(table))


def _seconds(engine: Engine, run: Run) -> float:
    began = time.thread_time()
    engine.run(*run)
    return time.thread_time() - began


def _run(contract: Contract, lanes: int, steps: int) -> Run:
    sample = samples.draw(contract, steps, samples.ZERO, lanes, seed=0)
    inputs = [tuple(sample.inputs[spec.name][lane].tobytes() for spec in contract.inputs) for lane in range(lanes)]
    return inputs, [steps] * lanes, list(range(1, 1 + lanes)), list(range(1 + lanes, 1 + 2 * lanes))
