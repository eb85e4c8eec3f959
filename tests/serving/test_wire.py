"""The wire, over a real port with gRPC's own clients: what another grpcio must pass before it is accepted."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import wire as wire_module
from serving.call import Call, WireError
from serving.wire import Wire
from tests.serving.wire_server import (
    ECHO,
    MAX_MESSAGE,
    PROBE,
    SECONDS,
    Client,
    Probe,
    Server,
    echo,
    serving,
)
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
OK = (grpc.StatusCode.OK, "")
LARGE = [b"x" * 100_000] * 250  # more than the 16 MiB that a client may hold unread


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """One server for most of the tests."""
    with serving() as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The same; every test leaves it without calls and without faults."""
    yield shared
    shared.settle()
    assert shared.faults == []


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A connection to it."""
    with server.channel() as channel:
        yield channel


def probe_of(server: Server) -> Probe:
    """The probe of the call that has just been made."""
    probe: Probe = server.probes.get(timeout=SECONDS)
    return probe


def receive(server: Server, probe: Probe) -> bytes:
    """Have the probe receive one more message."""
    before = len(probe.messages)
    server.do(probe.call.receive)
    wait_until(lambda: len(probe.messages) > before)
    return probe.messages[-1]


def send(server: Server, probe: Probe, messages: Iterable[bytes]) -> None:
    """Have the probe send these."""

    def work() -> None:
        for message in messages:
            probe.call.send(message)

    server.do(work)


# What arrives, and what is sent.


def test_messages_arrive_whole_and_in_order(channel: grpc.Channel) -> None:
    """Messages of every size, the empty one among them, come back unchanged and in their order."""
    sizes = [0, 1, 5, 300, 16_383, 16_384, 65_535, 65_536, 500_000, MAX_MESSAGE, *range(400)]
    messages = [bytes([size % 251]) * size for size in sizes]
    with Client(channel, ECHO) as client:
        for message in messages:
            client.send(message)
        client.half_close()
        assert list(client.call) == messages


def test_one_message_is_received_for_each_request(server: Server, channel: grpc.Channel) -> None:
    """However often receive() is called, one message at most is taken before the next one is asked for."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        for message in (b"a", b"b", b"c"):
            client.send(message)
        client.half_close()

        def ask_thrice() -> None:
            for _ in range(3):
                probe.call.receive()

        server.do(ask_thrice)
        wait_until(lambda: probe.messages == [b"a"])
        echo(channel, [b"x"] * 50)
        assert probe.messages == [b"a"]
        assert receive(server, probe) == b"b"
        assert receive(server, probe) == b"c"
        assert "half-close" not in probe.told
        server.do(probe.call.receive)
        wait_until(lambda: "half-close" in probe.told)
        server.do(lambda: probe.call.finish(grpc.StatusCode.OK))
        assert client.end() == OK
    wait_until(lambda: probe.over)
    assert probe.told == ["message", "message", "message", "half-close", "finished"]


def test_answers_may_follow_a_half_close(server: Server, channel: grpc.Channel) -> None:
    """A client that has sent all can go on reading."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        client.half_close()
        server.do(probe.call.receive)
        wait_until(lambda: probe.told == ["half-close"])
        send(server, probe, [b"0", b"1", b"2"])
        server.do(probe.call.receive)  # nothing can come: it does nothing
        assert [client.read() for _ in range(3)] == [b"0", b"1", b"2"]
        server.do(lambda: probe.call.finish(grpc.StatusCode.OK))
        assert client.end() == OK
    wait_until(lambda: probe.over)
    assert probe.told == ["half-close", "sent", "sent", "sent", "finished"]


def test_the_status_follows_all_that_was_sent(server: Server, channel: grpc.Channel) -> None:
    """finish() right after many send() lets every one of them arrive first; what is sent after it is dropped."""
    messages = [b"%d" % number * number for number in range(300)]
    with Client(channel, PROBE) as client:
        probe = probe_of(server)

        def answer() -> None:
            for message in messages:
                probe.call.send(message)
            probe.call.finish(grpc.StatusCode.ABORTED, "enough")
            probe.call.finish(grpc.StatusCode.INTERNAL, "too late")
            probe.call.send(b"too late")

        server.do(answer)
        assert [client.read() for _ in messages] == messages
        assert client.end() == (grpc.StatusCode.ABORTED, "enough")
    wait_until(lambda: probe.over)
    assert probe.told == ["finished"]  # nothing else after finish()


def test_nothing_is_told_while_a_call_waits_to_finish(server: Server, channel: grpc.Channel) -> None:
    """Neither messages, nor the half-close, nor what leaves is told after finish(), however long that takes."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        send(server, probe, LARGE)
        server.do(probe.call.receive)
        told = server.do(lambda: (list(probe.told), probe.call.finish(grpc.StatusCode.OK))[0])  # type: ignore[func-returns-value]
        client.half_close()
        echo(channel, [b"x"] * 50)
        assert list(client.call) == LARGE
    wait_until(lambda: probe.over)
    assert probe.told == [*told, "finished"]


def test_unsent_counts_what_has_not_left(server: Server, channel: grpc.Channel) -> None:
    """Unsent and unsent_bytes go up with send() and come back to nothing, with one on_sent for each message."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)

        def answer() -> tuple[int, int]:
            for size in (10, 20, 30):
                probe.call.send(b"x" * size)
            return probe.call.unsent, probe.call.unsent_bytes

        assert server.do(answer) == (3, 60)
        for _ in range(3):
            client.read()
        wait_until(lambda: probe.told == ["sent"] * 3)
        assert (probe.call.unsent, probe.call.unsent_bytes) == (0, 0)


def test_a_handler_may_do_anything_in_any_callback(server: Server, channel: grpc.Channel) -> None:
    """A refusal out of on_message reaches a client that is still sending."""

    class Refusing(Probe):
        def on_message(self, data: bytes) -> None:
            super().on_message(data)
            self.call.receive()
            self.call.send(b"last words")
            self.call.finish(grpc.StatusCode.INVALID_ARGUMENT, "no")
            self.call.receive()

    with serving(probe=Refusing) as other, other.channel() as its_channel, Client(its_channel, PROBE) as client:
        probe = probe_of(other)
        other.do(probe.call.receive)
        for _ in range(100):
            client.send(b"x" * 1000)
        assert client.read() == b"last words"
        assert client.end() == (grpc.StatusCode.INVALID_ARGUMENT, "no")
        wait_until(lambda: probe.over)
        assert probe.told == ["message", "finished"]


def test_a_unary_client_is_served_too(channel: grpc.Channel) -> None:
    """One message, one answer and OK are a unary call."""
    call: Any = channel.unary_unary(ECHO)
    assert call(b"x", timeout=SECONDS) == b"x"


# An answer and the end in one.


def test_an_answer_is_one_message_and_the_end(server: Server, channel: grpc.Channel) -> None:
    """answer() sends the message and OK at once, of any size; what comes behind it does nothing."""
    for size in (0, 1, 70_000, MAX_MESSAGE):
        with Client(channel, PROBE) as client:
            probe = probe_of(server)

            def work(probe: Probe = probe, size: int = size) -> tuple[int, int]:
                probe.call.answer(b"x" * size)
                probe.call.answer(b"too late")
                probe.call.send(b"too late")
                probe.call.finish(grpc.StatusCode.INTERNAL, "too late")
                probe.call.receive()
                return probe.call.unsent, probe.call.unsent_bytes

            assert server.do(work) == (0, 0)
            assert client.read() == b"x" * size
            assert client.end() == OK
        wait_until(lambda probe=probe: probe.over)  # type: ignore[misc]
        assert probe.told == ["finished"]


def test_a_unary_client_is_answered_at_once(server: Server, channel: grpc.Channel) -> None:
    """While a receive is outstanding, as it is for a client that closes its side behind its request."""
    call: Any = channel.unary_unary(PROBE)
    future = call.future(b"question", timeout=SECONDS)
    probe = probe_of(server)
    assert receive(server, probe) == b"question"
    server.do(probe.call.receive)
    server.do(lambda: probe.call.answer(b"answer"))
    assert future.result() == b"answer"
    assert future.code() is grpc.StatusCode.OK
    wait_until(lambda: probe.over)
    assert probe.told[-1] == "finished"
    assert set(probe.told) <= {"message", "half-close", "finished"}


def test_an_answer_to_a_call_that_is_over_goes_nowhere(server: Server, channel: grpc.Channel) -> None:
    """After a cancel, and after a status of our own."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        client.call.cancel()
        wait_until(lambda: probe.over)
        server.do(lambda: probe.call.answer(b"too late"))
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        server.do(lambda: probe.call.finish(grpc.StatusCode.NOT_FOUND, "no"))
        server.do(lambda: probe.call.answer(b"too late"))
        assert client.end() == (grpc.StatusCode.NOT_FOUND, "no")


def test_an_answer_that_meets_a_cancel_leaves_nothing(server: Server, channel: grpc.Channel) -> None:
    """Cancelled before, while or after it's answered: each call is over once, and the next one works."""
    for _ in range(50):
        with Client(channel, PROBE) as client:
            probe = probe_of(server)
            client.call.cancel()
            server.do(partial(probe.call.answer, b"x" * 100_000))
        wait_until(lambda probe=probe: probe.over)  # type: ignore[misc]
        assert sum(word in {"finished", "cancelled"} for word in probe.told) == 1
    echo(channel, [b"x"])


def test_an_answer_that_is_not_read_can_be_aborted(server: Server) -> None:
    """A client that takes nothing in holds its answer up; abort() ends the call all the same."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 65_536)]
    with grpc.insecure_channel(server.address, options) as channel, Client(channel, PROBE) as client:
        probe = probe_of(server)
        server.do(lambda: probe.call.answer(b"x" * MAX_MESSAGE))
        server.do(lambda: probe.call.abort(grpc.StatusCode.UNAVAILABLE, "leaving"))
        wait_until(lambda: probe.over)
        assert client.end()[0] in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}
    echo_after(server)


def echo_after(server: Server) -> None:
    """The server still answers."""
    with server.channel() as channel:
        echo(channel, [b"x"])


# Metadata.


def test_metadata_of_the_call(server: Server, channel: grpc.Channel) -> None:
    """Method, peer, deadline and invocation metadata, text and binary, are there from the first moment."""
    metadata = (("a-key", "a value"), ("a-key", "another"), ("raw-bin", b"\x00\xff\x80"))
    with Client(channel, PROBE, metadata=metadata, timeout=17.0):
        probe = probe_of(server)
        assert probe.call.method == PROBE
        assert probe.call.peer.startswith("ipv4:127.0.0.1:")
        assert probe.call.deadline is not None
        assert 0 < probe.call.deadline - time.time() < 18.0  # gRPC rounds it up
        assert [pair for pair in probe.call.metadata if pair[0] in {"a-key", "raw-bin"}] == list(metadata)
    wait_until(lambda: probe.over)
    assert probe.call.peer.startswith("ipv4:")  # it has been asked before


def test_a_call_without_a_deadline_has_none(server: Server, channel: grpc.Channel) -> None:
    """No deadline is None, not a large number; a peer first asked for after the end is empty."""
    with Client(channel, PROBE, timeout=None):
        probe = probe_of(server)
        assert probe.call.deadline is None
    wait_until(lambda: probe.over)
    assert probe.call.peer == ""


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_status_and_trailing_metadata(server: Server, channel: grpc.Channel, end: str) -> None:
    """Code, a text in any script, and trailing metadata, text and binary, reach the client."""
    text = "kein Zustand für „µ“: 100 % 🦜\nzweite Zeile"
    trailing = (("reason", "unknown"), ("raw-bin", b"\x00\xff"))
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        server.do(lambda: getattr(probe.call, end)(grpc.StatusCode.NOT_FOUND, text, trailing))
        assert client.end() == (grpc.StatusCode.NOT_FOUND, text)
        assert tuple(client.call.trailing_metadata()) == trailing
    wait_until(lambda: probe.over)
    assert probe.told == ["finished" if end == "finish" else "cancelled"]


def test_every_status_code(server: Server, channel: grpc.Channel) -> None:
    """Every code that gRPC knows arrives as itself."""
    for code in grpc.StatusCode:
        text = "" if code is grpc.StatusCode.OK else code.name  # gRPC keeps no text for OK
        with Client(channel, PROBE) as client:
            probe = probe_of(server)
            server.do(partial(probe.call.finish, code, text))
            assert client.end() == (code, text)


# How a call ends.


@pytest.mark.parametrize("receiving", [True, False])
def test_a_cancel_is_noticed(server: Server, channel: grpc.Channel, *, receiving: bool) -> None:
    """A client's cancel ends the call whether or not a receive is outstanding; then nothing can be done with it."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        if receiving:
            server.do(probe.call.receive)
        client.call.cancel()
        wait_until(lambda: probe.over)

        def too_late() -> None:
            probe.call.send(b"x")
            probe.call.receive()
            probe.call.finish(grpc.StatusCode.OK)
            probe.call.abort(grpc.StatusCode.ABORTED)

        server.do(too_late)
        assert (probe.call.unsent, probe.call.unsent_bytes) == (0, 0)
    assert [word for word in probe.told if word != "half-close"] == ["cancelled"]


def test_a_deadline_ends_the_call(server: Server, channel: grpc.Channel) -> None:
    """When a call's deadline has passed its handler is told, and the client has DEADLINE_EXCEEDED."""
    with Client(channel, PROBE, timeout=0.2) as client:
        probe = probe_of(server)
        assert client.end()[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: probe.over)
    assert probe.told == ["cancelled"]


def test_a_closed_channel_ends_its_calls(server: Server) -> None:
    """All calls of a connection that goes are over."""
    channel = server.channel()
    clients = [Client(channel, PROBE) for _ in range(5)]
    probes = [probe_of(server) for _ in clients]
    channel.close()
    wait_until(lambda: all(probe.over for probe in probes))
    assert all(probe.told[-1] == "cancelled" for probe in probes)
    for client in clients:
        client.half_close()


def test_a_killed_client_ends_its_calls(server: Server) -> None:
    """The calls of a client process that is killed are over, and nobody else's."""
    script = (
        "import grpc, sys, threading\n"
        f"channel = grpc.insecure_channel('{server.address}')\n"
        f"calls = [channel.stream_stream('{PROBE}')(iter(threading.Event().wait, None)) for _ in range(3)]\n"
        "threading.Event().wait()\n"
    )
    with server.channel() as channel, Client(channel, PROBE):
        mine = probe_of(server)
        with subprocess.Popen([sys.executable, "-c", script]) as process:
            probes = [probe_of(server) for _ in range(3)]
            process.send_signal(signal.SIGKILL)
        wait_until(lambda: all(probe.over for probe in probes))
        assert [probe.told[-1] for probe in probes] == ["cancelled"] * 3
        assert not mine.over


# Flow control.


def test_what_is_not_received_stops_the_client(server: Server, channel: grpc.Channel) -> None:
    """Clients that push without end are each held within 1 MiB, and another call on their connection goes on."""
    message = b"x" * 16_384
    given = [0] * 8  # messages that gRPC has taken from each client

    def endless(client: int) -> Iterator[bytes]:
        while True:
            yield message
            given[client] += 1

    start: Any = channel.stream_stream(PROBE)
    calls = [start(endless(client), timeout=SECONDS) for client in range(len(given))]
    probes = [probe_of(server) for _ in calls]
    stand_still(channel, lambda: sum(given))
    held = list(given)
    assert all(0 < taken * len(message) < 1 << 20 for taken in held)
    assert not any(probe.told for probe in probes)
    for _ in range(2 * max(held)):
        for probe in probes:
            server.do(probe.call.receive)
    wait_until(lambda: all(now > before for now, before in zip(given, held, strict=True)))
    for call in calls:
        call.cancel()
    wait_until(lambda: all(probe.over for probe in probes))


def stand_still(channel: grpc.Channel, count: Callable[[], int]) -> None:
    """Wait until a count stands still while a neighbour goes to and fro on the same connection."""
    seen, still = -1, 0
    with Client(channel, ECHO) as neighbour:
        while still < 200:
            neighbour.send(b"ping")
            assert neighbour.read() == b"ping"
            now = count()
            still = still + 1 if now == seen else 0
            seen = now


def test_a_slow_reader_fills_its_own_outbox_only(server: Server, channel: grpc.Channel) -> None:
    """What a client doesn't read stays unsent, neighbours go on, and once it reads it has all, in order."""
    messages = [struct.pack(">I", number) * 32_768 for number in range(300)]  # 39 MB; the largest window is 16 MiB
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        send(server, probe, messages)
        stand_still(channel, lambda: probe.call.unsent)
        unsent, unsent_bytes, sent = server.do(
            lambda: (probe.call.unsent, probe.call.unsent_bytes, probe.told.count("sent"))
        )
        assert 0 < unsent == len(messages) - sent < len(messages)
        assert unsent_bytes == unsent * len(messages[0])
        server.do(lambda: probe.call.finish(grpc.StatusCode.ABORTED, "all"))
        assert [client.read() for _ in messages] == messages
        assert client.end() == (grpc.StatusCode.ABORTED, "all")


@pytest.mark.parametrize("finishing", [True, False])
def test_abort_reaches_a_client_that_does_not_read(server: Server, channel: grpc.Channel, *, finishing: bool) -> None:
    """abort() ends at once a call whose messages can't leave, also one that waits to finish; the status arrives."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        send(server, probe, LARGE)
        if finishing:
            server.do(lambda: probe.call.finish(grpc.StatusCode.OK))
        server.do(lambda: probe.call.abort(grpc.StatusCode.UNAVAILABLE, "geht nicht länger"))
        wait_until(lambda: probe.over)
        assert client.end() == (grpc.StatusCode.UNAVAILABLE, "geht nicht länger")
    assert probe.told[-1] == "cancelled"
    assert probe.call.unsent == 0


# What is too large, and what isn't gRPC.


def test_too_large_a_message_ends_its_call_only(server: Server, channel: grpc.Channel) -> None:
    """A message above the server's limit has RESOURCE_EXHAUSTED for an answer; neighbours don't notice."""
    with Client(channel, ECHO) as neighbour, Client(channel, PROBE) as client:
        probe = probe_of(server)
        server.do(probe.call.receive)
        client.send(b"x" * (MAX_MESSAGE + 1))
        code, details = client.end()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MAX_MESSAGE) in details
        wait_until(lambda: probe.over)
        assert "message" not in probe.told
        neighbour.send(b"ping")
        assert neighbour.read() == b"ping"


def test_too_large_an_answer_ends_its_call_only(server: Server, channel: grpc.Channel) -> None:
    """An answer above the limit, queued behind others, ends the call for client and handler, and nobody waits."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)

        def answer() -> None:
            probe.call.send(b"small")
            probe.call.send(b"x" * (MAX_MESSAGE + 1))
            probe.call.send(b"never")

        server.do(answer)
        assert client.end()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_until(lambda: probe.over)
    assert probe.told[-1] == "cancelled"
    assert probe.call.unsent == 0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(path: str, *more: tuple[str, str]) -> bytes:
    """The HEADERS frame of a gRPC call, all literal."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"), ("te", "trailers")]
    fields += [("content-type", "application/grpc"), *more]
    literal = b"".join(
        b"\x00" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode() for key, value in fields
    )
    return frame(1, 4, 1, literal)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
OPENED = PREFACE + headers(ECHO)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 64,
        PREFACE + bytes(range(256)) * 64,
        PREFACE + frame(0, 0, 1, b"data of a stream that isn't open"),
        PREFACE + frame(1, 4, 1, b"\xff" * 50),
        headers(ECHO),
        OPENED + frame(0, 0, 1, b"\x01" + struct.pack(">I", 3) + b"abc"),
        OPENED + frame(0, 0, 1, b"\x07" + struct.pack(">I", 3) + b"abc"),
        OPENED + frame(0, 1, 1, b"\x00" + struct.pack(">I", 100) + b"abc"),
        OPENED + frame(0, 0, 1, b"\x00" + struct.pack(">I", 2**32 - 1) + b"abc"),
        OPENED + frame(0, 1, 1, b"\x00\x00"),
        PREFACE + headers(ECHO, ("grpc-encoding", "gzip")) + frame(0, 0, 1, b"\x01" + struct.pack(">I", 3) + b"abc"),
        PREFACE + headers(ECHO, ("grpc-encoding", "nonsense")) + frame(0, 0, 1, b"\x01" + struct.pack(">I", 1) + b"a"),
        PREFACE + headers(ECHO, ("grpc-timeout", "soon")),
        OPENED + headers(ECHO),
        OPENED + frame(3, 0, 1, b"\x00"),
        OPENED + frame(8, 0, 1, b"\x00" * 4),
        OPENED + frame(8, 0, 0, b"\x7f\xff\xff\xff"),
    ],
)
def test_rubbish_harms_nobody(server: Server, channel: grpc.Channel, rubbish: bytes) -> None:
    """Whatever bytes a socket brings, other connections are served, and its calls end with it."""
    with Client(channel, ECHO) as neighbour, socket.create_connection(("127.0.0.1", server.port)) as rude:
        rude.sendall(rubbish)
        for _ in range(5):
            neighbour.send(b"ping")
            assert neighbour.read() == b"ping"
        rude.settimeout(SECONDS)
        with suppress(OSError):  # the server may have hung up already
            rude.shutdown(socket.SHUT_WR)
            while rude.recv(65_536):
                pass
    server.settle()


# What isn't hot, and several methods.


def test_public_methods_are_served_beside(server: Server, channel: grpc.Channel) -> None:
    """Health on the same port and connection answers while hot calls are open, and an unknown method is refused."""
    with Client(channel, ECHO) as one, Client(channel, PROBE):
        assert isinstance(probe_of(server), Probe)
        stub = health_pb2_grpc.HealthStub(channel)
        for _ in range(20):
            one.send(b"ping")
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert one.read() == b"ping"
        with Client(channel, "/test.Wire/Missing") as unknown:
            assert unknown.end()[0] is grpc.StatusCode.UNIMPLEMENTED


# Many.


async def open_many(address: str, calls: int, written: list[int]) -> None:
    """Open calls of Echo on four connections at once, and have three messages of each answered; note each write."""

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        call: Any = channel.stream_stream(ECHO)(timeout=SECONDS)
        for turn in range(3):
            message = b"%d/%d" % (number, turn)
            await call.write(message)
            written.append(number)
            assert await call.read() == message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(4)]
    await asyncio.gather(*(one(channels[number % 4], number) for number in range(calls)))
    for channel in channels:
        await channel.close()


def test_many_calls_at_once(server: Server) -> None:
    """A thousand calls, opened together, are each answered in order."""
    asyncio.run(open_many(server.address, 1000, []))


def test_a_crowd_that_comes_while_the_loop_is_busy(server: Server) -> None:
    """None of 1,500 calls that come during one long batch is refused, though gRPC by itself keeps only 1,000."""
    started, over = threading.Event(), threading.Event()
    written: list[int] = []

    def busy() -> None:
        started.set()
        over.wait(SECONDS)

    with ThreadPoolExecutor(2) as pool:
        working = pool.submit(server.do, busy)
        assert started.wait(SECONDS)
        crowd = pool.submit(lambda: asyncio.run(open_many(server.address, 1500, written)))
        wait_until(lambda: len(written) == 1500 or crowd.done())
        over.set()
        working.result(SECONDS)
        crowd.result(SECONDS)


def test_many_calls_in_turn_leave_nothing(server: Server, channel: grpc.Channel) -> None:
    """Neither call objects nor memory grow with the number of calls that were, without help of the collector."""
    for _ in range(200):
        echo(channel, [b"x"])
    server.settle()
    gc.collect()
    before = resident_bytes()
    gc.disable()
    try:
        for _ in range(600):
            echo(channel, [b"x"])
        server.settle()
        # The loop's thread may be about to let go of the last one. (isinstance() would wake what is lazy.)
        wait_until(lambda: not any(type(thing) is Call for thing in gc.get_objects()))
    finally:
        gc.enable()
    gc.collect()
    assert resident_bytes() - before < 600 * 8192  # a leaked call holds more


def resident_bytes() -> int:
    """The memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Whatever happens first.

ACTIONS = {
    "receive": lambda call: call.receive(),
    "receive later": lambda call: call.receive_after_reply(),
    "reply": lambda call: call.reply(b"x" * 10),
    "reply much": lambda call: call.reply(b"x" * 500_000),
    "send": lambda call: call.send(b"x" * 10),
    "send much": lambda call: call.send(b"x" * 500_000),
    "finish": lambda call: call.finish(grpc.StatusCode.OK, "fin"),
    "abort": lambda call: call.abort(grpc.StatusCode.ABORTED, "abo"),
}
LONG_KNOWN = 64  # messages by which a client is taken to wait for every answer
CLIENT_ACTIONS = {
    "write": lambda client: client.send(b"x" * 10),
    "write much": lambda client: client.send(b"x" * 500_000),
    "half-close": lambda client: client.half_close(),
    "cancel": lambda client: client.call.cancel(),
}


@given(st.lists(st.sampled_from([*ACTIONS, *CLIENT_ACTIONS]), max_size=12))
@settings(max_examples=150, deadline=None, database=None)
def test_a_call_ends_exactly_once_whatever_happens_first(shared: Server, actions: list[str]) -> None:
    """Under any order of both sides' actions on_closed comes once and last, and nothing but it after finish()."""
    with shared.channel() as channel, Client(channel, PROBE) as client:
        probe = probe_of(shared)
        probe.call._lockstep = LONG_KNOWN
        told_before_end = None
        for action in actions:
            if action in CLIENT_ACTIONS:
                CLIENT_ACTIONS[action](client)
                continue
            told = shared.do(lambda: (list(probe.told), ACTIONS[action](probe.call))[0])  # noqa: B023
            if action in {"finish", "abort"} and told_before_end is None:
                told_before_end = told
        client.call.cancel()
        wait_until(lambda: probe.over, every=0.001)
    shared.settle()
    ends = [word for word in probe.told if word in {"cancelled", "finished"}]
    assert probe.told[-1:] == ends
    assert len(probe.messages) <= actions.count("receive") + actions.count("receive later")
    if told_before_end is not None:
        assert probe.told in (told_before_end, [*told_before_end, *ends])
    assert (probe.call.unsent, probe.call.unsent_bytes) == (0, 0)
    assert shared.faults == []


# Faults of ours.


@pytest.mark.parametrize("callback", ["__init__", "on_message", "on_half_close", "on_sent", "on_closed"])
def test_what_a_handler_raises_comes_out_of_poll(callback: str) -> None:
    """A fault in one call's handler comes out of poll(), and the wire serves the other calls as before."""

    def fault(*_: Any, **__: Any) -> None:
        raise LookupError(callback)

    faulty = type("Faulty", (Probe,), {callback: fault})
    with serving_with_faults(faulty) as server, server.channel() as channel:
        with Client(channel, ECHO) as neighbour, Client(channel, PROBE) as client:
            if callback != "__init__":
                probe = probe_of(server)
                send(server, probe, [b"x"])
                server.do(probe.call.receive)
            (client.half_close if callback == "on_half_close" else lambda: client.send(b"x"))()
            if callback == "on_closed":
                client.call.cancel()
            wait_until(lambda: bool(server.faults))
            neighbour.send(b"ping")
            assert neighbour.read() == b"ping"
        server.settle()
        echo(channel, [b"x"])
    assert [str(fault) for fault in server.faults] == [callback]


@contextmanager
def serving_with_faults(probe: Any) -> Iterator[Server]:
    """A server that must go cleanly, whatever comes out of poll."""
    server = Server(probe=probe)
    try:
        yield server
    finally:
        clean = server.stop()
    assert clean


def test_an_operation_that_grpc_refuses_is_an_error(server: Server, channel: grpc.Channel) -> None:
    """A second receive, which would be lost and its client wait for ever, raises and is named; the call lives on."""

    def receive_twice() -> None:
        probe.call.receive()
        probe.call._receiving = False
        probe.call.receive()

    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        with pytest.raises(WireError, match=r"ReceiveMessageOperation.*/test\.Wire/Probe.*8"):
            server.do(receive_twice)
        client.send(b"x")
        wait_until(lambda: probe.messages == [b"x"])


def test_metadata_that_grpc_does_not_allow_ends_the_call(server: Server, channel: grpc.Channel) -> None:
    """A status that can't be sent still ends the call on both sides: nobody waits."""
    with Client(channel, PROBE) as client:
        probe = probe_of(server)
        server.do(lambda: probe.call.finish(grpc.StatusCode.OK, "", (("Not Allowed", "x"),)))
        assert client.end()[0] is grpc.StatusCode.INTERNAL
        wait_until(lambda: probe.over)
    assert probe.told == ["cancelled"]


def test_another_grpcio_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a version that isn't tested the wire refuses to start, and names it, those that are, and this test."""
    public = grpc.server(ThreadPoolExecutor(1))
    monkeypatch.setattr(grpc, "__version__", "9.9.9")
    with pytest.raises(WireError, match=rf"9\.9\.9.*{re.escape(wire_module.TESTED_GRPC[-1])}.*test_wire"):
        Wire(public, {})


def test_a_server_of_another_kind_is_not_accepted() -> None:
    """Without the core server inside there is no wire."""
    with pytest.raises(WireError, match=r"test_wire\.py"):
        Wire(object(), {})  # type: ignore[arg-type]


# Polling.


def test_poll_waits_no_longer_than_it_is_told(server: Server) -> None:
    """Without an event poll(0) returns at once, and poll(t) after t seconds, with 0."""

    def timed(seconds: float) -> float:
        started = time.monotonic()
        assert server.wire.poll(seconds) == 0
        return time.monotonic() - started

    server.do(lambda: server.wire.poll(0.0))
    assert server.do(lambda: timed(0.0)) < 0.05
    assert 0.09 < server.do(lambda: timed(0.1)) < 1.0


def test_an_empty_queue_is_seen_at_once(server: Server, channel: grpc.Channel) -> None:
    """With a call open, poll(0) doesn't stand in line behind the public server's thread for some 80 us."""

    def quickest() -> float:
        times = []
        for _ in range(500):
            started = time.perf_counter()
            server.wire.poll(0.0)
            times.append(time.perf_counter() - started)
        return min(times)

    with Client(channel, PROBE):
        probe_of(server)
        assert server.do(quickest) < 30e-6


def test_poll_comes_back_in_a_flood(server: Server, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One poll takes a limited number of events, and the rest is taken by the next ones."""
    monkeypatch.setattr(wire_module, "_MAX_EVENTS", 3)
    taken: list[int] = []
    with Client(channel, ECHO) as client:
        for _ in range(500):
            client.send(b"x")
        client.half_close()
        while (len(taken) < 1000 and server.wire.live) or not taken:
            taken.append(server.do(lambda: server.wire.poll(0.01)))
        assert list(client.call) == [b"x"] * 500
    assert max(taken) == 3


# The end.


def test_refuse_all_ends_every_call_and_every_new_one() -> None:
    """Live calls, whatever they wait for, get the status; so do new ones; public methods go on."""
    gone = (grpc.StatusCode.UNAVAILABLE, "zu spät")
    with serving() as server, server.channel() as channel:
        with Client(channel, PROBE) as idle, Client(channel, PROBE) as unread, Client(channel, ECHO) as echoing:
            probes = [probe_of(server), probe_of(server)]
            server.do(probes[0].call.receive)
            send(server, probes[1], LARGE)
            echoing.send(b"ping")
            assert echoing.read() == b"ping"
            server.do(lambda: server.wire.refuse_all(*gone))
            server.settle()
            assert [client.end() for client in (idle, unread, echoing)] == [gone] * 3
            assert [probe.told.count("cancelled") + probe.told.count("finished") for probe in probes] == [1, 1]
        for _ in range(50):
            with Client(channel, PROBE) as late:
                assert late.end() == gone
        assert server.probes.empty()
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status
        server.settle()


@pytest.mark.parametrize("polled", [True, False])
def test_stopping_with_live_calls(*, polled: bool) -> None:
    """server.stop(0) and stop() end every call, with or without polls between, and each handler is told once."""
    server = Server()
    with server.channel() as channel, Client(channel, PROBE), Client(channel, PROBE) as unread, Client(channel, ECHO):
        probes = [probe_of(server), probe_of(server)]
        send(server, probes[1], LARGE)
        server.do(probes[1].call.receive)
        unread.send(b"never seen")
        if polled:
            assert server.stop()
        else:
            server.halt()
            ended = server.public.stop(SECONDS)  # the wire doesn't wait for what the server would
            assert server.wire.stop()
            assert ended.wait(SECONDS)
        assert server.wire.live == 0
        assert [probe.told[-1] for probe in probes] == ["cancelled", "cancelled"]
    assert server.faults == []


def test_stop_before_the_server_stops_says_so() -> None:
    """stop() while the public server still runs gives up in time, and can be called again afterwards."""
    server = Server()
    server.halt()
    assert not server.wire.stop(timeout=0.2)
    ended = server.public.stop(0)
    server.wire._request(PROBE, print)  # as if a call had come at this moment: there is none to ask for any more
    assert server.wire.stop()
    assert ended.wait(SECONDS)


PROGRAM = """
import sys, threading
import grpc
from tests.serving.wire_server import PROBE, Client, Server
from concurrent.futures import ThreadPoolExecutor
from serving.wire import Wire

def live():
    server = Server()
    channel = server.channel()
    clients = [Client(channel, PROBE) for _ in range(20)]
    probes = [server.probes.get(timeout=20) for _ in clients]
    server.do(lambda: [probe.call.send(b"x" * 100_000) for probe in probes] and None)
    server.do(lambda: [probe.call.receive() for probe in probes] and None)
    assert server.stop()
    for client in clients:
        client.half_close()
    channel.close()

def never_started():
    public = grpc.server(ThreadPoolExecutor(1))
    wire = Wire(public, {PROBE: None})
    public.add_insecure_port("127.0.0.1:0")

def idle():
    assert Server().stop()

globals()[sys.argv[1]]()
"""


@pytest.mark.parametrize("program", ["live", "never_started", "idle"])
def test_the_interpreter_ends_quietly(program: str) -> None:
    """A process that has served, or only prepared to, exits with 0 and not a word."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, program],
        cwd=ROOT,
        env={**os.environ, "GRPC_VERBOSITY": "ERROR"},  # its client may remark that the server has gone
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
