"""One connection against h2's server: flow control, messages in pieces, and every way a call can end."""

from __future__ import annotations

from functools import partial
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from bench.load import frames
from bench.load.connection import Connection, LoadError
from bench.load.shapes import prefixed


class Notes:
    """A handler that remembers."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.end: tuple[int, str] | None = None

    def on_message(self, data: bytes) -> None:
        self.messages.append(data)

    def on_end(self, status: int, text: str) -> None:
        self.end = (status, text)


class Pair:
    """Our client beside h2's server, the bytes carried by hand."""

    def __init__(self, *, cut: int = 1 << 30, **settings: int) -> None:
        self.cut = cut
        self.client = Connection("test:1")
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.server.encoder.encode = partial(self.server.encoder.encode, huffman=False)  # type: ignore[method-assign]
        self.server.initiate_connection()
        if settings:
            self.server.update_settings({h2.settings.SettingCodes[name]: value for name, value in settings.items()})
        self.rest = b""
        self.received = bytearray()  # bodies
        self.events: list[Any] = []

    def carry(self) -> None:
        """Bytes in both directions until nobody has any."""
        while True:
            out = self.client.take_output()
            for event in self.server.receive_data(out) if out else ():
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived):
                    self.received += event.data
            back = self.server.data_to_send()
            for at in range(0, len(back), self.cut):
                self.rest = self.client.receive(self.rest + back[at : at + self.cut])
            if not out and not back:
                return


def kinds(pair: Pair) -> list[type]:
    """What the server has seen."""
    return [type(event) for event in pair.events]


@pytest.fixture(params=[1, 7, 1 << 30])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Bytes to the client come one by one, in sevens, or as they are."""
    made = Pair(cut=request.param)
    made.carry()
    return made


def test_a_whole_call(pair: Pair) -> None:
    """Headers, messages there and back, half-close, status."""
    notes = Notes()
    call = pair.client.open("/s/M", notes)
    pair.client.send(call, prefixed(b"one"))
    pair.carry()
    pair.server.send_headers(call.number, [(":status", "200"), ("content-type", "application/grpc")])
    pair.server.send_data(call.number, prefixed(b"two") + prefixed(b"") + prefixed(b"three")[:6])
    pair.server.send_data(call.number, prefixed(b"three")[6:])
    pair.server.send_data(call.number, prefixed(b"four"))
    pair.client.half_close(call)
    pair.carry()
    assert (notes.messages, notes.end) == ([b"two", b"", b"three", b"four"], None)
    pair.server.send_headers(call.number, [("grpc-status", "0")], end_stream=True)
    pair.carry()
    assert notes.end == (0, "")
    assert bytes(pair.received) == prefixed(b"one")
    assert h2.events.StreamEnded in kinds(pair)
    assert pair.client.calls == 0


def test_an_early_status_ends_the_call_from_both_sides(pair: Pair) -> None:
    """The text of a refusal is told; the server sees the call closed."""
    notes = Notes()
    call = pair.client.open("/s/M", notes)
    pair.carry()
    pair.server.send_headers(
        call.number, [(":status", "200"), ("grpc-status", "8"), ("grpc-message", "too%20many")], end_stream=True
    )
    pair.carry()
    assert notes.end is not None
    assert notes.end[0] == 8
    assert h2.events.StreamReset in kinds(pair)


def test_messages_wait_for_the_windows() -> None:
    """More than a call's window and the connection's goes out as the server takes it in, and arrives whole."""
    pair = Pair(INITIAL_WINDOW_SIZE=1000, MAX_FRAME_SIZE=16384)
    pair.carry()
    notes = Notes()
    first, second = pair.client.open("/s/M", notes), pair.client.open("/s/M", notes)
    message = prefixed(bytes(range(256)) * 400)  # 102,405 bytes: more than the connection's 65,535
    pair.client.send(first, message)
    pair.client.half_close(first)
    pair.client.send(second, prefixed(b"passes by"))
    pair.carry()
    assert len(pair.received) == 1000 + len(prefixed(b"passes by"))  # the first call's window holds it, not the second
    pair.received = bytearray(pair.received[:1000])
    for _ in range(300):
        flow = pair.server.remote_flow_control_window
        pair.server.acknowledge_received_data(1000, first.number) if flow(first.number) < 500 else None
        pair.carry()
    assert bytes(pair.received) == message
    assert h2.events.StreamEnded in kinds(pair)


def test_small_messages_wait_too() -> None:
    """Of one call for its window, of many calls for the connection's, though each would fit by itself."""
    pair = Pair(INITIAL_WINDOW_SIZE=1000)
    pair.carry()
    calls = [pair.client.open("/s/M", Notes()) for _ in range(100)]
    for _ in range(11):
        pair.client.send(calls[0], prefixed(b"x" * 95))
    pair.carry()
    assert len(pair.received) == 1000
    for call in calls[1:]:
        for _ in range(9):
            pair.client.send(call, prefixed(b"x" * 95))
    pair.carry()  # h2 would raise if the connection's 65,535 were passed
    assert len(pair.received) == frames.FIRST_WINDOW


def test_a_wider_window_for_all_calls_lets_go_what_waits() -> None:
    """SETTINGS change the windows of calls that are open."""
    pair = Pair(INITIAL_WINDOW_SIZE=10)
    pair.carry()
    call = pair.client.open("/s/M", Notes())
    pair.client.send(call, prefixed(b"x" * 100))
    pair.carry()
    assert len(pair.received) == 10
    pair.server.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    pair.carry()
    assert bytes(pair.received) == prefixed(b"x" * 100)


def test_our_own_windows_are_filled_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may send without end: after so many bytes connection and call get as many anew."""
    monkeypatch.setattr("bench.load.connection._REPLENISH", 50_000)
    pair = Pair()
    pair.carry()
    notes = Notes()
    call = pair.client.open("/s/M", notes)
    pair.carry()
    pair.server.send_headers(call.number, [(":status", "200")])
    before = pair.server.outbound_flow_control_window, pair.server.local_flow_control_window(call.number)
    for _ in range(10):
        pair.server.send_data(call.number, prefixed(bytes(10_000)))
        pair.carry()
    assert len(notes.messages) == 10
    assert pair.server.outbound_flow_control_window > before[0] - 60_000
    assert pair.server.local_flow_control_window(call.number) > before[1] - 60_000


def test_pings_are_answered_and_settings_confirmed(pair: Pair) -> None:
    """As every client must."""
    pair.server.ping(b"12345678")
    pair.carry()
    assert h2.events.PingAckReceived in kinds(pair)
    assert h2.events.SettingsAcknowledged in kinds(pair)


def test_a_reset_ends_the_call(pair: Pair) -> None:
    """With the code that the server gave."""
    notes = Notes()
    call = pair.client.open("/s/M", notes)
    pair.carry()
    pair.server.reset_stream(call.number, error_code=7)
    pair.carry()
    assert notes.end == (2, "the server has reset the call with code 7")


def test_goaway_ends_the_run(pair: Pair) -> None:
    """Nothing measured after it would be worth anything."""
    pair.server.close_connection(error_code=11, additional_data=b"calm down")
    with pytest.raises(LoadError, match="code 11 'calm down'"):
        pair.carry()


def test_a_compressed_message_is_refused() -> None:
    """Nobody asked for one."""
    connection = Connection("test:1")
    call = connection.open("/s/M", Notes())
    with pytest.raises(LoadError, match="compressed"):
        connection.receive(frames.frame(frames.DATA, 0, call.number, b"\x01\x00\x00\x00\x01x"))


def test_what_comes_for_a_call_that_is_over_is_dropped(pair: Pair) -> None:
    """Answers under way when the call ended."""
    assert pair.client.receive(frames.frame(frames.DATA, 0, 99, prefixed(b"late"))) == b""
