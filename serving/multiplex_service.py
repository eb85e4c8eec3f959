"""StreamInference.Multiplex: many streams in one call, steps of many streams in one message, in columns.

Owns the messages of this RPC, the keys by which a call names its streams, and when the next message is read. Answers
are gathered during a turn and go out as one message per call. A stream's life is in serving.streams.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from google.protobuf.message import DecodeError
from grpc import StatusCode

from cellstream.v1 import stream_inference_pb2 as pb
from serving.call import Call
from serving.errors import InvalidInput, Refusal, TooLarge, WrongPhase
from serving.front import SERVICE, Front
from serving.lane import Lane
from serving.status import code_of, trailing
from serving.streams import Stream

METHOD = f"/{SERVICE}/Multiplex"


class _Member:
    """One stream of a Multiplex call: its sink."""

    __slots__ = ("answers", "call", "key", "lane", "stream")

    lane: Lane
    stream: Stream
    answers: list[_Gathered]  # where the call gathers those of this model

    def __init__(self, call: MultiplexCall, key: int) -> None:
        self.call = call
        self.key = key

    def on_outputs(
        self,
        first_step: int,
        steps: int,
        outputs: Sequence[bytes],
        queue_us: int,  # noqa: ARG002  columns have no times
        compute_us: int,  # noqa: ARG002
    ) -> None:
        """Some steps are computed."""
        if not self.answers:
            self.call.gathering()
        self.answers.append((self.key, first_step, steps, outputs))

    def on_end(self, refusal: Refusal | None) -> None:
        """The stream has ended by itself."""
        self.call.ended(self.key, refusal)


_Gathered = tuple[int, int, int, Sequence[bytes]]  # key, first step, steps, outputs


def _columns(answers: list[_Gathered]) -> pb.StepRows:
    """Answers of one model's streams as columns; steps are left out where all are 1."""
    keys, first_steps, steps, outputs = zip(*answers, strict=True)
    return pb.StepRows(
        keys=keys,
        first_steps=first_steps,
        steps=steps if max(steps) > 1 else (),
        tensors=[b"".join(rows) for rows in zip(*outputs, strict=True)],
    )


class MultiplexCall:
    """One Multiplex call: the wire's handler."""

    __slots__ = (
        "_answers",
        "_call",
        "_described",
        "_finishing",
        "_front",
        "_held",
        "_members",
        "_response",
        "_waiting",
    )

    def __init__(self, front: Front, call: Call) -> None:
        self._front = front
        self._call = call
        self._members: dict[int, _Member] = {}
        self._response: pb.MultiplexResponse | None = None  # being gathered
        self._answers: dict[Lane, list[_Gathered]] = {}
        self._described: set[bytes] = set()  # digests of the descriptions that were sent
        self._waiting = 0  # steps of all members that have arrived and aren't computed
        self._held = False
        self._finishing = False
        front.calls.add(self)
        call.receive()

    # From the wire.

    def on_message(self, data: bytes) -> None:
        """A message has arrived."""
        self._front.stats.messages_in += 1
        try:
            self._front.check_size(data)
            self._take(data)
        except Refusal as refusal:
            self._refuse_call(refusal)
        else:
            self._receive_if_room()

    def on_half_close(self) -> None:
        """The client sends no more: every stream is finished."""
        self._finishing = True
        for member in list(self._members.values()):
            member.lane.streams.finish(member.stream)
        self._end_if_drained()

    def on_sent(self) -> None:
        """The client has read something."""
        if self._held and self._call.unsent_bytes <= self._unsent_limit() // 2:
            self._held = False
            for member in self._members.values():
                member.lane.streams.batcher.release(member.stream)
        self._receive_if_room()

    def on_closed(self, *, cancelled: bool) -> None:  # noqa: ARG002  however it ended, its streams are over
        """The call is over."""
        self._front.calls.discard(self)
        for member in self._members.values():
            member.lane.streams.end(member.stream)
        self._members.clear()

    # From the streams.

    def ended(self, key: int, refusal: Refusal | None) -> None:
        """A stream is over; the others go on."""
        member = self._members.pop(key, None)
        if member is not None:
            self._waiting -= member.lane.streams.waiting(member.stream)
            member.lane.streams.end(member.stream)
        if refusal is None:
            self.gathering().ended.add(key=key)
        else:
            self._front.stats.refusals[refusal.reason] += 1
            self.gathering().ended.add(
                key=key, code=code_of(refusal).value[0], reason=refusal.reason, message=str(refusal)
            )

    # From the server.

    def go_away(self, grace_ms: int) -> None:
        """Tell the client that the server is about to shut down."""
        self.gathering().go_away.grace_ms = grace_ms

    def flush(self) -> None:
        """Send what was gathered during this turn."""
        response, self._response = self._response, None
        if response is None:
            return
        for answers in self._answers.values():
            if answers:
                response.outputs.append(_columns(answers))
                self._waiting -= sum([steps for _key, _first, steps, _outputs in answers])
                answers.clear()
        self._front.stats.messages_out += 1
        self._call.send(response.SerializeToString())
        if not self._held and self._call.unsent_bytes >= self._unsent_limit():
            self._held = True
            for member in self._members.values():
                member.lane.streams.batcher.hold(member.stream)
        self._end_if_drained()
        self._receive_if_room()

    def _take(self, data: bytes) -> None:
        try:
            request = pb.MultiplexRequest.FromString(data)
        except DecodeError:
            raise InvalidInput("the message isn't a cellstream.v1.MultiplexRequest") from None
        self._check_entries(request)
        for opening in request.opens:
            self._open(opening.key, opening.open)
        for rows in request.steps:
            self._push(rows)
        for key in request.closes:
            member = self._members.get(key)
            if member is None:
                self.ended(key, WrongPhase(f"no stream with key {key} is open in this call"))
            else:
                member.lane.streams.finish(member.stream)

    def _check_entries(self, request: pb.MultiplexRequest) -> None:
        # Each entry may be answered: without a bound a small message could ask for a huge answer.
        entries = len(request.opens) + len(request.closes) + sum(max(len(rows.keys), 1) for rows in request.steps)
        limit = 2 * self._front.limits.max_streams
        if entries > limit:
            raise TooLarge(f"a message of {entries} opens, closes and keys; the limit is {limit}")

    def _open(self, key: int, opening: pb.Open) -> None:
        if key in self._members:
            raise WrongPhase(f"key {key} names a stream of this call that is open")
        member = _Member(self, key)
        try:
            member.lane, member.stream, opened = self._front.open(opening, member)
            member.answers = self._answers.setdefault(member.lane, [])
        except Refusal as refusal:
            self.ended(key, refusal)
            return
        self._members[key] = member
        description = member.lane.description
        if description.digest not in self._described and description.wanted_by(opening):
            self._described.add(description.digest)
            opened.description.CopyFrom(description.message())
        self.gathering().opened.add(key=key, opened=opened)
        if self._held:
            member.lane.streams.batcher.hold(member.stream)

    def _push(self, rows: pb.StepRows) -> None:
        keys, first_steps = list(rows.keys), list(rows.first_steps)
        steps = list(rows.steps) or [1] * len(keys)
        if not len(keys) == len(first_steps) == len(steps):
            raise InvalidInput(
                f"{len(keys)} keys, {len(first_steps)} first_steps and {len(steps)} steps in one message"
            )
        if len(set(keys)) != len(keys):
            raise InvalidInput("a key stands twice in one message")
        members = [self._members.get(key) for key in keys]
        lanes = {member.lane for member in members if member is not None}
        if len(lanes) > 1:
            raise InvalidInput("streams of several models in one StepRows; send one for each model")
        for key, member in zip(keys, members, strict=True):
            if member is None:
                self.ended(key, WrongPhase(f"no stream with key {key} is open in this call"))
        for lane in lanes:
            now = self._front.clock()
            columns = zip(*_split(lane, steps, rows), strict=True)
            for member, first_step, count, inputs in zip(members, first_steps, steps, columns, strict=True):
                if member is not None:
                    self._push_one(member, first_step, count, inputs, now)

    def _push_one(
        self, member: _Member, first_step: int, steps: int, inputs: tuple[bytes | memoryview, ...], now: float
    ) -> None:
        stream, before = member.stream, member.stream.accepted_step
        try:
            if steps == 1 and first_step == before + 1:
                member.lane.streams.push_next(stream, 1, inputs, now)  # its size is right: the columns' was
            else:
                member.lane.streams.push(stream, first_step, steps, inputs, now)
        except Refusal as refusal:
            self.ended(member.key, refusal)
        else:
            self._waiting += stream.accepted_step - before

    def gathering(self) -> pb.MultiplexResponse:
        """The message that goes out after this turn."""
        if self._response is None:
            self._response = pb.MultiplexResponse()
            self._front.gathered.append(self)
        return self._response

    def _unsent_limit(self) -> int:
        # A call of many streams may leave as much unread as a few of them alone could.
        return self._front.limits.max_unsent_bytes * min(max(len(self._members), 1), 16)

    def _receive_if_room(self) -> None:
        room = max(self._front.limits.window_steps, 4 * len(self._members))
        if not self._finishing and self._waiting < room and self._call.unsent_bytes < self._unsent_limit():
            self._call.receive()

    def _end_if_drained(self) -> None:
        if self._finishing and not self._members and self._response is None:
            self._call.finish(StatusCode.OK)

    def _refuse_call(self, refusal: Refusal) -> None:
        self.flush()  # what was computed before goes first
        self._front.stats.refusals[refusal.reason] += 1
        for member in self._members.values():
            member.lane.streams.end(member.stream)
        self._members.clear()
        self._finishing = True
        self._call.finish(code_of(refusal), str(refusal), trailing(refusal))


def _split(lane: Lane, steps: list[int], rows: pb.StepRows) -> list[list[bytes | memoryview]]:
    """Each tensor's column cut into its rows. Raises InvalidInput where the bytes don't add up."""
    sizes = lane.check.step_bytes
    if len(rows.tensors) != len(sizes):
        raise InvalidInput(f"{len(rows.tensors)} input tensors; the model takes {len(sizes)}")
    total, single = sum(steps), max(steps) == 1
    columns: list[list[bytes | memoryview]] = []
    for spec, size, data in zip(lane.contract.inputs, sizes, rows.tensors, strict=True):
        if len(data) != total * size:
            raise InvalidInput(
                f"input {spec.name!r} has {len(data)} bytes; {total} steps of {spec.dtype}{list(spec.shape)} "
                f"are {total * size} bytes"
            )
        if single and total == len(steps):
            columns.append([data[start : start + size] for start in range(0, len(data), size)])
            continue
        view, ends = memoryview(data), [size * end for end in itertools.accumulate(steps)]
        columns.append([view[start:end] for start, end in zip([0, *ends], ends, strict=False)])
    return columns
