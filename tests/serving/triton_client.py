"""Triton's own client package for the tests, unchanged, with as little of ours around it as can be."""

from __future__ import annotations

import copy
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import torch
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2

from serving.server import Server
from tests.serving.client import SECONDS

F, H = 5, 6  # of the model "lstm"
Array = npt.NDArray[Any]
Error = triton.InferenceServerException


@contextmanager
def connect(server: Server | str) -> Iterator[Any]:
    """A client with a connection of its own."""
    address = server if isinstance(server, str) else server.address
    with triton.InferenceServerClient(address, channel_args=[("grpc.use_local_subchannel_pool", 1)]) as client:
        yield client


def given(seed: int, steps: int = 1) -> Array:
    """X [T, F] for the model "lstm"."""
    return np.random.default_rng(seed).standard_normal((steps, F), dtype=np.float32)


def tensor(x: Array, name: str = "x") -> Any:
    """An input or a state [1, ...], its data in it."""
    datatype = {"float32": "FP32", "int64": "INT64"}[x.dtype.name]
    return triton.InferInput(name, [1, *x.shape], datatype).set_data_from_numpy(x[None])


def first(result: Any) -> Array:
    """Y of an answer, without the batch."""
    found: Array = result.as_numpy("y")[0]
    return found


def ask(client: Any, x: Array | None, key: int | str, **options: Any) -> Array:
    """One unary request with x [T, F], or one step [F]: y as it came, without the batch."""
    inputs = [] if x is None else [tensor(x)]
    return first(client.infer("lstm", inputs, sequence_id=key, **options))


class Stream:
    """A client's stream, its answers in a queue."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.client = client
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client.start_stream(lambda result, error: self._answers.put((result, error)), **options)

    def send(self, x: Array | None, key: int | str, *, model: str = "lstm", **options: Any) -> None:
        """One request."""
        inputs = [] if x is None else [tensor(x)]
        self.client.async_stream_infer(model, inputs, sequence_id=key, **options)

    def result(self) -> Any:
        """The next answer; raises what came instead."""
        result, error = self._answers.get(timeout=SECONDS)
        if error is not None:
            raise error
        return result

    def y(self) -> Array:
        """The next answer's y, without the batch."""
        return first(self.result())

    def stop(self, *, cancel: bool = False) -> None:
        """End the stream."""
        self.client.stop_stream(cancel_requests=cancel)


@contextmanager
def streaming(server: Server | str, **options: Any) -> Iterator[Stream]:
    """A stream over a connection of its own."""
    with connect(server) as client:
        stream = Stream(client, **options)
        yield stream
        stream.stop(cancel=True)


def raw_infer(channel: grpc.Channel) -> Any:
    """ModelInfer without the client: tritonclient's messages over plain gRPC."""
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


def request(key: int | str, *, start: bool = False, end: bool = False) -> Any:
    """The message of one step of a sequence of the model "lstm"."""
    made = service_pb2.ModelInferRequest(model_name="lstm")
    if isinstance(key, str):
        made.parameters["sequence_id"].string_param = key
    else:
        made.parameters["sequence_id"].int64_param = key
    made.parameters["sequence_start"].bool_param = start
    made.parameters["sequence_end"].bool_param = end
    made.inputs.add(name="x", datatype="FP32", shape=[1, F])
    made.raw_input_contents.append(given(1).tobytes())
    return made


def check(found: Array, lstm: torch.nn.LSTM, x: Array, *, after: int = 0) -> None:
    """Assert that `found` is what PyTorch says to x [T, F] after its first `after` steps, as near the truth as it is.

    The truth is PyTorch in float64.
    """
    exact, rounded = (_run(lstm, x, dtype) for dtype in (torch.float64, torch.float32))
    bound = 4 * float(np.abs(exact - rounded).max()) + 2.0**-23
    np.testing.assert_allclose(np.asarray(found, np.float64), exact[after : after + len(found)], rtol=0, atol=bound)


def _run(lstm: torch.nn.LSTM, x: Array, dtype: torch.dtype) -> Array:
    with torch.no_grad():
        y: Array = copy.deepcopy(lstm).to(dtype)(torch.from_numpy(x)[None].to(dtype))[0][0].double().numpy()
    return y
