"""The bytes of one resident graph and its weights, read once.

Owns the reading and the digests. A session made of these bytes never looks at the files again, so that whatever
happens to them (overwritten, truncated, replaced, removed) changes no answer and kills no process, and the weights
whose digest is checked are the ones that compute.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from model.contract import ContractError, graph_digest
from serving.errors import ConfigError

WEIGHTS = "model.onnx.data"  # beside the graph, which refers to it by this name


@dataclass(frozen=True)
class GraphFiles:
    """A graph and its weights, as they were when they were read."""

    path: Path  # of the graph: for messages
    graph: bytes
    weights: bytes | None  # None: there are none

    @staticmethod
    def read(path: Path) -> GraphFiles:
        """Read the graph at `path` and the weights beside it. Raises ConfigError."""
        weights = path.parent / WEIGHTS
        return GraphFiles(path, _read(path), _read(weights) if weights.exists() else None)

    @cached_property
    def weights_digest(self) -> str:
        """What a certificate calls these weights. Raises ConfigError if there are none."""
        if self.weights is None:
            raise ConfigError(f"{self.path}: there is no {WEIGHTS} beside it", public=f"it has no {WEIGHTS}")
        return f"sha256:{hashlib.sha256(self.weights).hexdigest()}"

    @cached_property
    def identity(self) -> str:
        """A digest of all that was read: equal where the contents are."""
        weights = b"" if self.weights is None else self.weights_digest.encode()
        return hashlib.sha256(weights + self.graph).hexdigest()

    def graph_digest(self) -> str:
        """What a certificate calls this graph. Raises ConfigError if it is damaged."""
        try:
            return graph_digest(self.graph)
        except ContractError as error:
            raise ConfigError(f"can't read {self.path}: {error}", public=f"its {self.path.name}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except MemoryError as error:
        raise ConfigError(f"no memory to read {path}") from error
    except OSError as error:
        why = f"can't read {path}: {error.strerror}"
        raise ConfigError(why, public=f"its {path.name} can't be read: {error.strerror}") from error
