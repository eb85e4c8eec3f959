"""The loop: its turns, and its end, on a wire that the test plays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from serving.loop import IDLE_SECONDS, Loop
from tests.serving.test_lane import SumEngine, make_lane, push_all
from tests.waiting import wait_until


class FakeWire:
    """Events are what the test says; waiting for one is waiting for the test."""

    def __init__(self) -> None:
        self.live = 0
        self.timeouts: list[float] = []
        self.refusals: list[tuple[grpc.StatusCode, str]] = []
        self.on_poll: Callable[[], None] = lambda: None
        self.may_poll = threading.Semaphore(0)
        self.lost = False

    def poll(self, timeout: float) -> int:
        self.timeouts.append(timeout)
        self.may_poll.acquire(timeout=min(timeout, 0.01))
        self.on_poll()
        return 0

    def refuse_all(self, code: grpc.StatusCode, details: str) -> None:
        if self.lost:
            raise OSError("the wire is lost")
        self.refusals.append((code, details))


@contextmanager
def running(loop: Loop) -> Iterator[None]:
    """The loop, started and stopped."""
    loop.start()
    yield
    assert loop.stop(10.0)


def test_idle_it_waits_and_with_work_it_does_not() -> None:
    """Nothing to do: it waits for an event. A stream with a turn: it only looks. A held stream: it waits again."""
    lane, wire = make_lane(SumEngine()), FakeWire()
    (sink,) = push_all(lane, [1.0])
    with running(Loop(wire, [lane], flush=lambda: None, clock=time.monotonic)):
        wait_until(lambda: len(wire.timeouts) >= 3)
    assert wire.timeouts[:2] == [0.0, IDLE_SECONDS]
    assert sink.outputs == [1.0]
    held = make_lane(SumEngine())
    push_all(held, [1.0])
    for stream in list(held.streams._live):
        held.streams.batcher.hold(stream)
    wire = FakeWire()
    with running(Loop(wire, [held], flush=lambda: None, clock=time.monotonic)):
        wait_until(lambda: len(wire.timeouts) >= 2)
    assert set(wire.timeouts) == {IDLE_SECONDS}, "it spins for a stream that may not run"


def test_other_threads_reach_it_through_one_queue() -> None:
    """What is posted is called on the loop's own thread."""
    loop = Loop(FakeWire(), [], flush=lambda: None, clock=time.monotonic)
    called: list[str] = []
    with running(loop):
        loop.post(lambda: called.append(threading.current_thread().name))
        wait_until(lambda: bool(called))
    assert called == ["loop"]


def test_flush_comes_after_every_turn() -> None:
    """What services gather during a turn goes out at its end."""
    lane, flushed = make_lane(SumEngine()), threading.Event()
    (sink,) = push_all(lane, [1.0])

    def flush() -> None:
        assert sink.outputs == [1.0]
        flushed.set()

    with running(Loop(FakeWire(), [lane], flush=flush, clock=time.monotonic)):
        assert flushed.wait(10.0)


def test_when_it_dies_everybody_is_refused_and_it_goes_on_polling() -> None:
    """A bug of ours: health hears of it, calls are ended with UNAVAILABLE, and polling carries that out."""
    wire = FakeWire()
    loop = Loop(wire, [], flush=lambda: None, clock=time.monotonic)
    deaths: list[bool] = []
    loop.on_death = lambda: deaths.append(loop.alive)

    def bug() -> None:
        raise ZeroDivisionError

    def another_bug() -> None:
        raise KeyError

    with running(loop):
        loop.post(bug)
        wire.on_poll = another_bug  # as a surviving handler may raise while its call ends
        wait_until(lambda: bool(wire.refusals))
        polled = len(wire.timeouts)
        wait_until(lambda: len(wire.timeouts) > polled + 2)
    assert deaths == [False]
    ((code, details),) = wire.refusals
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "ZeroDivisionError" not in details


def test_when_the_wire_is_lost_too_that_is_said() -> None:
    """If nobody can be told any more, leaving is all that is left to do."""
    wire = FakeWire()
    loop = Loop(wire, [], flush=lambda: None, clock=time.monotonic)
    lost = threading.Event()
    loop.on_loss = lost.set
    wire.lost = True

    def broken() -> None:
        raise OSError("broken")

    wire.on_poll = broken
    with running(loop):
        assert lost.wait(10.0)
