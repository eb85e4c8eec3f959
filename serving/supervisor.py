"""Several worker processes on one port: started together, replaced when they die, drained together.

Owns the port's reservation, the processes and the signals. Serves nothing itself: it imports neither gRPC nor ONNX
Runtime, so whatever kills a worker doesn't kill it. One thread; what happens comes over a worker's lifeline, as a
signal, or by the clock.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import structlog

from serving import lifeline
from serving.config import ServerConfig
from serving.endpoint import serve_collector
from serving.errors import ConfigError
from serving.lifeline import Report
from serving.orders import LONGEST, decode, encode
from serving.port import Reservation
from serving.rounds import Rounds
from serving.worker_metrics import WorkerMetrics, WorkerState

STEADY_SECONDS = 10.0  # a worker that dies sooner counts as one that fails again
FIRST_PAUSE = 0.5  # seconds after the second death in a row, then twice as long each time
LONGEST_PAUSE = 30.0
FAILED_STARTS = 5  # in a row, of every worker, are the end
_LAST_WORDS_SECONDS = 15.0  # beyond its grace, for a worker to leave
_TURN_SECONDS = 1.0  # the longest wait, so that silence is noticed
# Of the time between two turns, what counts as a worker's silence. Where more has passed the supervisor was stopped,
# too: the whole group, or the machine.
_MOST_OF_A_TURN = 2.0
_QUIET_SECONDS = 5.0  # without a sign of life: not counted among those that are ready
_SILENT_START_SECONDS = 600.0  # the same as the limit for a worker that serves, for one that loads its models

log = structlog.get_logger(__name__)


class StartError(Exception):
    """The workers can't be started, and it isn't the operator's options."""


@dataclass(slots=True)
class _Worker:
    """One worker's place: the process in it changes."""

    number: int
    process: subprocess.Popen[bytes] | None = None  # None: none runs, one is due
    end: socket.socket | None = None  # of its lifeline
    orders: socket.socket | None = None
    report: Report | None = None  # what it said last
    due: float = 0.0
    ready_since: float | None = None
    silent: float = 0.0  # seconds without a sign of life, of those in which the supervisor itself was awake
    ended_for_silence: bool = False
    hung: int = 0  # processes that were ended for it
    starts: int = 0
    failures: int = 0  # deaths in a row, each soon after the start
    failed_starts: int = 0  # in a row


@dataclass(frozen=True, slots=True)
class _Orders:
    """In the selector: a worker's socket for orders."""

    worker: _Worker


class Supervisor:
    """Keeps `config.workers` workers running."""

    def __init__(
        self, config: ServerConfig, command: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`command`: what starts a worker, but for what makes it one. Raises ConfigError for a port that is taken."""
        self._config = config
        self._command = tuple(command)
        self._clock = clock
        self._workers = [_Worker(number) for number in range(config.workers)]
        self._selector = selectors.DefaultSelector()
        self._serving = False  # every worker has been ready once
        self._signals = 0
        self._leave_by: float | None = None
        self._clean = True
        self._watched = clock()  # when silence was counted last
        self._rounds = Rounds(config.workers, self._send)
        self._reservation = Reservation(config.listen)
        self._metrics_port: int | None = None
        if config.metrics_listen is not None:
            shown = WorkerMetrics(self._states)
            self._metrics_port = serve_collector(shown, config.metrics_listen, shown.health)

    @property
    def address(self) -> str:
        """Where all workers listen."""
        return self._reservation.address

    def run(self, on_serving: Callable[[], None]) -> int:
        """Run the workers until a signal; the exit status. `on_serving` is called once, when all are ready.

        Raises ConfigError if the options or an artifact don't let a worker start, and StartError if none stays up.
        """
        with self._signals_heard():
            try:
                while self._leave_by is None or any(worker.process for worker in self._workers):
                    self._turn(on_serving)
            finally:
                self._end_all()
                self._reservation.close()
        log.info("stopped")
        return 0 if self._clean else 1

    @contextlib.contextmanager
    def _signals_heard(self) -> Iterator[None]:
        woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a signal ends the wait for the workers
        before = signal.set_wakeup_fd(wakes)
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        self._selector.register(woken, selectors.EVENT_READ, None)
        try:
            yield
        finally:
            self._selector.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(woken)
            os.close(wakes)

    def _turn(self, on_serving: Callable[[], None]) -> None:
        for worker in self._workers:
            if self._leave_by is None and worker.process is None and worker.due <= self._clock():
                self._start(worker)
        for key, _events in self._selector.select(self._seconds_to_wait()):
            if key.data is None:
                os.read(key.fd, 4096)
            elif isinstance(key.data, _Orders):
                self._hear_order(key.data.worker, key.fileobj)
            else:
                self._hear(key.data)
        self._rounds.expire(self._clock())
        self._watch()
        if self._signals and self._leave_by is None:
            self._leave()
        if self._leave_by is not None and self._clock() >= self._leave_by:
            self._kill_all()
        if not self._serving and all(worker.ready_since is not None for worker in self._workers):
            self._serving = True
            models = self._workers[0].report.models if self._workers[0].report else ()
            log.info("serving", address=self.address, models=models, workers=len(self._workers),
                     metrics_port=self._metrics_port)  # fmt: skip
            on_serving()

    def _watch(self) -> None:
        """End workers that have given no sign of life for too long: the kernel would go on giving them connections."""
        now = self._clock()
        passed, self._watched = min(now - self._watched, _MOST_OF_A_TURN), now
        limit = self._config.worker_silence
        for worker in self._workers:
            if worker.process is None or self._leave_by is not None or not limit:
                continue
            worker.silent += passed
            most = limit if worker.ready_since is not None else max(limit, _SILENT_START_SECONDS)
            if worker.silent > most and not worker.ended_for_silence:
                worker.ended_for_silence = True
                worker.hung += 1
                log.error("worker hangs", worker=worker.number, pid=worker.process.pid, silent_seconds=round(most))
                worker.process.kill()

    def _seconds_to_wait(self) -> float | None:
        if self._leave_by is not None:
            return max(0.0, self._leave_by - self._clock())
        due = min([worker.due for worker in self._workers if worker.process is None] + [self._rounds.due])
        return max(0.0, min(due - self._clock(), _TURN_SECONDS))

    def _start(self, worker: _Worker) -> None:
        ours, theirs = lifeline.pair()
        worker.orders, orders = lifeline.pair()
        self._send(worker.number, {"serves": self._rounds.serves})
        command = [*self._command, "--listen", self.address, "--orders", str(orders.fileno()),
                   "--as-worker", f"{worker.number}:{theirs.fileno()}"]  # fmt: skip
        # A terminal's Ctrl-C goes to every process: with SIGINT blocked, as it then is for the worker's whole life, it
        # is for us alone, and a worker is told once, by SIGTERM.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            worker.process = subprocess.Popen(  # noqa: S603  our own command line
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno(), orders.fileno()]
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            orders.close()
        worker.end, worker.report, worker.ready_since = ours, None, None
        worker.silent, worker.ended_for_silence = 0.0, False
        worker.starts += 1
        self._selector.register(ours, selectors.EVENT_READ, worker)
        self._selector.register(worker.orders, selectors.EVENT_READ, _Orders(worker))

    def _hear(self, worker: _Worker) -> None:
        assert worker.end is not None
        report = lifeline.receive(worker.end)
        if report is None:
            self._ended(worker)
            return
        worker.silent = 0.0
        if isinstance(report, lifeline.Beat):
            return
        worker.report = report
        if not report.problem:
            worker.ready_since = self._clock()
            worker.failed_starts = 0
            self._rounds.ready(worker.number)

    def _hear_order(self, worker: _Worker, end: object) -> None:
        """Take what a worker says of orders; its end is its lifeline's business."""
        if worker.orders is not end or worker.orders is None:
            return  # its lifeline has just told
        try:
            data = worker.orders.recv(LONGEST)
        except ConnectionResetError:
            data = b""
        if not data:
            self._close_orders(worker)
            return
        message, now = decode(data), self._clock()
        if "ask" in message:
            self._rounds.ask(worker.number, message["ask"], message["order"], now)
        elif "outcome" in message:
            self._rounds.answer(worker.number, message["round"], message["outcome"], message["serves"], now)
        else:
            self._rounds.hello(message["serves"])

    def _send(self, number: int, message: dict[str, Any]) -> bool:
        """Send a worker a message on orders; whether it was taken. Never waits."""
        end = self._workers[number].orders
        try:
            return end is not None and bool(end.send(encode(**message), socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _close_orders(self, worker: _Worker) -> None:
        if worker.orders is not None:
            self._selector.unregister(worker.orders)
            worker.orders.close()
            worker.orders = None

    def _ended(self, worker: _Worker) -> None:
        assert worker.process is not None
        assert worker.end is not None
        self._selector.unregister(worker.end)
        worker.end.close()
        self._close_orders(worker)
        self._rounds.gone(worker.number, self._clock())
        status = worker.process.wait()
        was_ready = worker.ready_since is not None
        steady = worker.ready_since is not None and self._clock() - worker.ready_since >= STEADY_SECONDS
        problem = worker.report.problem if worker.report else ""
        silent = "it gave no sign of life, and was killed" if worker.ended_for_silence else ""
        cause = problem or silent or _cause(status)
        worker.process = worker.end = worker.report = worker.ready_since = None
        if self._leave_by is not None:
            self._clean = self._clean and (status == 0 or not was_ready)
            return
        if self._signals:
            return  # told by whoever told us: the same signal went to the whole group
        if not self._serving:
            if problem:
                raise ConfigError(problem)
            raise StartError(f"worker {worker.number} died as it started ({cause})")
        worker.failures = 0 if steady else worker.failures + 1
        worker.failed_starts += not was_ready
        pause = pause_after(worker.failures)
        worker.due = self._clock() + pause
        log.error("worker died", worker=worker.number, cause=cause, restart_in_seconds=pause)
        if all(each.failed_starts >= FAILED_STARTS for each in self._workers):
            raise StartError(f"no worker can be started any more; the last one: {cause}")

    def _leave(self) -> None:
        self._leave_by = self._clock() + self._config.drain_delay + self._config.grace + _LAST_WORDS_SECONDS
        log.info("draining", workers=sum(worker.ready_since is not None for worker in self._workers))
        for worker in self._workers:
            if worker.process is not None:
                # One that has no streams yet may not even know the signal yet.
                worker.process.send_signal(signal.SIGKILL if worker.ready_since is None else signal.SIGTERM)

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()

    def _end_all(self) -> None:
        self._kill_all()
        for worker in self._workers:
            if worker.process is not None and worker.end is not None:
                worker.process.wait()
                worker.end.close()
                if worker.orders is not None:
                    worker.orders.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            self._kill_all()
            os._exit(128 + number)

    def _states(self) -> list[WorkerState]:
        states = []
        for worker in self._workers:
            report, ready = worker.report, worker.ready_since is not None and worker.silent < _QUIET_SECONDS
            port = report.metrics_port if report and ready else None
            states.append(WorkerState(worker.number, max(0, worker.starts - 1), port, worker.hung))
        return states


def pause_after(failures: int) -> float:
    """Seconds before a worker's next start, after that many deaths in a row: the first is forgiven."""
    return 0.0 if failures < 2 else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 2, 16))


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
