"""The parent's side: hands jobs to a child process, hears records, ends what takes too long, and goes on after a crash.

Owns the processes and the deadline. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from bench.gpu.plan import Job, Work
from bench.gpu.records import Record, Skipped, Step, from_plain
from serving.config import CUDA_ENVIRONMENT

GRACE = 10.0  # seconds beyond its limit that a job gets to come to its end
_LEAST = 2.0  # seconds: with less left no job is begun
_SAID = 300  # characters of what a dead process said last


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[str]
    lines: queue.SimpleQueue[str | None]  # None: the process has ended
    errors: IO[str]

    def send(self, job: Job, until: float) -> None:
        """May find it dead; its end is heard then."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"job": job.to_json(), "until": until}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return

    def end(self) -> str:
        """Kill it with all that it has started; what it said last."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.errors.seek(0)
        said = " ".join(self.errors.read().split())[-_SAID:]
        self.errors.close()
        return said


class Children:
    """Does jobs in order until `deadline` (of time.monotonic()); at most one child at a time."""

    def __init__(
        self,
        *,
        device: str,
        models: Path,
        deadline: float,
        give: Callable[[Record], None],
        tell: Callable[[str], None],
        program: Sequence[str] = ("-m", "bench.gpu.child"),
        grace: float = GRACE,
    ) -> None:
        self._command = [sys.executable, *program, device, str(models)]
        self._deadline, self._give, self._tell = deadline, give, tell
        self._grace = grace
        self._child: _Child | None = None

    def do(self, jobs: Sequence[Job]) -> None:
        """All of them, as far as time allows."""
        left = list(jobs)
        try:
            while left:
                job = left.pop(0)
                if self._deadline - time.monotonic() < _LEAST:
                    self._give(Skipped(job.name, "the time was over"))
                    continue
                again = self._one(job)
                left[:0] = [again] if again is not None else []
        finally:
            self.close()

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _one(self, job: Job) -> Job | None:
        """One job; what is left of it if its process died and another may go on."""
        child = self._child = self._child or self._start()
        until = min(time.monotonic() + job.limit, self._deadline)
        killed_at = min(until + self._grace, self._deadline + _LEAST)
        child.send(job, until)
        doing, contestant, done = job.name, "", set(job.done)
        while True:
            try:
                line = child.lines.get(timeout=max(0.0, killed_at - time.monotonic()))
            except queue.Empty:
                self.close()
                self._give(Skipped(doing, f"it was still under way after {job.limit:.0f} s, and was ended"))
                return self._rest(job, contestant, done) if time.monotonic() < self._deadline else None
            if line is None:
                self._give(Skipped(doing, f"its process died {self._lost(child)}"))
                return self._rest(job, contestant, done)
            heard: dict[str, Any] = json.loads(line)
            if "begin" in heard:
                doing, contestant = heard["begin"], heard["contestant"]
                self._tell(doing)
            elif "record" in heard:
                record = from_plain(heard["record"])
                if isinstance(record, Step):
                    done.add((record.steps, record.batch))
                self._give(record)
            else:
                return None

    def _lost(self, child: _Child) -> str:
        """How the child ended by itself, and what it said last."""
        status = child.process.wait()
        said = child.end()
        self._child = None
        return f"({_status(status)}): {said or 'it said nothing'}"

    @staticmethod
    def _rest(job: Job, contestant: str, done: set[tuple[int, int]]) -> Job | None:
        """The race goes on without whoever was on the track when it broke off."""
        if job.work is not Work.STEPS or not contestant:
            return None
        return replace(job, without=(*job.without, contestant), done=tuple(sorted(done)))

    def _start(self) -> _Child:
        errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  closed when the child is ended
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**CUDA_ENVIRONMENT, **os.environ},  # as the server's own process has it
            start_new_session=True,  # so that its servers and load processes can be ended with it
        )
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def read() -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        return _Child(process, lines, errors)


def _status(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
