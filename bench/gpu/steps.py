"""The race: all contestants at one model, in every batch and chunk, side by side in rounds that take turns.

Every contestant's answers are compared with float64 before it is timed; whoever computes rubbish isn't.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.gpu.desk import Desk, PoisonedError, timed
from bench.gpu.models import artifact_of, in_parts, module_of
from bench.gpu.ours import Ours
from bench.gpu.place import CPU
from bench.gpu.plan import Job, Who
from bench.gpu.records import Record, Skipped, Step
from bench.gpu.roofline import FLOAT
from bench.gpu.runs import Array, Contestant, Runs
from bench.gpu.session import Session
from export.artifact import RESIDENT

if TYPE_CHECKING:
    from bench.gpu.torch_device import TorchDevice

VARIANTS = 8  # different lanes; the others repeat them, and must be answered the same
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2}  # of the outputs' rms: far above roundings, far below faults
Truth = Callable[[Array], Array]


def sizes(job: Job) -> list[tuple[int, int]]:
    """(T, B) in order, without what takes too long to move."""
    return [size for size in job.sizes if _bytes(job, *size) <= job.most_bytes]


def _bytes(job: Job, steps: int, batch: int) -> int:
    """Of the inputs of one run, or of its outputs."""
    return steps * batch * FLOAT * max(job.features, job.hidden)


def race(job: Job, desk: Desk) -> Iterator[Record]:
    """All figures of one model."""
    if not sizes(job):
        return
    desk.note(f"{job.name}: making the model", "")
    makers, truth = _makers(job, desk)
    yield from _too_large(job)
    made: dict[Who, Contestant] = {}
    for who, make in makers.items():
        desk.note(f"{job.name}: {who}", who)
        try:
            made[who] = make()
        except Exception as error:  # noqa: BLE001  whatever a library raises, the others still race
            yield _skipped(f"{job.name}: {who}", error)
            _refuse_poison(desk)
    engine = made.get(Who.ENGINE)
    if desk.device != CPU and isinstance(engine, Ours) and not engine.graphed:
        yield Skipped(f"{job.name}: {Who.ENGINE} with CUDA graphs", "it runs without; its log says why")
    for steps, batch in sizes(job):
        if desk.over:
            yield Skipped(f"{job.name}: from {steps} steps of {batch} lanes on", f"its {job.limit:.0f} s were over")
            return
        yield from _at(job, desk, made, truth, (steps, batch))
    made.clear()
    _give_back(desk)


def _too_large(job: Job) -> Iterator[Skipped]:
    """What `sizes` leaves out."""
    left_out = [(steps, batch) for steps, batch in job.sizes if _bytes(job, steps, batch) > job.most_bytes]
    if left_out and not job.done:
        what = ", ".join(f"{steps} steps of {batch} lanes" for steps, batch in left_out)
        yield Skipped(f"{job.name}: {what}", f"more than {job.most_bytes >> 20} MiB of inputs in one run")


def _makers(job: Job, desk: Desk) -> tuple[dict[Who, Callable[[], Contestant]], Truth | None]:
    """How each contestant is made, and the truth if there is torch to compute it."""
    every = sizes(job)
    room, longest, widest = max(t * b for t, b in every), max(t for t, _ in every), max(b for _, b in every)

    def path() -> Path:
        return artifact_of(job, desk.models) / RESIDENT

    def session(of: Path, *, graphs: bool) -> Contestant:
        return Session(of, device=desk.device, graphs=graphs, max_batch=widest)

    makers: dict[Who, Callable[[], Contestant]] = {
        Who.OURS: lambda: session(path(), graphs=True),
        Who.PLAIN: lambda: session(path(), graphs=False),
        Who.PARTS: lambda: session(in_parts(job, desk.models), graphs=True),
        Who.ENGINE: lambda: Ours(path(), device=desk.device, max_batch=widest, slice_steps=longest, room=room),
    }
    truth: Truth | None = None
    at = _torch_device(desk)
    if at is not None:
        from bench.gpu import rivals  # noqa: PLC0415  not there on every machine

        module = module_of(job)
        truth = rivals.Reference(at, module).answers
        makers[Who.EAGER] = lambda: rivals.Eager(at, module, job.precision)
        makers[Who.CELL] = lambda: rivals.Cell(at, module, job.precision)
    racing = {who for size in every for who in job.contestants(size)}
    return {who: make for who, make in makers.items() if who in racing}, truth


@dataclass(slots=True)
class _Lane:
    """A contestant at one size: ready, right, and its times so far."""

    runs: Runs
    error: float | None
    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def time(self, seconds: float) -> None:
        """One more round."""
        if self.runs.device is not None:
            self.device.append(timed(self.runs.device, seconds))
        if self.runs.host is not None:
            self.host.append(timed(self.runs.host, seconds))


def _at(
    job: Job, desk: Desk, made: dict[Who, Contestant], truth: Truth | None, size: tuple[int, int]
) -> Iterator[Record]:
    """One size (T, B): make ready, check, then time in turns."""
    steps, batch = size
    where = f"{job.name}: {steps} steps of {batch} lanes"
    lanes: dict[Who, _Lane] = {}
    yield from _make_ready(job, desk, made, truth, (where, size, lanes))
    for number in range(job.rounds):
        for who in list(lanes)[:: -1 if number % 2 else 1]:
            if desk.over:
                break
            desk.note(f"{where}: {who}", who)
            try:
                lanes[who].time(job.seconds)
            except Exception as error:  # noqa: BLE001  whatever a library raises, the others still race
                yield _skipped(f"{where}: {who}", error)
                _refuse_poison(desk)
                del lanes[who]
    for who, lane in lanes.items():
        if lane.device or lane.host:
            of = (job.hidden, job.layers, job.precision, *size)
            yield Step(*of, who, tuple(lane.device), tuple(lane.host), lane.error)


def _make_ready(
    job: Job,
    desk: Desk,
    made: dict[Who, Contestant],
    truth: Truth | None,
    at: tuple[str, tuple[int, int], dict[Who, _Lane]],
) -> Iterator[Skipped]:
    """Put those who are ready and right into the lanes."""
    where, (steps, batch), lanes = at
    x = np.random.default_rng([steps, job.features]).standard_normal((VARIANTS, steps, job.features)).astype(np.float32)
    right = None if truth is None else truth(x)
    x = x[np.arange(batch) % VARIANTS]
    racing = job.contestants((steps, batch))
    for who, contestant in made.items():
        if desk.over:
            return
        if who not in racing:
            continue
        desk.note(f"{where}: {who}, its answers", who)
        try:
            runs = contestant.ready(x)
            error = None if right is None else error_of(runs.answers(), right)
        except Exception as problem:  # noqa: BLE001  as above
            yield _skipped(f"{where}: {who}", problem)
            _refuse_poison(desk)
            continue
        bar = TOLERANCE[job.precision]
        if error is None or error <= bar:
            lanes[who] = _Lane(runs, error)
        else:  # NaN too
            yield Skipped(f"{where}: {who}", f"wrong answers: off by {error:.2g} of the outputs' rms, allowed {bar:g}")


def error_of(y: Array, right: Array) -> float:
    """The rms of what lanes [B, T, O] are off by from their variants [V, T, O], as a share of those' rms."""
    squares = sum(
        float(np.sum(np.square(y[variant::VARIANTS] - right[variant].astype(y.dtype)), dtype=np.float64))
        for variant in range(VARIANTS)
    )
    return float(np.sqrt(squares / y.size) / np.sqrt(np.mean(np.square(right))))


def _skipped(what: str, error: Exception) -> Skipped:
    said = " ".join(str(error).split())
    return Skipped(what, f"{type(error).__name__}: {said:.300}")


def _refuse_poison(desk: Desk) -> None:
    """Raise PoisonedError where an error has cost this process its GPU."""
    at = _torch_device(desk)
    if at is not None and not at.healthy():
        raise PoisonedError("the GPU answers this process no more")


def _give_back(desk: Desk) -> None:
    """Memory that PyTorch holds, for the next model's engines."""
    at = _torch_device(desk)
    if at is not None:
        at.give_back()


def _torch_device(desk: Desk) -> TorchDevice | None:
    """PyTorch's side of the device, where there is PyTorch; the CPU if it's one that has no other."""
    if importlib.util.find_spec("torch") is None:
        return None
    from bench.gpu.torch_device import TorchDevice, usable  # noqa: PLC0415  not there on every machine

    return TorchDevice(desk.device if usable(desk.device) else CPU)
