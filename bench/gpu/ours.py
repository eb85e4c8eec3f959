"""Our own engine, made for the device, and as a contestant. The only module here that knows how an engine is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.place import CPU
from bench.gpu.runs import Array, Runs
from serving.engine import Engine


def engine(
    path: Path, *, device: str, graphs: bool | None, rows: int, max_batch: int, slice_steps: int, room: int
) -> Engine:
    """The engine on this device; on the CPU it has no graphs to be told of."""
    more: dict[str, Any] = {} if device == CPU else {"device": device, "graphs": graphs}
    return Engine(
        path,
        rows=rows,
        max_batch=max_batch,
        slice_steps=slice_steps,
        max_run_steps=room,
        threads=1,
        **more,
    )


class Ours:
    """The engine as the server uses it, with a slab for two halves of rows, between which lanes go to and fro."""

    def __init__(self, path: Path, *, device: str, max_batch: int, slice_steps: int, room: int) -> None:
        sizes = {"max_batch": max_batch, "slice_steps": slice_steps, "room": room}
        self._engine = engine(path, device=device, graphs=None, rows=2 * max_batch + 1, **sizes)

    @property
    def graphed(self) -> bool:
        """Whether it replays CUDA graphs, if it says so."""
        return bool(getattr(self._engine, "graphed", False))

    def ready(self, x: Array) -> Runs:
        """For inputs [B, T, F]."""
        batch, steps = x.shape[:2]
        inputs = [[lane.tobytes()] for lane in x]
        lengths, first, second = [steps] * batch, list(range(1, batch + 1)), list(range(batch + 1, 2 * batch + 1))
        run = self._engine.run

        def answers() -> Array:
            found = run(inputs, lengths, [0] * batch, second)
            return np.frombuffer(b"".join(lane[0] for lane in found), np.float32).reshape(batch, steps, -1)

        def host() -> None:
            nonlocal first, second
            run(inputs, lengths, second, first)
            first, second = second, first

        return Runs(answers, None, host)
