"""How the server leaves: connections turn to another one, and open streams go on until the grace is over."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

import cellstream
from cellstream.v1 import stream_inference_pb2 as pb
from serving.config import ServerConfig
from serving.server import Server
from tests.serving import triton_client
from tests.serving.client import SECONDS, SERVICE, StreamCall
from tests.serving.http2 import Connection
from tests.serving.test_process import started
from tests.serving.test_server import alone, health_of, vectors
from tests.waiting import wait_until

NOT_SERVING = 2  # of the health protocol
STREAM = f"{SERVICE}/Stream"
OWN = (("grpc.use_local_subchannel_pool", 1),)
ANY_STREAM = 2**31 - 1  # the first of a graceful shutdown's two GOAWAYs: all calls that are there are still served


class Balancer:
    """A port whose new connections go to `target`; those that are there stay where they are."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._run)

    def close(self) -> None:
        """Cut everything off."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SECONDS)
        for each in self._sockets:
            each.close()

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _run(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
                self._sockets.append(one)
                host, port = self.target.split(":")
                other = socket.create_connection((host, int(port)))
                self._sockets.append(other)
            except OSError:
                return
            self._start(_pump, one, other)
            self._start(_pump, other, one)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@contextlib.contextmanager
def draining(artifacts: Path, *, grace: float = 30.0, delay: float = 0.0) -> Iterator[Drained]:
    """A running server, and how to have it drain on a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        server = Server(ServerConfig(artifacts, "127.0.0.1:0", grace=grace, drain_delay=delay))
        server.start()
        drained = Drained(server, pool)
        yield drained
        assert drained.begin().result(SECONDS)


class Drained:
    """A server that drains once."""

    def __init__(self, server: Server, pool: ThreadPoolExecutor) -> None:
        self.server = server
        self._pool = pool
        self._future: Future[bool] | None = None

    def begin(self) -> Future[bool]:
        """Begin, if it hasn't."""
        if self._future is None:
            self._future = self._pool.submit(self.server.drain)
        return self._future


def refused_by_the_port(address: str) -> bool:
    """Whether nobody listens there."""
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def open_request() -> pb.StreamRequest:
    """An Open of the model "vectors"."""
    return pb.StreamRequest(open=pb.Open(model="vectors"))


def step(number: int) -> pb.StreamRequest:
    """A step of the model "vectors"."""
    return pb.StreamRequest(chunk=pb.Chunk(first_step=number, steps=1, inputs=[vectors(1, number).tobytes()]))


def test_goaway_comes_first_and_live_streams_go_on(artifacts: Path) -> None:
    """HTTP/2's GOAWAY is there at once; the open stream steps on; an idle connection is closed."""
    with draining(artifacts) as drained, ExitStack() as stack:
        address = drained.server.address
        busy, idle = stack.enter_context(Connection(address)), stack.enter_context(Connection(address))
        call = busy.begin(STREAM)
        busy.send(call, open_request())
        busy.send(call, step(1))
        wait_until(lambda: drained.server.front.stats.messages_out == 2)
        drained.begin()
        wait_until(lambda: len(busy.goaways) == 2 and idle.closed)
        assert busy.goaways == [(ANY_STREAM, 0), (call.number, 0)]
        assert refused_by_the_port(drained.server.address)
        for number in range(2, 5):
            before = len(call.messages)
            busy.send(call, step(number))
            wait_until(lambda before=before: len(call.messages) > before)  # type: ignore[misc]
        assert not call.ended
        busy.half_close(call)
        assert busy.until_ended(call)["grpc-status"] == "0"


def test_going_away(artifacts: Path) -> None:
    """First new streams are refused and health says so; then comes GoAway; open streams go on; the rest are cut off."""
    with (
        draining(artifacts, grace=1.0, delay=1.0) as drained,
        grpc.insecure_channel(drained.server.address, OWN) as connection,
        StreamCall(connection) as polite,
        StreamCall(connection) as stubborn,
        StreamCall(connection) as silent,
    ):
        x = vectors(6, 0)
        expected = alone(connection, x)
        for stream in (polite, stubborn):
            stream.open("vectors")
        got = polite.run(x[:2])
        drained.begin()
        wait_until(lambda: health_of(connection, "vectors") == NOT_SERVING)
        for name in ("", "tokens/1"):
            assert health_of(connection, name) == NOT_SERVING
        with StreamCall(connection) as late:
            late.send(open_request())
            assert late.end()[::2] == (grpc.StatusCode.UNAVAILABLE, "shutting_down")
        got += polite.run(x[2:4])  # no GoAway yet
        assert polite.receive().go_away.grace_ms == 1000
        assert silent.end()[::2] == (grpc.StatusCode.UNAVAILABLE, "shutting_down")
        got += polite.run(x[4:])
        polite.half_close()
        assert polite.end()[0] is grpc.StatusCode.OK
        assert got == expected
        code, details, _ = stubborn.end()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "shut down" in details


def test_going_away_from_clients_that_wait_for_every_answer(artifacts: Path) -> None:
    """They hear of it with their next step; one that sends none is cut off with a word; sending ahead still works."""
    with (
        draining(artifacts, grace=1.0) as drained,
        grpc.insecure_channel(drained.server.address, OWN) as connection,
        StreamCall(connection) as busy,
        StreamCall(connection) as idle,
    ):
        x = vectors(400, 0)
        expected = alone(connection, x)
        for stream in (busy, idle):
            stream.open("vectors")
        got: list[bytes] = []
        for number in range(100):
            got += busy.run(x[number : number + 1])
            idle.run(x[number : number + 1])
        for number in range(100, 300):
            busy.push(x[number : number + 1])
        got += busy.pull(200)
        for number in range(300, 399):
            got += busy.run(x[number : number + 1])
        drained.begin()
        wait_until(lambda: refused_by_the_port(drained.server.address))
        drained.server._do(lambda: None)  # behind the GoAways
        busy.push(x[399:])
        assert busy.receive().go_away.grace_ms == 1000
        got += busy.pull(1)
        assert got == expected
        busy.half_close()
        assert busy.end()[0] is grpc.StatusCode.OK
        code, details, _ = idle.end()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "shut down" in details


def test_without_streams_the_delay_still_holds(artifacts: Path) -> None:
    """A server that nobody uses still waits for balancers to notice, and refuses those that come meanwhile."""
    with (
        draining(artifacts, delay=0.5) as drained,
        grpc.insecure_channel(drained.server.address, OWN) as connection,
    ):
        future = drained.begin()
        wait_until(lambda: drained.server.lanes.find("vectors", 0).streams.closed is not None)
        with StreamCall(connection) as late:
            late.send(open_request())
            assert late.end()[::2] == (grpc.StatusCode.UNAVAILABLE, "shutting_down")
        assert not future.done()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_clients_next_stream_reaches_another_server(artifacts: Path, workers: str) -> None:
    """One stream stays on the server that leaves and steps on; the same client's next one is the other server's."""
    repository = ("--model-repository", str(artifacts))
    with (
        ExitStack() as stack,
        started(*repository, "--grace", "30", "--workers", workers) as (process, leaving),
        started(*repository) as (_, staying),
    ):
        balancer = Balancer(leaving)
        stack.callback(balancer.close)
        client = stack.enter_context(cellstream.connect(balancer.address, channel=cellstream.Channel(extra=OWN)))
        x = vectors(6, 1)
        with client.stream("vectors") as old:
            got = [old.step(x[:2])]
            balancer.target = staying
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: old.going_away is not None)
            with client.stream("vectors", retry=cellstream.Retry(attempts=1)) as new:
                expected = new.step(x)
                assert new.going_away is None
            got += [old.step(x[2:5]), old.step(x[5:])]
        assert np.concatenate(got).tobytes() == expected.tobytes()
        assert process.wait(SECONDS) == 0


def test_tritons_clients_turn_to_another_server(models: Path) -> None:
    """A live sequence of a stream goes on where it is; new ones, and unary calls after the delay, reach the other."""
    repository = ("--model-repository", str(models), "--allow-unproved")
    with (
        ExitStack() as stack,
        started(*repository, "--grace", "30", "--drain-delay", "1") as (process, leaving),
        started(*repository) as (_, staying),
    ):
        balancer = Balancer(leaving)
        stack.callback(balancer.close)
        client = stack.enter_context(triton_client.connect(balancer.address))
        stream = triton_client.Stream(client)
        x = triton_client.given(1, 4)
        stream.send(x[0], 1, sequence_start=True)
        triton_client.ask(client, x[0], 2, sequence_start=True)
        first = stream.y()
        balancer.target = staying
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not client.is_server_ready())
        triton_client.ask(client, x[1], 2)  # during the delay a unary sequence goes on
        with pytest.raises(triton_client.Error, match="the server is shutting down"):
            triton_client.ask(client, x[0], 3, sequence_start=True)
        wait_until(lambda: refused_by_the_port(leaving))
        again = triton_client.ask(client, x[0], 3, sequence_start=True)
        assert again.tobytes() == first.tobytes()
        with pytest.raises(triton_client.Error, match="it was never started here"):
            triton_client.ask(client, x[2], 2)
        for number in (1, 2, 3):
            stream.send(x[number], 1, sequence_end=number == 3)
        for number in (1, 2, 3):
            assert stream.y().tobytes() == triton_client.ask(client, x[number], 3).tobytes()
        with pytest.raises(triton_client.Error, match="the server is shutting down"):
            stream.result()
        stream.stop()
        assert process.wait(SECONDS) == 0
