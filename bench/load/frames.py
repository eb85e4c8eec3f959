"""HTTP/2 frames and header blocks, as far as a gRPC client needs them: bytes in, values out.

Owns the formats (RFC 9113, RFC 7541). Knows no socket, no connection and no call.
"""

from __future__ import annotations

import struct
from urllib.parse import unquote

HEADER = struct.Struct(">HBBBI")  # length (24 bits in two parts), kind, flags, stream
HEADER_SIZE = HEADER.size
PREFIX = struct.Struct(">BI")  # before each gRPC message: compressed?, length
PREFIX_SIZE = PREFIX.size
U32 = struct.Struct(">I")
_SETTING = struct.Struct(">HI")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
FIRST_WINDOW = 65_535  # every window, until somebody says otherwise
FIRST_MAX_FRAME = 16_384
LARGEST_WINDOW = 2**31 - 1

# The names of the static table that answers of gRPC servers use; the rest needn't be known by name.
_STATIC = {8: (":status", "200"), 28: ("content-length", ""), 31: ("content-type", ""), 54: ("server", "")}
_DYNAMIC = 61


class FrameError(ValueError):
    """The bytes aren't what HTTP/2 allows, or are of a kind that this client doesn't take."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def read_settings(payload: bytes) -> dict[int, int]:
    """What a SETTINGS frame says. Raises FrameError."""
    if len(payload) % _SETTING.size:
        raise FrameError(f"SETTINGS of {len(payload)} bytes; it must be a multiple of {_SETTING.size}")
    return dict(_SETTING.iter_unpack(payload))


def window_update(stream: int, more: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, U32.pack(more))


def _whole(value: int, bits: int, first: int = 0) -> bytes:
    """An HPACK integer of which the first byte has `bits` bits; `first` are the bits before them."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    out, value = [first | limit], value - limit
    while value >= 0x80:
        out.append(0x80 | (value & 0x7F))
        value >>= 7
    return bytes((*out, value))


def _text(text: str) -> bytes:
    return _whole(len(text), 7) + text.encode("ascii")


def call_headers(path: str, authority: str) -> bytes:
    """The header block that begins a gRPC call; nothing of it enters the table that both sides keep."""
    indexed = b"\x83\x86"  # :method POST, :scheme http
    named = ((4, path), (1, authority), (31, "application/grpc"))  # :path, :authority, content-type
    literals = b"".join(_whole(index, 4) + _text(value) for index, value in named)
    return indexed + literals + b"\x00" + _text("te") + _text("trailers")


class _Block:
    """Reads a header block from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def whole(self, bits: int) -> int:
        """The next integer."""
        limit = (1 << bits) - 1
        value = self.data[self.at] & limit
        self.at += 1
        shift = 0
        while value >= limit:
            more = self.data[self.at]
            self.at += 1
            value += (more & 0x7F) << shift
            shift += 7
            if more < 0x80:
                break
        return value

    def text(self) -> str:
        """The next string; one that is Huffman coded isn't read, only passed."""
        coded = self.data[self.at] & 0x80
        size = self.whole(7)
        text = self.data[self.at : self.at + size]
        if len(text) < size:
            raise IndexError
        self.at += size
        return "(in Huffman code)" if coded else text.decode("utf-8", "replace")


def read_headers(data: bytes) -> dict[str, str]:
    """The headers of a block that stands on the static table alone. Raises FrameError.

    gRPC's own servers write such blocks when told that the table has no room. Values in Huffman code aren't decoded.
    """
    block, found = _Block(data), {}
    try:
        while block.at < len(data):
            first = data[block.at]
            if first & 0x80:
                name, value = _named(block.whole(7))
            elif first & 0xE0 == 0x20:  # the table's new size
                block.whole(5)
                continue
            else:
                index = block.whole(6 if first & 0x40 else 4)
                name = _named(index)[0] if index else block.text()
                value = block.text()
            found[name] = value
    except IndexError:
        raise FrameError("a header block that ends in the middle of a header") from None
    return found


def _named(index: int) -> tuple[str, str]:
    if index > _DYNAMIC:
        raise FrameError(f"header {index} of a table that we said has no room")
    return _STATIC.get(index, (f"(header {index})", ""))


def status_of(headers: dict[str, str]) -> tuple[int, str]:
    """The gRPC status in trailers, and its text. An answer that isn't gRPC's is status 2 (UNKNOWN)."""
    code = headers.get("grpc-status", "")
    if not code.isdecimal():
        return 2, f"an answer without a readable grpc-status: {headers}"
    return int(code), unquote(headers.get("grpc-message", ""))
