"""The socket between the supervisor and one worker.

Owns what is said over it: a worker says once that it is ready, or why it can't be, and every second that it works;
nothing is ever said to a worker. Either side learns from its end that the other is gone, however that came about.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

_LONGEST = 32_768  # bytes of one message; a socket's buffer holds more
_LONGEST_PROBLEM = 4_000  # characters
BEAT_SECONDS = 1.0
_BEAT = b"beat"


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says: it is ready if it has no problem."""

    problem: str = ""
    models: tuple[str, ...] = ()
    metrics_port: int | None = None  # on loopback


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker says every second: it works."""


@dataclass(frozen=True, slots=True)
class Lifeline:
    """A worker's end."""

    number: int  # the worker's, from 0
    descriptor: int

    @classmethod
    def from_text(cls, text: str) -> Lifeline:
        """NUMBER:DESCRIPTOR as the supervisor writes it on a worker's command line. Raises ValueError."""
        number, descriptor = text.split(":")
        return cls(int(number), int(descriptor))

    def report(self, report: Report) -> None:
        """Tell the supervisor; if it is gone, watch() says so."""
        short = asdict(report) | {"problem": report.problem[:_LONGEST_PROBLEM]}
        data = json.dumps(short).encode()
        if len(data) > _LONGEST:  # models without number: they are in the worker's own log
            data = json.dumps(short | {"models": []}).encode()
        with self._socket() as end, contextlib.suppress(OSError):
            end.send(data)

    def beat(self, works: Callable[[], bool]) -> None:
        """Tell the supervisor every second, from a thread of its own, that this process works; not while it doesn't."""
        end = self._socket()

        def run() -> None:
            with end, contextlib.suppress(OSError):
                while True:
                    if works():
                        with contextlib.suppress(BlockingIOError):  # the supervisor itself stands still
                            end.send(_BEAT, socket.MSG_DONTWAIT)
                    time.sleep(BEAT_SECONDS)

        threading.Thread(target=run, name="beats", daemon=True).start()

    def watch(self, on_loss: Callable[[], None]) -> None:
        """Call `on_loss` from a thread of its own when the supervisor is gone."""
        end = self._socket()

        def wait() -> None:
            with end, contextlib.suppress(OSError):
                end.recv(1)
            on_loss()

        threading.Thread(target=wait, name="lifeline", daemon=True).start()

    def _socket(self) -> socket.socket:
        return socket.fromfd(self.descriptor, socket.AF_UNIX, socket.SOCK_SEQPACKET)


def pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end and the worker's, which goes to its process. Messages keep their bounds."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def receive(end: socket.socket) -> Report | Beat | None:
    """What the worker says, at the supervisor's end; None: it is gone."""
    try:
        data = end.recv(_LONGEST)
    except ConnectionResetError:
        return None
    if not data:
        return None
    if data == _BEAT:
        return Beat()
    said: dict[str, Any] = json.loads(data)
    return Report(said["problem"], tuple(said["models"]), said["metrics_port"])
