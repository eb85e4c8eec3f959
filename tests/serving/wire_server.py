"""What the wire's tests talk with: a server whose loop only polls, handlers that note what they are told, a client."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from serving.call import Call, Handler
from serving.wire import SERVER_OPTIONS, Wire
from tests.waiting import wait_until

T = TypeVar("T")

SECONDS = 30.0  # no answer within this: the test has failed
MAX_MESSAGE = 1 << 20  # bytes, either way
ECHO = "/test.Wire/Echo"
PROBE = "/test.Wire/Probe"
OPTIONS: list[tuple[str, Any]] = [
    *SERVER_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
]


class Echo:
    """Sends back what it gets, and ends the call when the client has sent all."""

    def __init__(self, call: Call) -> None:
        self._call = call
        call.receive()

    def on_message(self, data: bytes) -> None:
        """Answer at once."""
        self._call.send(data)
        self._call.receive()

    def on_half_close(self) -> None:
        """End it."""
        self._call.finish(grpc.StatusCode.OK)

    def on_sent(self) -> None:
        """Nothing waits for room."""

    def on_closed(self, *, cancelled: bool) -> None:
        """Nothing to clean up."""


class Probe:
    """Does nothing by itself, and notes everything: the test tells it what to do, on the loop's thread."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.messages: list[bytes] = []
        self.told: list[str] = []  # all callbacks, in order

    def on_message(self, data: bytes) -> None:
        """Note it."""
        self.messages.append(data)
        self.told.append("message")

    def on_half_close(self) -> None:
        """Note it."""
        self.told.append("half-close")

    def on_sent(self) -> None:
        """Note it."""
        self.told.append("sent")

    def on_closed(self, *, cancelled: bool) -> None:
        """Note it."""
        self.told.append("cancelled" if cancelled else "finished")

    @property
    def over(self) -> bool:
        """Whether on_closed came."""
        return "cancelled" in self.told or "finished" in self.told


class Server:
    """A public server with a health service, a wire on it with Echo and Probe, and the thread that polls."""

    def __init__(
        self, probe: Callable[[Call], Handler] = Probe, options: list[tuple[str, Any]] = OPTIONS, threads: int = 2
    ) -> None:
        self.probes: queue.SimpleQueue[Any] = queue.SimpleQueue()  # as their calls come
        self.faults: list[Exception] = []  # what came out of poll
        self._make_probe = probe
        self.public = grpc.server(ThreadPoolExecutor(threads), options=options)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), self.public)
        self.wire = Wire(self.public, {ECHO: Echo, PROBE: self._probe})
        self.port = self.public.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self.public.start()
        self.wire.start()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def do(self, work: Callable[[], T]) -> T:
        """Have `work` done on the loop's thread, between two polls, and return what it returns."""
        future: Future[T] = Future()
        self._inbox.put(lambda: _settle(future, work))
        return future.result(SECONDS)

    def channel(self) -> grpc.Channel:
        """A connection of its own."""
        return grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def settle(self) -> None:
        """Wait until no call is left."""
        wait_until(lambda: not self.wire.live)

    def halt(self) -> None:
        """Let the thread end."""
        self._stopping = True
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def stop(self) -> bool:
        """The whole way out, in the right order; whether the wire gave everything back."""
        ended = self.public.stop(0)
        self.halt()
        clean = self.wire.stop()
        assert ended.wait(SECONDS)
        return clean

    def _probe(self, call: Call) -> Handler:
        probe = self._make_probe(call)
        self.probes.put(probe)
        return probe

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.wire.poll(0.01)
            except Exception as fault:  # noqa: BLE001  the test decides whether it was expected
                self.faults.append(fault)
            while not self._inbox.empty():
                self._inbox.get()()


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001  raised in the test's thread
        future.set_exception(error)


@contextmanager
def serving(**options: Any) -> Iterator[Server]:
    """A server that must go without a fault and leave nothing behind."""
    server = Server(**options)
    try:
        yield server
    finally:
        clean = server.stop()
    assert clean
    assert server.wire.live == 0
    assert server.faults == []


class Client:
    """One call, as a client of gRPC's public synchronous API sees it."""

    def __init__(self, channel: grpc.Channel, method: str, **options: Any) -> None:
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        start: Any = channel.stream_stream(method)
        self.call = start(iter(self._outgoing.get, None), **{"timeout": SECONDS, **options})

    def send(self, data: bytes) -> None:
        """Send one message, as soon as flow control allows it."""
        self._outgoing.put(data)

    def half_close(self) -> None:
        """Send no more."""
        self._outgoing.put(None)

    def read(self) -> bytes:
        """The next message; raises grpc.RpcError or StopIteration at the end."""
        message: bytes = next(self.call)
        return message

    def end(self) -> tuple[grpc.StatusCode, str]:
        """Read to the end: the status, and its text."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass
        return self.call.code(), self.call.details()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.half_close()  # its thread waits for the next message
        self.call.cancel()


def echo(channel: grpc.Channel, messages: list[bytes]) -> None:
    """A whole call of Echo: all comes back, and ends well."""
    with Client(channel, ECHO) as client:
        for message in messages:
            client.send(message)
            assert client.read() == message
        client.half_close()
        assert client.end() == (grpc.StatusCode.OK, "")
