"""The service's methods and what both drivers share of gRPC: paths, statuses, channel set-up, and the way a run goes.

Knows gRPC's names, and neither threads nor event loops.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from cellstream._addresses import proxy_hint
from cellstream.errors import REASON_KEY, CellstreamError, DeadlineExceeded, StreamClosed, Unavailable, error_of
from cellstream.options import Channel

_SERVICE = "/cellstream.v1.StreamInference/"
STREAM = _SERVICE + "Stream"
MULTIPLEX = _SERVICE + "Multiplex"
LIST_MODELS = _SERVICE + "ListModels"
GET_MODEL = _SERVICE + "GetModel"
LIST_SEQUENCES = _SERVICE + "ListSequences"
EVICT_SEQUENCES = _SERVICE + "EvictSequences"
LOAD_MODEL = _SERVICE + "LoadModel"
UNLOAD_MODEL = _SERVICE + "UnloadModel"

CLOSE_SECONDS = 5.0  # for the answers that are outstanding when a stream is closed; then it is cancelled
JOIN_SECONDS = 1.0  # for the threads of a call that is over; they take milliseconds
DISCONNECT_SECONDS = 2.0  # for gRPC to close a channel; it takes milliseconds

_ENDLESS_SECONDS = 1e9  # 30 years

Metadata = Sequence[tuple[str, str | bytes]]
Status = tuple[str, str, str]  # code, reason, message


def status_of(
    code: grpc.StatusCode | None, details: str | None, trailing: Iterable[tuple[str, str | bytes]] | None
) -> Status:
    """The name of a status code, the server's reason and its text."""
    reason = next((value for key, value in trailing or () if key == REASON_KEY), "")
    name = code.name if code is not None else "UNKNOWN"
    return name, reason if isinstance(reason, str) else reason.decode(errors="replace"), details or ""


def error_from(error: Any) -> CellstreamError:
    """The typed error for a unary call's RpcError, which has code, details and trailing metadata."""
    return error_of(*status_of(error.code(), error.details(), error.trailing_metadata()))


def unary_error(error: Any, timeout: float | None) -> CellstreamError:
    """The same; an answer that isn't there in time, of which gRPC says no more, is told with the `timeout`."""
    found = error_from(error)
    return answer_timeout(timeout) if isinstance(found, DeadlineExceeded) and not found.reason else found


def answer_timeout(timeout: float | None) -> DeadlineExceeded:
    """The error for an answer that isn't there in time."""
    return DeadlineExceeded(f"the server didn't answer within {timeout or 0.0:.3g} s")


def explained(error: CellstreamError, address: str) -> CellstreamError:
    """The error for a server that can't be reached, with the proxy that may be why; other errors as they are."""
    hint = proxy_hint(address) if isinstance(error, Unavailable) and not error.reason else ""
    return type(error)(f"{error}{hint}", code=error.code) if hint and hint not in str(error) else error


def closed_here() -> StreamClosed:
    """The error for a stream that was cancelled here."""
    return StreamClosed("the stream was closed here")


def interrupted(what: str) -> StreamClosed:
    """The error for a stream that `what` interrupted in the middle of a change."""
    return StreamClosed(f"{what} came while a request was being queued, and the stream was ended; open a new one")


def warn_dropped(what: object, address: str) -> None:
    """Say that a stream was dropped while it was open."""
    message = f"a {type(what).__name__} of {address} was dropped while it was open; use `with`, or call its close()"
    warnings.warn(message, ResourceWarning, stacklevel=3, source=what)


def plain_channel(address: str) -> grpc.Channel:
    """A plaintext connection for a command line."""
    return grpc.insecure_channel(address, Channel().arguments(address))


def time_limit(timeout: float | None) -> float | None:
    """A user's timeout in seconds; None: no limit, or one that nobody will see, and gRPC can't hold.

    Raises ValueError for what is no number of seconds, before anything is sent.
    """
    if timeout is None:
        return None
    if hasattr(timeout, "__float__"):
        if timeout >= _ENDLESS_SECONDS:
            return None
        if timeout < _ENDLESS_SECONDS:  # NaN is neither
            return float(timeout)
    raise ValueError(f"timeout is {timeout!r}; give a number of seconds, or None for no limit")


def until(timeout: float | None) -> float | None:
    """The moment (monotonic seconds) at which so many seconds are over; None: never. Raises ValueError."""
    seconds = time_limit(timeout)
    return None if seconds is None else time.monotonic() + seconds


def begin(channel: Any, path: str, deadline: float | None, options: dict[str, Any], requests: Any) -> Any:
    """A bidirectional call that lasts until `deadline`; it holds nothing of a client but the channel."""
    method = channel.stream_stream(path, request_serializer=None, response_deserializer=None)
    timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
    return method(requests, timeout=timeout, **options)
