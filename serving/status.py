"""Where our refusals become gRPC's: one table, and the text a client sees."""

from __future__ import annotations

import grpc

from serving import errors

REASON_KEY = "cellstream-reason"  # trailing metadata: the refusal's machine-readable reason

_CODES: dict[type[errors.Refusal], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OutOfOrder: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WrongPhase: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CannotResume: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnknownModel: grpc.StatusCode.NOT_FOUND,
    errors.NoSequence: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SequenceEnded: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SequenceExpired: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SequenceEvicted: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SequenceLost: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.MetadataTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NothingSent: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.TooManyStreams: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ComputeFailed: grpc.StatusCode.INTERNAL,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
}


def code_of(refusal: errors.Refusal) -> grpc.StatusCode:
    """The gRPC code of a refusal."""
    return _CODES[type(refusal)]


def trailing(refusal: errors.Refusal) -> tuple[tuple[str, str], ...]:
    """The trailing metadata that goes with a refusal."""
    return ((REASON_KEY, refusal.reason),)
