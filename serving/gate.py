"""Which calls get in: the limits on a call before its first message.

Owns the calls of one wire that have sent nothing yet. Used by the thread that polls the wire.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from serving.call import Call, Metadata
from serving.errors import MetadataTooLarge, NothingSent, Refusal, TooManyCalls
from serving.stats import ServerStats
from serving.status import code_of, trailing

_FIELD = 32  # bytes that HTTP/2 counts for each field besides its name and value

Status = tuple[grpc.StatusCode, str, Metadata]


def check_metadata(metadata: Metadata, limit: int) -> None:
    """Raise MetadataTooLarge for more bytes of names and values, with 32 for each field, than the limit."""
    size = sum([len(name) + len(value) + _FIELD for name, value in metadata])
    if size > limit:
        raise MetadataTooLarge(
            f"the call's metadata has {size} bytes, counting {_FIELD} for each field; the limit is {limit} bytes "
            "(the server's --max-metadata-bytes)"
        )


class Gate:
    """The limits of one wire."""

    def __init__(
        self,
        stats: ServerStats,
        *,
        metadata_bytes: int,
        calls: int,
        calls_of_one: int,
        seconds: Mapping[str, float],
        evicts: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`calls`, and of them `calls_of_one` connection, may have sent nothing, for so many seconds by method.

        A method without seconds may be silent for ever. At the limit a new call is refused, or the oldest (`evicts`).
        """
        self._stats = stats
        self._metadata_bytes = metadata_bytes
        self._most = calls
        self._most_of_one = calls_of_one
        self._seconds = dict(seconds)
        self._evicts = evicts
        self._clock = clock
        self._silent: dict[Call, float] = {}  # since when, oldest first
        self._of_one: Counter[str] = Counter()  # by connection

    def __len__(self) -> int:
        """Calls that have sent nothing."""
        return len(self._silent)

    def admit(self, call: Call) -> Status | None:
        """Let a new call in, or say what it is refused with."""
        try:
            check_metadata(call.metadata, self._metadata_bytes)
            if self._of_one[call.peer] >= self._most_of_one:
                raise TooManyCalls(
                    f"{self._most_of_one} calls of this connection have sent nothing; the limit is {self._most_of_one}"
                )
            if len(self._silent) >= self._most:
                self._make_room()
        except Refusal as refusal:
            return self._status(refusal)
        self._silent[call] = self._clock()
        self._of_one[call.peer] += 1
        return None

    def heard(self, call: Call) -> None:
        """Let go of a call that has sent something, or is over. Does nothing the second time."""
        if self._silent.pop(call, None) is not None:
            self._of_one[call.peer] -= 1
            if not self._of_one[call.peer]:
                del self._of_one[call.peer]

    def sweep(self) -> None:
        """End calls that have been silent for too long. Call every second or so."""
        now = self._clock()
        for call, since in list(self._silent.items()):
            seconds = self._seconds.get(call.method)
            if seconds is not None and now - since >= seconds:
                self._end(call, NothingSent(f"the call has sent no message for {seconds:g} s; that is the limit"))

    def _make_room(self) -> None:
        refusal = TooManyCalls(f"{self._most} calls that have sent nothing are open; the limit is {self._most}")
        if not self._evicts:
            raise refusal
        self._end(next(iter(self._silent)), refusal)

    def _end(self, call: Call, refusal: Refusal) -> None:
        self.heard(call)
        call.finish(*self._status(refusal))

    def _status(self, refusal: Refusal) -> Status:
        self._stats.refusals[refusal.reason] += 1
        return code_of(refusal), str(refusal), trailing(refusal)


class MetadataLimit(grpc.ServerInterceptor):
    """The same limit on metadata for what the public server serves itself."""

    def __init__(self, stats: ServerStats, limit: int) -> None:
        self._stats = stats
        self._limit = limit

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The method's own handler, or one that refuses."""
        try:
            check_metadata(handler_call_details.invocation_metadata, self._limit)
        except Refusal as refusal:
            self._stats.refusals[refusal.reason] += 1
            code, text, metadata = code_of(refusal), str(refusal), trailing(refusal)

            def refuse(_requests: Any, context: grpc.ServicerContext) -> None:
                context.set_trailing_metadata(metadata)
                context.abort(code, text)

            return grpc.stream_stream_rpc_method_handler(refuse)
        return continuation(handler_call_details)
