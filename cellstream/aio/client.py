"""A connection to a server, for asyncio: its models, and the streams opened over it.

Owns the channel, what is known of the models, and the live streams.
"""

# ruff: noqa: ASYNC109  timeouts are given as to the client for threads
from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from cellstream import _rpc
from cellstream._catalog import Catalog
from cellstream._multiplex import MultiplexCore
from cellstream._process import Maker, occupy_stacks
from cellstream._protocol import Core, Opening, StreamCore
from cellstream._tensors import Signature
from cellstream.aio._link import Link
from cellstream.aio.multiplex import Multiplex
from cellstream.aio.stream import Stream
from cellstream.errors import CellstreamError, StreamClosed
from cellstream.models import Model, ModelSummary, model_from, summaries_from
from cellstream.options import Attempts, Channel, Retry
from cellstream.v1 import stream_inference_pb2 as pb

S = TypeVar("S", Stream, Multiplex)


def connect(
    address: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: _rpc.Metadata = (),
    channel: Channel = Channel(),  # noqa: B008  frozen
    retry: Retry = Retry(),  # noqa: B008  frozen
) -> Client:
    """A client of the server at `address` (host:port, or any gRPC target), for the loop that is running.

    `credentials`: TLS (grpc.ssl_channel_credentials()); None: plaintext. `metadata` goes with every call.
    """
    return Client(address, credentials=credentials, metadata=metadata, channel=channel, retry=retry)


class Opens(Generic[S]):
    """A stream to be: `async with` opens and closes it, `await` opens it only."""

    def __init__(self, open_: Callable[[], Coroutine[Any, Any, S]]) -> None:
        self._open: Callable[[], Coroutine[Any, Any, S]] = open_
        self._opened: S | None = None

    def __await__(self) -> Generator[Any, None, S]:
        return self._open().__await__()

    async def __aenter__(self) -> S:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._opened is not None
        await self._opened.__aexit__(kind, error, trace)


class Client:
    """A connection; made by `connect`. Tasks may share it, and open any number of streams each."""

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
        arguments = channel.arguments(address)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, arguments)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, arguments)
        self._catalog = Catalog()
        self._live: set[Link] = set()
        self._closed = False

    async def models(self, *, timeout: float = 30.0) -> tuple[ModelSummary, ...]:
        """What the server serves."""
        answer = await self._call(_rpc.LIST_MODELS, pb.ListModelsRequest(), pb.ListModelsResponse, timeout)
        return summaries_from(answer)

    async def model(self, name: str, version: int = 0, *, timeout: float = 30.0) -> Model:
        """One model, asked of the server anew; version 0 is the highest. Raises UnknownModel."""
        request = pb.GetModelRequest(model=name, version=version)
        return model_from(await self._call(_rpc.GET_MODEL, request, pb.GetModelResponse, timeout))

    def stream(
        self,
        model: str,
        version: int = 0,
        *,
        stream_id: str = "",
        timeout: float | None = None,
        retry: Retry | None = None,
        metadata: _rpc.Metadata = (),
    ) -> Opens[Stream]:
        """Open a stream, with fresh state; version 0 is the highest. `timeout`: seconds for the whole stream.

        Use it as `async with client.stream(…) as stream`, or await it and close the stream yourself. Opening is tried
        again as `retry` (or the client's) says, and takes the lesser of `timeout` and `retry.total` seconds. Raises
        UnknownModel, Overloaded, Unavailable, DeadlineExceeded or the server's other refusals.
        """
        opening = Opening(model, version, stream_id)

        async def attempt(seconds: float, until: float | None) -> Stream:
            core = StreamCore(opening, self._catalog)
            stream = Stream(core, self._link(_rpc.STREAM, core, metadata, until), self._forget, self.address)
            try:
                await stream.wait_opened(seconds)
            except BaseException:
                await stream.cancel()
                raise
            return stream

        return Opens(lambda: self._retrying(retry, attempt, timeout))

    def multiplex(
        self,
        model: str,
        version: int = 0,
        *,
        timeout: float | None = None,
        retry: Retry | None = None,
        metadata: _rpc.Metadata = (),
    ) -> Opens[Multiplex]:
        """A call for many streams of one model, none of them open yet. `timeout`: seconds for the whole call.

        All of its streams run the model that the first of them is opened with. Opening another one raises ModelChanged
        once the server has another model under the name.
        """

        async def attempt(seconds: float, until: float | None) -> Multiplex:
            proposal = await self._described(model, version, seconds)
            core = MultiplexCore(proposal, version, self._catalog)
            link = self._link(_rpc.MULTIPLEX, core, metadata, until)
            multiplex = Multiplex(core, link, self._forget, self.address)
            link.begin()
            return multiplex

        return Opens(lambda: self._retrying(retry, attempt, timeout))

    async def close(self) -> None:
        """Cancel the streams that are open, and disconnect. Idempotent; in a fork nothing is done."""
        if not self._maker.here:
            return
        self._closed = True
        for link in tuple(self._live):
            await link.cancel()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _forget(self, link: Link) -> None:
        # A method of the client: whoever holds a stream holds its client.
        self._live.discard(link)

    async def _described(self, name: str, version: int, seconds: float) -> Signature:
        request = pb.GetModelRequest(model=name, version=version)
        message = await self._call(_rpc.GET_MODEL, request, pb.GetModelResponse, seconds)
        return self._catalog.described(message, (name, version))

    async def _retrying(
        self, retry: Retry | None, attempt: Callable[[float, float | None], Awaitable[S]], timeout: float | None
    ) -> S:
        until = _rpc.until(timeout)
        attempts = Attempts(retry or self._retry, _rpc.time_limit(timeout), time.monotonic)
        while True:
            try:
                return await attempt(attempts.seconds_left(), until)
            except CellstreamError as error:
                wait = attempts.wait_after(_rpc.explained(error, self.address))
            await asyncio.sleep(wait)

    def _link(self, path: str, core: Core, metadata: _rpc.Metadata, until: float | None) -> Link:
        self._check_open()
        options = {"metadata": (*self._metadata, *metadata), "wait_for_ready": self._wait_for_ready}
        link = Link(functools.partial(_rpc.begin, self._channel, path, until, options), core)
        self._live.add(link)
        return link

    def _check_open(self) -> None:
        self._maker.check()
        if self._closed:
            raise StreamClosed("the client is closed")

    async def _call(self, path: str, request: Any, response: Any, timeout: float | None) -> Any:
        self._check_open()
        timeout = _rpc.time_limit(timeout)
        method: Any = self._channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        options = {"timeout": timeout, "metadata": self._metadata, "wait_for_ready": self._wait_for_ready}
        try:
            return await method(request, **options)
        except grpc.aio.AioRpcError as error:
            raise _rpc.explained(_rpc.unary_error(error, timeout), self.address) from None
