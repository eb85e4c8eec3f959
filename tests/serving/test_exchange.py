"""An answer and the next receive in one operation: when that is done, and that nobody is kept waiting by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from serving import call as call_module
from serving.call import Call
from tests.serving.wire_server import MAX_MESSAGE, PROBE, Client, Probe, Server, serving
from tests.waiting import wait_until

OK = (grpc.StatusCode.OK, "")
KNOWN = 64  # messages, each answered before the next came


class Answering(Probe):
    """Answers what it gets, and takes the next message as a service does that owes one answer at a time."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.prompt = True  # else the test answers
        self.answer_bytes: int | None = None
        call.receive()

    def on_message(self, data: bytes) -> None:
        super().on_message(data)
        self.call.receive_after_reply()
        if self.prompt:
            self.call.reply(data if self.answer_bytes is None else b"x" * self.answer_bytes)

    def on_half_close(self) -> None:
        super().on_half_close()
        self.call.finish(grpc.StatusCode.OK)


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """One server for all."""
    with serving(probe=Answering) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The same; every test leaves it without calls and without faults."""
    yield shared
    shared.settle()
    assert shared.faults == []


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A call of it."""
    with server.channel() as channel, Client(channel, PROBE) as client:
        yield client


def probe_of(server: Server) -> Answering:
    """The probe of the call that has just been made."""
    probe: Answering = server.probes.get(timeout=30)
    return probe


def ask(client: Client, count: int) -> None:
    """So many messages, each sent when the one before is answered."""
    for number in range(count):
        client.send(b"%d" % number)
        assert client.read() == b"%d" % number


def exchanging(server: Server, probe: Probe) -> bool:
    """Whether an answer and a receive are outstanding in one operation."""
    return server.do(lambda: probe.call._exchanging)


def ask_in_pace(server: Server, probe: Probe, client: Client) -> None:
    """One message; then the server has noticed, too, that its answer is sent: else the next is no exchange."""
    ask(client, 1)
    wait_until(lambda: server.do(lambda: probe.call._sending is None))


def known(server: Server, client: Client) -> Answering:
    """The probe of a client that is known to wait, and whose latest answer is part of an exchange."""
    probe = probe_of(server)
    for _ in range(KNOWN + 2):
        ask_in_pace(server, probe, client)
    assert exchanging(server, probe)
    return probe


def test_a_client_that_waits_is_known_after_some_messages(server: Server, client: Client) -> None:
    """Not before; and every message comes back, in its order."""
    probe = probe_of(server)
    for answered_before in range(3 * KNOWN):
        ask_in_pace(server, probe, client)
        assert exchanging(server, probe) == (answered_before > KNOWN and answered_before % KNOWN != 0)
    client.half_close()
    assert client.end() == OK


def test_a_client_that_sends_ahead_is_seen_at_the_next_look(server: Server, client: Client) -> None:
    """While an answer is owed the message behind it isn't taken, but for once in so many messages."""
    probe = known(server, client)
    probe.prompt = False
    client.send(b"first")
    for taken in range(len(probe.messages) + 1, 3 * KNOWN):
        client.send(b"ahead")
        wait_until(lambda: len(probe.messages) >= taken)  # noqa: B023
        if server.do(lambda: probe.call._receiving or len(probe.messages) > taken):  # noqa: B023
            break
        server.do(lambda: probe.call.reply(b"x"))
    assert taken == 2 * KNOWN + 1
    wait_until(lambda: len(probe.messages) > taken)  # though nothing was answered


def test_a_plain_receive_forgets_it(server: Server, client: Client) -> None:
    """A service that finds a client sending ahead says so by receive(), even in the middle of one."""
    probe = known(server, client)
    probe.prompt = False
    client.send(b"x")
    wait_until(lambda: probe.messages[-1] == b"x")
    server.do(probe.call.receive)
    client.send(b"y")
    wait_until(lambda: probe.messages[-1] == b"y")
    server.do(lambda: probe.call.reply(b"1"))
    assert not exchanging(server, probe)
    assert client.read() == b"1"


def test_a_client_that_pauses_is_not_known(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its messages it can be told something, and is at once."""
    probe = known(server, client)
    monkeypatch.setattr(call_module, "_BRISK", 0.0)
    ask(client, 1)
    assert not exchanging(server, probe)
    server.do(lambda: probe.call.send(b"news"))
    assert client.read() == b"news"


@pytest.mark.parametrize("moment", ["owing", "idle"])
def test_what_is_sent_besides_arrives_before_the_next_answer(server: Server, client: Client, moment: str) -> None:
    """At once while an answer is owed; else with the client's next message. Nobody waits for the other."""
    probe = known(server, client)
    if moment == "owing":
        probe.prompt = False
        client.send(b"question")
        wait_until(lambda: probe.messages[-1] == b"question")
        server.do(lambda: probe.call.send(b"news"))
        assert client.read() == b"news"
        server.do(lambda: probe.call.reply(b"answer"))
        assert client.read() == b"answer"
    else:
        server.do(lambda: probe.call.send(b"news"))
        assert server.do(lambda: (probe.call.unsent, probe.call.unsent_bytes)) == (1, 4)
        client.send(b"question")
        assert [client.read(), client.read()] == [b"news", b"question"]
        wait_until(lambda: server.do(lambda: probe.call.unsent_bytes) == 0)
    client.half_close()
    assert client.end() == OK


def test_the_end_does_not_wait_for_the_next_message(server: Server, client: Client) -> None:
    """finish() reaches a client that sends nothing, metadata and all; what waits behind the exchange is dropped."""
    probe = known(server, client)

    def end() -> tuple[int, int]:
        probe.call.send(b"news")
        probe.call.finish(grpc.StatusCode.NOT_FOUND, "gone", (("why", "because"),))
        return probe.call.unsent, probe.call.unsent_bytes

    assert server.do(end) == (0, 0)
    assert client.end() == (grpc.StatusCode.NOT_FOUND, "gone")
    assert dict(client.call.trailing_metadata())["why"] == "because"
    wait_until(lambda: probe.over)
    assert probe.told[-1] == "finished"


def test_nothing_is_told_after_the_end(server: Server, client: Client) -> None:
    """A message that has arrived already when the service ends the call is dropped."""
    probe = known(server, client)
    told = list(probe.told)

    def end() -> None:
        client.send(b"late")
        time.sleep(0.2)  # it comes while this thread doesn't look
        probe.call.finish(grpc.StatusCode.OK)

    server.do(end)
    assert client.end() == OK
    wait_until(lambda: probe.over)
    assert probe.told == [*told, "finished"]


def test_abort_reaches_a_client_that_does_not_read(server: Server) -> None:
    """Its answer is held up for want of room, and the status isn't."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 65_536)]
    with grpc.insecure_channel(server.address, options) as channel, Client(channel, PROBE) as client:
        probe = known(server, client)
        probe.answer_bytes = MAX_MESSAGE
        client.send(b"x")
        wait_until(lambda: probe.messages[-1] == b"x")
        assert exchanging(server, probe)
        server.do(lambda: probe.call.abort(grpc.StatusCode.UNAVAILABLE, "leaving"))
        wait_until(lambda: probe.over)
        assert client.end()[0] is grpc.StatusCode.UNAVAILABLE


def test_abort_does_not_either(server: Server, client: Client) -> None:
    """As refuse_all() does at the end of a server's life."""
    probe = known(server, client)
    server.do(lambda: probe.call.abort(grpc.StatusCode.UNAVAILABLE, "leaving"))
    assert client.end() == (grpc.StatusCode.UNAVAILABLE, "leaving")
    wait_until(lambda: probe.over)


@pytest.mark.parametrize("end", ["half-close", "cancel"])
def test_the_client_may_end_it(server: Server, client: Client, end: str) -> None:
    """A half-close and a cancel are noticed as ever."""
    probe = known(server, client)
    if end == "half-close":
        client.half_close()
        assert client.end() == OK
    else:
        client.call.cancel()
    wait_until(lambda: probe.over)
    assert probe.told[-1] == ("finished" if end == "half-close" else "cancelled")
    assert probe.told.count("half-close") == (end == "half-close")


def test_too_large_a_message_ends_its_call_only(server: Server, client: Client) -> None:
    """It is refused by gRPC, the client learns why, and nobody else is harmed."""
    probe = known(server, client)
    client.send(b"x" * (MAX_MESSAGE + 1))
    assert client.end()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    wait_until(lambda: probe.over)


def test_too_large_an_answer_ends_its_call_only(server: Server, client: Client) -> None:
    """The client isn't left waiting for an answer that gRPC doesn't send."""
    probe = known(server, client)
    probe.answer_bytes = MAX_MESSAGE + 1
    client.send(b"x")
    assert client.end()[0] in {grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED}
    wait_until(lambda: probe.over)


def test_a_killed_connection_ends_it(server: Server) -> None:
    """A client that is gone in the middle of an exchange leaves nothing."""
    channel: Any = server.channel()
    client = Client(channel, PROBE)
    probe = known(server, client)
    channel.close()
    wait_until(lambda: probe.over)
    assert probe.told[-1] == "cancelled"
    client.half_close()


def test_time_passes_on_the_wire(server: Server, client: Client) -> None:
    """The time by which pauses are told is the poll's."""
    probe = known(server, client)
    before = server.wire.now
    time.sleep(0.05)
    ask(client, 1)
    assert 0.05 <= server.wire.now - before < 30
    assert not probe.over
