from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamRequest(_message.Message):
    __slots__ = ("open", "chunk")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    open: Open
    chunk: Chunk
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("opened", "outputs", "durable", "go_away")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    outputs: Outputs
    durable: Durable
    go_away: GoAway
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ..., durable: _Optional[_Union[Durable, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("model", "version", "stream_id", "resume_token", "received_step", "known_digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_STEP_FIELD_NUMBER: _ClassVar[int]
    KNOWN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    stream_id: str
    resume_token: bytes
    received_step: int
    known_digest: bytes
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., stream_id: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., received_step: _Optional[int] = ..., known_digest: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("model", "version", "stream_id", "next_step", "epoch", "resume_token", "checkpoint_interval_ms", "window_steps", "max_steps_per_message", "model_digest", "description")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_PER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    stream_id: str
    next_step: int
    epoch: int
    resume_token: bytes
    checkpoint_interval_ms: int
    window_steps: int
    max_steps_per_message: int
    model_digest: bytes
    description: GetModelResponse
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., stream_id: _Optional[str] = ..., next_step: _Optional[int] = ..., epoch: _Optional[int] = ..., resume_token: _Optional[bytes] = ..., checkpoint_interval_ms: _Optional[int] = ..., window_steps: _Optional[int] = ..., max_steps_per_message: _Optional[int] = ..., model_digest: _Optional[bytes] = ..., description: _Optional[_Union[GetModelResponse, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("first_step", "steps", "inputs")
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    first_step: int
    steps: int
    inputs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, first_step: _Optional[int] = ..., steps: _Optional[int] = ..., inputs: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Outputs(_message.Message):
    __slots__ = ("first_step", "steps", "outputs", "durable_step", "queue_us", "compute_us")
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    first_step: int
    steps: int
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    durable_step: int
    queue_us: int
    compute_us: int
    def __init__(self, first_step: _Optional[int] = ..., steps: _Optional[int] = ..., outputs: _Optional[_Iterable[bytes]] = ..., durable_step: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ...) -> None: ...

class Durable(_message.Message):
    __slots__ = ("durable_step",)
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    durable_step: int
    def __init__(self, durable_step: _Optional[int] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("grace_ms",)
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    def __init__(self, grace_ms: _Optional[int] = ...) -> None: ...

class MultiplexRequest(_message.Message):
    __slots__ = ("opens", "steps", "closes")
    OPENS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CLOSES_FIELD_NUMBER: _ClassVar[int]
    opens: _containers.RepeatedCompositeFieldContainer[MultiplexOpen]
    steps: _containers.RepeatedCompositeFieldContainer[StepRows]
    closes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, opens: _Optional[_Iterable[_Union[MultiplexOpen, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[StepRows, _Mapping]]] = ..., closes: _Optional[_Iterable[int]] = ...) -> None: ...

class MultiplexResponse(_message.Message):
    __slots__ = ("opened", "outputs", "ended", "go_away", "durable")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    opened: _containers.RepeatedCompositeFieldContainer[MultiplexOpened]
    outputs: _containers.RepeatedCompositeFieldContainer[StepRows]
    ended: _containers.RepeatedCompositeFieldContainer[MultiplexEnded]
    go_away: GoAway
    durable: _containers.RepeatedCompositeFieldContainer[MultiplexDurable]
    def __init__(self, opened: _Optional[_Iterable[_Union[MultiplexOpened, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[StepRows, _Mapping]]] = ..., ended: _Optional[_Iterable[_Union[MultiplexEnded, _Mapping]]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., durable: _Optional[_Iterable[_Union[MultiplexDurable, _Mapping]]] = ...) -> None: ...

class MultiplexOpen(_message.Message):
    __slots__ = ("key", "open")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    key: int
    open: Open
    def __init__(self, key: _Optional[int] = ..., open: _Optional[_Union[Open, _Mapping]] = ...) -> None: ...

class MultiplexOpened(_message.Message):
    __slots__ = ("key", "opened")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    key: int
    opened: Opened
    def __init__(self, key: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ...) -> None: ...

class MultiplexDurable(_message.Message):
    __slots__ = ("key", "durable_step")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    key: int
    durable_step: int
    def __init__(self, key: _Optional[int] = ..., durable_step: _Optional[int] = ...) -> None: ...

class MultiplexEnded(_message.Message):
    __slots__ = ("key", "code", "reason", "message")
    KEY_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    key: int
    code: int
    reason: str
    message: str
    def __init__(self, key: _Optional[int] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class StepRows(_message.Message):
    __slots__ = ("keys", "first_steps", "steps", "tensors")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[int]
    first_steps: _containers.RepeatedScalarFieldContainer[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    tensors: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[_Iterable[int]] = ..., first_steps: _Optional[_Iterable[int]] = ..., steps: _Optional[_Iterable[int]] = ..., tensors: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("all",)
    ALL_FIELD_NUMBER: _ClassVar[int]
    all: bool
    def __init__(self, all: _Optional[bool] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("name", "version", "ready", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    ready: bool
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., ready: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[ModelChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[ModelChange, _Mapping]]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[ModelChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[ModelChange, _Mapping]]] = ...) -> None: ...

class ModelChange(_message.Message):
    __slots__ = ("version", "done", "reason", "worker")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    version: int
    done: str
    reason: str
    worker: int
    def __init__(self, version: _Optional[int] = ..., done: _Optional[str] = ..., reason: _Optional[str] = ..., worker: _Optional[int] = ...) -> None: ...

class SequenceId(_message.Message):
    __slots__ = ("number", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: int
    text: str
    def __init__(self, number: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class ListSequencesRequest(_message.Message):
    __slots__ = ("model", "version", "min_idle_seconds", "limit")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    min_idle_seconds: float
    limit: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., min_idle_seconds: _Optional[float] = ..., limit: _Optional[int] = ...) -> None: ...

class ListSequencesResponse(_message.Message):
    __slots__ = ("sequences", "live")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[Sequence]
    live: int
    def __init__(self, sequences: _Optional[_Iterable[_Union[Sequence, _Mapping]]] = ..., live: _Optional[int] = ...) -> None: ...

class Sequence(_message.Message):
    __slots__ = ("id", "idle_seconds", "steps", "waiting_steps", "attended")
    ID_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WAITING_STEPS_FIELD_NUMBER: _ClassVar[int]
    ATTENDED_FIELD_NUMBER: _ClassVar[int]
    id: SequenceId
    idle_seconds: float
    steps: int
    waiting_steps: int
    attended: bool
    def __init__(self, id: _Optional[_Union[SequenceId, _Mapping]] = ..., idle_seconds: _Optional[float] = ..., steps: _Optional[int] = ..., waiting_steps: _Optional[int] = ..., attended: _Optional[bool] = ...) -> None: ...

class EvictSequencesRequest(_message.Message):
    __slots__ = ("model", "version", "ids", "min_idle_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    MIN_IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    ids: _containers.RepeatedCompositeFieldContainer[SequenceId]
    min_idle_seconds: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., ids: _Optional[_Iterable[_Union[SequenceId, _Mapping]]] = ..., min_idle_seconds: _Optional[float] = ...) -> None: ...

class EvictSequencesResponse(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedCompositeFieldContainer[SequenceId]
    def __init__(self, ids: _Optional[_Iterable[_Union[SequenceId, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "version", "ready", "inputs", "outputs", "states", "precision", "device", "weights_digest", "certificate_json", "limits", "notes", "digest")
    class NotesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_JSON_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    ready: bool
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    states: _containers.RepeatedCompositeFieldContainer[State]
    precision: str
    device: str
    weights_digest: str
    certificate_json: str
    limits: Limits
    notes: _containers.ScalarMap[str, str]
    digest: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., ready: _Optional[bool] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., states: _Optional[_Iterable[_Union[State, _Mapping]]] = ..., precision: _Optional[str] = ..., device: _Optional[str] = ..., weights_digest: _Optional[str] = ..., certificate_json: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., notes: _Optional[_Mapping[str, str]] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "minimum", "maximum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    minimum: int
    maximum: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., minimum: _Optional[int] = ..., maximum: _Optional[int] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("input", "output", "dtype", "shape")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    input: str
    output: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, input: _Optional[str] = ..., output: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_streams", "max_steps_per_message", "max_waiting_steps", "max_message_bytes", "window_steps")
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_PER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_STEPS_FIELD_NUMBER: _ClassVar[int]
    max_streams: int
    max_steps_per_message: int
    max_waiting_steps: int
    max_message_bytes: int
    window_steps: int
    def __init__(self, max_streams: _Optional[int] = ..., max_steps_per_message: _Optional[int] = ..., max_waiting_steps: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., window_steps: _Optional[int] = ...) -> None: ...
