"""What is served while the server runs: models of the repository, loaded and let go on request.

Owns the list of what could be served and the order of steps by which it changes. Loading takes seconds, so it is done
on the caller's thread; the loop only takes the finished lane over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from serving.errand import Post, on_loop
from serving.errors import ConfigError, InvalidInput, Unavailable, UnknownModel, Unsupported
from serving.front import check_name
from serving.lane import Lane, Lanes
from serving.repository import Artifact, find_artifacts

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one model in the repository."""

    name: str
    version: int
    ready: bool
    reason: str  # why it isn't


class Models:
    """The repository, and what of it is served."""

    def __init__(
        self,
        repository: Path,
        lanes: Lanes,
        *,
        load: Callable[[Artifact], Lane],
        post: Post,
        allowed: bool,
    ) -> None:
        """`load` makes a lane of an artifact, or raises ConfigError; `post` has something done on the loop's thread."""
        self._repository = repository
        self._lanes = lanes
        self._load = load
        self._post = post
        self._allowed = allowed
        self._lock = threading.Lock()  # one change at a time
        self._closed = False
        self.on_change: Callable[[], None] = lambda: None  # called on the loop's thread
        self.on_add: Callable[[Lane], None] = lambda _lane: None

    def index(self) -> list[Entry]:
        """Everything in the repository or served, by name and version."""
        entries = {
            (lane.name, lane.version): Entry(
                lane.name, lane.version, lane.ready, "" if lane.ready else "it doesn't compute at the moment"
            )
            for lane in self._lanes
        }
        for artifact in self._artifacts():
            key = artifact.name, artifact.version
            entries.setdefault(key, Entry(*key, ready=False, reason="not loaded"))
        return [entries[key] for key in sorted(entries)]

    def load(self, name: str) -> None:
        """Serve every version of a model that the repository has.

        Raises UnknownModel, InvalidInput, TooLarge or Unsupported.
        """
        self._check(name)
        with self._lock:
            artifacts = [artifact for artifact in self._artifacts() if artifact.name == name]
            if not artifacts:
                raise UnknownModel(f"failed to load '{name}': the repository has no such model")
            served = {lane.version for lane in self._lanes if lane.name == name}
            for artifact in artifacts:
                if artifact.version not in served:
                    self._add(artifact)

    def unload(self, name: str) -> None:
        """Let go of every version of a model, and end what is open. Raises UnknownModel, TooLarge or Unsupported."""
        self._check(name)
        with self._lock:
            lanes = [lane for lane in self._lanes if lane.name == name]
            if not lanes:
                raise UnknownModel(f"failed to unload '{name}': it isn't served")

            versions = [lane.version for lane in lanes]

            def end() -> None:
                for lane in lanes:
                    self._lanes.remove(lane)
                    lane.streams.end_all(Unavailable(f"model '{name}' was unloaded by the operator"))
                self.on_change()
                lanes.clear()  # the last to hold them: memory is freed here, never while another model is captured

            on_loop(self._post, end)
            log.info("model unloaded", model=name, versions=versions)

    def close(self) -> None:
        """The server is leaving: what is loaded from now on admits nothing. On the loop's thread."""
        self._closed = True

    def _add(self, artifact: Artifact) -> None:
        try:
            lane = self._load(artifact)
        except ConfigError as error:
            log.warning("model not loaded", model=artifact.name, version=artifact.version, error=str(error))
            raise InvalidInput(
                f"failed to load '{artifact.name}' version {artifact.version}: it can't be served; the server's log "
                "says why"
            ) from None

        def add() -> None:
            self.on_add(lane)
            if self._closed:
                lane.streams.close()
            self._lanes.add(lane)
            self.on_change()

        on_loop(self._post, add)

    def _artifacts(self) -> list[Artifact]:
        try:
            return find_artifacts(self._repository)
        except ConfigError:
            return []

    def _check(self, name: str) -> None:
        check_name("model name", name)
        if not self._allowed:
            raise Unsupported(
                "explicit model load / unload is not allowed; start the server with --model-control explicit"
            )
