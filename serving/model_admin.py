"""StreamInference's RPCs for operators of models: what there is, load and unload. Not hot."""

from __future__ import annotations

from collections.abc import Sequence

from cellstream.v1 import stream_inference_pb2 as pb
from serving.models import Models
from serving.orders import Change
from serving.worker_control import Control


class ModelAdmin:
    """The RPCs."""

    def __init__(self, models: Models, control: Control) -> None:
        """`control` has models loaded and unloaded in all processes; `models` is what this one has."""
        self._models = models
        self._control = control

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """What is served, or everything that could be."""
        return pb.ListModelsResponse(
            models=[
                pb.ModelSummary(name=one.name, version=one.version, ready=one.ready, reason=one.reason)
                for one in self._models.index()
                if request.all or one.served
            ]
        )

    def load_model(self, request: pb.LoadModelRequest) -> pb.LoadModelResponse:
        """Serve what is on the disk. Raises a Refusal."""
        changes = self._control.load(request.model, request.version)
        return pb.LoadModelResponse(changes=_plain(changes))

    def unload_model(self, request: pb.UnloadModelRequest) -> pb.UnloadModelResponse:
        """Let go of a model. Raises a Refusal."""
        changes = self._control.unload(request.model, request.version)
        return pb.UnloadModelResponse(changes=_plain(changes))


def _plain(changes: Sequence[Change]) -> list[pb.ModelChange]:
    return [pb.ModelChange(version=one.version, done=one.done, reason=one.reason, worker=one.worker) for one in changes]
