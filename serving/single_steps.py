"""The two hot messages as bytes: a chunk of one step, and its answer.

Owns how these two are laid out when a stream's next step comes alone, as most do: every byte but the tensors' is known
beforehand, so that reading is comparing and writing is joining, with no objects in between. Whatever looks different
(more steps, another step number, fields in another order) isn't read here, and goes through the generated classes.
The protocol's definition stays protos/; tests/serving/test_single_steps.py holds this module to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from model.contract import Contract, TensorSpec

_CHUNK = _OUTPUTS = b"\x12"  # field 2 of StreamRequest and of StreamResponse, a message
_FIRST_STEP = b"\x08"  # field 1, a varint
_ONE_STEP = b"\x10\x01"  # field 2, a varint: 1
_TENSOR = b"\x1a"  # field 3, bytes
_QUEUE, _COMPUTE = b"\x28", b"\x30"  # fields 5 and 6, varints
_BLOCK = 7  # bits of a step number in its varint's first byte, which alone changes for 128 steps
_LONGEST_TIMES = 10  # bytes of two 32-bit varints


def varint(value: int) -> bytes:
    """A non-negative integer as protobuf's varint."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


_TABLE = 1 << 14
_VARINTS = [varint(value) for value in range(_TABLE)]
_LONE = [bytes((low,)) for low in range(128)]  # a varint's first byte where it is the last too
_FIRST = [bytes((low | 128,)) for low in range(128)]  # where more follow


class _Frame(NamedTuple):
    """What surrounds the tensors while step numbers have one length."""

    head: bytes  # of a chunk, up to the step number
    start: int  # of the first tensor in a chunk
    total: int  # bytes of a chunk
    answer_heads: list[bytes]  # of an answer, up to the step number, by the bytes of its two times


class Layout:
    """Where the bytes of one model's one-step messages stand; shared by its streams."""

    __slots__ = ("_frames", "_in_size", "_out_size", "in_cuts", "in_joints", "out_joints")

    def __init__(self, contract: Contract) -> None:
        self.in_joints = _joints(contract.inputs)
        self.out_joints = _joints(contract.outputs)
        self._in_size = sum(map(len, self.in_joints)) + sum(spec.step_bytes for spec in contract.inputs)
        self._out_size = sum(map(len, self.out_joints)) + sum(spec.step_bytes for spec in contract.outputs)
        self._frames: dict[int, _Frame] = {}
        self.in_cuts: list[tuple[int, int]] = []  # of each tensor, counted from the first tensor's begin
        begin = 0
        for place, spec in enumerate(contract.inputs):
            begin += len(self.in_joints[place]) if place else 0
            self.in_cuts.append((begin, begin + spec.step_bytes))
            begin += spec.step_bytes

    def frame(self, digits: int) -> _Frame:
        """The frame of step numbers that are `digits` bytes long."""
        frame = self._frames.get(digits)
        if frame is None:
            number = len(_FIRST_STEP) + digits
            head = _CHUNK + varint(number + self._in_size) + _FIRST_STEP
            start = len(head) + digits + len(self.in_joints[0])
            sizes = (number + self._out_size + len(_QUEUE + _COMPUTE) + times for times in range(_LONGEST_TIMES + 1))
            heads = [_OUTPUTS + varint(size) + _FIRST_STEP for size in sizes]
            frame = self._frames[digits] = _Frame(head, start, start + self.in_cuts[-1][1], heads)
        return frame


def _joints(specs: Sequence[TensorSpec]) -> list[bytes]:
    """What stands in front of each tensor."""
    joints = [_TENSOR + varint(spec.step_bytes) for spec in specs]
    return [_ONE_STEP + joints[0], *joints[1:]]


class SingleSteps:
    """The one-step messages of one stream, whose step numbers only grow: what they begin with is kept for 128 steps."""

    __slots__ = ("_after", "_answer_after", "_block", "_frame", "_layout", "_low")

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._move_to(0)

    def read(self, data: bytes, step: int) -> tuple[bytes, ...] | None:
        """The input tensors, if `data` is a chunk of just the step numbered `step`, laid out as usual; else None."""
        if step >> _BLOCK != self._block:
            self._move_to(step >> _BLOCK)
        head, start, total, _ = self._frame
        if (
            len(data) != total
            or not data.startswith(head)
            or not data.startswith(self._low[step & 127] + self._after, len(head))
        ):
            return None
        cuts = self._layout.in_cuts
        if len(cuts) == 1:
            return (data[start:],)
        for place, (begin, _end) in enumerate(cuts[1:], start=1):
            joint = self._layout.in_joints[place]
            if not data.startswith(joint, start + begin - len(joint)):
                return None
        return tuple([data[start + begin : start + end] for begin, end in cuts])

    def write(self, step: int, outputs: Sequence[bytes], queue_us: int, compute_us: int) -> bytes:
        """The answer to the step numbered `step`: a StreamResponse's bytes."""
        if step >> _BLOCK != self._block:
            self._move_to(step >> _BLOCK)
        queue = _VARINTS[queue_us] if queue_us < _TABLE else varint(queue_us)
        compute = _VARINTS[compute_us] if compute_us < _TABLE else varint(compute_us)
        head = self._frame.answer_heads[len(queue) + len(compute)]
        answer = head + self._low[step & 127] + self._answer_after + outputs[0]
        if len(outputs) > 1:
            joints = self._layout.out_joints[1:]
            answer += b"".join([part for pair in zip(joints, outputs[1:], strict=True) for part in pair])
        return answer + _QUEUE + queue + _COMPUTE + compute

    def _move_to(self, block: int) -> None:
        """Prepare for the steps whose numbers are `block` * 128 and on."""
        high = varint(block) if block else b""
        self._block = block
        self._low = _FIRST if block else _LONE
        self._frame = self._layout.frame(1 + len(high))
        self._after = high + self._layout.in_joints[0]
        self._answer_after = high + self._layout.out_joints[0]
