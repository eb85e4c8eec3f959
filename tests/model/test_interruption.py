"""Signals: one line, the exit status of shells, and nothing left behind, at every moment of a command."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Nohup's children ignore SIGHUP and a shell's background jobs SIGINT; these must not, whoever runs the tests.
BEGIN = """import os, pathlib, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from model import interruption
"""
LEFT = "interruption.writing(pathlib.Path(sys.argv[2]))\n"
SEND = "signal.raise_signal(int(sys.argv[1]))\n"
NOTHING = "interrupted: nothing was written\n"


def run(number: int, path: Path, *lines: str) -> tuple[int, str]:
    """Exit status and stderr of a process that runs these lines, with a signal's number and a path as its arguments."""
    command = [sys.executable, "-c", BEGIN + "".join(lines), str(int(number)), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_importing(number: int, tmp_path: Path) -> None:
    """A signal ends the process at once, in one line."""
    found = run(number, tmp_path, "interruption.while_importing()\n", SEND, "print(1 / 0)\n")
    assert found == (128 + number, NOTHING)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_running(number: int, tmp_path: Path) -> None:
    """A signal is an exception, which has the exit status."""
    lines = f"try:\n    {SEND}except KeyboardInterrupt as error:\n    sys.exit(interruption.exit_status(error))\n"
    assert run(number, tmp_path, "interruption.while_running()\n", lines) == (128 + number, "")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_second_signal_ends_it_at_once_and_removes_what_is_unfinished(kind: str, tmp_path: Path) -> None:
    """Where the first one was swallowed, as in a destructor, the second one cleans up by itself."""
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    else:
        path.touch()
    swallowed = f"try:\n    {SEND}except KeyboardInterrupt:\n    pass\n"
    found = run(signal.SIGTERM, path, "interruption.while_running()\n", LEFT, swallowed, SEND, "print(1 / 0)\n")
    assert found == (143, NOTHING)
    assert not path.exists()


def test_what_was_complete_is_told(tmp_path: Path) -> None:
    """After its artifact is there, an interrupted command doesn't say that nothing was written."""
    done = "interruption.done(pathlib.Path('x'), pathlib.Path('a/b/1'))\n"
    _, said = run(signal.SIGTERM, tmp_path, "interruption.while_importing()\n", done, SEND)
    assert said == "interrupted; a/b/1 was complete and stays\n"


def test_signals_that_are_ignored_stay_ignored(tmp_path: Path) -> None:
    """As nohup has it."""
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    assert run(signal.SIGHUP, tmp_path, ignore, "interruption.while_importing()\n", SEND) == (0, "")
