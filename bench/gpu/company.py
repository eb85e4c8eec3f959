"""What a lane's answers depend on besides itself: its bucket, perhaps; never its place or its neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.gpu.desk import Desk
from bench.gpu.models import artifact_of
from bench.gpu.ours import engine
from bench.gpu.plan import Job
from bench.gpu.records import Company
from bench.gpu.runs import Array
from export.artifact import RESIDENT
from serving.engine import Engine

_WILD = 100.0  # times larger are some neighbours' inputs


def company(job: Job, desk: Desk) -> Iterator[Company]:
    """The same lane step by step, in the first and the last place of every batch, alone in its bucket and not."""
    most = max(job.batches)
    path = artifact_of(job, desk.models) / RESIDENT
    of = engine(path, device=desk.device, graphs=None, rows=2 * most + 1, max_batch=most, slice_steps=1, room=most)
    mine = np.random.default_rng(0).standard_normal((job.steps[0], job.features), np.float32)
    found: list[Array] = []
    within = True
    for batch in job.batches:
        desk.note(f"{job.name}: batches of {batch}", "")
        fewest = batch // 2 + 1  # of the same bucket
        same = [_answers(of, mine, lanes, place) for lanes, place in ((batch, 0), (batch, batch - 1), (fewest, 0))]
        within = within and len({answers.tobytes() for answers in same}) == 1
        found.append(same[0])
    rms = float(np.sqrt(np.mean(np.square(found[0]))))
    yield Company(
        precision=job.precision,
        model=f"F{job.features} H{job.hidden} L{job.layers}",
        steps=job.steps[0],
        batches=job.batches,
        within=within,
        answers=len({answers.tobytes() for answers in found}),
        share=max(float(np.sqrt(np.mean(np.square(answers - found[0])))) for answers in found) / rms,
    )


def _answers(of: Engine, mine: Array, lanes: int, place: int) -> Array:
    """Y [T, O] of one lane among others, which are others in every batch and place."""
    steps, features = mine.shape
    x = np.random.default_rng([lanes, place]).standard_normal((steps, lanes, features), np.float32)
    x[:, ::3] *= np.float32(_WILD)
    x[:, place] = mine
    read, outputs = [0] * lanes, []
    for step in range(steps):
        write = [1 + lane + lanes * (step % 2) for lane in range(lanes)]
        answered = of.run([[lane.tobytes()] for lane in x[step]], [1] * lanes, read, write)
        outputs.append(np.frombuffer(answered[place][0], np.float32))
        read = write
    return np.stack(outputs)
