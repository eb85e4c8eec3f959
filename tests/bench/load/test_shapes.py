"""Messages as protobuf reads them, and answers that are right or wrong in every way."""

from __future__ import annotations

import numpy as np
import pytest

from bench.load.connection import LoadError
from bench.load.course import VARIANTS, Course, unchecked
from bench.load.frames import PREFIX_SIZE
from bench.load.shapes import MultiplexTrack, StreamTrack, WrongAnswerError, wide_varint
from cellstream.v1 import stream_inference_pb2 as pb

STEPS, INPUTS, OUTPUTS = 40, 5, 3


@pytest.fixture(scope="module")
def course() -> Course:
    """A course with outputs that all differ."""
    outputs = np.arange(VARIANTS * STEPS * OUTPUTS, dtype=np.float32).reshape(VARIANTS, STEPS, OUTPUTS)
    circle = unchecked(4 * INPUTS).circle
    return Course(STEPS, 4 * INPUTS, 4 * OUTPUTS, circle, outputs.tobytes(), outputs.swapaxes(0, 1).tobytes())


def right(course: Course, stream: int, first: int, steps: int) -> bytes:
    """The outputs of steps counted from 1."""
    begin = (stream % VARIANTS * STEPS + first - 1) * course.output_bytes
    return course.by_stream[begin : begin + steps * course.output_bytes]


def sent(course: Course, stream: int, first: int, steps: int) -> bytes:
    """The inputs of steps counted from 1."""
    rows = [(stream + first - 1 + step) % VARIANTS for step in range(steps)]
    return b"".join(course.circle[row * course.input_bytes :][: course.input_bytes] for row in rows)


def outputs(first: int, steps: int, data: bytes) -> bytes:
    """An answer of Stream."""
    return pb.StreamResponse(outputs=pb.Outputs(first_step=first, steps=steps, outputs=[data])).SerializeToString()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**35 - 1])
def test_wide_varints_are_read_as_what_they_are(value: int) -> None:
    """Five bytes, whatever the value."""
    assert len(wide_varint(value)) == 5
    assert pb.Chunk.FromString(b"\x08" + wide_varint(value)).first_step == value


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_stream_messages(course: Course, chunk: int) -> None:
    """Every message has the next steps of its stream's circle; a course that can't take another chunk is over."""
    track = StreamTrack(course, "m", 11, chunk)
    assert pb.StreamRequest.FromString(track.opening()[PREFIX_SIZE:]).open.model == "m"
    first = 1
    while track.has_next():
        message = track.next_message()
        assert int.from_bytes(message[1:PREFIX_SIZE], "big") == len(message) - PREFIX_SIZE
        request = pb.StreamRequest.FromString(message[PREFIX_SIZE:]).chunk
        again = pb.StreamRequest(chunk=request).SerializeToString()
        assert message[PREFIX_SIZE:] == again, "not as a client writes it"
        assert (request.first_step, request.steps) == (first, chunk)
        assert list(request.inputs) == [sent(course, 11, first, chunk)]
        first += chunk
    assert first == STEPS // chunk * chunk + 1


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("streams", [1, 9, 200])
def test_multiplex_messages(course: Course, streams: int, chunk: int) -> None:
    """A row for every stream, each with its own inputs."""
    track = MultiplexTrack(course, "m", streams, chunk)
    opens = pb.MultiplexRequest.FromString(track.opening()[PREFIX_SIZE:]).opens
    assert [(item.key, item.open.model) for item in opens] == [(key, "m") for key in range(streams)]
    for first in (1, 1 + chunk):
        message = track.next_message()
        (rows,) = pb.MultiplexRequest.FromString(message[PREFIX_SIZE:]).steps
        assert list(rows.keys) == list(range(streams))
        assert list(rows.first_steps) == [first] * streams
        assert list(rows.steps) == ([chunk] * streams if chunk > 1 else [])
        assert list(rows.tensors) == [b"".join(sent(course, key, first, chunk) for key in range(streams))]


def test_right_answers_are_counted(course: Course) -> None:
    """A chunk of 4 answered in pieces of 3 and 1 is one message."""
    track = StreamTrack(course, "m", 2, 4)
    assert track.answer(outputs(1, 3, right(course, 2, 1, 3))) == (3, 0)
    assert track.answer(outputs(4, 1, right(course, 2, 4, 1))) == (1, 1)
    assert track.answer(outputs(5, 4, right(course, 2, 5, 4))) == (4, 1)


def test_wrong_answers_are_noticed(course: Course) -> None:
    """Another stream's, another step's, a flipped bit, too few, too many, rubbish."""
    good = right(course, 2, 1, 1)
    for answer, text in (
        (outputs(1, 1, right(course, 3, 1, 1)), "isn't what the model gives"),
        (outputs(1, 1, right(course, 2, 2, 1)), "isn't what the model gives"),
        (outputs(1, 1, good[:-1] + bytes((good[-1] ^ 1,))), "isn't what the model gives"),
        (outputs(2, 1, good), "says that it is for step 2"),
        (outputs(1, 1, good[:-4]), "has 8 bytes; 12 are due"),
        (outputs(1, 2, good), "has 12 bytes; 24 are due"),
        (b"\xff\xff", "isn't a StreamResponse"),
    ):
        with pytest.raises(WrongAnswerError, match=text):
            StreamTrack(course, "m", 2, 1).answer(answer)
    with pytest.raises(LoadError, match="go_away"):
        StreamTrack(course, "m", 2, 1).answer(pb.StreamResponse(go_away=pb.GoAway()).SerializeToString())
    with pytest.raises(LoadError, match="isn't Opened"):
        StreamTrack(course, "m", 2, 1).opened(outputs(1, 1, good))


def rows(course: Course, keys: list[int], firsts: list[int], steps: list[int] | None = None) -> pb.StepRows:
    """Right rows of an answer of Multiplex."""
    counts = steps or [1] * len(keys)
    data = b"".join(right(course, *row) for row in zip(keys, firsts, counts, strict=True))
    return pb.StepRows(keys=keys, first_steps=firsts, steps=steps or (), tensors=[data])


def answer(*parts: pb.StepRows) -> bytes:
    """An answer of Multiplex."""
    return pb.MultiplexResponse(outputs=parts).SerializeToString()


def test_right_rows_are_counted_in_any_order_and_number(course: Course) -> None:
    """All at once, from the middle, backwards, in two messages."""
    track = MultiplexTrack(course, "m", 20, 1)
    assert track.answer(answer(rows(course, list(range(20)), [1] * 20))) == (20, 1)
    assert track.answer(answer(rows(course, list(range(7, 20)), [2] * 13))) == (13, 0)
    assert track.answer(answer(rows(course, [6, 5, 4, 3, 2, 1, 0], [2] * 7))) == (7, 1)
    assert track.answer(answer(rows(course, [0, 1], [3, 3]), rows(course, [0, 5], [4, 3]))) == (4, 0)


def test_right_chunks_of_rows_are_counted(course: Course) -> None:
    """Rows of several steps, cut otherwise than they were sent."""
    track = MultiplexTrack(course, "m", 2, 4)
    assert track.answer(answer(rows(course, [0, 1], [1, 1], [4, 2]))) == (6, 0)
    assert track.answer(answer(rows(course, [1], [3], [2]))) == (2, 1)


def test_wrong_rows_are_noticed(course: Course) -> None:
    """A flipped bit anywhere, another step, columns that don't fit, a stream that was ended."""
    keys = list(range(9))
    for place in (0, 50, 9 * 12 - 1):
        wrong = rows(course, keys, [1] * 9)
        data = bytearray(wrong.tensors[0])
        data[place] ^= 1
        wrong.tensors[0] = bytes(data)
        with pytest.raises(WrongAnswerError, match="aren't the model's"):
            MultiplexTrack(course, "m", 9, 1).answer(answer(wrong))
    with pytest.raises(WrongAnswerError, match="step 2, and step 1 is due"):
        MultiplexTrack(course, "m", 9, 1).answer(answer(rows(course, keys, [1] * 8 + [2])))
    bad = rows(course, keys, [1] * 9)
    del bad.first_steps[3:]
    with pytest.raises(WrongAnswerError, match="columns"):
        MultiplexTrack(course, "m", 9, 1).answer(answer(bad))
    ended = pb.MultiplexResponse(ended=[pb.MultiplexEnded(key=4, code=8, message="no room")])
    with pytest.raises(LoadError, match="stream 4 was ended with code 8: no room"):
        MultiplexTrack(course, "m", 9, 1).answer(ended.SerializeToString())
    with pytest.raises(LoadError, match="wasn't opened: no room"):
        MultiplexTrack(course, "m", 9, 1).opened(ended.SerializeToString())
