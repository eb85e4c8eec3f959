"""The client's side of a Multiplex call, without I/O: many streams, steps of many of them in one message.

Owns the call's keys and life, and what its messages look like; the streams' figures and the requests under way have
modules of their own. Knows no channel, no thread, no event loop and no clock; whoever drives it does so from one thread
at a time.

Axis letters: K streams of one request, T time.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from cellstream._catalog import Catalog
from cellstream._protocol import OK, Opening, opened_from
from cellstream._requests import Gathered, Requests
from cellstream._rows import step_rows_message
from cellstream._streams import Ints, Lineup, Streams
from cellstream._tensors import Answer, Request, Signature, decode
from cellstream.errors import (
    CellstreamError,
    InvalidInput,
    LimitReached,
    ModelChanged,
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


def as_key(key: object) -> int:
    """A key as an integer; raises InvalidInput for anything else."""
    try:
        return operator.index(key)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInput(f"key {key!r}; a key is an integer, 0 … {2**32 - 1}") from None


class MultiplexCore:
    """One call of many streams of one model and version."""

    def __init__(self, proposal: Signature, version: int, catalog: Catalog) -> None:
        """`proposal`: what was asked of the server beforehand; `version`: the one that the user wants, or 0."""
        self.signature = proposal  # until the first stream is opened
        self._asked = proposal.model.name, version
        self._catalog = catalog
        self._described: dict[bytes, Signature] = {}  # in this call: each is sent once; empty: no stream was opened yet
        self.error: CellstreamError | None = None
        self.going_away_ms: int | None = None
        self.ended = False
        self._streams = Streams()
        self._requests = Requests(self._streams)
        self._lineup = Lineup((), self._streams.slots)  # the last request's
        self._ends: dict[int, CellstreamError] = {}  # why keys ended that weren't asked to
        self._burnt: set[int] = set()
        self._unsent: deque[bytes] = deque()
        self._finishing = False
        self._half_closed = False

    # The user's side.

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of the streams that are open."""
        return self._streams.keys

    def open(self, openings: Mapping[int, str]) -> None:
        """Ask for a stream for each key, with its stream_id (may be empty).

        Raises InvalidInput for a bad key, and ServerGoingAway once the server has said that it shuts down.
        """
        if self.error is None and self.going_away_ms is not None:
            raise ServerGoingAway(
                f"the server shuts down within {self.going_away_ms / 1000:g} s and opens no new stream; the open ones "
                "go on until then"
            )
        self._check_open()
        openings = {as_key(key): stream_id for key, stream_id in openings.items()}
        for key in openings:
            if not 0 <= key < 2**32:
                raise InvalidInput(f"key {key}; a key is 0 … {2**32 - 1}")
            if key in self._streams:
                raise InvalidInput(f"key {key} names a stream that is open")
            if key in self._burnt:
                # The server may still refuse what was under way to the old stream, and would seem to mean the new one.
                raise InvalidInput(f"key {key} named a stream that failed with steps under way; take another key")
        request = pb.MultiplexRequest()
        name, asked = self._asked
        version = self.signature.model.version if self._described else asked
        for key, stream_id in openings.items():
            self._streams.add(key)
            self._ends.pop(key, None)
            opening = Opening(name, version, stream_id)
            request.opens.add(key=key, open=opening.message(self.signature))
        self._unsent.append(request.SerializeToString())

    def settled(self, keys: Sequence[int]) -> bool:
        """Whether the server has opened or refused every one of these keys."""
        return self.ended or all(
            key not in self._streams or self._streams.is_open(key)
            for key in reversed(keys)  # they open in their order
        )

    def check_opened(self, keys: Sequence[int]) -> None:
        """Raise the refusal of the first of these keys that was refused, or why the call ended."""
        if self.error is not None:
            raise fresh(self.error)
        refusals = [error for key in keys if (error := self._ends.pop(key, None)) is not None]
        if refusals:
            raise fresh(refusals[0])

    def finish_streams(self, keys: Sequence[int]) -> None:
        """Ask the server to end these streams once they are answered. Raises StreamClosed for one that isn't open."""
        lineup = self._lineup_of(keys)
        self._unsent.append(pb.MultiplexRequest(closes=lineup.keys).SerializeToString())

    def gone(self, keys: Sequence[int]) -> bool:
        """Whether none of these streams is open any more."""
        return self.ended or not any(key in self._streams for key in keys)

    def push(self, keys: Sequence[int], counts: Sequence[int] | Ints, request: Request) -> Gathered:
        """Queue a request: `counts[i]` steps of stream `keys[i]`, one after the other in `request`.

        Raises InvalidInput, LimitReached, StreamClosed, ModelChanged for a request that was made before
        the first stream was opened with another model, or why the call ended; nothing is sent then.
        """
        if request.signature.digest != self.signature.digest:
            raise self._changed(request.signature, self.signature)
        lineup, counts = self._lineup_of(keys), np.asarray(counts, np.int64)
        limit = self.signature.model.limits.max_steps_per_message
        if limit and (most := int(counts.max())) > limit:
            raise LimitReached(f"{most} steps of one stream in a multiplexed step; the limit is {limit}")
        stops = np.cumsum(counts)
        sent = self._streams.sent[lineup.slots]
        answer = Answer(self.signature, request.steps, chunk=True)
        gathered = Gathered(lineup, counts, stops - counts, sent + counts, answer, request.steps)
        for low, high in self._parts(counts):
            counted = counts[low:high].tolist() if counts[low:high].max() > 1 else ()
            head = pb.StepRows(keys=lineup.keys[low:high], first_steps=(sent[low:high] + 1).tolist(), steps=counted)
            columns = request.views(int(gathered.starts[low]), int(stops[high - 1]))
            self._unsent.append(step_rows_message(head, columns))
        self._requests.push(gathered)
        return gathered

    def ready(self, gathered: Gathered) -> bool:
        """Whether every key of the request was answered or has ended."""
        return gathered.missing == 0 or self.ended

    def check_complete(self, gathered: Gathered, *, single: Mapping[int, bool] | bool) -> None:
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
            self._streams.clear()

    # The wire's side.

    def next_message(self) -> bytes | None:
        """The next message; gRPC's flow control holds back what the server doesn't read."""
        return self._unsent.popleft() if self._unsent and not self.ended else None

    def half_close_due(self) -> bool:
        """Whether to half-close now; true once."""
        if self.going_away_ms is not None and not self._requests and not len(self._streams.slots):
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
        if response.HasField("go_away"):
            self.going_away_ms = response.go_away.grace_ms
        for end in response.ended:
            self._take_end(end)

    def end(self, code: str, reason: str, message: str) -> None:
        """The call has ended with this status."""
        if self.ended:
            return
        if code == OK and self._half_closed and not self._requests:
            self.ended = True
            self._streams.clear()
            return
        code, message = ("UNAVAILABLE", "the server ended it") if code == OK else (code, message)
        streams, slots = self._streams, self._streams.slots
        if not streams.opened[slots].any():
            self.fail(error_of(code, reason, message))
            return
        steps = {"answered_step": int(streams.answered[slots].max()), "sent_step": int(streams.sent[slots].max())}
        self.fail(stream_error_of(code, reason, message, **steps))

    def _check_open(self) -> None:
        if self.error is not None:
            raise fresh(self.error)
        if self.ended or self._finishing:
            raise StreamClosed("the multiplexed call is closed")

    def _lineup_of(self, keys: Sequence[int]) -> Lineup:
        """The streams of these keys, of which all must be open."""
        self._check_open()
        keys = tuple(keys)
        if keys and keys == self._lineup.keys:
            return self._lineup
        keys = tuple(map(as_key, keys))
        if not keys:
            raise InvalidInput("no keys; a multiplexed step has at least one stream")
        if len(set(keys)) != len(keys):
            raise InvalidInput("a key stands twice in one multiplexed step")
        if not self._streams.all_open(keys):
            key = next(key for key in keys if not self._streams.is_open(key))
            if (error := self._ends.get(key)) is not None:
                raise fresh(error)
            raise StreamClosed(f"no stream with key {key} is open in this call")
        self._lineup = Lineup(keys, self._streams.find(keys, len(keys)))
        return self._lineup

    def _parts(self, counts: Ints) -> list[tuple[int, int]]:
        """The request cut between keys so that every message stays within the server's limit on bytes."""
        limit = self.signature.model.limits.max_message_bytes
        room = limit - _OVERHEAD - _TENSOR_OVERHEAD * len(self.signature.inputs)
        step = self.signature.input_step_bytes
        if not limit or int(counts.sum()) * step + len(counts) * _ROW_OVERHEAD <= room:
            return [(0, len(counts))]
        if (largest := int(counts.max()) * step) + _ROW_OVERHEAD > room:
            raise LimitReached(f"one stream's steps have {largest} bytes; a message has {limit} at most")
        parts, low, size = [], 0, 0
        for index, count in enumerate(counts.tolist()):
            row = count * step + _ROW_OVERHEAD
            if size + row > room:
                parts.append((low, index))
                low, size = index, 0
            size += row
        return [*parts, (low, len(counts))]

    def _take_opened(self, message: pb.MultiplexOpened) -> None:
        if message.key not in self._streams or self._streams.is_open(message.key):
            raise ProtocolError(f"the server opened key {message.key}, which wasn't asked for")
        opened_from(message.opened)
        known = (self.signature, *self._described.values())
        signature = self._catalog.opened(message.opened, self._asked, known)
        if not self._described:
            self.signature = signature
        self._described[signature.digest] = signature
        if signature.digest == self.signature.digest:
            self._streams.opened[self._streams.slot(message.key)] = 1
        else:
            self._let_go(message.key, self._changed(self.signature, signature))

    def _let_go(self, key: int, error: CellstreamError) -> None:
        """End a stream that was opened and isn't wanted."""
        self._streams.remove(key)
        self._lineup = Lineup((), self._lineup.slots)
        self._ends[key] = error
        self._burnt.add(key)  # the server has yet to say that it has ended
        self._unsent.append(pb.MultiplexRequest(closes=[key]).SerializeToString())

    @staticmethod
    def _changed(before: Signature, after: Signature) -> ModelChanged:
        name, version = before.model.name, before.model.version
        return ModelChanged(
            f"the server has replaced model {name!r} version {version} (digest {before.model.digest[:12]}) by version "
            f"{after.model.version} (digest {after.model.digest[:12]}); open a new multiplexed call for it"
        )

    def _take_rows(self, rows: pb.StepRows) -> None:
        keys, size = rows.keys, len(rows.keys)
        if not size == len(rows.first_steps) == (len(rows.steps) or size):
            raise ProtocolError(f"{size} keys, {len(rows.first_steps)} first_steps, {len(rows.steps) or size} steps")
        slices = decode(self.signature.outputs, sum(rows.steps) or size, rows.tensors)
        try:
            slots = self._streams.find(keys, size)
            firsts = np.fromiter(rows.first_steps, np.int64, size)
        except KeyError as error:
            raise ProtocolError(f"the server answered steps of key {error}, which names no stream") from None
        except OverflowError:
            raise ProtocolError(f"the server answered step {max(rows.first_steps)}, unasked") from None
        if not size or (not rows.steps and self._requests.take_run(slots, firsts, slices)):
            return
        counts = np.fromiter(rows.steps or [1] * size, np.int64, size)
        sources = np.cumsum(counts) - counts
        # A key may stand twice, though no server of ours does that.
        parts = [slice(0, size)] if len(set(keys)) == size else [slice(row, row + 1) for row in range(size)]
        for part in parts:
            wrong = self._requests.take(slots[part], (firsts[part], counts[part], sources[part]), slices)
            if wrong is not None:
                at = part.start + wrong
                raise ProtocolError(
                    f"the server answered {counts[at]} steps of key {keys[at]} from step {firsts[at]}, unasked"
                )

    def _take_end(self, end: pb.MultiplexEnded) -> None:
        if end.key not in self._streams:
            return  # the answer to something that was under way when the stream ended
        slot = self._streams.remove(end.key)
        self._lineup = Lineup((), self._lineup.slots)
        answered, sent = int(self._streams.answered[slot]), int(self._streams.sent[slot])
        code, message = _CODES.get(end.code, "UNKNOWN"), end.message
        if code == OK and answered < sent:
            code, message = "UNAVAILABLE", "the server ended it"
        if code == OK:
            return
        error = stream_error_of(code, end.reason, message, answered_step=answered, sent_step=sent)
        error = error if self._streams.opened[slot] else error_of(code, end.reason, message)
        self._ends[end.key] = error
        if answered < sent:
            self._burnt.add(end.key)
            self._requests.lose(end.key, slot, error)


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
        """Seconds that the open streams had when the server said that it shuts down; None: it hasn't."""
        grace = self._core.going_away_ms
        return None if grace is None else grace / 1000

    @property
    def error(self) -> CellstreamError | None:
        """Why the call ended; None: it hasn't, or it ended as asked."""
        return self._core.error
