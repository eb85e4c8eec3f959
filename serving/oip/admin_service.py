"""The protocol's other RPCs: what is served, how it's doing, and what it can be told. Not hot.

Owns their answers. Lives on the public gRPC server and its threads; what changes anything is posted to the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.json_format import ParseDict

from model.triton_config import PLATFORM, model_config
from serving.errors import Refusal, Unsupported
from serving.front import MAX_NAME, OPEN_INFERENCE, Front
from serving.lane import Lane
from serving.models import Models
from serving.oip.requests import find_lane
from serving.oip.statistics import statistics
from serving.oip.tensors import datatype
from serving.oip.v1 import inference_pb2 as pb
from serving.oip.v1 import model_config_pb2
from serving.orders import LOAD, UNLOAD, Order, refuse_failures
from serving.unary import Method
from serving.worker_control import Control

EXTENSIONS = (
    "sequence",
    "sequence(string_id)",
    "model_configuration",
    "model_repository",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
_NOT_OFFERED = {
    **dict.fromkeys(
        [f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")],
        "shared memory isn't offered: a step's tensors are small, and travel faster in the request than around it",
    ),
    "TraceSetting": "tracing isn't offered; see the Prometheus endpoint (--metrics-listen)",
    "LogSettings": "log settings can't be changed while the server runs; see --log-format",
}


class OpenInferenceAdmin:
    """The RPCs by name."""

    def __init__(
        self, front: Front, models: Models, control: Control, *, name: str, version: str, working: Callable[[], bool]
    ) -> None:
        """`control` has models loaded and unloaded in all processes; `models` is what this one has."""
        self._front = front
        self._models = models
        self._control = control
        self._name = name
        self._version = version
        self._working = working

    def server_live(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Whether the server answers."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Whether every model computes, and none is there whose versions are all broken."""
        lanes = self._front.lanes
        ready = self._working() and all(lane.ready for lane in lanes) and not lanes.unserved()
        return pb.ServerReadyResponse(ready=ready)

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Whether one model computes."""
        try:
            lane = find_lane(self._front, request.name, request.version)
        except Refusal:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._working() and lane.ready)

    def server_metadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """What this server is."""
        return pb.ServerMetadataResponse(name=self._name, version=self._version, extensions=EXTENSIONS)

    def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """A model's tensors."""
        lane = find_lane(self._front, request.name, request.version)
        versions = [other.version for other in self._front.lanes if other.name == lane.name]
        response = pb.ModelMetadataResponse(
            name=lane.name, versions=[str(version) for version in sorted(versions)], platform=PLATFORM
        )
        config, contract = _config(lane), lane.contract
        for specs, described, tensors in (
            (contract.inputs, config["input"], response.inputs),
            (contract.outputs, config["output"], response.outputs),
        ):
            for spec, tensor in zip(specs, described, strict=True):
                tensors.add(name=spec.name, datatype=datatype(spec.dtype), shape=[-1, *tensor["dims"]])
        return response

    def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """A model as Triton would describe it."""
        config = _config(find_lane(self._front, request.name, request.version))
        return pb.ModelConfigResponse(config=ParseDict(config, model_config_pb2.ModelConfig()))

    def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """What models have done; without a name, all of them."""
        lanes: Iterable[Lane] = self._front.lanes
        if request.name:
            found = find_lane(self._front, request.name, request.version)
            lanes = [lane for lane in lanes if lane.name == found.name and (not request.version or lane is found)]
        now, clock = time.time(), self._front.clock()
        return pb.ModelStatisticsResponse(
            model_stats=[statistics(lane, since_1970=now - clock) for lane in sorted(lanes, key=_by_name)]
        )

    def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """What stands in the repository."""
        response = pb.RepositoryIndexResponse()
        for entry in self._models.index():
            if entry.ready or not request.ready:
                state = "READY" if entry.ready else "UNAVAILABLE"
                response.models.add(name=entry.name, version=str(entry.version), state=state, reason=entry.reason)
        return response

    def repository_model_load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Serve what the repository has of a model."""
        _check_repository(request.repository_name)
        if request.parameters:
            name, unknown = request.model_name[:MAX_NAME], min(request.parameters)[:MAX_NAME]
            raise Unsupported(
                f"failed to load '{name}': load parameter '{unknown}' isn't offered; a model is what its artifact says"
            )
        name = request.model_name
        refuse_failures(Order(LOAD, name), self._control.load(name), self._control.served(name))
        return pb.RepositoryModelLoadResponse()

    def repository_model_unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        """Let go of a model."""
        _check_repository(request.repository_name)
        unknown = set(request.parameters) - {"unload_dependents"}  # no model depends on another here
        if unknown:
            raise Unsupported(f"unload parameter '{min(unknown)[:MAX_NAME]}' isn't offered")
        name = request.model_name
        refuse_failures(Order(UNLOAD, name), self._control.unload(name), self._control.served(name))
        return pb.RepositoryModelUnloadResponse()


def open_inference_methods(admin: OpenInferenceAdmin) -> dict[str, Method]:
    """Everything of the protocol but ModelInfer and ModelStreamInfer, by full name."""
    methods = {
        "ServerLive": Method(admin.server_live, pb.ServerLiveRequest),
        "ServerReady": Method(admin.server_ready, pb.ServerReadyRequest),
        "ModelReady": Method(admin.model_ready, pb.ModelReadyRequest),
        "ServerMetadata": Method(admin.server_metadata, pb.ServerMetadataRequest),
        "ModelMetadata": Method(admin.model_metadata, pb.ModelMetadataRequest),
        "ModelConfig": Method(admin.model_config, pb.ModelConfigRequest),
        "ModelStatistics": Method(admin.model_statistics, pb.ModelStatisticsRequest, slow=True),
        "RepositoryIndex": Method(admin.repository_index, pb.RepositoryIndexRequest, slow=True),
        "RepositoryModelLoad": Method(admin.repository_model_load, pb.RepositoryModelLoadRequest, slow=True),
        "RepositoryModelUnload": Method(admin.repository_model_unload, pb.RepositoryModelUnloadRequest, slow=True),
        **{name: _not_offered(name, why) for name, why in _NOT_OFFERED.items()},
    }
    return {f"/{OPEN_INFERENCE}/{name}": method for name, method in methods.items()}


def _config(lane: Lane) -> dict[str, Any]:
    config = model_config(
        lane.contract,
        max_batch=lane.batching.max_batch,
        max_candidates=lane.limits.max_streams,
        idle_microseconds=round(lane.sequences.idle_seconds * 1e6),
    )
    return config | {"name": lane.name}


def _not_offered(name: str, why: str) -> Method:
    def answer(_message: bytes) -> Any:
        raise Unsupported(f"{name}: {why}")

    return Method(answer, None)


def _check_repository(name: str) -> None:
    if name:
        raise Unsupported("repositories have no names here; leave repository_name empty")


def _by_name(lane: Lane) -> tuple[str, int]:
    return lane.name, lane.version
