"""The streams of one model: who is open, which row holds whose state, what was accepted and what was answered.

Owns every stream's life and the rows' and batcher's use. Values in, values out: no gRPC, no ONNX Runtime, no clock,
no thread. Answers leave through each stream's sink.

A stream's life, and every move it can make:

    OPEN      --finish-->  FINISHING   nothing more is accepted; what waits is computed and answered
    OPEN      --end----->  ENDED       cancelled, refused, failed: what waits is forgotten
    FINISHING --drained->  ENDED       everything has been answered
    FINISHING --end----->  ENDED
"""

from __future__ import annotations

import enum
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from serving.batcher import Batch, Batcher, Chunk, Slice
from serving.config import Batching, Limits
from serving.errors import OutOfOrder, Overloaded, Refusal, ShuttingDown, TooManyStreams, WrongPhase
from serving.inputs import InputCheck
from serving.rows import INITIAL, Rows

_chunk = functools.partial(tuple.__new__, Chunk)  # a NamedTuple's own constructor takes twice as long


class Phase(enum.Enum):
    """Where a stream stands in its life."""

    OPEN = "open"
    FINISHING = "finishing"
    ENDED = "ended"


_MOVES = {
    (Phase.OPEN, Phase.FINISHING),
    (Phase.OPEN, Phase.ENDED),
    (Phase.FINISHING, Phase.ENDED),
}


class Sink(Protocol):
    """Where a stream's answers go."""

    def on_outputs(self, first_step: int, steps: int, outputs: Sequence[bytes], queue_us: int, compute_us: int) -> None:
        """Some steps are computed; the first of them waited `queue_us`, and its run took `compute_us`, both uint32.

        `outputs` has one entry per model output: `steps` steps, little-endian.
        """

    def on_end(self, refusal: Refusal | None) -> None:
        """The stream has ended by itself: everything is answered (None), or it can't go on."""


class Stream:
    """One stream: its state's row, and how far it has come."""

    __slots__ = ("accepted_step", "answered_step", "name", "on_refused", "phase", "row", "sink")

    def __init__(self, name: str, sink: Sink) -> None:
        self.name = name
        self.sink = sink
        self.phase = Phase.OPEN
        self.row = INITIAL
        self.accepted_step = 0  # the last step that has arrived
        self.answered_step = 0  # the last step that is computed
        # Told of a step that can't be computed for its values; the stream then goes on. None: it ends.
        self.on_refused: Callable[[Refusal], None] | None = None


class Run:
    """A batch on its way through the engine: what each lane computes, reads and writes."""

    __slots__ = ("batch", "read_rows", "write_rows")

    def __init__(self, batch: Batch[Stream], read_rows: list[int], write_rows: list[int]) -> None:
        self.batch = batch
        self.read_rows = read_rows
        self.write_rows = write_rows

    def __len__(self) -> int:
        return len(self.read_rows)

    def halves(self) -> tuple[Run, Run]:
        """Two runs that together do the same (for finding the one that fails)."""
        middle = len(self) // 2
        return self.of(range(middle)), self.of(range(middle, len(self)))

    def of(self, lanes: Iterable[int]) -> Run:
        """The run of these lanes alone."""
        lanes = list(lanes)
        slices, read, write = self.batch.slices, self.read_rows, self.write_rows
        kept = [slices[lane] for lane in lanes]
        batch = Batch(kept, max((piece.steps for piece in kept), default=0))
        return Run(batch, [read[lane] for lane in lanes], [write[lane] for lane in lanes])


class Streams:
    """All streams of one model."""

    def __init__(self, *, check: InputCheck, limits: Limits, batching: Batching) -> None:
        self._check = check
        self._limits = limits
        self._most_waiting = min(limits.max_waiting_steps, max(1, limits.max_waiting_bytes // sum(check.step_bytes)))
        self.rows = Rows(slab_rows(limits, batching))
        self.batcher: Batcher[Stream] = Batcher(
            max_batch=batching.max_batch,
            slice_steps=batching.slice_steps,
            max_run_steps=batching.max_run_steps,
            shared_slice_steps=batching.shared_slice_steps,
        )
        self.closed: Refusal | None = None  # why nothing new is admitted
        self._live: set[Stream] = set()
        self._running: set[Stream] = set()

    @property
    def live(self) -> int:
        """Streams that haven't ended."""
        return len(self._live)

    @property
    def full(self) -> bool:
        """Whether every place is taken."""
        return len(self._live) >= self._limits.max_streams

    def open(self, name: str, sink: Sink, *, instead_of: Stream | None = None, note: str = "") -> Stream:
        """A new stream in its first state. Raises TooManyStreams, with `note`, or why the model admits none.

        `instead_of` is a live stream whose place it may take: the caller ends one of the two before anything runs.
        """
        if self.closed is not None:
            raise type(self.closed)(*self.closed.args)  # a fresh one: raising the same again grows its traceback
        if len(self._live) - (instead_of is not None) >= self._limits.max_streams:
            raise TooManyStreams(f"{len(self._live)} streams are open; the limit is {self._limits.max_streams}{note}")
        stream = Stream(name, sink)
        self._live.add(stream)
        return stream

    def seed(self, stream: Stream) -> int:
        """Give a stream that has computed nothing a row of its own, for a state to be put there; returns its number."""
        assert stream.row == INITIAL, "the stream has a state already"
        (stream.row,) = self.rows.claim(1)
        return stream.row

    def fork(self, stream: Stream, source: Stream) -> None:
        """Let a stream that has computed nothing begin in the state that `source` is in. No byte is copied."""
        assert stream.row == INITIAL, "the stream has a state already"
        stream.row = self.rows.refer(source.row)

    def push(
        self, stream: Stream, first_step: int, steps: int, inputs: Sequence[bytes | memoryview], now: float
    ) -> None:
        """Accept a chunk: steps first_step … first_step + steps - 1, numbered from 1.

        Steps that are here already are dropped (a client that sends again is right to), a gap is refused.
        Raises InvalidInput, TooLarge, OutOfOrder, Overloaded or WrongPhase; a refused chunk changes nothing. The values
        of a single step are left to whoever runs it, who checks all streams' at once.
        """
        self._check.sizes(steps, inputs)
        if steps > 1:
            self._check.values(first_step, inputs)
        known = stream.accepted_step + 1 - first_step  # steps of this chunk that are here already
        if first_step < 1:
            raise OutOfOrder("first_step is 0; steps are numbered from 1")
        if known < 0:
            raise OutOfOrder(f"first_step is {first_step}; the stream's next step is {stream.accepted_step + 1}")
        if known >= steps:
            if stream.phase is not Phase.OPEN:
                raise _not_open(stream)
            return
        if known:
            sizes = self._check.step_bytes
            inputs = [memoryview(data)[known * size :] for data, size in zip(inputs, sizes, strict=True)]
        self.push_next(stream, steps - known, tuple(inputs), now)

    def push_next(self, stream: Stream, steps: int, inputs: tuple[bytes | memoryview, ...], now: float) -> None:
        """Accept the stream's next steps, of which all is known to fit but the values of a single one.

        Raises Overloaded or WrongPhase; then nothing has changed.
        """
        if stream.phase is not Phase.OPEN:
            raise _not_open(stream)
        waiting = self.batcher.waiting_steps
        if waiting + steps > self._most_waiting:
            raise Overloaded(
                f"{waiting} steps are waiting, and {steps} more would pass the limit of {self._most_waiting}; try again"
                " later"
            )
        first = stream.accepted_step + 1
        stream.accepted_step += steps
        self.batcher.push(stream, _chunk((first, steps, inputs, now)))

    def waiting(self, stream: Stream) -> int:
        """Steps of the stream that have arrived and aren't computed."""
        return stream.accepted_step - stream.answered_step

    def finish(self, stream: Stream) -> None:
        """The client sends no more: end the stream, through its sink, once everything is answered."""
        if stream.phase is Phase.OPEN:
            self._move(stream, Phase.FINISHING)
            self._end_if_drained(stream)

    def end(self, stream: Stream) -> None:
        """The stream is over (cancelled, refused): forget what it has waiting and free its state. Idempotent."""
        if stream.phase is Phase.ENDED:
            return
        self._move(stream, Phase.ENDED)
        # A sink refers to its stream: the circle would keep both, and the model, until the collector comes by.
        del stream.sink
        stream.on_refused = None
        self._live.remove(stream)
        self.batcher.discard(stream)
        if stream not in self._running:  # else its row is being read: freed when the run is over
            self.rows.release((stream.row,))
            stream.row = INITIAL

    def end_all(self, refusal: Refusal) -> None:
        """End every stream with one refusal, and admit no more."""
        self.closed = refusal
        for stream in list(self._live):
            if stream.phase is not Phase.ENDED:  # by the sink of another
                self._fail(stream, refusal)

    def close(self) -> None:
        """Admit no more streams; those that are open go on."""
        self.closed = ShuttingDown("the server is shutting down; open the stream on another one")

    def take(self) -> Run | None:
        """The next run, its rows claimed; None if nothing waits. It must be settled, or failed."""
        batch = self.batcher.take()
        if batch is None:
            return None
        streams = [piece.stream for piece in batch.slices]
        self._running.update(streams)
        return Run(batch, [stream.row for stream in streams], self.rows.claim(len(streams)))

    def settle(self, run: Run, outputs: Sequence[Sequence[bytes]], *, queue_us: Sequence[int], compute_us: int) -> None:
        """The run has succeeded: its streams move to their new rows, and the answers go out.

        `outputs[lane]` has one entry per model output: that lane's steps, little-endian. `queue_us[lane]` is how long
        the lane waited.
        """
        slices = run.batch.slices
        self.batcher.finish(run.batch)
        self._running.difference_update([piece.stream for piece in slices])
        self.rows.release(run.read_rows)
        for (stream, chunk, offset, steps), fresh, values, queued in zip(
            slices, run.write_rows, outputs, queue_us, strict=True
        ):
            if stream.phase is Phase.ENDED:  # it ended while the run was under way
                self.rows.release((fresh,))
                stream.row = INITIAL
                continue
            stream.row = fresh
            stream.answered_step += steps
            stream.sink.on_outputs(chunk.first_step + offset, steps, values, queued, compute_us)
            if stream.phase is Phase.FINISHING:
                self._end_if_drained(stream)

    def fail(self, run: Run, refusals: Sequence[Refusal]) -> None:
        """The run has failed for good: nothing has moved, and every member is told, each its own."""
        for piece, refusal in self._undone(run, refusals):
            self._fail(piece.stream, refusal)

    def refuse(self, run: Run, refusals: Sequence[Refusal]) -> None:
        """The values of these single steps are at fault: their streams end, each with its refusal, or skip the step."""
        skips = [lane for lane, piece in enumerate(run.batch.slices) if piece.stream.on_refused is not None]
        ends = [lane for lane in range(len(run)) if lane not in skips]
        self.fail(run.of(ends), [refusals[lane] for lane in ends])
        for piece, refusal in self._undone(run.of(skips), [refusals[lane] for lane in skips]):
            stream = piece.stream
            stream.answered_step += piece.steps
            assert stream.on_refused is not None
            stream.on_refused(refusal)
            if stream.phase is Phase.FINISHING:
                self._end_if_drained(stream)

    def check(self) -> None:
        """Assert that the books balance."""
        self.rows.check()
        self.batcher.check()
        held = Counter(stream.row for stream in self._live | self._running if stream.row != INITIAL)
        if not self._running:
            assert self.rows.in_use == len(held), "a row belongs to no stream"
        for row, streams in held.items():
            assert self.rows.references(row) == streams, f"row {row} is counted wrongly"
        for stream in self._live:
            assert stream.phase is not Phase.ENDED
            assert self.waiting(stream) == self.batcher.waiting(stream)

    def _undone(self, run: Run, refusals: Sequence[Refusal]) -> Iterator[tuple[Slice[Stream], Refusal]]:
        """Account for a run that has moved nothing; its lanes whose streams haven't ended meanwhile."""
        self.batcher.finish(run.batch)
        self.rows.release(run.write_rows)
        for piece, refusal in zip(run.batch.slices, refusals, strict=True):
            stream = piece.stream
            self._running.discard(stream)
            if stream.phase is Phase.ENDED:
                self.rows.release((stream.row,))
                stream.row = INITIAL
            else:
                yield piece, refusal

    def _end_if_drained(self, stream: Stream) -> None:
        if self.waiting(stream) == 0:
            sink = stream.sink
            self.end(stream)
            sink.on_end(None)

    def _fail(self, stream: Stream, refusal: Refusal) -> None:
        sink = stream.sink
        self.end(stream)
        sink.on_end(refusal)

    @staticmethod
    def _move(stream: Stream, phase: Phase) -> None:
        assert (stream.phase, phase) in _MOVES, f"{stream.phase} to {phase}"
        stream.phase = phase


def _not_open(stream: Stream) -> WrongPhase:
    return WrongPhase(f"a chunk for a stream that is {stream.phase.value}")


def slab_rows(limits: Limits, batching: Batching) -> int:
    """N: row 0, a row per stream, a spare one per lane of the largest batch, and one for a probe while that is held."""
    return 1 + limits.max_streams + batching.max_batch + 1
