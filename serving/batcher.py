"""What waits, and whose turn it is.

Owns the chunks that have arrived and aren't computed, and the order in which streams get turns. A plain object:
values in, values out; no clock, no thread, no I/O. Knows nothing of tensors: a chunk's inputs pass through unopened.

A turn is one slice of one chunk: at most `slice_steps` steps, at most one slice per stream in a batch, oldest first.
While others send in small pieces, slices are shorter (`shared_slice_steps`), so that nobody waits for a long run.
Slices are grouped by length class (1, 2-3, 4-7, 8-15, … steps): a run costs all its rows the longest one's steps, so
a row never pays for more than twice its own.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

CALM_RUNS = 16  # batches without small pieces, until slices are long again

K = TypeVar("K", bound=Hashable)


class Chunk(NamedTuple):
    """Consecutive steps of one stream, as they came in one message."""

    first_step: int
    steps: int
    inputs: tuple[bytes | memoryview, ...]  # one per model input, `steps` steps each
    arrived: float  # monotonic seconds


class Slice(NamedTuple, Generic[K]):
    """The part of a chunk that is computed in one turn: steps offset … offset + steps - 1 of it."""

    stream: K
    chunk: Chunk
    offset: int
    steps: int

    @property
    def first_step(self) -> int:
        """The number of the first step."""
        return self.chunk.first_step + self.offset


_slice = functools.partial(tuple.__new__, Slice)  # a NamedTuple's own constructor takes twice as long


class _Queue(Generic[K]):
    """One stream's chunks, and where it stands. Kept from its first chunk until the stream is discarded."""

    __slots__ = ("chunks", "held", "in_batch", "offset", "stream", "turn", "waiting")

    def __init__(self, stream: K) -> None:
        self.stream = stream
        self.chunks: deque[Chunk] = deque()
        self.offset = 0  # steps of the head chunk that are computed
        self.waiting = 0  # steps, those in the running batch included
        self.turn = 0  # 0: has no place in line; else the age of its place
        self.in_batch = 0  # steps of the running batch
        self.held = False


@dataclass(frozen=True, slots=True)
class Batch(Generic[K]):
    """Slices that run together; `steps` is T, the longest one's."""

    slices: list[Slice[K]]
    steps: int


class Batcher(Generic[K]):
    """Streams with work, in line by age."""

    def __init__(
        self, *, max_batch: int, slice_steps: int, max_run_steps: int, shared_slice_steps: int | None = None
    ) -> None:
        """A batch holds at most `max_batch` slices, and its size times its longest slice is at most `max_run_steps`.

        `shared_slice_steps` (None: `slice_steps`) bounds slices for CALM_RUNS batches after one of chunks as short.
        """
        self.max_batch = max_batch
        self.slice_steps = min(slice_steps, max_run_steps)
        self.shared_slice_steps = min(shared_slice_steps or slice_steps, self.slice_steps)
        self._shared = 0  # batches to come that are bound by it
        self.max_run_steps = max_run_steps
        self.waiting_steps = 0
        self._queues: dict[K, _Queue[K]] = {}
        self._lines: list[deque[tuple[int, _Queue[K]]]] = [deque() for _ in range(self.slice_steps.bit_length() + 1)]
        self._age = 0

    @property
    def ready(self) -> bool:
        """Whether somebody has a turn: whether `take` would give a batch."""
        return self._oldest_line() is not None

    def push(self, stream: K, chunk: Chunk) -> None:
        """Add a chunk behind what the stream already has waiting."""
        queue = self._queues.get(stream)
        if queue is None:
            queue = self._queues[stream] = _Queue(stream)
        queue.chunks.append(chunk)
        steps = chunk.steps
        queue.waiting += steps
        self.waiting_steps += steps
        if not queue.turn and not queue.in_batch:
            self._line_up(queue, steps)

    def waiting(self, stream: K) -> int:
        """Steps of one stream that have arrived and aren't computed, those in the running batch included."""
        queue = self._queues.get(stream)
        return 0 if queue is None else queue.waiting

    def take(self) -> Batch[K] | None:
        """The next batch, or None if nobody has a turn. Every batch taken must be finished."""
        line = self._oldest_line()
        if line is None:
            return None
        slices: list[Slice[K]] = []
        most, longest = self.max_batch, 0
        slice_steps = self.shared_slice_steps if self._shared else self.slice_steps
        while line and len(slices) < most:
            turn, queue = line[0]
            if queue.turn != turn:  # discarded or held since
                line.popleft()
                continue
            chunk, offset = queue.chunks[0], queue.offset
            steps = min(chunk.steps - offset, slice_steps)
            if steps > longest:
                most = min(self.max_batch, self.max_run_steps // steps)
                if len(slices) >= most:
                    break
                longest = steps
            line.popleft()
            queue.turn = 0
            queue.in_batch = steps
            slices.append(_slice((queue.stream, chunk, offset, steps)))
        if slices[0].chunk.steps <= self.shared_slice_steps:
            self._shared = CALM_RUNS
        elif self._shared:
            self._shared -= 1
        return Batch(slices, longest)

    def finish(self, batch: Batch[K]) -> None:
        """Account for a batch that has run: its slices no longer wait, and its streams line up again."""
        queues = self._queues
        for stream, chunk, _offset, steps in batch.slices:
            queue = queues.get(stream)
            if queue is None or not queue.in_batch:  # discarded while it ran
                continue
            queue.in_batch = 0
            queue.waiting -= steps
            self.waiting_steps -= steps
            queue.offset += steps
            if queue.offset == chunk.steps:
                queue.chunks.popleft()
                queue.offset = 0
            if queue.chunks:
                self._line_up(queue, queue.chunks[0].steps - queue.offset)

    def discard(self, stream: K) -> None:
        """Forget all that a stream has waiting; a slice of it that is running has no effect here any more."""
        queue = self._queues.pop(stream, None)
        if queue is not None:
            self.waiting_steps -= queue.waiting
            queue.turn = 0

    def hold(self, stream: K) -> None:
        """Give a stream no turns (its client doesn't read) until `release`."""
        queue = self._queues.get(stream)
        if queue is None:
            queue = self._queues[stream] = _Queue(stream)
        queue.held = True
        queue.turn = 0

    def release(self, stream: K) -> None:
        """Let a held stream line up again."""
        queue = self._queues.get(stream)
        if queue is None or not queue.held:
            return
        queue.held = False
        if queue.chunks and not queue.in_batch:
            self._line_up(queue, queue.chunks[0].steps - queue.offset)

    def check(self) -> None:
        """Assert that the books balance."""
        assert self.waiting_steps == sum(queue.waiting for queue in self._queues.values())
        lined_up = [queue for line in self._lines for turn, queue in line if queue.turn == turn]
        assert len(lined_up) == len({id(queue) for queue in lined_up}), "a stream stands in line twice"
        for stream, queue in self._queues.items():
            assert queue.stream == stream
            assert queue.waiting == sum(chunk.steps for chunk in queue.chunks) - queue.offset
            ready = bool(queue.chunks) and not queue.held and not queue.in_batch
            assert ready == bool(queue.turn), "a stream with work has no turn, or one without has"
            assert ready == any(queue is other for other in lined_up)

    def _line_up(self, queue: _Queue[K], steps: int) -> None:
        """Give a queue whose head has `steps` left a place in line."""
        if queue.held:
            return
        self._age = queue.turn = age = self._age + 1
        self._lines[min(steps, self.slice_steps).bit_length()].append((age, queue))

    def _oldest_line(self) -> deque[tuple[int, _Queue[K]]] | None:
        oldest = None
        for line in self._lines:
            while line and line[0][1].turn != line[0][0]:
                line.popleft()
            if line and (oldest is None or line[0][0] < oldest[0][0]):
                oldest = line
        return oldest
