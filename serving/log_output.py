"""The log on stderr and the line on stdout: side channels, whose state changes nothing else of the server.

Owns the threads that write, what waits for them, and what is left out: lines that can't be written are lost and
counted, and of each kind only so many a minute are written, the others counted. Nothing waits for a reader or raises.
"""

from __future__ import annotations

import collections
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog

MOST_LINES = 1000  # that wait for the thread: more are lost
MOST_BYTES = 1 << 20
WINDOW_SECONDS = 60.0
MOST_OF_A_KIND = 20  # lines in a window, of those that warn; a client may be able to cause them
MOST_PLAIN = 1000  # lines in a window of those that only inform
_KINDS = 10_000  # kinds that are told apart
_STDOUT, _STDERR = 1, 2  # descriptors

Event = MutableMapping[str, Any]
Clock = Callable[[], float]


@dataclass(slots=True)
class Counts:
    """What isn't in the log since the process began."""

    lost: int = 0  # lines that couldn't be written
    suppressed: int = 0  # lines of a kind that came too often


COUNTS = Counts()


class Output:
    """A file that lines are written to by a thread of its own, begun with the first line."""

    def __init__(self, descriptor: int, counts: Counts = COUNTS) -> None:
        self._descriptor = descriptor
        self._counts = counts
        self._lines: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._writing = False
        self._lost = 0  # since the last line that was written
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.on_recovered: Callable[[int], None] = lambda _lost: None  # lines can be written again, after so many lost

    def write(self, text: str) -> None:
        """Have a line written, or lose and count it."""
        line = text.encode(errors="backslashreplace") + b"\n"
        with self._changed:
            if len(self._lines) >= MOST_LINES or self._bytes + len(line) > MOST_BYTES:
                self._lose()
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def flush(self, seconds: float) -> bool:
        """Wait until no line waits, for so long at most; whether none does."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
                self._bytes -= len(line)
                self._writing = True
            lost = 0
            try:
                _write_all(self._descriptor, line)
            except OSError:
                with self._changed:
                    self._lose()
            else:
                with self._changed:
                    lost, self._lost = self._lost, 0
            if lost:
                self.on_recovered(lost)

    def _lose(self) -> None:
        self._lost += 1
        self._counts.lost += 1


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another process has made it non-blocking
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


class Throttle:
    """A structlog processor: of each kind of line so many in a window; the next window's first says how many it was."""

    def __init__(self, counts: Counts = COUNTS, clock: Clock = time.monotonic) -> None:
        self._counts = counts
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[tuple[Any, ...], list[float]] = {}  # when its window began, lines in it, of them suppressed

    def __call__(self, _logger: object, method: str, event: Event) -> Event:
        """Let the line through, or drop it."""
        most = MOST_PLAIN if method in ("debug", "info") else MOST_OF_A_KIND
        kind = tuple(str(event.get(name)) for name in ("event", "model", "version", "library"))
        with self._lock:
            now = self._clock()
            if len(self._kinds) >= _KINDS and kind not in self._kinds:
                kind = ("others",)
            window = self._kinds.setdefault(kind, [now, 0, 0])
            suppressed = 0
            if now - window[0] >= WINDOW_SECONDS:
                suppressed = int(window[2])
                window[:] = now, 0, 0
            window[1] += 1
            if window[1] > most:
                window[2] += 1
                self._counts.suppressed += 1
                raise structlog.DropEvent
        if suppressed:
            event["suppressed_before"] = suppressed
        return event

    def take_quiet(self) -> dict[str, int]:
        """Lines suppressed in windows that are over, by what they said: told of once."""
        with self._lock:
            now = self._clock()
            over = [kind for kind, window in self._kinds.items() if now - window[0] >= WINDOW_SECONDS]
            told = {" ".join(part for part in kind if part != "None"): int(self._kinds.pop(kind)[2]) for kind in over}
        return {kind: lines for kind, lines in told.items() if lines}


class _Library(logging.Handler):
    """What libraries log by Python's own logging, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        log = structlog.get_logger(record.name)
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write(record.getMessage(), library=record.name, exc_info=record.exc_info)


class _Lines:
    """What structlog writes to."""

    def __init__(self, output: Output) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = output.write
        self.exception = self.warn = self.fatal = self.failure = self.err = self.log = output.write


def keep_standard_files() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed: else a socket would get its number.

    Python's own files for stdout and stderr are put in order, too.
    """
    for number in (0, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    for name, number in (("stdout", _STDOUT), ("stderr", _STDERR)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


_stdout, _stderr, _throttle = Output(_STDOUT), Output(_STDERR), Throttle()


def say(text: str) -> None:
    """Write a line to stdout, if it takes one."""
    _stdout.write(text)


def complain(text: str) -> None:
    """Write a line to stderr as it is, if it takes one."""
    _stderr.write(text)


def flush(seconds: float) -> None:
    """Wait until all is written, for so long at most for each of the two."""
    for output in (_stdout, _stderr):
        output.flush(seconds)


def set_up(choice: str, worker: int | None) -> None:
    """Have structlog, Python's logging and dying threads write lines to stderr; a worker's lines have its number.

    `choice` is their form: "json", "console", or "auto" as stderr is.
    """
    terminal = os.isatty(_STDERR)
    json = choice == "json" or (choice == "auto" and not terminal)
    plain = structlog.dev.plain_traceback
    rendered: list[Any] = [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)]
    if json:
        rendered = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]

    def name_worker(_logger: object, _method: str, event: Event) -> Event:
        return event if worker is None else {"worker": worker, **event}

    stamp = structlog.processors.TimeStamper(fmt="iso")
    structlog.configure(
        processors=[_throttle, name_worker, structlog.processors.add_log_level, stamp, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _Lines(_stderr),
    )
    log = structlog.get_logger(__name__)
    logging.root.handlers = [_Library()]
    logging.captureWarnings(capture=True)
    threading.excepthook = lambda died: log.error(
        "a thread has died", thread=died.thread and died.thread.name, exc_info=died.exc_value
    )
    sys.unraisablehook = lambda raised: log.error(
        "an error went unseen", where=repr(raised.object), exc_info=raised.exc_value
    )
    _stderr.on_recovered = lambda lost: log.warning("log lines were lost", lines=lost)


def tell_of_suppressed() -> None:
    """Write a line for each kind whose suppressed lines no other line will tell of. Call every few seconds."""
    for kind, lines in _throttle.take_quiet().items():
        structlog.get_logger(__name__).warning("log lines were suppressed", kind=kind, lines=lines)
