"""The service's methods and what both drivers share of gRPC: paths, statuses, channel set-up, and the way a run goes.

Knows gRPC's names, and neither threads nor event loops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from cellstream.errors import REASON_KEY, CellstreamError, StreamClosed, error_of

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


def closed_here() -> StreamClosed:
    """The error for a stream that was cancelled here."""
    return StreamClosed("the stream was closed here")
