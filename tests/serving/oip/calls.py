"""What the protocol's tests talk with: calls without a network, two small models, and requests as clients make them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from model.contract import Contract, StatePair, TensorSpec
from serving.config import Batching, Limits, Sequencing
from serving.front import Front
from serving.lane import Lane, Lanes
from serving.oip.desk import Desk
from serving.oip.infer_service import InferCall, StreamInferCall
from serving.oip.v1 import inference_pb2 as pb
from serving.stats import ServerStats
from tests.serving.test_lane import Clock, SumEngine
from tests.serving.test_streams import pack, unpack

LIMITS = Limits(
    max_streams=6,
    max_steps_per_message=9,
    window_steps=9,
    max_waiting_steps=40,
    max_message_bytes=4000,
    max_unsent_bytes=400,
)
PAIR = Contract(
    name="pair",
    inputs=(TensorSpec("x", "float32", ()), TensorSpec("k", "int32", (2,), minimum=-9, maximum=9)),
    outputs=(TensorSpec("y", "float32", ()), TensorSpec("z", "int64", (2,))),
    states=(StatePair("s", "s_out", "float32", ()), StatePair("c", "c_out", "int64", (2,))),
    weights_digest="",
)


class PairEngine(SumEngine):
    """Running sums of both inputs: y of x's elements, z of k's."""

    contract: Contract = PAIR
    row_bytes = 20

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, npt.NDArray[np.int64]] = {0: np.zeros(2, np.int64)}

    def run(
        self,
        inputs: list[tuple[bytes | memoryview, ...]],
        lengths: list[int],
        read_rows: list[int],
        write_rows: list[int],
    ) -> list[list[bytes]]:
        sums = super().run(inputs, lengths, read_rows, write_rows)
        answers = []
        for lane, outputs, read, write in zip(inputs, sums, read_rows, write_rows, strict=True):
            counts = self.counts[read] + np.cumsum(np.frombuffer(lane[1], np.int32).reshape(-1, 2), axis=0)
            self.counts[write] = counts[-1]
            answers.append([outputs[0], counts.astype(np.int64).tobytes()])
        return answers

    def read_state(self, row: int) -> list[npt.NDArray[Any]]:
        return [*super().read_state(row), self.counts[row].copy()]

    def write_state(self, row: int, values: Sequence[npt.NDArray[Any]]) -> None:
        super().write_state(row, values)
        self.counts[row] = np.array(values[1])


class WireCall:
    """A call whose client reads everything, or nothing; notes what is done to it."""

    def __init__(self, *, reads: bool = True, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self.metadata = tuple(metadata)
        self.sent: list[bytes] = []
        self.reads = reads
        self.unsent_bytes = 0
        self.tells_sent = True
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.trailing: dict[str, str] = {}
        self.receiving = False
        self.puts_off = False  # as for a client that is known to wait for every answer
        self.put_off = False
        self.over = False

    def receive(self) -> None:
        self.put_off = False
        self.receiving = self.status is None and not self.over

    def receive_after_reply(self) -> None:
        if self.puts_off:
            self.put_off = True
        else:
            self.receive()

    def reply(self, data: bytes) -> None:
        self.send(data)
        if self.put_off:
            self.receive()

    def send(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if self.status is None and not self.over:
            self.sent.append(data)
            self.unsent_bytes += 0 if self.reads else len(data)

    def answer(self, data: bytes) -> None:
        if self.status is None and not self.over:
            assert not self.sent, "an answer behind another"
            self.send(data)
            self.status = (grpc.StatusCode.OK, "")

    def finish(self, code: grpc.StatusCode, details: str = "", metadata: Sequence[tuple[str, str]] = ()) -> None:
        if self.status is None and not self.over:
            self.status = (code, details)
            self.trailing = dict(metadata)
            assert len(details.encode()) < 3000, "the text doesn't fit into trailing metadata"

    @property
    def code(self) -> grpc.StatusCode | None:
        return self.status[0] if self.status else None


class Unary:
    """A ModelInfer call and its client."""

    def __init__(self, house: House, data: bytes | pb.ModelInferRequest) -> None:
        self.wire = WireCall()
        self.handler = InferCall(house.desk, self.wire)  # type: ignore[arg-type]
        self.handler.on_message(raw(data))

    @property
    def answer(self) -> pb.ModelInferResponse:
        """What came, which must be an answer."""
        assert self.wire.code is grpc.StatusCode.OK, self.wire.status
        (data,) = self.wire.sent
        return pb.ModelInferResponse.FromString(data)

    def close(self, *, cancelled: bool) -> None:
        """The call is over."""
        self.wire.over = True
        self.handler.on_closed(cancelled=cancelled)


class Streamed:
    """A ModelStreamInfer call and its client."""

    def __init__(self, house: House, *, reads: bool = True, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self.wire = WireCall(reads=reads, metadata=metadata)
        self.handler = StreamInferCall(house.desk, self.wire)  # type: ignore[arg-type]

    def send(self, data: bytes | pb.ModelInferRequest) -> None:
        """Send one more; the server must have asked for it."""
        assert self.wire.receiving, "the server doesn't read"
        self.wire.receiving = False
        self.handler.on_message(raw(data))

    def is_read(self) -> bool:
        """Whether the server has asked for the next request."""
        return self.wire.receiving

    def status(self) -> tuple[grpc.StatusCode, str] | None:
        """How the call has ended."""
        return self.wire.status

    @property
    def answers(self) -> list[pb.ModelStreamInferResponse]:
        """What has come."""
        return [pb.ModelStreamInferResponse.FromString(data) for data in self.wire.sent]

    @property
    def told(self) -> list[list[float] | str]:
        """The first output of each answer, or the reason of each error."""
        return [
            answer.infer_response.parameters["cellstream_reason"].string_param
            if answer.error_message
            else first_output(answer.infer_response)
            for answer in self.answers
        ]

    def close(self, *, cancelled: bool) -> None:
        """The call is over."""
        self.wire.over = True
        self.handler.on_closed(cancelled=cancelled)


class House:
    """A server without a network: two models, "sum" and "pair", and a desk."""

    def __init__(self, limits: Limits = LIMITS, *, grace: float = 60.0, planning: bool = True) -> None:
        self.clock = Clock()
        batching, sequencing = Batching(max_batch=3, slice_steps=4), Sequencing(grace=grace)
        self.sum, self.pair = (
            Lane(name, 1, engine, limits=limits, batching=batching, sequencing=sequencing, clock=self.clock)
            for name, engine in (("sum", SumEngine()), ("pair", PairEngine()))
        )
        self.front = Front(Lanes([self.sum, self.pair]), limits, ServerStats(), self.clock)
        self.desk = Desk(self.front)
        if not planning:
            self.desk._plan = lambda *_args: None  # type: ignore[method-assign]

    def turn(self, times: int = 1) -> None:
        """So many turns of the loop."""
        for _ in range(times):
            for lane in self.front.lanes:
                lane.turn()
            self.front.flush()
        self.check()

    def check(self) -> None:
        """Assert that the books balance."""
        for lane in (self.sum, self.pair):
            lane.sequences.check()
            lane.streams.check()

    def infer(self, data: bytes | pb.ModelInferRequest) -> Unary:
        """A whole ModelInfer."""
        unary = Unary(self, data)
        self.turn(4)
        return unary


def raw(data: bytes | pb.ModelInferRequest) -> bytes:
    """A request's bytes."""
    return data if isinstance(data, bytes) else data.SerializeToString()


def first_output(response: pb.ModelInferResponse) -> list[float]:
    """The first output's elements."""
    return unpack(response.raw_output_contents[0]) if response.outputs else []


def parameter(message: Any, name: str, value: bool | int | str | float) -> None:
    """Set a parameter of a request, of the kind that the value has."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(message.parameters[name], kinds[type(value)], value)


def request(
    key: int | str | None,
    *values: float,
    model: str = "sum",
    id: str = "",  # noqa: A002  the protocol's word
    **parameters: Any,
) -> pb.ModelInferRequest:
    """A request of the sum for these steps of a sequence; start=True and end=True are the sequence's."""
    message = pb.ModelInferRequest(model_name=model, id=id)
    if key is not None:
        parameter(message, "sequence_id", key)
    for name, value in parameters.items():
        parameter(message, {"start": "sequence_start", "end": "sequence_end"}.get(name, name), value)
    if values:
        message.inputs.add(name="x", datatype="FP32", shape=[1, len(values)])
        message.raw_input_contents.append(pack(list(values))[0])
    return message


def pair_request(key: int | str, *values: float, **parameters: Any) -> pb.ModelInferRequest:
    """The same of the pair: k's elements are the value and its negative."""
    message = request(key, *values, model="pair", **parameters)
    message.inputs.add(name="k", datatype="INT32", shape=[1, len(values), 2])
    message.raw_input_contents.append(b"".join(struct.pack("<ii", int(value), -int(value)) for value in values))
    return message
