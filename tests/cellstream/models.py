"""Models and messages for the tests of the core, which need no server."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellstream._catalog import Catalog
from cellstream._protocol import Opening, StreamCore
from cellstream._tensors import Request, Signature
from cellstream.models import Limits, Model, Tensor
from cellstream.v1 import stream_inference_pb2 as pb

DIGEST = bytes(range(32))


def signature(
    *, inputs: tuple[Tensor, ...] = (), outputs: tuple[Tensor, ...] = (), max_steps: int = 0, max_bytes: int = 0
) -> Signature:
    """A model's signature; by default int64 scalars in and out."""
    limits = Limits(0, max_steps, 0, max_bytes, 0)
    inputs = inputs or (Tensor("x", "int64", ()),)
    outputs = outputs or (Tensor("y", "int64", ()),)
    return Signature(Model("m", 1, True, inputs, outputs, (), limits, "", "cpu", "", None, {}, DIGEST.hex()))


class Knows(Catalog):
    """A catalog that knows one model already."""

    def __init__(self, known: Signature) -> None:
        super().__init__()
        self._known = known

    def proposal(self, name: str, version: int) -> Signature:
        """The model."""
        return self._known


def opened_core(*, window: int = 1000, max_steps: int = 0, max_bytes: int = 0) -> StreamCore:
    """A core that the server has opened, its greeting sent."""
    core = StreamCore(Opening("m"), Knows(signature(max_steps=max_steps, max_bytes=max_bytes)))
    assert core.next_message() is not None
    core.receive(pb.StreamResponse(opened=opened_as(window=window, max_steps=max_steps)).SerializeToString())
    return core


def opened_as(*, window: int = 1000, max_steps: int = 0, next_step: int = 1) -> pb.Opened:
    """The server's answer to Open."""
    return pb.Opened(
        model="m",
        version=1,
        next_step=next_step,
        window_steps=window,
        max_steps_per_message=max_steps,
        model_digest=DIGEST,
    )


def steps_of(*values: int) -> Request:
    """A chunk of these values."""
    return signature().encode(list(values))


def int64(values: Any) -> bytes:
    """Numbers as they go over the wire."""
    return np.asarray(values, "<i8").tobytes()


def outputs(first: int, values: Any) -> bytes:
    """A message that answers steps from `first` on."""
    message = pb.Outputs(first_step=first, steps=len(values), outputs=[int64(values)])
    return pb.StreamResponse(outputs=message).SerializeToString()
