"""What can go wrong, named by what the caller can do about it.

Owns the error types and the one table from gRPC's status code and the server's reason to a type. Knows no RPC.
"""

# ruff: noqa: N818  an error is named by what went wrong
from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

REASON_KEY = "cellstream-reason"  # trailing metadata: the refusal's machine-readable reason


class CellstreamError(Exception):
    """Anything that this package raises: `code` is the name of a gRPC status code, `reason` is machine readable.

    `reason` is empty where the error comes from gRPC or the network and not from a Cellstream server.
    """

    code = "UNKNOWN"
    reason = ""

    def __init__(self, message: str = "", *, code: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if reason is not None:
            self.reason = reason

    @property
    def message(self) -> str:
        """What happened, naming the value and the limit."""
        return str(self)


class InvalidInput(CellstreamError, ValueError):
    """An input doesn't fit the model: its dtype, shape, range, finiteness or key."""

    code = "INVALID_ARGUMENT"
    reason = "invalid_input"


class UnknownModel(CellstreamError, LookupError):
    """No such model or version is served."""

    code = "NOT_FOUND"
    reason = "unknown_model"


class UnsupportedModel(CellstreamError):
    """The model has a tensor that this client can't represent."""

    code = "UNIMPLEMENTED"


class LimitReached(CellstreamError):
    """A limit of the server stands in the way; the message names the value and the limit."""

    code = "RESOURCE_EXHAUSTED"


class Overloaded(LimitReached):
    """The server has no room at the moment: the same may succeed later."""


class OutOfOrder(CellstreamError):
    """A message that doesn't belong at this point of the stream's life, or a step number that leaves a gap."""

    code = "FAILED_PRECONDITION"


class CannotResume(CellstreamError):
    """The server can't take the stream up again: its state is gone."""

    code = "FAILED_PRECONDITION"
    reason = "state_lost"


class ModelChanged(CellstreamError):
    """The server has another model under the name than a multiplexed call's other streams run; open a new call."""

    code = "FAILED_PRECONDITION"
    reason = "model_changed"


class ComputeFailed(CellstreamError):
    """The model can't compute this stream's step."""

    code = "INTERNAL"
    reason = "compute_failed"


class AccessDenied(CellstreamError):
    """The server doesn't let this caller do that."""

    code = "PERMISSION_DENIED"


class Unavailable(CellstreamError):
    """The server can't be reached, or doesn't work."""

    code = "UNAVAILABLE"


class ServerGoingAway(Unavailable):
    """The server is shutting down and opens no new stream; open ones go on until its grace is over."""

    reason = "shutting_down"


class StreamLost(Unavailable):
    """The connection of an open stream broke, and its state on the server is gone with it.

    `answered_step` is the last step whose outputs arrived, `sent_step` the last one that was sent: whether the
    server computed the steps between them isn't known. Open a new stream and send it what it needs to know.
    """

    answered_step = 0
    sent_step = 0


class DeadlineExceeded(CellstreamError, TimeoutError):
    """The time given to the whole stream, or to opening it, is over."""

    code = "DEADLINE_EXCEEDED"


class StepTimeout(DeadlineExceeded):
    """An answer didn't come within the step's timeout. The step counts all the same, and the stream goes on.

    The server has taken the step or will, so the stream's state moves on; the late answer is dropped when it comes.
    """


class StreamClosed(CellstreamError):
    """The stream was closed here: by close(), by leaving its block, or by leaving its run() early."""

    code = "CANCELLED"


class ProtocolError(CellstreamError):
    """The server broke the protocol: an answer that nobody asked for, out of order, or of the wrong size."""

    code = "INTERNAL"
    reason = "protocol"


class PartialFailure(CellstreamError):
    """Some streams of a multiplexed step ended; the others were answered and go on.

    `errors` has the ended streams' errors by key, `outputs` the others' outputs.
    """

    def __init__(
        self,
        message: str = "",
        outputs: Mapping[int, Any] | None = None,
        errors: Mapping[int, CellstreamError] | None = None,
    ) -> None:
        super().__init__(message)
        self.outputs = dict(outputs or {})
        self.errors = dict(errors or {})


# By code and reason; the empty reason is for what comes from gRPC itself or has a reason that isn't known here.
_TYPES: dict[tuple[str, str], type[CellstreamError]] = {
    ("INVALID_ARGUMENT", ""): InvalidInput,
    ("NOT_FOUND", ""): UnknownModel,
    ("UNIMPLEMENTED", ""): CellstreamError,
    ("RESOURCE_EXHAUSTED", ""): LimitReached,
    ("RESOURCE_EXHAUSTED", "stream_limit"): Overloaded,
    ("RESOURCE_EXHAUSTED", "waiting_steps_limit"): Overloaded,
    ("RESOURCE_EXHAUSTED", "calls_limit"): Overloaded,
    ("FAILED_PRECONDITION", ""): OutOfOrder,
    ("FAILED_PRECONDITION", "state_lost"): CannotResume,
    ("INTERNAL", "compute_failed"): ComputeFailed,
    ("UNAUTHENTICATED", ""): AccessDenied,
    ("PERMISSION_DENIED", ""): AccessDenied,
    ("UNAVAILABLE", ""): Unavailable,
    ("UNAVAILABLE", "shutting_down"): ServerGoingAway,
    ("DEADLINE_EXCEEDED", ""): DeadlineExceeded,
}

_BARE_DEADLINE = "deadline exceeded"  # all that gRPC says, or nearly

# What an open stream ends with when its connection, a proxy on the way or its server dies. With a reason, any code
# but UNAVAILABLE is an answer of the server's and no loss.
_BREAKS = {"UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "ABORTED"}


def error_of(code: str, reason: str, message: str) -> CellstreamError:
    """The typed error for a status that isn't OK."""
    kind = _TYPES.get((code, reason)) or _TYPES.get((code, ""), CellstreamError)
    if kind is DeadlineExceeded and _BARE_DEADLINE in message.lower():
        message = "the time given to the call is over (its timeout)"
    return kind(message or code, code=code, reason=reason)


def stream_error_of(code: str, reason: str, message: str, *, answered_step: int, sent_step: int) -> CellstreamError:
    """The typed error for a status that ended a stream after it was open."""
    if code not in _BREAKS or (reason and code != "UNAVAILABLE"):
        return error_of(code, reason, message)
    error = StreamLost(
        f"the stream is lost after step {answered_step} was answered (sent up to step {sent_step}); its state on the "
        f"server is gone: {message or code}",
        code=code,
        reason=reason,
    )
    error.answered_step, error.sent_step = answered_step, sent_step
    return error


Error = TypeVar("Error", bound=CellstreamError)


def fresh(error: Error) -> Error:
    """The same error to raise again, without the traceback of the last time."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    return again


def failed_here(cause: Exception) -> CellstreamError:
    """The error for a call that can't go on because of something that was raised while its answers were read."""
    if isinstance(cause, CellstreamError):
        return cause
    error = CellstreamError(f"the client failed: {cause!r}", code="INTERNAL")
    error.__cause__ = cause
    return error
