"""Signals that end a command: Ctrl-C, SIGTERM and SIGHUP at any moment, in one line, with nothing left behind.

Owns the handlers, the exit status (128 and the signal, as shells have it), and which paths are being written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_unfinished: set[Path] = set()
_finished: list[Path] = []


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; `number` is the signal's."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


def exit_status(error: KeyboardInterrupt) -> int:
    """128 and the signal's number."""
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


def message() -> str:
    """What an interrupted command says of what it had written."""
    return f"interrupted{stays() or ': nothing was written'}"


def stays() -> str:
    """The end of a fault's sentence, where the command had finished something before."""
    return f"; {_finished[-1]} was complete and stays" if _finished else ""


def begin() -> None:
    """Forget what an earlier command of this process wrote."""
    _finished.clear()


def writing(path: Path) -> None:
    """Note a file or folder that must not outlive this process unless it is finished."""
    _unfinished.add(path)


def done(path: Path, final: Path | None = None) -> None:
    """Note that `path` is gone, or has become `final`."""
    _unfinished.discard(path)
    if final is not None:
        _finished.append(final)


def while_importing() -> None:
    """End the process at once from here on: nothing is being written, and imports don't take exceptions well."""
    _install(_leave)


def while_running() -> None:
    """Raise Interrupted at the first signal from here on; a second one ends the process at once, and cleans up."""
    _install(_raise_once())


def afterwards() -> None:
    """Let signals end the process in silence from here on: the command is over."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _install(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's and a shell's background jobs
            signal.signal(number, handler)


def _raise_once() -> Callable[[int, FrameType | None], None]:
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            _leave(number, frame)
        raise Interrupted(number)

    return handler


def _leave(number: int, _frame: FrameType | None) -> None:
    """End the process without running anything else of it."""
    for path in list(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError, ValueError):
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides the cursor
        os.write(2, f"{shown}{message()}\n".encode())
    os._exit(128 + number)
