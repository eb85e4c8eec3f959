"""A sequence of the Open Inference Protocol as load: one ModelStreamInfer call for each, answers checked."""

from __future__ import annotations

import os

from google.protobuf.message import DecodeError

from bench.load.connection import LoadError
from bench.load.course import VARIANTS, Course
from bench.load.frames import PREFIX
from bench.load.shapes import WrongAnswerError
from serving.oip.v1 import inference_pb2 as pb
from serving.single_steps import varint

STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
_RAW = b"\x3a"  # field 7 of ModelInferRequest, bytes


class InferTrack:
    """One sequence in a call of its own, `chunk` steps in every request; its first goes with START, to open it.

    Requests are the bytes that a client's protobuf library writes: the tensor last, and before it always the same.
    """

    path = STREAM_INFER

    def __init__(self, course: Course, model: str, index: int, chunk: int) -> None:
        self._course, self._model, self._chunk = course, model, chunk
        self._variant = index % VARIANTS
        self._id = (os.getpid() << 24) + index + 1  # several generators don't meet
        self._sent = self._answered = 0  # steps
        self._size = chunk * course.input_bytes
        self._head = self._request(start=False, end=False)
        self._inputs = [course.inputs(self._variant, step, chunk) for step in range(VARIANTS)]
        self._base = self._variant * course.steps * course.output_bytes

    def opening(self) -> bytes:
        """The first steps."""
        return self._message(self._request(start=True, end=False))

    def opened(self, data: bytes) -> bool:
        """Their answer."""
        self._check(data)
        return True

    def has_next(self) -> bool:
        """Whether the course goes on."""
        return self._sent + self._chunk <= self._course.steps

    def next_message(self) -> bytes:
        """The next steps; the last ones end the sequence."""
        if self._sent + 2 * self._chunk > self._course.steps:
            return self._message(self._request(start=False, end=True))
        return self._message(self._head)

    def answer(self, data: bytes) -> tuple[int, int]:
        """An answer, which is always to one request."""
        self._check(data)
        return self._chunk, 1

    def _message(self, head: bytes) -> bytes:
        inputs = self._inputs[self._sent % VARIANTS]
        self._sent += self._chunk
        return head + inputs

    def _request(self, *, start: bool, end: bool) -> bytes:
        """The gRPC prefix and all of a request but its tensor."""
        request = pb.ModelInferRequest(model_name=self._model)
        request.parameters["sequence_id"].int64_param = self._id
        request.parameters["sequence_start"].bool_param = start
        request.parameters["sequence_end"].bool_param = end
        elements = self._course.input_bytes // 4
        request.inputs.add(name=self._course.input_name, datatype="FP32", shape=[1, self._chunk, elements])
        request.outputs.add(name=self._course.output_name)
        body = request.SerializeToString() + _RAW + varint(self._size)
        return PREFIX.pack(0, len(body) + self._size) + body

    def _check(self, data: bytes) -> None:
        try:
            response = pb.ModelStreamInferResponse.FromString(data)
        except DecodeError:
            raise WrongAnswerError("an answer isn't a ModelStreamInferResponse") from None
        if response.error_message:
            raise LoadError(f"sequence {self._id} was refused: {response.error_message}")
        size = self._chunk * self._course.output_bytes
        begin = self._base + self._answered * self._course.output_bytes
        if list(response.infer_response.raw_output_contents) != [self._course.by_stream[begin : begin + size]]:
            raise WrongAnswerError(
                f"the answer to {self._chunk} steps from {self._answered + 1} isn't what the model gives"
            )
        self._answered += self._chunk
