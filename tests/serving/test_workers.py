"""Several workers on one port: real processes, a real port, the real client."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import cellstream
from bench.server_process import workers_of
from cellstream.models.control import ModelChange, load_model
from serving import __main__ as serving_main
from serving import lifeline
from serving import server as server_module
from serving.config import ServerConfig
from serving.lane import Lane
from serving.lifeline import Lifeline, Report
from serving.port import Reservation
from tests.serving.client import Floats, StreamCall
from tests.serving.test_process import SECONDS, failed_start, started
from tests.serving.test_server import vectors
from tests.waiting import wait_until

OWN_CONNECTION = cellstream.Channel(extra=(("grpc.use_local_subchannel_pool", 1),))
MOST_CONNECTIONS = 40  # that all go to one of two workers: once in 10^12


@dataclass(frozen=True, slots=True)
class Workers:
    """A running supervisor."""

    process: subprocess.Popen[str]
    address: str
    metrics_port: int

    def metric(self, name: str) -> dict[str, float]:
        """One metric's values by the label `worker`, summed over models; "" for what has no such label."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=SECONDS) as response:
            text = response.read().decode()
        values: dict[str, float] = {}
        for labels, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE):
            worker = re.search('worker="([^"]*)"', labels)
            key = worker[1] if worker else ""
            values[key] = values.get(key, 0.0) + float(value)
        return values

    def client(self) -> cellstream.Client:
        """A client with a connection of its own."""
        return cellstream.connect(self.address, channel=OWN_CONNECTION)

    def clients_of_both(self, stack: ExitStack) -> list[cellstream.Client]:
        """A client of worker 0 and one of worker 1; the stack closes them and the others that it took."""
        found: dict[str, cellstream.Client] = {}
        before = self.metric("cellstream_streams_opened_total")
        for _ in range(MOST_CONNECTIONS):
            client = stack.enter_context(self.client())
            client.stream("vectors").close()
            after = self.metric("cellstream_streams_opened_total")
            (worker,) = [worker for worker in after if after[worker] != before[worker]]
            found.setdefault(worker, client)
            if len(found) == 2:
                return [found["0"], found["1"]]
            before = after
        raise AssertionError(f"{MOST_CONNECTIONS} connections all went to worker {', '.join(found)}")


@contextmanager
def two_workers(repository: Path, *options: str) -> Iterator[Workers]:
    """`python -m serving --workers 2`, with metrics."""
    options = ("--workers", "2", "--model-repository", str(repository), "--metrics-listen", "127.0.0.1:0", *options)
    with started(*options) as (process, address):
        assert process.stderr is not None
        events = (json.loads(line) for line in process.stderr)
        serving = next(event for event in events if event["event"] == "serving")
        yield Workers(process, address, serving["metrics_port"])


@pytest.fixture(scope="module")
def workers(artifacts: Path) -> Iterator[Workers]:
    """One server for the tests that leave it with two workers."""
    with two_workers(artifacts, "--grace", "1") as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(SECONDS) == 0


def step_until_over(stream: cellstream.Stream, x: Floats) -> tuple[int, cellstream.CellstreamError]:
    """Step again and again: how many were answered, and what came then."""
    for answered in range(10_000):
        try:
            stream.step(x)
        except cellstream.CellstreamError as error:
            return answered, error
    raise AssertionError("the stream goes on")


def gone(pid: int) -> bool:
    """Whether there is no such process any more, or only what its parent hasn't looked at yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # before the read, or during it
        return True


def test_both_workers_get_connections_and_one_endpoint_shows_them(workers: Workers) -> None:
    """Streams count where they are, each worker under its own label, histograms and refusals too."""
    with ExitStack() as stack:
        first, second = workers.clients_of_both(stack)
        steps = workers.metric("cellstream_steps_total")
        with first.stream("vectors") as one, second.stream("vectors") as other, second.stream("tokens") as third:
            one.step(vectors(3, 0))
            other.step(vectors(2, 0))
            third.step([1, 2])
            assert workers.metric("cellstream_live_streams") == {"0": 1, "1": 2}
            now = workers.metric("cellstream_steps_total")
            assert {worker: now[worker] - steps[worker] for worker in now} == {"0": 3, "1": 4}
        assert workers.metric("cellstream_workers") == {"": 2}
        assert set(workers.metric("cellstream_worker_restarts_total")) == {"0", "1"}
        assert workers.metric("cellstream_queue_seconds_count")["1"] >= 2
        with pytest.raises(cellstream.UnknownModel):
            first.model("nothing")
        assert set(workers.metric("cellstream_messages_received_total")) == {"0", "1"}


def test_a_killed_worker_takes_only_its_own_streams_along(workers: Workers) -> None:
    """After kill -9 its client is told the last answered step, and goes on; the other's answers don't change a byte."""
    x = vectors(4000, 7)
    before = workers.metric("cellstream_worker_restarts_total")
    with ExitStack() as stack:
        doomed, safe = workers.clients_of_both(stack)
        with safe.stream("vectors") as stream:
            expected = np.concatenate([stream.step(x[at : at + 500]) for at in range(0, len(x), 500)])
        lost = doomed.stream("vectors")
        running = safe.stream("vectors")
        answers: list[Floats] = []
        enough = threading.Event()

        def go_on() -> None:
            for at in range(0, len(x), 4):
                answers.append(running.step(x[at : at + 4]))
                if at >= len(x) // 4:
                    enough.wait(SECONDS)  # the second half is computed after the kill

        thread = threading.Thread(target=go_on)
        thread.start()
        for step in range(5):
            lost.step(x[step])
        victim = workers_of(workers.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        answered, error = step_until_over(lost, x[5])
        assert isinstance(error, cellstream.StreamLost)
        assert error.answered_step == 5 + answered
        with doomed.stream("vectors") as again:  # the same client: gRPC connects anew, to whichever worker listens
            assert np.array_equal(again.step(x[:8]), expected[:8])
        enough.set()
        thread.join(SECONDS)
        running.close()
        assert np.concatenate(answers).tobytes() == expected.tobytes()
    wait_until(lambda: workers.metric("cellstream_workers") == {"": 2})
    assert workers_of(workers.process.pid)[0] != victim
    after = workers.metric("cellstream_worker_restarts_total")
    assert {worker: after[worker] - before[worker] for worker in after} == {"0": 1, "1": 0}


@pytest.mark.parametrize("more", [[], ["--workers", "2"]], ids=["single", "supervisor"])
def test_a_second_server_on_the_port_is_refused(workers: Workers, artifacts: Path, more: list[str]) -> None:
    """Only workers share the port, and only those of one supervisor."""
    said = failed_start("--model-repository", str(artifacts), "--listen", workers.address, *more)
    assert f"error: can't listen on '{workers.address}'; is another server there?" in said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", "0"], "workers is 0; it must be from 1 to"),
        (["--workers", "2", "--max-streams", "0"], "max_streams is 0"),
        (["--workers", "2", "--listen", "127.0.0.1"], "must be HOST:PORT"),
        (["--workers", "2", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:99999"], "port from 0 to 65535"),
        (["--workers", "2", "--listen", "127.0.0.1:0", "--model-repository", "/nonexistent"], "make export"),
        (["--workers", "2", "--listen", "203.0.113.1:50051"], "can't listen on '203.0.113.1:50051'"),
    ],
)
def test_options_that_can_not_be_had(artifacts: Path, options: list[str], text: str) -> None:
    """An operator's mistake is one line, said once however many workers find it, and status 2."""
    said = failed_start("--model-repository", str(artifacts), *options)
    assert text in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_bad_artifact_ends_the_start_as_it_does_for_a_single_server(artifacts: Path, tmp_path: Path) -> None:
    """The same line and the same status with two workers as with none."""
    broken = tmp_path / "vectors" / "1"
    broken.mkdir(parents=True)
    for name in ("resident.onnx", "model.onnx.data"):
        (broken / name).write_bytes((artifacts / "vectors" / "1" / name).read_bytes()[:-4] + b"\1\2\3\4")
    options = ("--model-repository", str(tmp_path), "--listen", "127.0.0.1:0")
    assert failed_start(*options) == failed_start(*options, "--workers", "2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_drains_once(artifacts: Path, number: signal.Signals) -> None:
    """Ctrl-C and service managers reach every process: streams are told, may finish, and the status is 0."""
    with two_workers(artifacts, "--grace", "30") as running, ExitStack() as stack:
        first, second = running.clients_of_both(stack)
        streams = [stack.enter_context(client.stream("vectors")) for client in (first, second)]
        pids = [running.process.pid, *workers_of(running.process.pid).values()]
        for pid in pids:
            os.kill(pid, number)
        wait_until(lambda: all(stream.going_away is not None for stream in streams))
        for stream in streams:
            stream.close()
        _, said = running.process.communicate(timeout=SECONDS)
        assert running.process.returncode == 0
        assert said.count('"streams_cut_off": 0') == 2
        assert all(gone(pid) for pid in pids)


def test_a_second_signal_ends_all_at_once(artifacts: Path) -> None:
    """With an hour of grace and a stream open, a second SIGTERM ends every process now."""
    with (
        two_workers(artifacts, "--grace", "3600") as running,
        grpc.insecure_channel(running.address) as channel,
        StreamCall(channel) as stream,  # the client would end an idle stream when told to go
    ):
        stream.open("vectors")
        pids = list(workers_of(running.process.pid).values())
        running.process.send_signal(signal.SIGTERM)
        assert stream.receive().go_away.grace_ms == 3_600_000
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(SECONDS) == 128 + signal.SIGTERM
        wait_until(lambda: all(gone(pid) for pid in pids))


def test_a_worker_that_hangs_is_replaced(artifacts: Path) -> None:
    """A stopped worker isn't counted as ready, is killed and replaced, and the other's stream goes on meanwhile."""
    with two_workers(artifacts, "--grace", "1", "--worker-silence", "6") as running, ExitStack() as stack:
        _, second = running.clients_of_both(stack)
        stream = stack.enter_context(second.stream("vectors"))
        pids = workers_of(running.process.pid)
        os.kill(pids[0], signal.SIGSTOP)
        wait_until(lambda: running.metric("cellstream_workers") == {"": 1})
        stream.step(vectors(1, 0)[0])
        wait_until(lambda: running.metric("cellstream_workers") == {"": 2})
        stream.step(vectors(1, 0)[0])
        assert running.metric("cellstream_workers_hung_total") == {"0": 1, "1": 0}
        replaced = workers_of(running.process.pid)
        assert replaced[0] != pids[0]
        assert replaced[1] == pids[1]
        assert gone(pids[0])


def test_signals_that_change_nothing(workers: Workers) -> None:
    """To the supervisor or to the whole group: the streams of both workers go on, and no worker is replaced."""
    with ExitStack() as stack:
        streams = [stack.enter_context(client.stream("vectors")) for client in workers.clients_of_both(stack)]
        pids = workers_of(workers.process.pid)
        for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            for pid in (workers.process.pid, *pids.values()):
                os.kill(pid, number)
            for stream in streams:
                for _ in range(5):
                    stream.step(vectors(1, 0)[0])
                assert stream.going_away is None
        assert workers_of(workers.process.pid) == pids


def test_no_worker_outlives_its_supervisor(artifacts: Path) -> None:
    """After kill -9 of the supervisor its workers drain and leave, and the port is free again."""
    with two_workers(artifacts, "--grace", "0.2") as running, running.client() as client:
        stream = client.stream("vectors")
        pids = list(workers_of(running.process.pid).values())
        assert len(pids) == 2
        running.process.kill()
        wait_until(lambda: all(gone(pid) for pid in pids))
        assert isinstance(
            step_until_over(stream, vectors(1, 0)[0])[1], cellstream.Unavailable
        )  # told to go, or cut off
        host, port = running.address.split(":")
        socket.create_server((host, int(port))).close()


def test_the_supervisor_loads_neither_grpc_nor_onnxruntime() -> None:
    """What crashes a worker isn't there to crash what replaces it, and costs no memory twice."""
    program = (
        "import sys, serving.__main__, serving.supervisor\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & {'grpc', 'onnxruntime', 'numpy', 'google'}\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr


class DeadServer:
    """A server whose loop has died; see serving.server.Server."""

    models = ("vectors/1",)
    metrics_port = None
    works = True

    def __init__(self, _config: ServerConfig, *, workers: object) -> None:
        assert workers is None
        self.loop = self
        self.alive = False

    def start(self) -> None:
        """Begin to answer, in vain."""

    def look(self) -> None:
        """Nothing to be seen."""

    def drain(self) -> bool:
        """Leave, not well."""
        return False


def test_a_worker_whose_loop_has_died_leaves(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep its share of the connections and refuse all streams; a new process can serve them."""
    monkeypatch.setattr(server_module, "Server", DeadServer)
    boss, end = lifeline.pair()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert serving_main._serve(ServerConfig(artifacts), Lifeline(0, end.fileno())) == 1
        said = lifeline.receive(boss)
        while isinstance(said, lifeline.Beat):
            said = lifeline.receive(boss)
        assert said == Report(models=("vectors/1",))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        boss.close()
        wait_until(lambda: all(thread.name not in ("lifeline", "beats") for thread in threading.enumerate()))
        end.close()


def test_a_worker_does_not_listen_before_its_models_are_warm(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection waits in the queue of a worker that can't answer yet."""
    refused: list[int] = []
    warm_up = Lane.warm_up

    def look_then_warm_up(lane: Lane) -> None:
        with socket.socket() as probe:
            refused.append(probe.connect_ex(("127.0.0.1", port)))
        warm_up(lane)

    monkeypatch.setattr(Lane, "warm_up", look_then_warm_up)
    with Reservation("127.0.0.1:0") as reserved:
        port = int(reserved.address.rpartition(":")[2])
        running = server_module.Server(ServerConfig(artifacts, reserved.address, share_port=True, grace=0.0))
        running.start()
        socket.create_connection(("127.0.0.1", port)).close()
        assert running.drain()
    assert set(refused) == {errno.ECONNREFUSED}


def test_ctrl_c_while_workers_start_is_quiet(artifacts: Path) -> None:
    """It reaches processes that know no signals yet: all leave, without a traceback, and the status is 0."""
    command = [sys.executable, "-m", "serving", "--workers", "2", "--listen", "127.0.0.1:0"]
    command += ["--model-repository", str(artifacts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: len(workers_of(process.pid)) == 2)
        pids = list(workers_of(process.pid).values())
        for pid in [*pids, process.pid]:
            os.kill(pid, signal.SIGINT)
        said, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert said == ""
        assert "Traceback" not in errors
        assert all(gone(pid) for pid in pids)


def test_all_workers_load_and_let_go_and_a_new_one_follows(artifacts: Path, tmp_path: Path) -> None:
    """One request reaches every worker, a refusal is one, and a worker that replaces another serves what it served."""
    for version in ("1", "2"):
        shutil.copytree(artifacts / "vectors" / version, tmp_path / "vectors" / version)
    with two_workers(tmp_path, "--model-control", "explicit", "--grace", "1") as running, ExitStack() as stack:
        clients = running.clients_of_both(stack)
        control = triton.InferenceServerClient(running.address)
        shutil.rmtree(tmp_path / "vectors" / "2")
        control.load_model("vectors")
        for client in clients:
            with client.stream("vectors") as stream:
                assert stream.model.version == 1
        shutil.copytree(artifacts / "tokens" / "1", tmp_path / "tokens" / "1")
        with grpc.insecure_channel(running.address) as channel:
            changes = load_model(channel, "tokens")
            assert changes == tuple(ModelChange(1, "loaded", "", worker) for worker in (0, 1))
        control.unload_model("vectors")
        for name, change in (("nope", control.load_model), ("vectors", control.unload_model)):
            with pytest.raises(InferenceServerException, match=f"'{name}'") as caught:
                change(name)
            assert "NOT_FOUND" in str(caught.value.status())
        shutil.copytree(artifacts / "wide" / "1", tmp_path / "wide" / "1")  # which nobody has loaded
        os.kill(workers_of(running.process.pid)[0], signal.SIGKILL)
        wait_until(lambda: running.metric("cellstream_worker_restarts_total")["0"] == 1, seconds=SECONDS)
        wait_until(lambda: running.metric("cellstream_workers") == {"": 2}, seconds=SECONDS)
        assert running.metric("cellstream_model_ready") == {"0": 1, "1": 1}, "the new one serves something else"
        control.close()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(SECONDS) == 0
