"""One served model as clients are told of it, and the digest that names this description.

Owns the description's message and what its digest is made of. Built once when a model is loaded; knows no RPC.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cellstream.v1 import stream_inference_pb2 as pb
from model.contract import Contract, TensorSpec, certificate_to_plain
from serving.config import Limits


class Description:
    """Everything a client may know of a model; another model under the same name has another digest."""

    __slots__ = ("_message", "digest")

    def __init__(self, name: str, version: int, contract: Contract, limits: Limits, device: str) -> None:
        self._message = _describe(name, version, contract, limits, device)
        self.digest = hashlib.sha256(self._message.SerializeToString(deterministic=True)).digest()
        self._message.digest = self.digest

    def message(self, *, ready: bool = True) -> pb.GetModelResponse:
        """A copy as the protocol's message."""
        message = pb.GetModelResponse(ready=ready)
        message.MergeFrom(self._message)
        return message

    def wanted_by(self, opening: pb.Open) -> bool:
        """Whether the client asks for descriptions and doesn't have this one."""
        return opening.HasField("known_digest") and opening.known_digest != self.digest


def _describe(name: str, version: int, contract: Contract, limits: Limits, device: str) -> pb.GetModelResponse:
    certificate = contract.certificate
    return pb.GetModelResponse(
        name=name,
        version=version,
        inputs=[_tensor(spec) for spec in contract.inputs],
        outputs=[_tensor(spec) for spec in contract.outputs],
        states=[
            pb.State(input=state.input, output=state.output, dtype=state.dtype, shape=state.shape)
            for state in contract.states
        ],
        precision=contract.precision,
        device=device,
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
