"""Answers as bytes: a ModelInferResponse, alone or in the frame of a stream.

Owns what a request's answer looks like, which the request alone decides: everything but the tensors' bytes is written
once for all requests that ask alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.lane import Lane
from serving.oip.tensors import datatype
from serving.oip.v1 import inference_pb2 as pb
from serving.sequences import Answer
from serving.single_steps import varint

_RAW = b"\x32"  # field 6 of ModelInferResponse, bytes
_ID = b"\x1a"  # field 3 of it, a string
_INFER_RESPONSE = b"\x12"  # field 2 of ModelStreamInferResponse, a message
_MOST_HEADS = 64
FINAL = "triton_final_response"
STEP, REPEATED = "cellstream_step", "cellstream_repeated"


@dataclass(slots=True)
class Form:
    """How to answer one request."""

    lane: Lane
    wanted: tuple[int, ...]  # places of the model's outputs
    axes: int  # before a step's own: 2 are [1, T], 1 is [1], and 0 none
    streamed: bool  # in the frame of ModelStreamInfer
    final: bool = False  # say that each answer is the last one to its request
    numbered: bool = False  # say which step it begins with
    _heads: dict[int, bytes] = field(default_factory=dict)  # of single steps' answers, up to the id, by the id's length
    _middle: bytes = b""  # of a single step's answer, from behind the id to the first tensor's bytes

    def encode(self, answer: Answer, request_id: bytes) -> bytes:
        """The answer's bytes, to the request of this id (in UTF-8)."""
        wanted = self.wanted
        if answer.steps == 1 and answer.state is None and not self.numbered and len(wanted) == 1:
            head = self._heads.get(len(request_id)) or self._prepare(answer, len(request_id))
            return head + request_id + self._middle + answer.outputs[wanted[0]]
        outputs = [answer.outputs[place] for place in wanted] if answer.steps else []
        tensors = [*outputs, *(answer.state or ())]
        body = b"".join([part for data in tensors for part in (_RAW, varint(len(data)), data)])
        rest = self._described(answer) + body
        return self._framed(len(request_id), len(rest)) + request_id + rest

    def _prepare(self, answer: Answer, id_size: int) -> bytes:
        """What stands before the id in a single step's answer, whose only tensor always has the same size."""
        (place,) = self.wanted
        size = len(answer.outputs[place])
        if not self._middle:
            self._middle = self._described(answer) + _RAW + varint(size)
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        head = self._heads[id_size] = self._framed(id_size, len(self._middle) + size)
        return head

    def _framed(self, id_size: int, more: int) -> bytes:
        """A ModelInferResponse's bytes up to its id, `more` bytes of which come behind that."""
        names = pb.ModelInferResponse(model_name=self.lane.name, model_version=str(self.lane.version))
        head = names.SerializeToString() + (_ID + varint(id_size) if id_size else b"")
        return _INFER_RESPONSE + varint(len(head) + id_size + more) + head if self.streamed else head

    def _described(self, answer: Answer) -> bytes:
        """What stands between a ModelInferResponse's id and its tensors' bytes, which are its last field."""
        contract = self.lane.contract
        response = pb.ModelInferResponse()
        if answer.steps:
            for place in self.wanted:
                spec = contract.outputs[place]
                shape = [*(1, answer.steps)[: self.axes], *spec.shape]
                response.outputs.add(name=spec.name, datatype=datatype(spec.dtype), shape=shape)
        if answer.state is not None:
            for state in contract.states:
                response.outputs.add(name=state.output, datatype=datatype(state.dtype), shape=[1, *state.shape])
        if self.final:
            response.parameters[FINAL].bool_param = True
        if self.numbered:
            response.parameters[STEP].int64_param = answer.first_step
            response.parameters[REPEATED].bool_param = answer.repeated
        return response.SerializeToString()


def error_response(request_id: str, text: str, reason: str, *, final: bool) -> bytes:
    """A stream's answer to a request that failed."""
    response = pb.ModelStreamInferResponse(error_message=text)
    response.infer_response.id = request_id
    response.infer_response.parameters["cellstream_reason"].string_param = reason
    if final:
        response.infer_response.parameters[FINAL].bool_param = True
    return response.SerializeToString()
