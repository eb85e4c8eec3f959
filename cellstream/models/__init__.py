"""What a server says of its models, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellstream.v1 import stream_inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output: `shape` and `dtype` (a numpy name) of one time step of one stream.

    `minimum` and `maximum` bound integer values, both inclusive; None: unbounded.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """A state tensor kept on the server: the graph's input that takes it, and the output that gives its successor."""

    input: str
    output: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's bounds; 0: it doesn't say."""

    max_streams: int
    max_steps_per_message: int
    max_waiting_steps: int
    max_message_bytes: int
    window_steps: int


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One line of the list of models."""

    name: str
    version: int
    ready: bool
    reason: str = ""  # why it isn't


@dataclass(frozen=True, slots=True, repr=False)
class Model:
    """One version of a model: its tensors, states and limits, where it runs, and the proof it carries.

    `certificate` is the parity certificate, None for an unproved model. `digest` names all of this but `ready`: another
    model under the same name and version has another one.
    """

    name: str
    version: int
    ready: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[State, ...]
    limits: Limits
    precision: str
    device: str
    weights_digest: str
    certificate: Mapping[str, Any] | None
    notes: Mapping[str, str]
    digest: str = ""

    def __repr__(self) -> str:
        """One short line, without the certificate."""
        proof = "unproved" if self.certificate is None else "proved"
        tensors = " -> ".join(", ".join(map(_short, side[:_SHOWN])) + ", …" * (len(side) > _SHOWN)
                              for side in (self.inputs, self.outputs))  # fmt: skip
        weights = self.weights_digest[:12]
        states = f"{len(self.states)} state" + "s" * (len(self.states) != 1)
        return (
            f"<Model {self.name}/{self.version}: {tensors}, {states}, {self.precision} on "
            f"{self.device}, {proof}, weights {weights}>"
        )


def model_from(message: pb.GetModelResponse) -> Model:
    """A model from the server's description of it."""
    limits = message.limits
    return Model(
        name=message.name,
        version=message.version,
        ready=message.ready,
        inputs=tuple(_tensor(tensor) for tensor in message.inputs),
        outputs=tuple(_tensor(tensor) for tensor in message.outputs),
        states=tuple(State(s.input, s.output, s.dtype, tuple(s.shape)) for s in message.states),
        limits=Limits(
            max_streams=limits.max_streams,
            max_steps_per_message=limits.max_steps_per_message,
            max_waiting_steps=limits.max_waiting_steps,
            max_message_bytes=limits.max_message_bytes,
            window_steps=limits.window_steps,
        ),
        precision=message.precision,
        device=message.device,
        weights_digest=message.weights_digest,
        certificate=json.loads(message.certificate_json) if message.certificate_json else None,
        notes=dict(message.notes),
        digest=message.digest.hex(),
    )


def summaries_from(message: pb.ListModelsResponse) -> tuple[ModelSummary, ...]:
    """The list of models from the server's answer."""
    return tuple(ModelSummary(model.name, model.version, model.ready, model.reason) for model in message.models)


_SHOWN = 4  # tensors on each side of a model's short line


def _short(tensor: Tensor) -> str:
    bounds = "" if tensor.minimum is None and tensor.maximum is None else f" {tensor.minimum} … {tensor.maximum}"
    return f"{tensor.name} {tensor.dtype}{list(tensor.shape)}{bounds}"


def _tensor(message: pb.Tensor) -> Tensor:
    return Tensor(
        name=message.name,
        dtype=message.dtype,
        shape=tuple(message.shape),
        minimum=message.minimum if message.HasField("minimum") else None,
        maximum=message.maximum if message.HasField("maximum") else None,
    )
