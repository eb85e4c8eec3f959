"""One HTTP/2 connection with its gRPC calls: bytes in, messages to the calls' handlers, bytes out.

Owns flow control in both directions and the order of frames. Has no socket and no clock: the driver moves the bytes
between `receive`, `take_output` and a socket. What doesn't happen in steady state is kept out of the paths that do.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from bench.load import frames
from bench.load.frames import DATA, HEADER, HEADER_SIZE, PREFIX, PREFIX_SIZE, FrameError

_REPLENISH = 1 << 28  # bytes received before the windows are filled up again


class LoadError(RuntimeError):
    """The server, or the connection to it, didn't do what a run needs; nothing was measured."""


class Handler(Protocol):
    """What a call's owner is told, from within Connection.receive."""

    def on_message(self, data: bytes) -> None:
        """Take one message."""

    def on_end(self, status: int, text: str) -> None:
        """Note that the server has ended the call with this gRPC status."""


class Call:
    """One gRPC call."""

    __slots__ = ("_handler", "ending", "head", "head_size", "number", "partial", "received", "waiting", "window")

    def __init__(self, number: int, handler: Handler, window: int) -> None:
        self.number = number  # its HTTP/2 stream
        self.window = window  # bytes that it may still send
        self.received = 0  # since the windows were last filled up
        self.partial = b""  # of a message that came in several frames
        self.waiting: deque[memoryview] = deque()  # what the windows hold back
        self.ending = False  # half-close once nothing waits
        self.head, self.head_size = b"", -1  # the header of its latest DATA frame
        self._handler = handler

    @property
    def handler(self) -> Handler:
        """Who is told of what comes."""
        return self._handler


class Connection:
    """The client's side of one connection."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._calls: dict[int, Call] = {}
        self._next = 1
        self._window = frames.FIRST_WINDOW
        self._call_window = frames.FIRST_WINDOW
        self._max_frame = frames.FIRST_MAX_FRAME
        self._received = 0
        self._held: dict[Call, None] = {}  # calls with something waiting, in order
        self._heads: dict[str, bytes] = {}  # header blocks by path
        huge = frames.LARGEST_WINDOW
        ours = {frames.HEADER_TABLE_SIZE: 0, frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: huge}
        self._out: list[bytes | memoryview] = [
            frames.PREFACE,
            frames.settings(ours),
            frames.window_update(0, huge - frames.FIRST_WINDOW),
        ]

    @property
    def calls(self) -> int:
        """Calls that haven't ended."""
        return len(self._calls)

    def open(self, path: str, handler: Handler) -> Call:
        """Begin a call of a method (/package.Service/Method)."""
        block = self._heads.get(path)
        if block is None:
            block = self._heads[path] = frames.call_headers(path, self._authority)
        call = self._calls[self._next] = Call(self._next, handler, self._call_window)
        self._next += 2
        self._out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, call.number, block))
        return call

    def send(self, call: Call, message: bytes) -> None:
        """Send a message that has its gRPC prefix already, as far as the windows allow, the rest when they do."""
        size = len(message)
        if call.waiting or size > call.window or size > self._window or size > self._max_frame:
            call.waiting.append(memoryview(message))
            self._held[call] = None
            self._send_held()
            return
        if size != call.head_size:
            call.head, call.head_size = HEADER.pack(size >> 8, size & 0xFF, DATA, 0, call.number), size
        call.window -= size
        self._window -= size
        self._out += (call.head, message)

    def half_close(self, call: Call) -> None:
        """Say that no message follows those already given to `send`."""
        call.ending = True
        if not call.waiting:
            self._out.append(frames.frame(DATA, frames.END_STREAM, call.number))

    def take_output(self) -> bytes:
        """What is to be written to the socket now."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def receive(self, data: bytes) -> bytes:
        """Deal with the whole frames in `data`; returns what is left, to stand before what comes next."""
        at, end = 0, len(data)
        unpack = HEADER.unpack_from
        calls = self._calls
        while end - at >= HEADER_SIZE:
            high, low, kind, flags, number = unpack(data, at)
            start = at + HEADER_SIZE
            stop = start + (high << 8) + low
            if stop > end:
                break
            at = stop
            if kind == DATA and not flags:
                call = calls.get(number)
                if call is not None:
                    self._received += stop - start
                    self._data(call, data, start, stop)
            else:
                self._other(kind, flags, number, data[start:stop])
        if self._received > _REPLENISH:
            self._replenish()
        return data[at:] if at else data

    def _data(self, call: Call, data: bytes, start: int, stop: int) -> None:
        call.received += stop - start
        if not call.partial and stop - start > PREFIX_SIZE:
            compressed, size = PREFIX.unpack_from(data, start)
            if size == stop - start - PREFIX_SIZE and not compressed:
                call.handler.on_message(data[start + PREFIX_SIZE : stop])
                return
        self._pieces(call, data[start:stop])

    def _pieces(self, call: Call, piece: bytes) -> None:
        """A frame that isn't exactly one message."""
        data = call.partial + piece
        at = 0
        while len(data) - at >= PREFIX_SIZE:
            compressed, size = PREFIX.unpack_from(data, at)
            if compressed:
                raise LoadError("the server sent a compressed message, which nobody asked for")
            start = at + PREFIX_SIZE
            if len(data) < start + size:
                break
            at = start + size
            call.handler.on_message(data[start:at])
        call.partial = data[at:]

    def _replenish(self) -> None:
        self._out.append(frames.window_update(0, self._received))
        self._received = 0
        for call in self._calls.values():  # none has received more than the connection
            if call.received:
                self._out.append(frames.window_update(call.number, call.received))
                call.received = 0

    def _other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._widen(number, payload)
        elif kind == DATA:
            self._odd_data(flags, number, payload)
        elif kind == frames.HEADERS:
            self._headers(flags, number, payload)
        elif kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._settings(frames.read_settings(payload))
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self._out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.RST_STREAM:
            self._reset(number, payload)
        elif kind in (frames.GOAWAY, frames.CONTINUATION):
            self._give_up(kind, payload)

    @staticmethod
    def _give_up(kind: int, payload: bytes) -> None:
        if kind == frames.CONTINUATION:
            raise FrameError("a CONTINUATION frame; header blocks as long as that aren't read here")
        code = frames.U32.unpack_from(payload, 4)[0]
        text = payload[8:].decode("utf-8", "replace")
        raise LoadError(f"the server is leaving: GOAWAY with code {code} {text!r}")

    def _odd_data(self, flags: int, number: int, payload: bytes) -> None:
        self._received += len(payload)
        call = self._calls.get(number)
        if call is not None:
            call.received += len(payload)
            if flags & frames.PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            self._pieces(call, payload)
            if flags & frames.END_STREAM:
                self._end(call, 2, "the answer ended without a status")

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        call = self._calls.get(number)
        if call is None or not flags & frames.END_STREAM:
            return  # an answer begins
        if not flags & frames.END_HEADERS:
            raise FrameError("trailers in several frames; they aren't read here")
        if flags & frames.PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if flags & frames.PRIORITY:
            payload = payload[5:]
        self._end(call, *frames.status_of(frames.read_headers(payload)))

    def _reset(self, number: int, payload: bytes) -> None:
        call = self._calls.get(number)
        if call is not None:
            code = frames.U32.unpack(payload)[0]
            self._end(call, 2, f"the server has reset the call with code {code}")

    def _end(self, call: Call, status: int, text: str) -> None:
        del self._calls[call.number]
        self._held.pop(call, None)
        if not call.ending:  # the server is done, we weren't: HTTP/2 wants the call closed from both sides
            self._out.append(frames.frame(frames.RST_STREAM, 0, call.number, frames.U32.pack(8)))
        call.handler.on_end(status, text)

    def _settings(self, theirs: dict[int, int]) -> None:
        window = theirs.get(frames.INITIAL_WINDOW_SIZE, self._call_window)
        for call in self._calls.values():
            call.window += window - self._call_window
        self._call_window = window
        self._max_frame = theirs.get(frames.MAX_FRAME_SIZE, self._max_frame)
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._send_held()

    def _widen(self, number: int, payload: bytes) -> None:
        more = frames.U32.unpack(payload)[0]
        if not number:
            self._window += more
        elif (call := self._calls.get(number)) is not None:
            call.window += more
        if self._held:
            self._send_held()

    def _send_held(self) -> None:
        for call in list(self._held):
            while call.waiting and (room := min(call.window, self._window, self._max_frame)) > 0:
                message = call.waiting.popleft()
                piece, rest = message[:room], message[room:]
                if rest:
                    call.waiting.appendleft(rest)
                call.window -= len(piece)
                self._window -= len(piece)
                size = len(piece)
                self._out += (HEADER.pack(size >> 8, size & 0xFF, DATA, 0, call.number), piece)
            if not call.waiting:
                del self._held[call]
                if call.ending:
                    self._out.append(frames.frame(DATA, frames.END_STREAM, call.number))
