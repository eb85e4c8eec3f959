"""Closed and open loop on a clock of the test's own: what is sent when, and what counts as latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice, pairwise

import pytest

from bench.load.connection import Call, Connection, LoadError
from bench.load.drive import Closed, Open, Run, moments

MS = 1_000_000


class Fake(Connection):
    """A connection, its network and the server in one: every message is answered `delay` ns after it was written."""

    def __init__(self, delay: int) -> None:
        super().__init__("test:1")
        self.connections = [self]
        self.now = 0
        self.stamp = [0]
        self.delay = delay
        self.pending: list[tuple[int, Callable[[], None]]] = []

    def send(self, call: Call, message: bytes) -> None:
        self._later(lambda: call.handler.on_message(message))

    def half_close(self, call: Call) -> None:
        call.ending = True
        self._later(lambda: call.handler.on_end(0, ""))

    def clock(self) -> int:
        return self.now

    def flush(self, connections: Iterable[Connection]) -> None:
        assert set(connections) <= {self}
        self.stamp[0] = self.now
        self.stamp = [0]

    def turn(self, until: int) -> None:
        if not self.pending or self.pending[0][0] > until:
            self.now = max(self.now, until)
            return
        moment, what = self.pending.pop(0)
        self.now = max(self.now, moment)
        what()
        self.flush([self])

    def _later(self, what: Callable[[], None]) -> None:
        self.pending.append((self.now + self.delay, what))  # one delay for all: they stay in order


class Track:
    """A course of `length` messages, one step each."""

    path = "/s/M"

    def __init__(self, length: int) -> None:
        self.left = length

    def opening(self) -> bytes:
        return b"open"

    def opened(self, data: bytes) -> bool:
        return data == b"open"

    def has_next(self) -> bool:
        return self.left > 0

    def next_message(self) -> bytes:
        self.left -= 1
        return b"step"

    def answer(self, data: bytes) -> tuple[int, int]:
        assert data == b"step"
        return 1, 1


def start(net: Fake, pace: Closed | Open, sessions: int = 1, length: int = 1 << 30) -> Run:
    """A run that is open and has begun."""
    run = Run(net, pace, [lambda: Track(length)] * sessions)
    run.open()
    run.start()
    return run


def test_closed_loop_sends_when_answered() -> None:
    """Each of 4 sessions has one message under way: 4 / 2 ms, each of 2 ms."""
    net = Fake(2 * MS)
    run = start(net, Closed(net), sessions=4)
    run.go_on(net.now + 100 * MS)
    assert 190 <= run.steps <= 200
    assert set(run.latencies) == {2 * MS}
    assert run.unanswered == 4


def test_closed_loop_with_more_in_flight() -> None:
    """Three messages under way at any moment."""
    net = Fake(2 * MS)
    run = start(net, Closed(net, 3))
    run.go_on(net.now + 100 * MS)
    assert run.unanswered == 3
    assert 145 <= run.steps <= 150


def test_open_loop_keeps_its_plan() -> None:
    """1,000 messages/s of 10 sessions, answered at once enough: as many steps, and the server's own latency."""
    net = Fake(2 * MS)
    run = start(net, Open(net, 1000), sessions=10)
    run.go_on(net.now + 500 * MS)
    assert 490 <= run.steps <= 500
    assert max(run.latencies) <= 2 * MS + 1


def test_answers_are_for_the_oldest_messages() -> None:
    """With five under way at once each still takes its own time."""
    net = Fake(5 * MS)
    run = start(net, Open(net, 1000))
    run.go_on(net.now + 100 * MS)
    assert {latency // MS for latency in run.latencies} == {5}


def test_open_loop_counts_the_time_that_a_message_could_not_be_sent() -> None:
    """A generator (or server) that stalls for 50 ms delays messages; they are late by it, not lost from sight."""
    net = Fake(MS)
    run = start(net, Open(net, 1000), sessions=1)
    run.go_on(net.now + 10 * MS)
    run.latencies.clear()
    net.now += 50 * MS  # nobody looked
    run.go_on(net.now + 10 * MS)
    late = sorted(run.latencies, reverse=True)
    assert late[0] >= 50 * MS
    assert sum(latency > 5 * MS for latency in late) >= 45


def test_at_the_end_of_the_course_a_new_call_begins() -> None:
    """Nothing is lost on the way, and what was due meanwhile counts from when it was due."""
    net = Fake(MS)
    run = start(net, Open(net, 100), sessions=1, length=5)
    run.go_on(net.now + 1000 * MS)
    assert 98 <= run.steps <= 100
    assert run.opened >= 18
    assert max(run.latencies) >= MS


def test_closing_waits_for_what_is_in_flight() -> None:
    """Every answer that is due comes before the call ends."""
    net = Fake(5 * MS)
    run = start(net, Closed(net), sessions=3)
    run.go_on(net.now + 12 * MS)
    run.close()
    assert run.unanswered == 0
    assert run.closed == 3


def test_an_end_that_nobody_asked_for_is_an_error() -> None:
    """The server's text is told, whatever the status."""
    net = Fake(MS)
    run = start(net, Closed(net))
    with pytest.raises(LoadError, match="status 8: no room"):
        run.sessions[0].on_end(8, "no room")
    with pytest.raises(LoadError, match="status 0"):
        run.sessions[0].on_end(0, "")


def test_a_server_that_does_not_open_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    monkeypatch.setattr("bench.load.drive.SETTLE_SECONDS", 1.0)
    net = Fake(10**15)
    run = Run(net, Closed(net), [lambda: Track(1)])
    with pytest.raises(LoadError, match="weren't opened"):
        run.open()


def test_the_plan_is_even() -> None:
    """Each session has its period, all together the rate; phases are spread, and the same for the same seed."""
    plan = list(islice(moments(8, 800.0, seed=3), 800))
    assert plan == list(islice(moments(8, 800.0, seed=3), 800))
    assert [moment for moment, _ in plan] == sorted(moment for moment, _ in plan)
    assert set(Counter(session for _, session in plan).values()) == {100}
    assert plan[-1][0] < 10**9
    first = [moment for moment, session in plan if session == 5]
    assert {later - sooner for sooner, later in pairwise(first)} <= {
        10 * MS - 1,
        10 * MS,
        10 * MS + 1,
    }
    assert len({moment for moment, _ in plan[:8]}) == 8
