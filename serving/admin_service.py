"""StreamInference's unary RPCs: what is served, and the operator's hand on sequences.

Not hot, so they have a thread of their own (serving/unary.py).
"""

from __future__ import annotations

import structlog

from cellstream.v1 import stream_inference_pb2 as pb
from serving.errand import Post, on_loop
from serving.errors import InvalidInput
from serving.front import SERVICE, Front
from serving.live_sequence import Key
from serving.model_admin import ModelAdmin
from serving.unary import Method

log = structlog.get_logger(__name__)


MOST_LISTED = 1000  # sequences, unless the request says otherwise


class _Admin:
    """The RPCs."""

    def __init__(self, front: Front, post: Post) -> None:
        self._front = front
        self._post = post

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """One model."""
        lane = self._front.find(request.model, request.version)
        return lane.description.message(ready=lane.ready)

    def list_sequences(self, request: pb.ListSequencesRequest) -> pb.ListSequencesResponse:
        """A model's live sequences, those idle for longest first."""
        lane = self._front.find(request.model, request.version)

        def look() -> pb.ListSequencesResponse:
            now, sequences = self._front.clock(), lane.sequences
            found = sequences.idle_for(request.min_idle_seconds, now)[: request.limit or MOST_LISTED]
            return pb.ListSequencesResponse(
                sequences=[
                    pb.Sequence(
                        id=_sequence_id(live.key),
                        idle_seconds=max(0.0, now - live.touched),
                        steps=live.stream.answered_step,
                        waiting_steps=lane.streams.waiting(live.stream),
                        attended=live.owner is not None,
                    )
                    for live in found
                ],
                live=len(sequences),
            )

        return on_loop(self._post, look)

    def evict_sequences(self, request: pb.EvictSequencesRequest) -> pb.EvictSequencesResponse:
        """End sequences."""
        lane = self._front.find(request.model, request.version)
        keys = [_key(wanted) for wanted in request.ids]
        if not keys and not request.min_idle_seconds > 0:
            raise InvalidInput("nothing says which sequences to evict; give ids, or min_idle_seconds above 0")
        if keys and request.min_idle_seconds:
            raise InvalidInput("ids are evicted however idle they are; give ids or min_idle_seconds, not both")

        def evict() -> list[Key]:
            if keys:
                return lane.sequences.evict(keys)
            idle = lane.sequences.idle_for(request.min_idle_seconds, self._front.clock())
            return lane.sequences.evict([live.key for live in idle])

        evicted = on_loop(self._post, evict)
        log.info("sequences evicted", model=lane.name, version=lane.version, sequences=len(evicted))
        return pb.EvictSequencesResponse(ids=[_sequence_id(key) for key in evicted])


def admin_methods(front: Front, models: ModelAdmin, post: Post) -> dict[str, Method]:
    """StreamInference's unary RPCs by full name; `post` has something done on the loop's thread."""
    admin = _Admin(front, post)
    methods = {
        "ListModels": Method(models.list_models, pb.ListModelsRequest, slow=True),
        "GetModel": Method(admin.get_model, pb.GetModelRequest),
        "ListSequences": Method(admin.list_sequences, pb.ListSequencesRequest, slow=True),
        "EvictSequences": Method(admin.evict_sequences, pb.EvictSequencesRequest, slow=True),
        "LoadModel": Method(models.load_model, pb.LoadModelRequest, slow=True),
        "UnloadModel": Method(models.unload_model, pb.UnloadModelRequest, slow=True),
    }
    return {f"/{SERVICE}/{name}": method for name, method in methods.items()}


def _key(wanted: pb.SequenceId) -> Key:
    match wanted.WhichOneof("id"):
        case "number":
            return int(wanted.number)
        case "text":
            return str(wanted.text)
    raise InvalidInput("a sequence's id is neither a number nor a text")


def _sequence_id(key: Key) -> pb.SequenceId:
    return pb.SequenceId(number=key) if isinstance(key, int) else pb.SequenceId(text=key)
