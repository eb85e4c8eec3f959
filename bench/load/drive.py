"""Who sends when: closed loop (an answer brings the next message) and open loop (a plan of moments does).

Owns the sessions, the plan and the latencies. The sockets come from outside: tests drive it on a clock of theirs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from bench.load.connection import Call, Connection, LoadError
from bench.load.shapes import Track

_STATUS_OK = 0
_TICK = 50_000_000  # ns: how often a run looks up if nothing comes
SETTLE_SECONDS = 60.0

Stamp = list[int]  # one moment in ns, shared by all messages that are written together, and set when they are


class Net(Protocol):
    """What a run asks of its sockets (see bench.load.sockets.Sockets)."""

    now: int
    stamp: Stamp  # of what is written next

    @property
    def connections(self) -> Sequence[Connection]:
        """Every connection."""

    def clock(self) -> int:
        """Nanoseconds."""

    def turn(self, until: int) -> None:
        """Wait for bytes and hand them on."""

    def flush(self, connections: Iterable[Connection]) -> None:
        """Write what these have to say."""


class Pace(Protocol):
    """Decides when a session sends."""

    def start(self, sessions: Sequence[Session], now: int) -> None:
        """All are open: begin."""

    def answered(self, session: Session) -> None:
        """One of its messages has been answered."""

    def due(self, now: int) -> int:
        """Send what is due; returns when to look again (ns)."""


class Session:
    """One call after another, each from the beginning of the course; the next begins when that is at its end."""

    __slots__ = ("_begin", "_call", "_owed", "_run", "_track", "_unanswered", "closing", "connection", "opened")

    def __init__(self, run: Run, connection: Connection, begin: Callable[[], Track]) -> None:
        self._run, self.connection, self._begin = run, connection, begin
        self._unanswered: deque[Stamp] = deque()  # when each was sent, or should have been
        self._owed: deque[Stamp] = deque()  # the same of what can't be sent yet: no call is open
        self.closing = False  # for good
        self.opened = False
        self._track: Track
        self._call: Call
        self._open()

    @property
    def unanswered(self) -> int:
        """Messages whose answers are due, sent or not."""
        return len(self._unanswered) + len(self._owed)

    def send(self, moment: Stamp) -> None:
        """Send the next message; its latency counts from `moment`."""
        if not self.opened or self._owed:
            self._owed.append(moment)
        elif self._track.has_next():
            self._unanswered.append(moment)
            self.connection.send(self._call, self._track.next_message())
        else:
            self._owed.append(moment)
            self._end_when_answered()

    def close(self) -> None:
        """End the call once all that was sent is answered, and begin no other. What is owed is forgotten."""
        self.closing = True
        self._owed.clear()
        if self.opened:
            self._end_when_answered()

    def on_message(self, data: bytes) -> None:
        """An answer has come."""
        if not self.opened:
            if not self._call.ending:
                self._on_opened(data)
            return
        steps, messages = self._track.answer(data)
        run = self._run
        run.steps += steps
        while messages:
            messages -= 1
            run.latencies.append(run.net.now - self._unanswered.popleft()[0])
            run.pace.answered(self)
        if self._owed or self.closing:
            self._end_when_answered()

    def on_end(self, status: int, text: str) -> None:
        """The call is over."""
        if status != _STATUS_OK or self._unanswered or not (self.closing or self._owed):
            raise LoadError(f"the server has ended a call with status {status}: {text or '(no text)'}")
        if self.closing:
            self._run.closed += 1
        else:
            self._open()

    def _on_opened(self, data: bytes) -> None:
        if self._track.opened(data):
            self.opened = True
            self._run.opened += 1
            owed, self._owed = self._owed, deque()
            for moment in owed:
                self.send(moment)
            if self.closing:
                self._end_when_answered()

    def _open(self) -> None:
        self.opened = False
        self._track = self._begin()
        self._call = self.connection.open(self._track.path, self)
        self.connection.send(self._call, self._track.opening())

    def _end_when_answered(self) -> None:
        if not self._unanswered and not self._call.ending:
            self.connection.half_close(self._call)
            self.opened = False


class Closed:
    """Every session has `in_flight` messages unanswered, always."""

    def __init__(self, net: Net, in_flight: int = 1) -> None:
        self._net, self._in_flight = net, in_flight

    def start(self, sessions: Sequence[Session], now: int) -> None:
        """Send the first messages."""
        for session in sessions:
            for _ in range(self._in_flight):
                session.send([now])

    def answered(self, session: Session) -> None:
        """Send the next."""
        session.send(self._net.stamp)

    def due(self, now: int) -> int:
        """Nothing is ever due by itself."""
        return now + _TICK


def moments(sessions: int, rate: float, seed: int) -> Iterator[tuple[int, int]]:
    """(ns from the start, session), in order: `rate` messages per second in all, each session evenly."""
    period = sessions / rate * 1e9
    generator = random.Random(seed)
    phases = sorted((generator.random() * period, session) for session in range(sessions))
    turn = 0
    while True:
        for phase, session in phases:
            yield round(turn * period + phase), session
        turn += 1


class Open:
    """Messages leave at planned moments whether or not others are answered; latency counts from those moments."""

    def __init__(self, net: Net, rate: float, seed: int = 0) -> None:
        """`rate`: messages per second of all sessions together."""
        self._net, self._rate, self._seed = net, rate, seed
        self._sessions: Sequence[Session] = ()
        self._begin = 0
        self._plan: Iterator[tuple[int, int]] = iter(())
        self._next = (0, 0)

    def start(self, sessions: Sequence[Session], now: int) -> None:
        """The plan's first moment is now."""
        self._sessions, self._begin = sessions, now
        self._plan = moments(len(sessions), self._rate, self._seed)
        self._next = next(self._plan)

    def answered(self, session: Session) -> None:
        """Nothing: the plan goes on by itself."""

    def due(self, now: int) -> int:
        """Send every message whose moment has come."""
        touched = set()
        moment, place = self._next
        while self._begin + moment <= now:
            session = self._sessions[place]
            session.send([self._begin + moment])
            touched.add(session.connection)
            moment, place = self._next = next(self._plan)
        if touched:
            self._net.flush(touched)
        return self._begin + moment


class Run:
    """A number of sessions on some connections, at one pace."""

    def __init__(self, net: Net, pace: Pace, begins: Sequence[Callable[[], Track]]) -> None:
        """One session for each of `begins`, dealt out to the connections in turn."""
        self.net, self.pace = net, pace
        self.steps = self.opened = self.closed = 0
        self.latencies: list[int] = []  # ns, of messages answered
        connections = net.connections
        self.sessions = [
            Session(self, connections[place % len(connections)], begin) for place, begin in enumerate(begins)
        ]

    @property
    def unanswered(self) -> int:
        """Messages sent or due, and not answered."""
        return sum(session.unanswered for session in self.sessions)

    def open(self) -> None:
        """Wait until every session is open. Raises LoadError."""
        self._settle(lambda: self.opened == len(self.sessions), "opened")

    def start(self) -> None:
        """Begin to send."""
        self.pace.start(self.sessions, self.net.clock())
        self.net.flush(self.net.connections)

    def go_on(self, until: int) -> None:
        """Send and receive until that moment (ns). Raises LoadError."""
        net, pace = self.net, self.pace
        while (now := net.clock()) < until:
            net.turn(min(pace.due(now), until))

    def close(self) -> None:
        """Let every session finish what is in flight. Raises LoadError."""
        self.pace = _Still()
        for session in self.sessions:
            session.close()
        self._settle(lambda: self.closed == len(self.sessions), "closed")

    def _settle(self, done: Callable[[], bool], what: str) -> None:
        give_up = self.net.clock() + round(SETTLE_SECONDS * 1e9)
        self.net.flush(self.net.connections)
        while not done():
            now = self.net.clock()
            if now > give_up:
                raise LoadError(f"{len(self.sessions)} calls weren't {what} within {SETTLE_SECONDS:.0f} s")
            self.net.turn(now + _TICK)


class _Still:
    """Sends nothing more."""

    def start(self, sessions: Sequence[Session], now: int) -> None:
        """Nothing."""

    def answered(self, session: Session) -> None:
        """Nothing."""

    def due(self, now: int) -> int:
        """Nothing."""
        return now + _TICK
