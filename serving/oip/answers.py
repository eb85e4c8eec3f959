"""Answers as bytes: a ModelInferResponse, alone or in the frame of a stream.

Owns what a request's answer looks like, which the request alone decides: everything but the tensors' bytes is written
once for all requests that ask alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.lane import Lane
from serving.oip.tensors import datatype
from serving.oip.v1 import inference_pb2 as pb
from serving.sequences import Answer
from serving.single_steps import varint

_RAW = b"\x32"  # field 6 of ModelInferResponse, bytes
_INFER_RESPONSE = b"\x12"  # field 2 of ModelStreamInferResponse, a message
FINAL = "triton_final_response"
STEP, REPEATED = "cellstream_step", "cellstream_repeated"


@dataclass(slots=True)
class Form:
    """How to answer one request."""

    lane: Lane
    request_id: str
    wanted: tuple[int, ...]  # places of the model's outputs
    timed: bool  # tensors have a time axis
    streamed: bool  # in the frame of ModelStreamInfer
    final: bool = False  # say that each answer is the last one to its request
    numbered: bool = False  # say which step it begins with
    _single: tuple[bytes, bytes] | None = None

    def encode(self, answer: Answer) -> bytes:
        """The answer's bytes."""
        wanted = self.wanted
        if answer.steps == 1 and answer.state is None and not self.numbered:
            if self._single is None:
                self._single = self._prepare(answer)
            head, joint = self._single
            if len(wanted) == 1:
                return head + joint + answer.outputs[wanted[0]]
        else:
            head = self._head(answer)
        outputs = [answer.outputs[place] for place in wanted] if answer.steps else []
        tensors = [*outputs, *(answer.state or ())]
        body = b"".join([part for data in tensors for part in (_RAW, varint(len(data)), data)])
        if answer.steps == 1 and answer.state is None and not self.numbered:
            return head + body
        return self._framed(head, len(body)) + body

    def _prepare(self, answer: Answer) -> tuple[bytes, bytes]:
        """Everything before the tensors of a single step's answer, which always have the same size."""
        sizes = [len(answer.outputs[place]) for place in self.wanted]
        joints = [_RAW + varint(size) for size in sizes]
        total = sum(sizes) + sum(map(len, joints))
        return self._framed(self._head(answer), total), joints[0] if joints else b""

    def _framed(self, head: bytes, more: int) -> bytes:
        return _INFER_RESPONSE + varint(len(head) + more) + head if self.streamed else head

    def _head(self, answer: Answer) -> bytes:
        """A ModelInferResponse without its tensors' bytes, which are its last field."""
        contract = self.lane.contract
        response = pb.ModelInferResponse(
            model_name=self.lane.name, model_version=str(self.lane.version), id=self.request_id
        )
        if answer.steps:
            for place in self.wanted:
                spec = contract.outputs[place]
                shape = [1, answer.steps, *spec.shape] if self.timed else [1, *spec.shape]
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
