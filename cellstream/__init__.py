"""Client for Cellstream: recurrent models served step by step over gRPC, with every stream's state on the server.

    import cellstream

    with cellstream.connect("127.0.0.1:50051") as client, client.stream("bytelm") as stream:
        logits = stream.step(list(b"def "))  # int64 [T] in, float32 [T, 256] out; one number in, [256] out

`cellstream.aio` is the same for asyncio.
"""

from cellstream import aio
from cellstream.client import Client, connect
from cellstream.errors import (
    AccessDenied,
    CannotResume,
    CellstreamError,
    ComputeFailed,
    DeadlineExceeded,
    InvalidInput,
    LimitReached,
    ModelChanged,
    OutOfOrder,
    Overloaded,
    PartialFailure,
    ProtocolError,
    ServerGoingAway,
    StepTimeout,
    StreamClosed,
    StreamLost,
    Unavailable,
    UnknownModel,
    UnsupportedModel,
)
from cellstream.models import Limits, Model, ModelSummary, State, Tensor
from cellstream.multiplex import Multiplex
from cellstream.options import Channel, Retry
from cellstream.stream import Stream

__all__ = [
    "AccessDenied",
    "CannotResume",
    "CellstreamError",
    "Channel",
    "Client",
    "ComputeFailed",
    "DeadlineExceeded",
    "InvalidInput",
    "LimitReached",
    "Limits",
    "Model",
    "ModelChanged",
    "ModelSummary",
    "Multiplex",
    "OutOfOrder",
    "Overloaded",
    "PartialFailure",
    "ProtocolError",
    "Retry",
    "ServerGoingAway",
    "State",
    "StepTimeout",
    "Stream",
    "StreamClosed",
    "StreamLost",
    "Tensor",
    "Unavailable",
    "UnknownModel",
    "UnsupportedModel",
    "aio",
    "connect",
]
