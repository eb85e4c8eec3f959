"""The supervisor with workers that do as they are told: what it does when they die."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from serving import supervisor as module
from serving.config import ServerConfig
from serving.errors import ConfigError
from serving.supervisor import StartError, Supervisor, pause_after
from tests.waiting import wait_until

# Says what the first argument says, unless it is empty; then does what the second one says, as Python.
WORKER = """
import os, socket, sys, time
said, then, number_and_fd = sys.argv[1], sys.argv[2], sys.argv[-1]
number, fd = map(int, number_and_fd.split(":"))
boss = socket.socket(fileno=fd)
if said:
    boss.send(said.encode())
exec(then)
boss.recv(1)
"""
READY = json.dumps({"problem": "", "models": ["a/1"], "metrics_port": None})
SAY_READY = f"boss.send({READY.encode()!r})\n"


def wait_for(path: Path) -> str:
    """What makes a worker wait until there is such a file."""
    return f"while not os.path.exists({str(path)!r}): time.sleep(0.001)\n"


def supervisor(said: str, then: str, workers: int = 2, grace: float = 0.0) -> Supervisor:
    """One whose workers say `said` and do `then`."""
    config = ServerConfig(Path("unused"), "127.0.0.1:0", workers=workers, grace=grace)
    return Supervisor(config, [sys.executable, "-S", "-E", "-c", WORKER, said, then])


def run(running: Supervisor, when_serving: Callable[[], None] = lambda: None) -> int:
    """Run it to its end, which `when_serving` may bring about; every process, signal and port is given back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return running.run(when_serving)
    finally:
        assert signal.getsignal(signal.SIGTERM) is before
        host, port = running.address.split(":")
        socket.create_server((host, int(port))).close()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)  # no child is left, not even a dead one


def terminate() -> None:
    """SIGTERM to ourselves."""
    os.kill(os.getpid(), signal.SIGTERM)


def test_pauses_grow_from_none_to_the_longest() -> None:
    """The first of several deaths costs no pause; a worker that keeps dying is started less and less often."""
    assert [pause_after(failures) for failures in range(6)] == [0, 0, 0.5, 1, 2, 4]
    assert pause_after(9) == pause_after(10**9) == module.LONGEST_PAUSE


def test_a_problem_at_the_start_is_the_servers_problem() -> None:
    """What a worker says is wrong with the options or an artifact is raised as if it had been found here."""
    with pytest.raises(ConfigError, match=r"^model a is broken$"):
        run(supervisor('{"problem": "model a is broken", "models": [], "metrics_port": null}', "sys.exit(2)"))


@pytest.mark.parametrize(("then", "cause"), [("sys.exit(3)", "exit status 3"), ("os.kill(os.getpid(), 11)", "SIGSEGV")])
def test_a_crash_at_the_start_ends_it(then: str, cause: str) -> None:
    """A worker that dies before it is ready won't do better: the start has failed, and the cause is named."""
    with pytest.raises(StartError, match=rf"worker \d died as it started \({cause}\)"):
        run(supervisor("", then))


def test_workers_that_can_not_be_started_again_are_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every worker once ready, then none any more: after a few attempts each the supervisor gives up."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    serving = tmp_path / "serving"
    once = f"if os.path.exists({str(serving)!r}): sys.exit(7)\n" + SAY_READY + wait_for(serving) + "sys.exit(1)"
    with pytest.raises(StartError, match="no worker can be started any more; the last one: exit status 7"):
        run(supervisor("", once), serving.touch)
    assert serving.exists()


@pytest.mark.parametrize(
    ("steady_seconds", "pauses"), [(600.0, [0.0, 0.001, 0.002, 0.004, 0.008]), (0.0, [0.0, 0.0, 0.0, 0.0, 0.0])]
)
def test_a_worker_that_keeps_dying_is_replaced_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steady_seconds: float, pauses: list[float]
) -> None:
    """As long as it becomes ready the supervisor goes on, pausing longer if it dies soon; serving is said once."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "STEADY_SECONDS", steady_seconds)
    serving = tmp_path / "serving"
    running = supervisor(READY, "if not number: boss.recv(1)\n" + wait_for(serving) + "sys.exit(1)")

    def once_restarted() -> None:
        serving.touch(exist_ok=False)
        threading.Thread(target=terminate_when_restarted).start()

    def terminate_when_restarted() -> None:
        wait_until(lambda: running._states()[1].restarts >= 6)
        terminate()

    with capture_logs() as logs:
        run(running, once_restarted)
    died = [event for event in logs if event["event"] == "worker died"]
    assert [event["restart_in_seconds"] for event in died][:5] == pauses
    assert {(event["worker"], event["cause"]) for event in died} == {(1, "exit status 1")}
    assert running._states()[0].restarts == 0


def test_a_worker_that_does_not_leave_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores SIGTERM has its grace and no more, and the status says that all wasn't well."""
    monkeypatch.setattr(module, "_LAST_WORDS_SECONDS", 0.05)
    deaf = "import signal; signal.signal(15, signal.SIG_IGN)\n" + SAY_READY
    assert run(supervisor("", deaf), terminate) == 1


def test_workers_that_leave_when_told_are_status_0() -> None:
    """SIGTERM reaches each once; all leave with 0."""
    told = "import signal; signal.signal(15, lambda *_: sys.exit(0))\n" + SAY_READY
    assert run(supervisor("", told, grace=30.0), terminate) == 0


def test_failed_starts_between_good_ones_are_not_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only attempts in a row count: a worker that gets up every other time is started for ever."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    count = f"starts = len(os.listdir({str(tmp_path)!r})); open({str(tmp_path)!r} + f'/{{starts}}', 'x').close()\n"
    running = supervisor("", count + "if starts % 2: sys.exit(3)\n" + SAY_READY + "time.sleep(0.02); sys.exit(1)", 1)

    def terminate_when_restarted() -> None:
        wait_until(lambda: running._states()[0].restarts >= 2 * module.FAILED_STARTS + 2)
        terminate()

    run(running, threading.Thread(target=terminate_when_restarted).start)


def test_a_worker_that_is_not_ready_yet_is_not_waited_for(tmp_path: Path) -> None:
    """A signal during the start ends it: no stream can be there, and a worker may not know the signal yet."""
    deaf = f"import signal; signal.signal(15, signal.SIG_IGN); open({str(tmp_path)!r} + f'/{{number}}', 'x').close()\n"
    running = supervisor("", deaf, grace=3600.0)

    def terminate_when_deaf() -> None:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        terminate()

    threading.Thread(target=terminate_when_deaf).start()
    assert run(running) == 0


def test_a_worker_that_gives_no_sign_of_life_is_killed_and_replaced(tmp_path: Path) -> None:
    """One beats, the other stops: it alone is killed, named in the log, counted, and replaced."""
    serving, hung = tmp_path / "serving", tmp_path / "hung"
    beats = (
        f"while number or os.path.exists({str(hung)!r}) or not os.path.exists({str(serving)!r}):\n"
        "    boss.send(b'beat')\n"
        "    time.sleep(0.01)\n"
        f"open({str(hung)!r}, 'x').close()\n"
    )
    config = ServerConfig(Path("unused"), "127.0.0.1:0", workers=2, grace=0.0, worker_silence=2.0)
    running = Supervisor(config, [sys.executable, "-S", "-E", "-c", WORKER, "", SAY_READY + beats])

    def terminate_when_restarted() -> None:
        wait_until(lambda: running._states()[0].restarts == 1)
        terminate()

    def serve() -> None:
        serving.touch()
        threading.Thread(target=terminate_when_restarted).start()

    with capture_logs() as logs:
        run(running, serve)
    assert [event["worker"] for event in logs if event["event"] == "worker hangs"] == [0]
    (died,) = [event for event in logs if event["event"] == "worker died"]
    assert (died["worker"], died["cause"]) == (0, "it gave no sign of life, and was killed")
    assert [(state.restarts, state.hung) for state in running._states()] == [(1, 1), (0, 0)]


class Stopped:
    """A process that is silent."""

    pid = 1
    killed = False

    def kill(self) -> None:
        """Note it."""
        self.killed = True


@pytest.mark.parametrize(
    ("ready", "turns", "seconds", "killed"),
    [
        (True, 29, 1.0, False),
        (True, 32, 1.0, True),
        (True, 1, 3600.0, False),  # the whole group was stopped, or the machine slept
        (False, 32, 1.0, False),  # it loads its models
        (False, 610, 1.0, True),
    ],
)
def test_silence_counts_while_the_supervisor_is_awake(ready: bool, turns: int, seconds: float, killed: bool) -> None:
    """30 seconds of its turns, however long a turn took; ten minutes for a worker that isn't ready."""
    now = 0.0
    config = ServerConfig(Path("unused"), "127.0.0.1:0", workers=1)
    running = Supervisor(config, [], clock=lambda: now)
    worker, process = running._workers[0], Stopped()
    worker.process, worker.ready_since = process, 0.0 if ready else None  # type: ignore[assignment]
    for _ in range(turns):
        now += seconds
        running._watch()
    assert process.killed is killed
    running._reservation.close()
