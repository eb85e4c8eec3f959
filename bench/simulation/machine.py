"""The server in virtual time: serving's own batcher, driven as serving/loop.py drives it.

Owns the virtual clock. A message costs half its time when it is received and half when an answer leaves; a run costs
what the table says. The engine runs on the loop's own thread, or on one beside it that is handed batches. What isn't
here: other processes on the cores, the interpreter's lock, a client's flow control (which keeps a stream's own later
messages back, and so changes nothing for anybody else).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from bench.simulation.arrivals import Arrivals, Floats, Ints
from bench.simulation.costs import Costs, RunSeconds
from bench.simulation.feeds import NEVER, Feed, feed_of
from serving.batcher import Batch, Batcher

TRANSPORT_US = 12.0  # gRPC's share of a message and its answer: what a bare echo took on 2026-11-23
PYTHON_US = 4.0  # our own share of the same, measured on 2026-11-25
HAND_OVER_US = 40.0  # to an engine thread and back, half each way

Watch = Callable[[float, Batch[int]], None]
Number = TypeVar("Number", np.float64, np.int64)
_Slices = list[tuple[int, tuple[int, int, int, float], int, int]]  # as feeds make them: inputs hold the number


@dataclass(frozen=True, slots=True)
class Machine:
    """What everything costs."""

    costs: Costs
    transport_us: float = TRANSPORT_US
    python_us: float = PYTHON_US
    hand_over_us: float = HAND_OVER_US
    most_per_poll: int = 2048  # messages; the wire takes 4,096 events in one poll, and a message makes two

    @property
    def half_message(self) -> float:
        """Seconds for receiving a message, or for sending an answer."""
        return (self.transport_us + self.python_us) * 0.5e-6

    @property
    def half_hand_over(self) -> float:
        """Seconds from one thread to the other."""
        return self.hand_over_us * 0.5e-6


@dataclass(frozen=True, slots=True)
class Played:
    """What happened, by chunk in order of arrival, and by run in order of time."""

    until: float  # when arrivals ended
    seconds: Floats
    stream: Ints
    steps: Ints
    answered: Floats  # when the chunk's last answer was sent
    run_began: Floats
    run_ended: Floats
    run_lanes: Ints
    run_steps: Ints  # computed for somebody: without padding
    run_bulk: Ints  # of those, of chunks longer than one step

    @property
    def waits(self) -> Floats:
        """Seconds from each chunk's arrival to its last answer."""
        return self.answered - self.seconds


def play(
    arrivals: Arrivals,
    batcher: Batcher[int],
    machine: Machine,
    *,
    in_flight: int = 0,
    seed: int = 0,
    watch: Watch | None = None,
) -> Played:
    """Play arrivals until the last is answered. `in_flight` 0: the engine runs on the loop's thread.

    Else so many batches may be with an engine thread, of which one runs. `watch` is told of every run as it begins.
    """
    played = _Play(feed_of(arrivals, seed), batcher, machine, watch)
    if in_flight:
        played.beside(in_flight)
    else:
        played.on_the_loop()
    return played.outcome(arrivals.until)


class _Play:
    def __init__(self, feed: Feed, batcher: Batcher[int], machine: Machine, watch: Watch | None) -> None:
        self._feed = feed
        self._batcher = batcher
        self._machine = machine
        self._watch = watch
        self._run_seconds = RunSeconds(machine.costs)
        self._half = machine.half_message
        self._numbers = array("q")  # of answered chunks, and when that was
        self._answered = array("d")
        self._began, self._ended = array("d"), array("d")
        self._lanes, self._steps, self._bulk = array("q"), array("q"), array("q")

    def on_the_loop(self) -> None:
        """One thread: receive all that has come, run one batch, send."""
        now, feed, batcher = 0.0, self._feed, self._batcher
        while True:
            if not batcher.waiting_steps:
                if feed.next == NEVER:
                    return
                now = max(now, feed.next)
            now = self._receive(now)
            batch = batcher.take()
            assert batch is not None
            now = self._run(batch, now)
            batcher.finish(batch)
            now = self._send(batch, now)

    def beside(self, in_flight: int) -> None:
        """Two threads: this one receives, hands over and sends, the other runs what it is handed, in order."""
        now, free, feed, batcher = 0.0, 0.0, self._feed, self._batcher
        one_way = self._machine.half_hand_over
        flying: deque[tuple[float, Batch[int]]] = deque()  # with the moment this thread hears of it
        while True:
            if len(flying) == in_flight or not batcher.ready:
                soonest = min(feed.next, flying[0][0] if flying else NEVER)
                if soonest == NEVER:
                    return
                now = max(now, soonest)
            now = self._receive(now)
            done: list[Batch[int]] = []
            while flying and flying[0][0] <= now:
                done.append(flying.popleft()[1])
                batcher.finish(done[-1])
            while len(flying) < in_flight and (batch := batcher.take()) is not None:
                free = self._run(batch, max(free, now + one_way))
                flying.append((free + one_way, batch))
            for batch in done:
                now = self._send(batch, now)

    def outcome(self, until: float) -> Played:
        """What happened."""
        seconds, stream, steps = self._feed.arrived()
        answered = np.full(len(seconds), np.nan)
        answered[_array(self._numbers, np.int64)] = _array(self._answered, np.float64)
        return Played(
            until,
            seconds,
            stream,
            steps,
            answered,
            _array(self._began, np.float64),
            _array(self._ended, np.float64),
            _array(self._lanes, np.int64),
            _array(self._steps, np.int64),
            _array(self._bulk, np.int64),
        )

    def _receive(self, now: float) -> float:
        feed, push = self._feed, self._batcher.push
        left = self._machine.most_per_poll
        while left and feed.next <= now:  # what comes meanwhile is taken too, as the wire does
            taken = feed.upto(now, left)
            for stream, chunk in taken:
                push(stream, chunk)
            left -= len(taken)
            now += len(taken) * self._half
        return now

    def _run(self, batch: Batch[int], begins: float) -> float:
        if self._watch is not None:
            self._watch(begins, batch)
        ends = begins + self._run_seconds[len(batch.slices), batch.steps]
        self._began.append(begins)
        self._ended.append(ends)
        self._lanes.append(len(batch.slices))
        return ends

    def _send(self, batch: Batch[int], now: float) -> float:
        """Send the answers one after the other, and note which chunks have all of theirs."""
        half, tell = self._half, self._feed.answered
        numbers, answered = self._numbers.append, self._answered.append
        useful = bulk = 0
        for _stream, (_first, total, number, _arrived), offset, steps in cast(_Slices, batch.slices):
            now += half
            useful += steps
            if total > 1:
                bulk += steps
            if offset + steps == total:
                numbers(number)
                answered(now)
                tell(number, now)
        self._steps.append(useful)
        self._bulk.append(bulk)
        return now


def _array(values: array[float] | array[int], dtype: type[Number]) -> np.ndarray[tuple[int], np.dtype[Number]]:
    return np.frombuffer(values, dtype) if len(values) else np.empty(0, dtype)
