"""StreamInference.ListModels and GetModel: what is served. Not hot, so it lives on the public gRPC server."""

from __future__ import annotations

import json
from typing import Any

import grpc

from cellstream.v1 import stream_inference_pb2 as pb
from model.contract import TensorSpec, certificate_to_plain
from serving.errors import Refusal
from serving.front import SERVICE, Front
from serving.lane import Lane
from serving.status import code_of, trailing


def add_admin_service(server: grpc.Server, front: Front) -> None:
    """Serve ListModels and GetModel on `server`."""

    def list_models(_request: pb.ListModelsRequest, _context: grpc.ServicerContext) -> pb.ListModelsResponse:
        lanes = sorted(front.lanes, key=lambda lane: (lane.name, lane.version))
        return pb.ListModelsResponse(
            models=[pb.ModelSummary(name=lane.name, version=lane.version, ready=lane.ready) for lane in lanes]
        )

    def get_model(request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
        try:
            lane = front.find(request.model, request.version)
        except Refusal as refusal:
            front.stats.refusals[refusal.reason] += 1
            context.set_trailing_metadata(trailing(refusal))
            context.abort(code_of(refusal), str(refusal))
        return describe(lane)

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ListModels": grpc.unary_unary_rpc_method_handler(
            list_models, pb.ListModelsRequest.FromString, pb.ListModelsResponse.SerializeToString
        ),
        "GetModel": grpc.unary_unary_rpc_method_handler(
            get_model, pb.GetModelRequest.FromString, pb.GetModelResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def describe(lane: Lane) -> pb.GetModelResponse:
    """Everything a client may know of a model."""
    contract, limits = lane.contract, lane.limits
    certificate = contract.certificate
    return pb.GetModelResponse(
        name=lane.name,
        version=lane.version,
        ready=lane.ready,
        inputs=[_tensor(spec) for spec in contract.inputs],
        outputs=[_tensor(spec) for spec in contract.outputs],
        states=[
            pb.State(input=state.input, output=state.output, dtype=state.dtype, shape=state.shape)
            for state in contract.states
        ],
        precision=contract.precision,
        device=lane.engine.device,
        weights_digest=contract.weights_digest,
        certificate_json="" if certificate is None else json.dumps(certificate_to_plain(certificate)),
        limits=pb.Limits(
            max_streams=limits.max_streams,
            max_steps_per_message=limits.max_steps_per_message,
            max_waiting_steps=limits.max_waiting_steps,
            max_message_bytes=limits.max_message_bytes,
            window_steps=limits.window_steps,
        ),
        notes=dict(contract.notes),
    )


def _tensor(spec: TensorSpec) -> pb.Tensor:
    bounds: dict[str, Any] = {}
    if spec.minimum is not None:
        bounds["minimum"] = spec.minimum
    if spec.maximum is not None:
        bounds["maximum"] = spec.maximum
    return pb.Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape, **bounds)
