"""A connection to a server, for threads: its models, and the streams opened over it.

Owns the channel, what is known of the models, and the live streams.
"""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from cellstream import _rpc
from cellstream._catalog import Catalog
from cellstream._multiplex import MultiplexCore
from cellstream._protocol import Opening, StreamCore
from cellstream._tensors import Signature
from cellstream.errors import CellstreamError, StreamClosed
from cellstream.models import Model, ModelSummary, model_from, summaries_from
from cellstream.multiplex import Multiplex
from cellstream.options import Channel, Retry
from cellstream.stream import Stream
from cellstream.v1 import stream_inference_pb2 as pb

R = TypeVar("R")


def connect(
    address: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: _rpc.Metadata = (),
    channel: Channel = Channel(),  # noqa: B008  frozen
    retry: Retry = Retry(),  # noqa: B008  frozen
) -> Client:
    """A client of the server at `address` (host:port, or any gRPC target). Nothing is sent yet.

    `credentials`: TLS (grpc.ssl_channel_credentials()); None: plaintext. `metadata` goes with every call.
    """
    return Client(address, credentials=credentials, metadata=metadata, channel=channel, retry=retry)


class Client:
    """A connection; made by `connect`. Threads may share it, and open any number of streams each."""

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None,
        metadata: _rpc.Metadata,
        channel: Channel,
        retry: Retry,
    ) -> None:
        self.address = address
        self._metadata = tuple(metadata)
        self._retry = retry
        self._wait_for_ready = channel.wait_for_ready
        arguments = channel.arguments()
        if credentials is None:
            self._channel = grpc.insecure_channel(address, arguments)
        else:
            self._channel = grpc.secure_channel(address, credentials, arguments)
        self._catalog = Catalog()
        self._live: set[Stream | Multiplex] = set()
        # At exit, while threads still run, and when nobody holds the client or a stream of its any more.
        self._finish = weakref.finalize(self, _disconnect, self._channel, self._live)

    def models(self, *, timeout: float = 30.0) -> tuple[ModelSummary, ...]:
        """What the server serves."""
        return summaries_from(self._call(_rpc.LIST_MODELS, pb.ListModelsRequest(), pb.ListModelsResponse, timeout))

    def model(self, name: str, version: int = 0, *, timeout: float = 30.0) -> Model:
        """One model, asked of the server anew; version 0 is the highest. Raises UnknownModel."""
        request = pb.GetModelRequest(model=name, version=version)
        return model_from(self._call(_rpc.GET_MODEL, request, pb.GetModelResponse, timeout))

    def stream(
        self,
        model: str,
        version: int = 0,
        *,
        stream_id: str = "",
        timeout: float | None = None,
        retry: Retry | None = None,
        metadata: _rpc.Metadata = (),
    ) -> Stream:
        """Open a stream, with fresh state; version 0 is the highest. `timeout`: seconds for the whole stream.

        Tries again as `retry` (or the client's) says. Raises UnknownModel, Overloaded, Unavailable, DeadlineExceeded
        or the server's other refusals.
        """
        opening = Opening(model, version, stream_id)

        def attempt(seconds: float) -> Stream:
            core, options = StreamCore(opening, self._catalog), self._options(metadata, timeout)
            stream = Stream(self._method(_rpc.STREAM), core, self._forget, **options)
            self._live.add(stream)
            try:
                stream.wait_opened(seconds)
            except BaseException:
                stream.cancel()
                raise
            return stream

        return self._retrying(retry, attempt)

    def multiplex(
        self,
        model: str,
        version: int = 0,
        *,
        timeout: float | None = None,
        retry: Retry | None = None,
        metadata: _rpc.Metadata = (),
    ) -> Multiplex:
        """A call for many streams of one model, none of them open yet. `timeout`: seconds for the whole call.

        All of its streams run the model that the first of them is opened with. Opening another one raises ModelChanged
        once the server has another model under the name.
        """
        signature = self._retrying(retry, lambda seconds: self._described(model, version, seconds))
        core, options = MultiplexCore(signature, version, self._catalog), self._options(metadata, timeout)
        multiplex = Multiplex(self._method(_rpc.MULTIPLEX), core, self._forget, **options)
        self._live.add(multiplex)
        return multiplex

    def close(self) -> None:
        """Cancel the streams that are open, and disconnect. Idempotent."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self, stream: Stream | Multiplex) -> None:
        # A method of the client: whoever holds a stream holds its client.
        self._live.discard(stream)

    def _described(self, name: str, version: int, seconds: float) -> Signature:
        request = pb.GetModelRequest(model=name, version=version)
        message = self._call(_rpc.GET_MODEL, request, pb.GetModelResponse, seconds)
        return self._catalog.described(message, (name, version))

    def _retrying(self, retry: Retry | None, attempt: Callable[[float], R]) -> R:
        retry = retry or self._retry
        began, failed = time.monotonic(), 0
        while True:
            try:
                return attempt(retry.total - (time.monotonic() - began))
            except CellstreamError as error:
                failed += 1
                wait = retry.delay(failed, error, time.monotonic() - began, random.random)
                if wait is None:
                    raise
            time.sleep(wait)

    def _options(self, metadata: _rpc.Metadata, timeout: float | None) -> dict[str, Any]:
        return {
            "timeout": timeout,
            "metadata": (*self._metadata, *metadata),
            "wait_for_ready": self._wait_for_ready,
        }

    def _check_open(self) -> None:
        if not self._finish.alive:
            raise StreamClosed("the client is closed")

    def _method(self, path: str) -> Any:
        self._check_open()
        return self._channel.stream_stream(path, request_serializer=None, response_deserializer=None)

    def _call(self, path: str, request: Any, response: Any, timeout: float) -> Any:
        self._check_open()
        method: Any = self._channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        try:
            return method(request, **self._options((), timeout))
        except grpc.RpcError as error:
            raise _rpc.error_from(error) from None


def _disconnect(channel: grpc.Channel, live: set[Stream | Multiplex]) -> None:
    for stream in tuple(live):
        stream.cancel()
    channel.close()
