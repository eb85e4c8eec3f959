"""The client's side of a Multiplex call, without I/O: many streams, steps of many of them in one message.

Owns the call's keys, each stream's numbering, and the putting together of answers that come in several messages. Knows
no channel, no thread, no event loop and no clock; whoever drives it does so from one thread at a time.

Axis letters: K streams of one request, T time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from cellstream._protocol import OK, Opening, opened_from
from cellstream._tensors import Answer, Request, Signature, Values, decode
from cellstream.errors import (
    CellstreamError,
    InvalidInput,
    LimitReached,
    PartialFailure,
    ProtocolError,
    ServerGoingAway,
    StreamClosed,
    error_of,
    fresh,
    stream_error_of,
)
from cellstream.models import Model
from cellstream.v1 import stream_inference_pb2 as pb

_OVERHEAD, _ROW_OVERHEAD, _TENSOR_OVERHEAD = 64, 24, 16  # bytes of a message besides its tensors' own, and to spare
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(slots=True)
class Gathered:
    """One request's answers: `answer` holds all keys' steps one after the other, in the order of `keys`."""

    keys: tuple[int, ...]
    starts: list[int]  # where each key's steps begin; one more entry: where the last one's end
    answer: Answer
    missing: int  # steps that are neither answered nor lost
    errors: dict[int, CellstreamError] = field(default_factory=dict)

    def outputs(self, *, single: Mapping[int, bool]) -> dict[int, Values]:
        """The outputs of every key that didn't fail; `single` tells which keys had one bare step."""
        return {
            key: self.answer.rows(start if single[key] else slice(start, stop))
            for key, start, stop in zip(self.keys, self.starts, self.starts[1:], strict=False)
            if key not in self.errors
        }


@dataclass(slots=True)
class _Due:
    """One key's part of a request that isn't answered yet."""

    gathered: Gathered
    at: int  # where its next step's outputs go
    missing: int


@dataclass(slots=True)
class _Member:
    """One stream of the call."""

    opened: bool = False
    sent_step: int = 0
    answered_step: int = 0
    durable_step: int = 0
    due: deque[_Due] = field(default_factory=deque)


class MultiplexCore:
    """One call of many streams of one model and version."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.error: CellstreamError | None = None
        self.going_away_ms: int | None = None
        self.ended = False
        self._members: dict[int, _Member] = {}
        self._ends: dict[int, CellstreamError] = {}  # why keys ended that weren't asked to
        self._burnt: set[int] = set()
        self._unsent: deque[bytes] = deque()
        self._finishing = False
        self._half_closed = False

    # The user's side.

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of the streams that are open."""
        return tuple(self._members)

    def open(self, openings: Mapping[int, str]) -> None:
        """Ask for a stream for each key, with its stream_id (may be empty). Raises InvalidInput for a bad key."""
        self._check_open()
        model = self.signature.model
        for key in openings:
            if not 0 <= key < 2**32:
                raise InvalidInput(f"key {key}; a key is 0 … {2**32 - 1}")
            if key in self._members:
                raise InvalidInput(f"key {key} names a stream that is open")
            if key in self._burnt:
                # The server may still refuse what was under way to the old stream, and would seem to mean the new one.
                raise InvalidInput(f"key {key} named a stream that failed with steps under way; take another key")
        request = pb.MultiplexRequest()
        for key, stream_id in openings.items():
            self._members[key] = _Member()
            self._ends.pop(key, None)
            opening = Opening(model.name, model.version, stream_id)
            request.opens.add(key=key, open=opening.message())
        self._unsent.append(request.SerializeToString())

    def settled(self, keys: Sequence[int]) -> bool:
        """Whether the server has opened or refused every one of these keys."""
        return self.ended or all(key not in self._members or self._members[key].opened for key in keys)

    def check_opened(self, keys: Sequence[int]) -> None:
        """Raise the refusal of the first of these keys that was refused, or why the call ended."""
        if self.error is not None:
            raise fresh(self.error)
        refusals = [error for key in keys if (error := self._ends.pop(key, None)) is not None]
        if refusals:
            raise fresh(refusals[0])

    def finish_streams(self, keys: Sequence[int]) -> None:
        """Ask the server to end these streams once they are answered. Raises StreamClosed for one that isn't open."""
        self._check_keys(keys)
        self._unsent.append(pb.MultiplexRequest(closes=keys).SerializeToString())

    def gone(self, keys: Sequence[int]) -> bool:
        """Whether none of these streams is open any more."""
        return self.ended or not any(key in self._members for key in keys)

    def push(self, keys: Sequence[int], counts: Sequence[int], request: Request) -> Gathered:
        """Queue a request: `counts[i]` steps of stream `keys[i]`, one after the other in `request`.

        Raises InvalidInput, LimitReached, StreamClosed, ServerGoingAway, or why the call ended; nothing is sent then.
        """
        self._check_keys(keys)
        limit = self.signature.model.limits.max_steps_per_message
        if limit and (most := max(counts)) > limit:
            raise LimitReached(f"{most} steps of one stream in a multiplexed step; the limit is {limit}")
        starts = [0, *np.cumsum(counts).tolist()]
        answer = Answer(self.signature, request.steps, chunk=True)
        gathered = Gathered(tuple(keys), starts, answer, request.steps)
        for low, high in self._parts(counts):
            first_steps = [self._members[key].sent_step + 1 for key in keys[low:high]]
            rows = pb.StepRows(
                keys=keys[low:high],
                first_steps=first_steps,
                steps=counts[low:high] if max(counts[low:high]) > 1 else (),
                tensors=request.cut(starts[low], starts[high]),
            )
            self._unsent.append(pb.MultiplexRequest(steps=[rows]).SerializeToString())
        for key, start, count in zip(keys, starts, counts, strict=False):
            member = self._members[key]
            member.sent_step += count
            member.due.append(_Due(gathered, start, count))
        return gathered

    def ready(self, gathered: Gathered) -> bool:
        """Whether every key of the request was answered or has ended."""
        return gathered.missing == 0 or self.ended

    def check_complete(self, gathered: Gathered, *, single: Mapping[int, bool]) -> None:
        """Raise PartialFailure where streams ended, or why the call did."""
        if gathered.missing:
            assert self.error is not None
            raise fresh(self.error)
        if gathered.errors:
            key, error = next(iter(gathered.errors.items()))
            raise PartialFailure(
                f"{len(gathered.errors)} of {len(gathered.keys)} streams ended, the first with key {key}: {error}",
                gathered.outputs(single=single),
                gathered.errors,
            )

    def finish(self) -> None:
        """No more pushes: half-close once everything is sent."""
        self._finishing = True

    def fail(self, error: CellstreamError) -> None:
        """The call is over, for a reason of our own. The first reason counts."""
        if not self.ended:
            self.ended, self.error = True, error
            self._members.clear()

    # The wire's side.

    def next_message(self) -> bytes | None:
        """The next message; gRPC's flow control holds back what the server doesn't read."""
        return self._unsent.popleft() if self._unsent and not self.ended else None

    def half_close_due(self) -> bool:
        """Whether to half-close now; true once."""
        idle = not any(member.due or not member.opened for member in self._members.values())
        if self.going_away_ms is not None and idle:
            self._finishing = True
        if not self._finishing or self._unsent or self._half_closed:
            return False
        self._half_closed = True
        return True

    def receive(self, data: bytes) -> None:
        """Take a message of the server's. Raises ProtocolError."""
        try:
            response = pb.MultiplexResponse.FromString(data)
        except DecodeError:
            raise ProtocolError("the server sent something that is no cellstream.v1.MultiplexResponse") from None
        for message in response.opened:
            self._take_opened(message)
        for rows in response.outputs:
            self._take_rows(rows)
        for durable in response.durable:
            if durable.key in self._members:
                self._members[durable.key].durable_step = durable.durable_step
        if response.HasField("go_away"):
            self.going_away_ms = response.go_away.grace_ms
        for end in response.ended:
            self._take_end(end)

    def end(self, code: str, reason: str, message: str) -> None:
        """The call has ended with this status."""
        if self.ended:
            return
        if code == OK and self._half_closed and not any(member.due for member in self._members.values()):
            self.ended = True
            self._members.clear()
            return
        code, message = ("UNAVAILABLE", "the server ended it") if code == OK else (code, message)
        if not any(member.opened for member in self._members.values()):
            self.fail(error_of(code, reason, message))
            return
        answered = max(member.answered_step for member in self._members.values())
        sent = max(member.sent_step for member in self._members.values())
        self.fail(stream_error_of(code, reason, message, answered_step=answered, sent_step=sent))

    def _check_open(self) -> None:
        if self.error is not None:
            raise fresh(self.error)
        if self.going_away_ms is not None:
            raise ServerGoingAway(f"the server shuts down within {self.going_away_ms / 1000:g} s and takes nothing new")
        if self.ended or self._finishing:
            raise StreamClosed("the multiplexed call is closed")

    def _check_keys(self, keys: Sequence[int]) -> None:
        self._check_open()
        if not keys:
            raise InvalidInput("no keys; a multiplexed step has at least one stream")
        if len(set(keys)) != len(keys):
            raise InvalidInput("a key stands twice in one multiplexed step")
        members = self._members
        for key in keys:
            member = members.get(key)
            if member is None or not member.opened:
                error = self._ends.get(key)
                if error is not None:
                    raise fresh(error)
                raise StreamClosed(f"no stream with key {key} is open in this call")

    def _parts(self, counts: Sequence[int]) -> list[tuple[int, int]]:
        """The request cut between keys so that every message stays within the server's limit on bytes."""
        limit = self.signature.model.limits.max_message_bytes
        room = limit - _OVERHEAD - _TENSOR_OVERHEAD * len(self.signature.inputs)
        step = self.signature.input_step_bytes
        if not limit or sum(counts) * step + len(counts) * _ROW_OVERHEAD <= room:
            return [(0, len(counts))]
        if (largest := max(counts) * step) + _ROW_OVERHEAD > room:
            raise LimitReached(f"one stream's steps have {largest} bytes; a message has {limit} at most")
        parts, low, size = [], 0, 0
        for index, count in enumerate(counts):
            row = count * step + _ROW_OVERHEAD
            if size + row > room:
                parts.append((low, index))
                low, size = index, 0
            size += row
        return [*parts, (low, len(counts))]

    def _take_opened(self, message: pb.MultiplexOpened) -> None:
        member = self._members.get(message.key)
        if member is None or member.opened:
            raise ProtocolError(f"the server opened key {message.key}, which wasn't asked for")
        opened_from(message.opened)
        member.opened = True

    def _take_rows(self, rows: pb.StepRows) -> None:
        keys, steps = list(rows.keys), list(rows.steps) or [1] * len(rows.keys)
        if not len(keys) == len(rows.first_steps) == len(steps):
            raise ProtocolError(f"{len(keys)} keys, {len(rows.first_steps)} first_steps, {len(steps)} steps")
        slices = decode(self.signature.outputs, sum(steps), rows.tensors)
        places: dict[int, tuple[Gathered, list[int], list[int]]] = {}  # by identity: where from, where to
        source = 0
        for key, first, count in zip(keys, rows.first_steps, steps, strict=True):
            member = self._members.get(key)
            if member is None or count < 1 or first != member.answered_step + 1 or first + count - 1 > member.sent_step:
                raise ProtocolError(f"the server answered {count} steps of key {key} from step {first}, unasked")
            member.answered_step += count
            stop = source + count
            while source < stop:
                due = member.due[0]
                place = places.get(id(due.gathered))
                if place is None:
                    place = places[id(due.gathered)] = (due.gathered, [], [])
                taken = min(stop - source, due.missing) if count > 1 else 1
                if taken == 1:
                    place[1].append(source)
                    place[2].append(due.at)
                else:
                    place[1].extend(range(source, source + taken))
                    place[2].extend(range(due.at, due.at + taken))
                source += taken
                due.at += taken
                due.missing -= taken
                if not due.missing:
                    member.due.popleft()
        for gathered, here, there in places.values():
            gathered.answer.fill(np.array(there), len(there), [part[here] for part in slices])
            gathered.missing -= len(there)

    def _take_end(self, end: pb.MultiplexEnded) -> None:
        member = self._members.pop(end.key, None)
        if member is None:
            return  # the answer to something that was under way when the stream ended
        error: CellstreamError | None = None
        code, message = _CODES.get(end.code, "UNKNOWN"), end.message
        if code == OK and member.due:
            code, message = "UNAVAILABLE", "the server ended it"
        if code != OK:
            steps = {"answered_step": member.answered_step, "sent_step": member.sent_step}
            error = stream_error_of(code, end.reason, message, **steps)
            error = error if member.opened else error_of(code, end.reason, message)
            self._ends[end.key] = error
        if member.due:
            self._burnt.add(end.key)
        for due in member.due:
            assert error is not None
            due.gathered.errors[end.key] = error
            due.gathered.missing -= due.missing


def join(signature: Signature, inputs: Mapping[int, Any]) -> tuple[list[int], list[int], dict[int, bool], Request]:
    """A dict of inputs by key as one request: keys, steps of each, which are single, and the joined values.

    Raises InvalidInput, naming the key.
    """
    keys, requests = list(inputs), []
    for key, values in inputs.items():
        try:
            requests.append(signature.encode(values))
        except InvalidInput as error:
            raise InvalidInput(f"key {key}: {error}") from None
    if not requests:
        raise InvalidInput("no keys; a multiplexed step has at least one stream")
    columns = tuple(np.concatenate(parts) for parts in zip(*(request.columns for request in requests), strict=True))
    counts = [request.steps for request in requests]
    single = {key: not request.chunk for key, request in zip(keys, requests, strict=True)}
    return keys, counts, single, Request(sum(counts), chunk=True, columns=columns)


def row_counts(keys: int, request: Request) -> tuple[list[int], tuple[int, ...]]:
    """The steps of each of K equal rows, and the rows' leading axes: (K,) for single steps, (K, T) for chunks."""
    steps = request.steps // keys
    return [steps] * keys, (keys, steps) if request.chunk else (keys,)


class MultiplexView:
    """What can be seen of a multiplexed call; the base of those for threads and for event loops."""

    def __init__(self, core: MultiplexCore) -> None:
        self._core = core

    @property
    def model(self) -> Model:
        """The model and version that all streams of this call run."""
        return self._core.signature.model

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of the streams that are open."""
        return self._core.keys

    @property
    def going_away(self) -> float | None:
        """Seconds of grace once the server has said that it shuts down; None: it hasn't."""
        grace = self._core.going_away_ms
        return None if grace is None else grace / 1000

    @property
    def error(self) -> CellstreamError | None:
        """Why the call ended; None: it hasn't, or it ended as asked."""
        return self._core.error
