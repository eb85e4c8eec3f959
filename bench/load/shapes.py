"""How steps become messages and answers are checked: chunks of one stream, or rows of many streams.

Bytes in, bytes out; knows no socket and no clock. A track is one call's way along the course. Messages of one stream
are the bytes that any client's protobuf library writes; those of many streams have each first_step in a varint of fixed
width, which parsers accept, so that all of them have the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from bench.load.connection import LoadError
from bench.load.course import VARIANTS, Course
from bench.load.frames import PREFIX
from cellstream.v1 import stream_inference_pb2 as pb
from serving.single_steps import varint

STREAM = "/cellstream.v1.StreamInference/Stream"
MULTIPLEX = "/cellstream.v1.StreamInference/Multiplex"


class WrongAnswerError(LoadError):
    """An answer isn't the one that the model gives for these inputs."""


class Track(Protocol):
    """One call: what it sends, and whether it is answered rightly."""

    path: str

    def opening(self) -> bytes:
        """The first message."""

    def opened(self, data: bytes) -> bool:
        """Take an answer to it; whether all is open. Raises LoadError if something isn't."""

    def has_next(self) -> bool:
        """Whether the course goes on; if not, the call must end and a new one begin."""

    def next_message(self) -> bytes:
        """The next steps, as a message with its gRPC prefix."""

    def answer(self, data: bytes) -> tuple[int, int]:
        """Check an answer; returns how many steps, and how many messages of ours, it answers to the end."""


def prefixed(message: bytes) -> bytes:
    """A message behind its gRPC prefix."""
    return PREFIX.pack(0, len(message)) + message


def wide_varint(value: int) -> bytes:
    """A protobuf integer below 2**35 in five bytes."""
    return bytes((0x80 | (value >> shift) & 0x7F) for shift in (0, 7, 14, 21)) + bytes((value >> 28,))


def _field(number: int, data: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(data)) + data


class StreamTrack:
    """One stream in a call of its own, `chunk` steps in every message."""

    path = STREAM

    def __init__(self, course: Course, model: str, index: int, chunk: int) -> None:
        self._course, self._model = course, model
        self._variant, self._chunk = index % VARIANTS, chunk
        self._sent = self._answered = 0  # steps
        tensor = bytes((3 << 3 | 2,)) + varint(chunk * course.input_bytes)
        self._middle = b"\x10" + varint(chunk) + tensor  # steps, and the head of inputs
        self._heads = [b""]  # by how long the varint of first_step is
        for digits in range(1, 6):
            body = 1 + digits + len(self._middle) + chunk * course.input_bytes  # Chunk
            outer = b"\x12" + varint(body)  # StreamRequest.chunk
            self._heads.append(PREFIX.pack(0, len(outer) + body) + outer + b"\x08")
        self._inputs = [course.inputs(self._variant, step, chunk) for step in range(VARIANTS)]
        self._base = self._variant * course.steps * course.output_bytes

    def opening(self) -> bytes:
        """Open."""
        return prefixed(pb.StreamRequest(open=pb.Open(model=self._model)).SerializeToString())

    def opened(self, data: bytes) -> bool:
        """Opened."""
        if _parse(pb.StreamResponse, data).WhichOneof("message") != "opened":
            raise LoadError("the answer to Open isn't Opened")
        return True

    def has_next(self) -> bool:
        """Whether the course goes on."""
        return self._sent + self._chunk <= self._course.steps

    def next_message(self) -> bytes:
        """A chunk."""
        sent = self._sent
        self._sent = sent + self._chunk
        number = _SHORT[sent + 1]
        return b"".join((self._heads[len(number)], number, self._middle, self._inputs[sent % VARIANTS]))

    def answer(self, data: bytes) -> tuple[int, int]:
        """Outputs."""
        try:
            outputs = _stream_response(data).outputs
        except DecodeError:
            raise WrongAnswerError("an answer isn't a StreamResponse") from None
        steps, before = outputs.steps, self._answered
        if not steps:
            return self._no_outputs(data)
        size = self._course.output_bytes
        begin = self._base + before * size
        (values,) = outputs.outputs
        if outputs.first_step != before + 1 or self._course.by_stream[begin : begin + steps * size] != values:
            raise WrongAnswerError(_wrong(before + 1, outputs.first_step, steps, values, steps * size))
        self._answered = before + steps
        return steps, self._answered // self._chunk - before // self._chunk

    def _no_outputs(self, data: bytes) -> tuple[int, int]:
        kind = _parse(pb.StreamResponse, data).WhichOneof("message")
        if kind == "durable":
            return 0, 0
        raise LoadError(f"an answer of the kind {kind!r} in the middle of a run")


class MultiplexTrack:
    """Many streams in one call, `chunk` steps of each in every message."""

    path = MULTIPLEX

    def __init__(self, course: Course, model: str, streams: int, chunk: int) -> None:
        self._course, self._model, self._streams, self._chunk = course, model, streams, chunk
        self._sent = 0  # steps of each stream
        self._answered = [0] * streams
        self._total = self._opened = 0
        self._keys = list(range(streams))
        keys = _field(1, b"".join(map(varint, self._keys)))
        counts = _field(3, varint(chunk) * streams) if chunk > 1 else b""
        size = streams * chunk * course.input_bytes
        self._middle = counts + bytes((4 << 3 | 2,)) + varint(size)
        firsts = bytes((2 << 3 | 2,)) + varint(5 * streams)
        body = len(keys) + len(firsts) + 5 * streams + len(self._middle) + size  # StepRows
        outer = b"\x12" + varint(body)  # MultiplexRequest.steps
        self._head = PREFIX.pack(0, len(outer) + body) + outer + keys + firsts
        self._inputs = [
            b"".join(course.inputs(key % VARIANTS, step, chunk) for key in self._keys) for step in range(VARIANTS)
        ]

    def opening(self) -> bytes:
        """All Opens."""
        opens = [pb.MultiplexOpen(key=key, open=pb.Open(model=self._model)) for key in self._keys]
        return prefixed(pb.MultiplexRequest(opens=opens).SerializeToString())

    def opened(self, data: bytes) -> bool:
        """Some of the Openeds, or all."""
        response = _parse(pb.MultiplexResponse, data)
        if response.ended:
            raise LoadError(f"a stream wasn't opened: {response.ended[0].message}")
        self._opened += len(response.opened)
        return self._opened >= self._streams

    def has_next(self) -> bool:
        """Whether the course goes on."""
        return self._sent + self._chunk <= self._course.steps

    def next_message(self) -> bytes:
        """Rows of all streams."""
        sent = self._sent
        self._sent = sent + self._chunk
        firsts = _WIDE[sent + 1] * self._streams
        return b"".join((self._head, firsts, self._middle, self._inputs[sent % VARIANTS]))

    def answer(self, data: bytes) -> tuple[int, int]:
        """Rows of some streams, or of all."""
        response = _parse(pb.MultiplexResponse, data)
        if response.ended:
            end = response.ended[0]
            raise LoadError(f"stream {end.key} was ended with code {end.code}: {end.message}")
        steps = sum(self._rows(rows) for rows in response.outputs)
        if not steps and response.HasField("go_away"):
            raise LoadError("the server is leaving")
        message, before = self._streams * self._chunk, self._total
        self._total += steps
        return steps, self._total // message - before // message

    def _rows(self, rows: pb.StepRows) -> int:
        keys, firsts, counts = list(rows.keys), list(rows.first_steps), list(rows.steps)
        (values,) = rows.tensors
        if not len(keys) == len(firsts) == len(counts or keys):
            raise WrongAnswerError("an answer's columns differ in length")
        if self._expected(keys, firsts, counts) != values:
            raise WrongAnswerError(f"outputs of streams {keys[0]} to {keys[-1]} at step {firsts[0]} aren't the model's")
        return sum(counts) if counts else len(keys)

    def _expected(self, keys: list[int], firsts: list[int], counts: list[int]) -> bytes:
        """The bytes of these rows; moves the streams on."""
        answered, first = self._answered, keys[0]
        for key, begin, count in zip(keys, firsts, counts or [1] * len(keys), strict=True):
            if begin != answered[key] + 1:
                raise WrongAnswerError(f"stream {key} is answered step {begin}, and step {answered[key] + 1} is due")
            answered[key] += count
        size, last = self._course.output_bytes, first + len(keys)
        if not counts and firsts.count(firsts[0]) == len(firsts) and keys == self._keys[first:last]:
            row = VARIANTS * size
            step = self._course.by_step[(firsts[0] - 1) * row : firsts[0] * row]
            return (step * (last // VARIANTS + 1))[first * size : last * size]
        return b"".join(
            self._piece(key, begin, count)
            for key, begin, count in zip(keys, firsts, counts or [1] * len(keys), strict=True)
        )

    def _piece(self, key: int, first_step: int, count: int) -> bytes:
        size = self._course.output_bytes
        begin = (key % VARIANTS * self._course.steps + first_step - 1) * size
        return self._course.by_stream[begin : begin + count * size]


class Unchecked:
    """A track whose every message gets one answer that nobody looks at: for an echo."""

    def __init__(self, track: StreamTrack | MultiplexTrack, steps: int) -> None:
        """`steps`: in one message, all streams together."""
        self.path = track.path
        self._steps = steps
        self.opening, self.has_next, self.next_message = track.opening, track.has_next, track.next_message

    def opened(self, data: bytes) -> bool:  # noqa: ARG002
        """Whatever it says."""
        return True

    def answer(self, data: bytes) -> tuple[int, int]:  # noqa: ARG002
        """Whatever it says."""
        return self._steps, 1


class _Numbers(dict[int, bytes]):
    """Varints, made when first asked for."""

    def __init__(self, made: Callable[[int], bytes]) -> None:
        super().__init__()
        self._made = made

    def __missing__(self, value: int) -> bytes:
        made = self[value] = self._made(value)
        return made


_SHORT, _WIDE = _Numbers(varint), _Numbers(wide_varint)
_stream_response = pb.StreamResponse.FromString


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise WrongAnswerError(f"an answer isn't a {kind.__name__}") from None


def _wrong(due: int, first_step: int, steps: int, values: bytes, size: int) -> str:
    if first_step != due:
        return f"the answer to step {due} says that it is for step {first_step}"
    if len(values) != size:
        return f"the answer to {steps} steps from {due} has {len(values)} bytes; {size} are due"
    return f"the answer to {steps} steps from {due} isn't what the model gives"
