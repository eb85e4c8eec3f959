"""A plain client for the tests: gRPC and the generated messages, nothing of ours between."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from cellstream.v1 import stream_inference_pb2 as pb

Floats = npt.NDArray[np.float32]
SERVICE = "/cellstream.v1.StreamInference"
SECONDS = 30.0  # no answer within this: the test has failed


class RawCall:
    """One bidirectional call; messages go out as they are given, bytes as they are."""

    def __init__(self, channel: grpc.Channel, method: str, response: Any, timeout: float | None = SECONDS) -> None:
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        path = method if method.startswith("/") else f"{SERVICE}/{method}"
        start: Any = channel.stream_stream(path, None, response.FromString)
        self.call: Any = start(iter(self._outgoing.get, None), timeout=timeout)

    def send(self, message: Any) -> None:
        """Send a message, or bytes that aren't one."""
        self._outgoing.put(message if isinstance(message, bytes) else message.SerializeToString())

    def half_close(self) -> None:
        """Send no more."""
        self._outgoing.put(None)

    def receive(self) -> Any:
        """The next message; raises grpc.RpcError or StopIteration at the end."""
        return next(self.call)

    def end(self) -> tuple[grpc.StatusCode, str, str | None]:
        """Read to the end: code, text, and our reason."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass
        reason = dict(self.call.trailing_metadata() or ()).get("cellstream-reason")
        return self.call.code(), self.call.details(), reason

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.half_close()
        self.call.cancel()


class StreamCall(RawCall):
    """One Stream call."""

    def __init__(self, channel: grpc.Channel, timeout: float | None = SECONDS) -> None:
        super().__init__(channel, "Stream", pb.StreamResponse, timeout)
        self.sent = 0

    def open(self, model: str, version: int = 0, **fields: Any) -> pb.Opened:
        """Open and wait for the answer."""
        self.send(pb.StreamRequest(open=pb.Open(model=model, version=version, **fields)))
        opened: pb.Opened = self.receive().opened
        return opened

    def push(self, x: npt.NDArray[Any]) -> None:
        """Send x [T, ...] as the stream's next steps."""
        self.send(pb.StreamRequest(chunk=pb.Chunk(first_step=self.sent + 1, steps=len(x), inputs=[x.tobytes()])))
        self.sent += len(x)

    def pull(self, steps: int) -> list[bytes]:
        """The next `steps` steps' outputs, one item per step."""
        answers: list[bytes] = []
        while len(answers) < steps:
            outputs = self.receive().outputs
            (data,) = outputs.outputs
            size = len(data) // outputs.steps
            answers += [data[step * size : (step + 1) * size] for step in range(outputs.steps)]
        assert len(answers) == steps
        return answers

    def run(self, x: npt.NDArray[Any]) -> list[bytes]:
        """Push x [T, ...] and pull as much."""
        self.push(x)
        return self.pull(len(x))


def cut(x: npt.NDArray[Any], sizes: Iterator[int]) -> Iterator[npt.NDArray[Any]]:
    """X [T, ...] in chunks of these sizes."""
    start = 0
    while start < len(x):
        size = next(sizes)
        yield x[start : start + size]
        start += size
