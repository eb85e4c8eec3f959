"""What is served while the server runs: models of the repository, loaded and let go on request.

Owns the list of what could be served and the order of steps by which it changes. Loading takes seconds, so it is done
on the caller's thread; the loop only takes the finished lane over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from serving.errand import Post, on_loop
from serving.errors import ConfigError, Refusal, Unavailable, UnknownModel, Unsupported
from serving.front import check_name
from serving.graph_files import GraphFiles
from serving.lane import Lane, Lanes
from serving.orders import FAILED, LOADED, RELOADED, UNCHANGED, UNLOADED, Change
from serving.repository import Artifact, find_artifacts

_NAMED = 5  # artifacts that a refusal to start names
_NOT_LOADED = "not loaded"
_OTHER_CONTENT = "its files have changed since the other workers loaded it; load it again, in all of them"

Load = Callable[[Artifact, GraphFiles], Lane]  # raises ConfigError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one model in the repository."""

    name: str
    version: int
    ready: bool
    reason: str  # why it isn't
    served: bool = False


def load_all(artifacts: Iterable[Artifact], lanes: Lanes, load: Load, *, like: Mapping[str, str] | None = None) -> None:
    """Serve what can be served; the other versions are skipped, loud in the log and noted in `lanes`.

    `like`: what other workers serve, and the digest of its content; then just that is served, or skipped where it has
    changed. Raises ConfigError if there is nothing that can be.
    """
    problems: list[tuple[Artifact, ConfigError]] = []
    for artifact in artifacts:
        key = f"{artifact.name}/{artifact.version}"
        if like is not None and key not in like:
            continue
        try:
            lanes.add(load(artifact, _read(artifact, None if like is None else like[key])))
        except ConfigError as error:
            problems.append((artifact, error))
    if problems and not list(lanes):
        different = list(dict.fromkeys(str(problem) for _, problem in problems))
        more = f"; and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
        raise ConfigError("; ".join(different[:_NAMED]) + more)
    for artifact, problem in problems:
        name, version = artifact.name, artifact.version
        lanes.note(name, version, problem.public)
        log.error("version skipped: it can't be served", model=name, version=version, error=str(problem))


def _read(artifact: Artifact, identity: str | None) -> GraphFiles:
    files = GraphFiles.read(artifact.graph)
    if identity not in (None, files.identity):
        raise ConfigError(f"{artifact.path}: {_OTHER_CONTENT}", public=_OTHER_CONTENT)
    return files


class Models:
    """The repository, and what of it is served."""

    def __init__(self, repository: Path, lanes: Lanes, *, load: Load, post: Post, allowed: bool) -> None:
        """`load` makes a lane of an artifact; `post` has something done on the loop's thread."""
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
        entries: dict[tuple[str, int], Entry] = {}
        for lane in self._lanes:
            reason = "" if lane.ready else "it doesn't compute at the moment"
            entries[lane.name, lane.version] = Entry(lane.name, lane.version, lane.ready, reason, served=True)
        broken = self._lanes.broken
        keys = {(artifact.name, artifact.version) for artifact in self._artifacts()} | set(broken)
        for key in keys:
            entries.setdefault(key, Entry(*key, ready=False, reason=broken.get(key, _NOT_LOADED)))
        return [entries[key] for key in sorted(entries)]

    def identities(self) -> dict[str, str]:
        """What is served, by NAME/VERSION, and the digest of its content."""
        return {f"{lane.name}/{lane.version}": lane.identity for lane in self._lanes}

    def served(self, name: str) -> list[int]:
        """A model's versions that are served, the lowest first."""
        return sorted(lane.version for lane in self._lanes if lane.name == name)

    def load(self, name: str, version: int = 0) -> list[Change]:
        """Serve what the repository has of a model (0: every version of it) as it is on the disk now.

        What has other content than what is served replaces it, and what is served and isn't on the disk any more is let
        go. A version that can't be served changes nothing. Raises UnknownModel, TooLarge or Unsupported.
        """
        self.check(name)
        with self._lock:
            found = {one.version: one for one in self._artifacts() if one.name == name}
            wanted = [found[version]] if version in found else [] if version else list(found.values())
            served = self.served(name)
            if not wanted:
                what = f"'{name}' version {version}" if version else f"'{name}'"
                stays = f"; what is served stays: version {', '.join(map(str, served))}" if served else ""
                raise UnknownModel(f"failed to load {what}: the repository has no such model{stays}")
            changes = [self._renew(artifact) for artifact in sorted(wanted, key=lambda one: one.version)]
            gone = [] if version else [each for each in served if each not in found]
            self._let_go(name, gone, f"version {{}} of model '{name}' isn't in the repository any more")
            self._forget_broken(name, set(found))
            return changes + [Change(each, UNLOADED, "it isn't in the repository any more") for each in gone]

    def unload(self, name: str, version: int = 0) -> list[Change]:
        """Let go of a model (0: of every version), and end what is open.

        Raises UnknownModel, TooLarge or Unsupported.
        """
        self.check(name)
        with self._lock:
            versions = [each for each in self.served(name) if version in (0, each)]
            if not versions:
                what = f"'{name}' version {version}" if version else f"'{name}'"
                raise UnknownModel(f"failed to unload {what}: it isn't served")
            told = f"version {{}} of model '{name}'" if version else f"model '{name}'"
            self._let_go(name, versions, told + " was unloaded by the operator")
            return [Change(each, UNLOADED) for each in versions]

    def close(self) -> None:
        """The server is leaving: what is loaded from now on admits nothing. On the loop's thread."""
        self._closed = True

    def _renew(self, artifact: Artifact) -> Change:
        """Serve an artifact as it is on the disk."""
        name, version = artifact.name, artifact.version
        try:
            files = GraphFiles.read(artifact.graph)
            if any((lane.name, lane.version) == (name, version) and lane.ready and lane.identity == files.identity
                   for lane in self._lanes):  # fmt: skip
                return Change(version, UNCHANGED)
            lane = self._load(artifact, files)
        except ConfigError as error:
            log.warning("model not loaded", model=name, version=version, error=str(error))
            return self._failed(name, version, error.public)
        except Refusal as refusal:  # of a loop that didn't come to it
            return self._failed(name, version, str(refusal))
        return Change(version, RELOADED if self._put(lane) else LOADED)

    def _failed(self, name: str, version: int, reason: str) -> Change:
        if version in self.served(name):
            return Change(version, FAILED, f"{reason}; the one that was loaded before is served")
        self._lanes.note(name, version, reason)
        on_loop(self._post, self.on_change)
        return Change(version, FAILED, reason)

    def _put(self, lane: Lane) -> bool:
        """Have the loop serve a lane instead of the one of its name and version; whether there was one."""

        def put() -> bool:
            self.on_add(lane)
            if self._closed:
                lane.streams.close()
            old = next((one for one in self._lanes if (one.name, one.version) == (lane.name, lane.version)), None)
            self._lanes.add(lane)
            if old is not None:
                why = (
                    f"version {lane.version} of model '{lane.name}' was loaded anew by the operator, with other content"
                )
                old.streams.end_all(Unavailable(why))
                lane.sequences.inherit(old.sequences)
            self.on_change()
            return old is not None

        return on_loop(self._post, put)

    def _let_go(self, name: str, versions: Sequence[int], told: str) -> None:
        """Serve these versions no longer; their clients are told `told`, with the version in it."""
        if not versions:
            return
        lanes = [lane for lane in self._lanes if lane.name == name and lane.version in versions]

        def end() -> None:
            for lane in lanes:
                self._lanes.remove(lane)
                lane.streams.end_all(Unavailable(told.format(lane.version)))
            heir = next((one for one in self._lanes.newest() if one.name == name), None)
            if heir is not None:
                for lane in lanes:
                    heir.sequences.inherit(lane.sequences)
            self.on_change()
            lanes.clear()  # the last to hold them: memory is freed here, never while another model is captured

        on_loop(self._post, end)
        log.info("model unloaded", model=name, versions=list(versions))

    def _forget_broken(self, name: str, on_disk: set[int]) -> None:
        gone = [version for broken, version in self._lanes.broken if broken == name and version not in on_disk]
        for version in gone:
            self._lanes.forget(name, version)
        if gone:
            on_loop(self._post, self.on_change)

    def _artifacts(self) -> list[Artifact]:
        try:
            return find_artifacts(self._repository)
        except ConfigError:
            return []

    def check(self, name: str) -> None:
        """Raise the Refusal of an order that would be refused whatever there is."""
        check_name("model name", name)
        if not self._allowed:
            raise Unsupported(
                "explicit model load / unload is not allowed; start the server with --model-control explicit"
            )
