"""The operator's hand on models: what a server could serve, and loading and unloading while it runs.

For servers that were started with `--model-control explicit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from cellstream._rpc import LIST_MODELS, LOAD_MODEL, UNLOAD_MODEL, time_limit, unary_error
from cellstream.models import ModelSummary, summaries_from
from cellstream.v1 import stream_inference_pb2 as pb

FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelChange:
    """What became of one version of a model.

    `done` is loaded, reloaded, unchanged, unloaded, failed or later (by a worker that is starting).
    """

    version: int  # 0: of the model
    done: str
    reason: str  # of a failure, and of what wasn't asked for
    worker: int | None  # None: there is one process


def list_models(channel: grpc.Channel, *, timeout: float = 30.0) -> tuple[ModelSummary, ...]:
    """Every version in the server's repository, or served; what isn't ready says why.

    Raises Unavailable or DeadlineExceeded.
    """
    return summaries_from(_call(channel, LIST_MODELS, pb.ListModelsRequest(all=True), pb.ListModelsResponse, timeout))


def load_model(
    channel: grpc.Channel, model: str, version: int = 0, *, timeout: float = 600.0
) -> tuple[ModelChange, ...]:
    """Have the server serve what its repository has of a model (0: every version), as it is on the disk now.

    Failures are among the changes. Raises UnknownModel, CellstreamError (not allowed), Unavailable or DeadlineExceeded.
    """
    request = pb.LoadModelRequest(model=model, version=version)
    return _changes(_call(channel, LOAD_MODEL, request, pb.LoadModelResponse, timeout))


def unload_model(
    channel: grpc.Channel, model: str, version: int = 0, *, timeout: float = 600.0
) -> tuple[ModelChange, ...]:
    """Have the server let go of a model (0: every version) and end its streams.

    Failures are among the changes. Raises UnknownModel, CellstreamError (not allowed), Unavailable or DeadlineExceeded.
    """
    request = pb.UnloadModelRequest(model=model, version=version)
    return _changes(_call(channel, UNLOAD_MODEL, request, pb.UnloadModelResponse, timeout))


def _changes(answer: pb.LoadModelResponse | pb.UnloadModelResponse) -> tuple[ModelChange, ...]:
    return tuple(
        ModelChange(one.version, one.done, one.reason, one.worker if one.HasField("worker") else None)
        for one in answer.changes
    )


def _call(channel: grpc.Channel, method: str, request: Any, response: Any, timeout: float) -> Any:
    seconds = time_limit(timeout)
    call = channel.unary_unary(method, type(request).SerializeToString, response.FromString)
    try:
        return call(request, timeout=seconds)
    except grpc.RpcError as error:
        raise unary_error(error, seconds) from None
