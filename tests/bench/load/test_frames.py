"""Header blocks and frames, against the hpack library and bytes written by hand."""

from __future__ import annotations

import hpack
import pytest

from bench.load import frames


def test_a_call_begins_with_headers_that_hpack_reads() -> None:
    """Another reader finds exactly the headers of a gRPC call, and nothing to remember."""
    decoder = hpack.Decoder()
    found = decoder.decode(frames.call_headers("/a.very.long.Service/Method" * 6, "127.0.0.1:1"))
    assert [(str(name), str(value)) for name, value in found] == [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a.very.long.Service/Method" * 6),
        (":authority", "127.0.0.1:1"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    assert len(decoder.header_table.dynamic_entries) == 0


def test_trailers_of_another_writer_are_read() -> None:
    """The encoder of hpack with an empty table writes what read_headers reads."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    long = "x" * 300
    block = encoder.encode([(":status", "200"), ("grpc-status", "3"), ("grpc-message", f"a%20b {long}")], huffman=False)
    assert frames.status_of(frames.read_headers(block)) == (3, f"a b {long}")


def test_what_is_in_huffman_code_is_passed_over() -> None:
    """The header behind a coded value is still found."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    block = encoder.encode([("x", "coded")], huffman=True) + b"\x00\x0bgrpc-status\x015"
    assert frames.status_of(frames.read_headers(block))[0] == 5


@pytest.mark.parametrize("cut", [1, 5, 14])
def test_half_a_header_block_is_refused(cut: int) -> None:
    """However it is cut."""
    block = b"\x00\x0bgrpc-status\x0211"
    assert frames.read_headers(block) == {"grpc-status": "11"}
    with pytest.raises(frames.FrameError, match="in the middle"):
        frames.read_headers(block[:cut])


def test_a_table_that_we_said_is_empty_is_not_read_from() -> None:
    """An index beyond the static table is the server's mistake."""
    with pytest.raises(frames.FrameError, match="header 62"):
        frames.read_headers(b"\xbe")


def test_an_answer_without_a_status_is_unknown() -> None:
    """A proxy's answer, say."""
    code, text = frames.status_of({":status": "502"})
    assert code == 2
    assert "502" in text


def test_settings_there_and_back() -> None:
    """What settings() writes, read_settings() reads; odd sizes are refused."""
    made = frames.settings({1: 0, 4: 2**31 - 1})
    assert made[:9] == b"\x00\x00\x0c\x04\x00\x00\x00\x00\x00"
    assert frames.read_settings(made[9:]) == {1: 0, 4: 2**31 - 1}
    with pytest.raises(frames.FrameError, match="13 bytes"):
        frames.read_settings(made[9:] + b"x")
