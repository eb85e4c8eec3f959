"""A bare HTTP/2 client for the tests: it notes every frame, and does what no gRPC library would."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import hpack
from hyperframe import frame as frames

from tests.serving.client import SECONDS
from tests.waiting import wait_until

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER = 9  # bytes of a frame before its payload
_WINDOW = 1 << 30


@dataclass(slots=True)
class Call:
    """What came for one call."""

    number: int
    messages: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)  # trailers, too
    ended: bool = False
    reset: int | None = None  # the code of the RST_STREAM


class Connection:
    """One connection: calls are begun by the test, and frames are read by a thread."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), SECONDS)
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self.calls: dict[int, Call] = {}
        self.goaways: list[tuple[int, int]] = []  # last stream, code
        self.closed = False  # by the server
        settings = frames.SettingsFrame(settings={frames.SettingsFrame.INITIAL_WINDOW_SIZE: _WINDOW})
        self._send(_PREFACE + settings.serialize())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self, path: str, *, metadata: tuple[tuple[str, str], ...] = ()) -> Call:
        """Send a call's headers, and no more."""
        call = Call(2 * len(self.calls) + 1)
        self.calls[call.number] = call
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test", "te": "trailers"}
        block = self._encoder.encode([*fields.items(), ("content-type", "application/grpc"), *metadata])
        pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        sent: list[Any] = [frames.HeadersFrame(call.number, pieces[0])]
        sent += [frames.ContinuationFrame(call.number, piece) for piece in pieces[1:]]
        sent[-1].flags.add("END_HEADERS")
        self._send(b"".join(frame.serialize() for frame in sent))
        return call

    def send(self, call: Call, message: Any, *, size: int | None = None) -> None:
        """Send one gRPC message; `size`: what its header says it has, if not the truth."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        framed = b"\0" + (len(data) if size is None else size).to_bytes(4, "big") + data
        for at in range(0, len(framed), 16_000):
            self._send(frames.DataFrame(call.number, framed[at : at + 16_000]).serialize())

    def half_close(self, call: Call) -> None:
        """Send no more on the call."""
        self._send(frames.DataFrame(call.number, b"", flags=["END_STREAM"]).serialize())

    def until_ended(self, call: Call) -> dict[str, str]:
        """Wait for the call's end: its trailers."""
        wait_until(lambda: call.ended or call.reset is not None or self.closed, seconds=SECONDS)
        return call.headers

    def close(self) -> None:
        """Close it without a word."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(SECONDS)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _read(self) -> None:
        held = b""
        try:
            while data := self._socket.recv(1 << 16):
                held += data
                while len(held) >= _HEADER:
                    frame, length = frames.Frame.parse_frame_header(memoryview(held[:_HEADER]))
                    if len(held) < _HEADER + length:
                        break
                    frame.parse_body(memoryview(held[_HEADER : _HEADER + length]))
                    held = held[_HEADER + length :]
                    self._take(frame)
        except OSError:
            pass
        self.closed = True

    def _take(self, frame: Any) -> None:
        call = self.calls.get(frame.stream_id)
        if isinstance(frame, frames.GoAwayFrame):
            self.goaways.append((frame.last_stream_id, frame.error_code))
        elif isinstance(frame, frames.PingFrame) and "ACK" not in frame.flags:
            self._send(frames.PingFrame(0, frame.opaque_data, flags=["ACK"]).serialize())
        elif isinstance(frame, frames.SettingsFrame) and "ACK" not in frame.flags:
            self._send(frames.SettingsFrame(flags=["ACK"]).serialize())
        elif call is not None and isinstance(frame, frames.DataFrame):
            call.messages += bytes(frame.data)
        elif call is not None and isinstance(frame, frames.HeadersFrame):
            call.headers |= {str(name): str(value) for name, value in self._decoder.decode(bytes(frame.data))}
        elif call is not None and isinstance(frame, frames.RstStreamFrame):
            call.reset = frame.error_code
        if call is not None and "END_STREAM" in frame.flags:
            call.ended = True
