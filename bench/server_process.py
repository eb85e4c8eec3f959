"""A server in a process of its own, on a free port, for demos and benchmarks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class ServerFailedError(RuntimeError):
    """The server didn't start, or didn't leave as it should; the text is what it said."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where it listens, and its process."""

    address: str
    process: subprocess.Popen[str]


@contextmanager
def server(repository: Path, options: Sequence[str] = ()) -> Iterator[RunningServer]:
    """Start `python -m serving` on a free port, and end it with SIGTERM. Raises ServerFailedError."""
    with started("serving", ["--model-repository", str(repository), *options]) as running:
        yield running


@contextmanager
def started(
    module: str, options: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """The same of any module that takes --listen, says where it listens and leaves at SIGTERM.

    `environment` is what it finds besides our own.
    """
    with tempfile.TemporaryFile(mode="w+") as errors:
        command = [sys.executable, "-m", module, "--listen", "127.0.0.1:0", *options]
        found = os.environ | dict(environment or {})
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=found)
        try:
            yield RunningServer(_address(process, errors), process)
        except BaseException:
            process.kill()
            raise
        else:
            process.send_signal(signal.SIGTERM)
        finally:
            status = process.wait(STOP_SECONDS)
            assert process.stdout is not None
            process.stdout.close()
        if status != 0:
            raise ServerFailedError(f"the server left with status {status}: {_said(errors)}")


def workers_of(supervisor: int) -> dict[int, int]:
    """The processes of a server with --workers, by the worker's number."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="ascii").split()
    found: dict[int, int] = {}
    for child in children:
        words: list[str] = []
        with suppress(OSError):  # it has just left
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "--as-worker" in words:
            found[int(words[words.index("--as-worker") + 1].partition(":")[0])] = int(child)
    return found


def _address(process: subprocess.Popen[str], errors: IO[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:  # ends when the server does
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    raise ServerFailedError(f"the server didn't start: {_said(errors)}")


def _said(errors: IO[str]) -> str:
    errors.seek(0)
    return errors.read().strip() or "(it said nothing)"
