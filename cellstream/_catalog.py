"""What a client knows of models, by the digests of their descriptions.

Owns the rule that a stream's tensors are those that its own server named in Opened: what is remembered under a name is
only a proposal, whose digest the server confirms or replaces. Knows no RPC.
"""

from __future__ import annotations

import threading

from cellstream._tensors import Signature
from cellstream.errors import ProtocolError
from cellstream.models import model_from
from cellstream.v1 import stream_inference_pb2 as pb

_KEPT = 16  # descriptions of other servers or earlier deployments, for when they come again


class Catalog:
    """The models that one client has met. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, int], Signature] = {}  # by name and version asked for
        self._recent: dict[bytes, Signature] = {}  # by digest, oldest first

    def proposal(self, name: str, version: int) -> Signature | None:
        """The model that was last met under this name and version."""
        return self._latest.get((name, version))

    def described(self, message: pb.GetModelResponse, asked: tuple[str, int]) -> Signature:
        """The model that a description is of; `asked`: the name and version in the request. Raises UnsupportedModel."""
        known = self._recent.get(message.digest) if message.digest else None
        signature = known or Signature(model_from(message))
        with self._lock:
            self._latest[asked] = signature
            if message.digest:
                self._recent.pop(message.digest, None)
                self._recent[message.digest] = signature
            while len(self._recent) > _KEPT:
                del self._recent[next(iter(self._recent))]
        return signature

    def opened(self, message: pb.Opened, asked: tuple[str, int], known: tuple[Signature, ...]) -> Signature:
        """The model that an opened stream runs: one of `known`, or the one that the message describes.

        Raises ProtocolError if the server names none, UnsupportedModel.
        """
        digest = message.model_digest
        if not digest:
            raise ProtocolError(
                "the server opened the stream and didn't say which tensors the model has: it is older than this "
                "client; update the server, or use the client of its version"
            )
        signature = next((one for one in known if one.digest == digest), None)
        if signature is None:
            if message.description.digest != digest:
                raise ProtocolError("the server opened the stream of a model that it didn't describe")
            signature = self.described(message.description, asked)
        if (signature.model.name, signature.model.version) != (message.model, message.version):
            raise ProtocolError(
                f"the server opened {message.model!r} version {message.version} and described "
                f"{signature.model.name!r} version {signature.model.version}"
            )
        return signature
