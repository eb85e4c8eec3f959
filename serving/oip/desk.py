"""Where requests are taken in, whichever of the two hot RPCs they come through.

Owns the short way. A sequence's usual request, one step and no flag, is the same bytes each time up to its tensors, but
for its id: what comes before is looked up whole, so that such a request is never taken apart.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from google.protobuf.message import DecodeError

from serving.errors import InvalidInput, Refusal
from serving.front import Front
from serving.lane import Lane
from serving.live_sequence import Answer, Key, LiveSequence
from serving.oip.answers import Form
from serving.oip.requests import Parsed, find_lane, parse, wants_final
from serving.oip.v1 import inference_pb2 as pb
from serving.single_steps import varint
from serving.streams import Phase

_RAW = b"\x3a"  # field 7 of ModelInferRequest, bytes
_NAMES = (0x0A, 0x12)  # fields 1 and 2 of it: the model's name and version
_ID, _ID_HEAD = 0x1A, 2  # field 3, and the bytes of it before the id
_LONG = 128  # of what is so long, the length has more than one byte
_LONGEST_HEAD = 1024  # bytes of a request before its tensors, of those that are kept


class _Plan:
    """What the requests of one sequence that begin with the same bytes ask for: its next single step."""

    __slots__ = ("cuts", "form", "joints", "live")

    def __init__(self, live: LiveSequence, form: Form, joints: list[bytes], cuts: list[tuple[int, int]]) -> None:
        self.live = live
        self.form = form
        self.joints = joints  # in front of every tensor, from the first
        self.cuts = cuts  # of every tensor, counted from the message's end


class Caller(Hashable, Protocol):
    """A call that requests come through."""

    def complete(self, ticket: Ticket, data: bytes) -> None:
        """A request is answered."""

    def refuse(self, ticket: Ticket, refusal: Refusal) -> None:
        """A request is refused."""


class Ticket:
    """A request that has come and isn't answered."""

    __slots__ = ("_caller", "data", "final", "form", "lane", "refusal", "request_id", "steps")

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.lane: Lane | None = None  # until it's known
        self.form: Form | None = None  # until it's understood
        self.request_id = b""
        self.final = False
        self.steps = 0
        self.data: bytes | None = None  # the answer, while an earlier request's has to go first
        self.refusal: Refusal | None = None  # likewise

    def on_answer(self, answer: Answer) -> None:
        """It's computed."""
        assert self.form is not None
        self._caller.complete(self, self.form.encode(answer, self.request_id))

    def on_refusal(self, refusal: Refusal) -> None:
        """It can't be computed."""
        self._caller.refuse(self, refusal)


class Desk:
    """Takes requests in, whichever call they come through. One per server."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self._plans: dict[bytes, _Plan] = {}  # by a request's bytes before its first tensor's, and how it came
        self._tails: set[int] = set()  # how many bytes of such a request the tensors are

    def take(self, data: bytes, ticket: Ticket, caller: Caller, *, streamed: bool) -> None:
        """Take one request; its answer goes to `ticket`. Raises the Refusal to answer."""
        front = self.front
        front.stats.messages_in += 1
        id_begin, id_end = _id_span(data)
        rest = data[:id_begin] + data[id_end:] if id_end else data
        for tail in self._tails:
            plan = self._plans.get(rest[:-tail])
            if plan is not None and plan.form.streamed is streamed:
                ticket.request_id = data[id_begin + _ID_HEAD : id_end]
                if self._follow(plan, data, ticket, caller):
                    return
        front.check_size(data)
        try:
            request = pb.ModelInferRequest.FromString(data)
        except DecodeError:
            raise InvalidInput("the message isn't an inference.ModelInferRequest") from None
        ticket.request_id = request.id.encode()
        ticket.final = streamed and wants_final(request.parameters)
        lane = ticket.lane = asked = find_lane(front, request.model_name, request.model_version)
        parsed = parse(lane, request, streamed=streamed)
        if not request.model_version and not parsed.ask.start and parsed.ask.key not in lane.sequences:
            older = self._where_it_lives(lane, parsed.ask.key)
            if older is not None:  # a newer version was loaded since the sequence began
                lane = ticket.lane = older
                parsed = parse(lane, request, streamed=streamed)
        ticket.form, ticket.steps = parsed.form, parsed.ask.steps
        live = lane.sequences.ask(parsed.ask, ticket, owner=caller, now=front.clock())
        if live is not None and lane is asked:
            self._plan(data, rest, request, parsed, live)

    def forget(self) -> None:
        """Let go of what is known of sequences' requests: a model is being unloaded."""
        self._plans.clear()
        self._tails.clear()

    def fail(self, ticket: Ticket, refusal: Refusal) -> None:
        """Count a request that isn't computed."""
        self.front.stats.refusals[refusal.reason] += 1
        if ticket.lane is not None:
            ticket.lane.sequences.failed += 1

    def _where_it_lives(self, lane: Lane, key: Key) -> Lane | None:
        others = [other for other in self.front.lanes if other.name == lane.name and key in other.sequences]
        return max(others, key=lambda other: other.version, default=None)

    def _follow(self, plan: _Plan, data: bytes, ticket: Ticket, caller: Caller) -> bool:
        live = plan.live
        if live.stream.phase is not Phase.OPEN:
            return False
        cuts = plan.cuts
        if len(cuts) == 1:
            inputs: tuple[bytes, ...] = (data[cuts[0][0] :],)
        else:
            for joint, (begin, _) in zip(plan.joints, cuts, strict=True):
                if not data.endswith(joint, 0, len(data) + begin):
                    return False
            inputs = tuple([data[len(data) + begin : len(data) + end] for begin, end in cuts])
        form = plan.form
        ticket.lane, ticket.form, ticket.final, ticket.steps = form.lane, form, form.final, 1
        form.lane.sequences.push(live, inputs, ticket, owner=caller, now=self.front.clock())
        return True

    def _plan(
        self, data: bytes, rest: bytes, request: pb.ModelInferRequest, parsed: Parsed, live: LiveSequence
    ) -> None:
        """Note how the sequence's next requests will begin, if this one is of the usual kind; `rest` is without id."""
        ask, form = parsed.ask, parsed.form
        usual = ask.steps == 1 and not (ask.start or ask.end or ask.read_state or ask.idle_seconds is not None)
        if not usual or form.numbered or not request.raw_input_contents:
            return
        if [tensor.name for tensor in request.inputs] != [spec.name for spec in form.lane.contract.inputs]:
            return
        joints = [_RAW + varint(len(raw)) for raw in request.raw_input_contents]
        tail = b"".join([part for pair in zip(joints, request.raw_input_contents, strict=True) for part in pair])
        head = data[: len(data) - len(tail)]
        begin, end = _id_span(data)
        if data[begin + _ID_HEAD : end] != request.id.encode():
            return  # it stands somewhere else
        if len(head) > _LONGEST_HEAD or not data.endswith(tail) or not _has_no_tensor(head):
            return
        cuts, end = [], 0
        for joint, raw in zip(reversed(joints), reversed(request.raw_input_contents), strict=True):
            cuts.append((end - len(raw), end))
            end -= len(raw) + len(joint)
        cuts.reverse()
        size = -cuts[0][0]
        if len(self._plans) >= 2 * self.front.limits.max_streams:
            self._plans.clear()
            self._tails.clear()
        self._tails.add(size)
        self._plans[rest[:-size]] = _Plan(live, form, joints, cuts)


def _id_span(data: bytes) -> tuple[int, int]:
    """Where a request's id stands as a field, if it does where it usually does, behind the model's names; else 0, 0."""
    try:
        at = 0
        for field in _NAMES:
            if data[at] == field and data[at + 1] < _LONG:
                at += 2 + data[at + 1]
        end = at + _ID_HEAD + data[at + 1]
        plain = data[at] == _ID and data[at + 1] < _LONG and data[at + _ID_HEAD : end].isascii()
    except IndexError:
        return 0, 0
    return (at, end) if plain else (0, 0)


def _has_no_tensor(head: bytes) -> bool:
    """Whether these are whole fields, none of them a tensor's bytes: then what stands behind them is the tensors."""
    try:
        return not pb.ModelInferRequest.FromString(head).raw_input_contents
    except DecodeError:
        return False
