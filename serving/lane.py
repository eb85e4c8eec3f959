"""One served model: its engine, its streams, and whether it works.

Owns the turn: take what waits, run it, hand out what came. Knows no gRPC. A run that fails is tried again in halves
until the lane that can't run stands alone, so that nobody else's step is lost to it; then a probe with inputs of our
own tells whether that lane's input was to blame or the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy.typing as npt
import structlog

from model.contract import Contract
from serving.config import UINT32_MAX, Batching, Limits, Sequencing
from serving.description import Description
from serving.engine import EngineError
from serving.errors import ComputeFailed, ConfigError, Refusal, Unavailable, UnknownModel
from serving.inputs import InputCheck
from serving.row_states import RowStates
from serving.sequences import Sequences
from serving.single_steps import Layout
from serving.stats import ModelStats
from serving.streams import Run, Sink, Stream, Streams

_NAMED = 20  # models that a refusal names
PROBE_SECONDS = 1.0  # between two looks at an engine that doesn't work

log = structlog.get_logger(__name__)


class Computes(Protocol):
    """What a lane asks of an engine (see serving.engine.Engine)."""

    contract: Contract
    device: str
    slice_steps: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one stream's state."""

    def read_state(self, row: int) -> list[npt.NDArray[Any]]:
        """A copy of one row: one [W] array per slab."""

    def write_state(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        """Put a state into a row that no run reads."""

    def run(
        self,
        inputs: list[tuple[bytes | memoryview, ...]],
        lengths: list[int],
        read_rows: list[int],
        write_rows: list[int],
    ) -> Sequence[Sequence[bytes]]:
        """Compute, or raise EngineError and change nothing."""

    def probe(self, scratch_row: int, *, lanes: int = 1, steps: int = 1) -> None:
        """Run on inputs of its own, or raise EngineError."""


class Lane:
    """One version of one model, being served."""

    def __init__(
        self,
        name: str,
        version: int,
        engine: Computes,
        *,
        limits: Limits,
        batching: Batching,
        sequencing: Sequencing = Sequencing(),  # noqa: B008  it can't be changed
        clock: Callable[[], float],
        identity: str = "",
    ) -> None:
        self.name = name
        self.version = version
        self.identity = identity  # of the files it was loaded from
        self.engine = engine
        self.contract = engine.contract
        self.limits = limits
        self.batching = replace(batching, slice_steps=engine.slice_steps)
        self.check = InputCheck(engine.contract, limits)
        self.layout = Layout(engine.contract)
        self.description = Description(name, version, engine.contract, limits, engine.device)
        self.streams = Streams(check=self.check, limits=limits, batching=self.batching)
        self.sequences = Sequences(
            name,
            self.streams,
            self.check,
            RowStates(engine),
            idle_seconds=sequencing.idle_seconds(name),
            grace=sequencing.grace,
            idle_when_full=sequencing.idle_when_full,
        )
        self.stats = ModelStats()
        self.ready = True
        self.on_ready_changed: Callable[[Lane], None] = lambda _lane: None
        self._clock = clock
        self._next_probe = 0.0

    @property
    def busy(self) -> bool:
        """Whether a stream has a turn to come."""
        return self.streams.batcher.ready

    def open(self, name: str, sink: Sink) -> Stream:
        """A new stream; a sequence that is idle for long may make room for it. Raises as Streams.open() does."""
        return self.streams.open(name, sink, note=self.sequences.make_room(self._clock()))

    def warm_up(self, progress: Callable[[int], None] = lambda _lanes: None) -> None:
        """Run every batch size that is a power of two, with one step and with a whole slice. Raises ConfigError."""
        sizes = {1 << exponent for exponent in range(self.batching.max_batch.bit_length())} | {self.batching.max_batch}
        for lanes in sorted(sizes):
            for steps in {1, min(self.batching.slice_steps, max(1, self.batching.max_run_steps // lanes))}:
                try:
                    self._probe(lanes=lanes, steps=steps)
                except EngineError as error:
                    raise ConfigError(f"{self.name}/{self.version} doesn't run: {error}") from error
            progress(lanes)

    def turn(self) -> None:
        """Run one batch, if anything waits."""
        self.sequences.expire(self._clock())
        if not self.ready:
            self._look_again()
            return
        run = self.streams.take()
        if run is not None:
            self._begin(run)

    def _begin(self, run: Run) -> None:
        """Carry out a run, but for the lanes whose one step holds what no step may: those are refused."""
        inputs = self._inputs(run)
        if run.batch.steps == 1:
            faults = self.check.faults([piece.first_step for piece in run.batch.slices], inputs)
            if faults:
                self.streams.refuse(run.of(faults), list(faults.values()))
                sound = [lane for lane in range(len(run)) if lane not in faults]
                if not sound:
                    return
                run, inputs = run.of(sound), [inputs[lane] for lane in sound]
        self._carry_out(run, inputs)

    def _carry_out(self, run: Run, inputs: list[tuple[bytes | memoryview, ...]], *, again: bool = False) -> None:
        started = self._clock()
        slices = run.batch.slices
        try:
            outputs = self.engine.run(inputs, [piece.steps for piece in slices], run.read_rows, run.write_rows)
        except EngineError as error:
            self._failed(run, error, again=again)
            return
        (compute_us,) = _micros([self._clock() - started])
        queue_us = _micros([started - piece.chunk.arrived for piece in slices])
        stats = self.stats
        stats.batch_streams.add(len(slices))
        stats.latest_run = started
        stats.runs[len(slices)] += 1
        stats.run_micros[len(slices)] += compute_us
        stats.compute_times.add((compute_us,))
        stats.queue_times.add(queue_us)
        stats.steps += sum([piece.steps for piece in slices])
        self.streams.settle(run, outputs, queue_us=queue_us, compute_us=compute_us)

    def _inputs(self, run: Run) -> list[tuple[bytes | memoryview, ...]]:
        """What each lane computes, tensor by tensor."""
        return [
            chunk.inputs if steps == chunk.steps else self._cut(chunk.inputs, offset, steps)
            for _stream, chunk, offset, steps in run.batch.slices
        ]

    def _cut(self, inputs: tuple[bytes | memoryview, ...], offset: int, steps: int) -> tuple[bytes | memoryview, ...]:
        return tuple(
            memoryview(data)[offset * size : (offset + steps) * size]
            for data, size in zip(inputs, self.check.step_bytes, strict=True)
        )

    def _failed(self, run: Run, error: EngineError, *, again: bool) -> None:
        self.stats.failed_runs += 1
        log.warning("run failed", model=self.name, version=self.version, streams=len(run), error=str(error))
        if len(run) > 1:
            first, second = run.halves()
            self._carry_out(first, self._inputs(first))
            if self.ready:
                self._carry_out(second, self._inputs(second))
            else:
                self._fail(second, self._unavailable())
        elif not again:
            self._carry_out(run, self._inputs(run), again=True)
        elif self._works():
            (piece,) = run.batch.slices
            self._fail(run, ComputeFailed(f"the model can't compute the step numbered {piece.first_step}"))
        else:
            self._fail(run, self._unavailable())

    def _fail(self, run: Run, refusal: Refusal) -> None:
        self.streams.fail(run, [refusal] * len(run))

    def _works(self) -> bool:
        try:
            self._probe()
        except EngineError as error:
            log.error("engine doesn't work", model=self.name, version=self.version, error=str(error))  # noqa: TRY400
            self.ready = False
            self._next_probe = self._clock() + PROBE_SECONDS
            self.streams.end_all(self._unavailable())
            self.on_ready_changed(self)
            return False
        return True

    def _look_again(self) -> None:
        now = self._clock()
        if now < self._next_probe:
            return
        self._next_probe = now + PROBE_SECONDS
        try:
            self._probe()
        except EngineError:
            return
        log.info("engine works again", model=self.name, version=self.version)
        self.ready = True
        if isinstance(self.streams.closed, Unavailable):  # and not because the server is shutting down
            self.streams.closed = None
        self.on_ready_changed(self)

    def _probe(self, *, lanes: int = 1, steps: int = 1) -> None:
        (row,) = rows = self.streams.rows.claim(1)
        try:
            self.engine.probe(row, lanes=lanes, steps=steps)
        finally:
            self.streams.rows.release(rows)

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"model {self.name!r} version {self.version} doesn't compute at the moment")


class Lanes:
    """The served models by name and version. Any thread may look; add and remove are for the one that serves them.

    Beside them `broken`: versions that can't be served, and why, in words for clients.
    """

    def __init__(self, lanes: Iterable[Lane] = ()) -> None:
        self.broken: Mapping[tuple[str, int], str] = {}
        self._set({(lane.name, lane.version): lane for lane in lanes})

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._by_version.values())

    def newest(self) -> Iterator[Lane]:
        """The highest version of every model."""
        return iter(self._newest.values())

    def add(self, lane: Lane) -> None:
        """Serve one more, or instead of the one of its name and version."""
        self.forget(lane.name, lane.version)
        self._set({**self._by_version, (lane.name, lane.version): lane})

    def note(self, name: str, version: int, reason: str) -> None:
        """Note that a version can't be served. One thread at a time, as for forget()."""
        self.broken = {**self.broken, (name, version): reason}

    def forget(self, name: str, version: int) -> None:
        """Note that a version isn't broken: it is served, or isn't there any more."""
        self.broken = {key: reason for key, reason in self.broken.items() if key != (name, version)}

    def unserved(self) -> set[str]:
        """The models of which a version is broken and none is served."""
        return {name for name, _ in self.broken} - self._newest.keys()

    def remove(self, lane: Lane) -> None:
        """Serve one less."""
        self._set({key: other for key, other in self._by_version.items() if other is not lane})

    def _set(self, by_version: dict[tuple[str, int], Lane]) -> None:
        newest: dict[str, Lane] = {}
        for lane in by_version.values():
            best = newest.get(lane.name)
            if best is None or lane.version > best.version:
                newest[lane.name] = lane
        self._by_version, self._newest = by_version, newest  # new ones: others may be going through the old

    def find(self, name: str, version: int) -> Lane:
        """The model of that name; version 0 is the highest. Raises UnknownModel, naming what there is."""
        lane = self._by_version.get((name, version)) if version else self._newest.get(name)
        if lane is None:
            names = [f"{name}/{version}" for name, version in sorted(self._by_version)]
            served = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            asked = f"{name!r} version {version}" if version else f"{name!r}"
            found = [why for (each, number), why in self.broken.items() if each == name and version in (0, number)]
            reason = f" is served ({found[0]})" if found else ""
            raise UnknownModel(f"no model {asked}{reason}; served: {served or 'nothing'}")
        return lane


def _micros(seconds: list[float]) -> list[int]:
    """Seconds as whole microseconds, within what the protocol's uint32 holds (a held stream may wait for hours)."""
    found = [int(value * 1e6) for value in seconds]
    if min(found) >= 0 and max(found) <= UINT32_MAX:
        return found
    return [min(max(0, value), UINT32_MAX) for value in found]
