"""A connection to a server, for threads: its models, and the streams opened over it.

Owns the channel, what is known of the models, and the live streams.
"""

from __future__ import annotations

import atexit
import functools
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from cellstream import _rpc
from cellstream._catalog import Catalog
from cellstream._link import Link
from cellstream._multiplex import MultiplexCore
from cellstream._process import Maker, occupy_stacks
from cellstream._protocol import Core, Opening, StreamCore
from cellstream._tensors import Signature
from cellstream._unary import ask
from cellstream._worker import Worker
from cellstream.errors import CellstreamError, StreamClosed
from cellstream.models import Model, ModelSummary, model_from, summaries_from
from cellstream.multiplex import Multiplex
from cellstream.options import Attempts, Channel, Retry
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
        self._maker = Maker()
        occupy_stacks()
        self._worker = Worker()
        self._channel = self._worker.call(lambda: _channel(address, credentials, channel))
        self._catalog = Catalog()
        self._live: set[Link] = set()
        self._closed = False
        # When nobody holds the client or a stream of its any more; _OPEN is for the program's end.
        weakref.finalize(self, _disconnect, self._worker, self._channel, self._live, self._maker).atexit = False
        _OPEN.add(self)

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

        Opening is tried again as `retry` (or the client's) says, and takes the lesser of `timeout` and `retry.total`
        seconds. Raises UnknownModel, Overloaded, Unavailable, DeadlineExceeded or the server's other refusals.
        """
        opening, until = Opening(model, version, stream_id), _rpc.until(timeout)

        def attempt(seconds: float) -> Stream:
            core = StreamCore(opening, self._catalog)
            stream = Stream(core, self._link(_rpc.STREAM, core, metadata, until), self._forget, self.address)
            stream.wait_opened(seconds)
            return stream

        return self._retrying(retry, attempt, timeout)

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
        until = _rpc.until(timeout)
        proposal = self._retrying(retry, lambda seconds: self._described(model, version, seconds), timeout)
        core = MultiplexCore(proposal, version, self._catalog)
        multiplex = Multiplex(core, self._link(_rpc.MULTIPLEX, core, metadata, until), self._forget, self.address)
        try:
            multiplex.begin()
        except BaseException:
            multiplex.cancel()
            raise
        return multiplex

    def close(self) -> None:
        """Cancel the streams that are open, and disconnect, within two seconds. Idempotent; does nothing in a fork."""
        if self._closed or not self._maker.here:
            return
        self._closed = True
        for link in tuple(self._live):
            link.cancel()
        self._worker.put(self._channel.close)
        self._worker.flush(_rpc.DISCONNECT_SECONDS)
        self._worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self, link: Link) -> None:
        # A method of the client: whoever holds a stream holds its client.
        self._live.discard(link)

    def _described(self, name: str, version: int, seconds: float) -> Signature:
        request = pb.GetModelRequest(model=name, version=version)
        message = self._call(_rpc.GET_MODEL, request, pb.GetModelResponse, seconds)
        return self._catalog.described(message, (name, version))

    def _retrying(self, retry: Retry | None, attempt: Callable[[float], R], timeout: float | None) -> R:
        attempts = Attempts(retry or self._retry, _rpc.time_limit(timeout), time.monotonic)
        while True:
            try:
                return attempt(attempts.seconds_left())
            except CellstreamError as error:
                wait = attempts.wait_after(_rpc.explained(error, self.address))
            time.sleep(wait)

    def _link(self, path: str, core: Core, metadata: _rpc.Metadata, until: float | None) -> Link:
        self._check_open()
        options = {"metadata": (*self._metadata, *metadata), "wait_for_ready": self._wait_for_ready}
        link = Link(self._worker, functools.partial(_rpc.begin, self._channel, path, until, options), core)
        self._live.add(link)
        return link

    def _check_open(self) -> None:
        self._maker.check()
        if self._closed:
            raise StreamClosed("the client is closed")

    def _call(self, path: str, request: Any, response: Any, timeout: float | None) -> Any:
        self._check_open()
        timeout = _rpc.time_limit(timeout)
        options = {"timeout": timeout, "metadata": self._metadata, "wait_for_ready": self._wait_for_ready}

        def begin() -> Any:
            method: Any = self._channel.unary_unary(path, type(request).SerializeToString, response.FromString)
            return method.future(request, **options)

        try:
            return ask(self._worker, begin, timeout)
        except CellstreamError as error:
            raise _rpc.explained(error, self.address) from None


_OPEN: weakref.WeakSet[Client] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """While threads still run: afterwards gRPC's may find nothing to run in."""
    for client in tuple(_OPEN):
        client.close()


def _channel(address: str, credentials: grpc.ChannelCredentials | None, channel: Channel) -> grpc.Channel:
    arguments = channel.arguments(address)
    if credentials is None:
        return grpc.insecure_channel(address, arguments)
    return grpc.secure_channel(address, credentials, arguments)


def _disconnect(worker: Worker, channel: grpc.Channel, live: set[Link], maker: Maker) -> None:
    if not maker.here:
        return
    for link in tuple(live):
        link.abandon()
    worker.put(channel.close)
    worker.stop()
