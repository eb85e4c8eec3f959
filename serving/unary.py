"""Unary RPCs of the public gRPC server: a function of a request, its refusals as statuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from serving.errors import Refusal
from serving.stats import ServerStats
from serving.status import code_of, trailing


def unary(method: Callable[[Any], Any], request: Any, stats: ServerStats) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that answers messages of the class `request` by `method`, which may raise a Refusal."""

    def answer(message: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(message)
        except Refusal as refusal:
            stats.refusals[refusal.reason] += 1
            context.set_trailing_metadata(trailing(refusal))
            context.abort(code_of(refusal), str(refusal))

    return grpc.unary_unary_rpc_method_handler(answer, request.FromString, lambda reply: reply.SerializeToString())
