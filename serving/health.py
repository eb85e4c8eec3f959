"""The standard gRPC health service, following real work.

Owns who is told what: "" and the service's name stand for the whole server (the loop lives, every model computes, and
none is there whose versions are all broken); "NAME" and "NAME/VERSION" stand for one model, its newest version that is
served or any one, broken ones too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from serving.call import Call
from serving.endpoint import HealthState
from serving.errors import InvalidInput, UnknownModel
from serving.front import MAX_NAME, OPEN_INFERENCE, SERVICE
from serving.lane import Lane, Lanes
from serving.status import code_of

HEALTH = "grpc.health.v1.Health"
_Response = health_pb2.HealthCheckResponse
_STATUS = {None: _Response.SERVICE_UNKNOWN, True: _Response.SERVING, False: _Response.NOT_SERVING}


class Health:
    """What health says at the moment."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._working = False
        self._dead = False
        self._leaving = False
        self._said: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._watchers: set[_Watcher] = set()  # added and removed by the thread that serves them
        self.post: Callable[[Callable[[], None], Call], None] = lambda _work, _call: None  # to that thread
        self.update(working=False)
        for lane in lanes:
            self.watch(lane)

    def watch(self, lane: Lane) -> None:
        """Follow a lane."""
        lane.on_ready_changed = lambda _lane: self.changed()

    def changed(self) -> None:
        """Tell everybody that what is served has changed."""
        self.update(working=self._working)

    @property
    def working(self) -> bool:
        """Whether the loop does its turns and takes new streams."""
        return self._working and not self._leaving

    def state(self) -> HealthState:
        """The whole server's health, for those who don't speak gRPC."""
        broken = {f"{name}/{version}": reason for (name, version), reason in self._lanes.broken.items()}
        ready = self.working and bool(self._said.get(""))
        return {"live": not self._dead, "ready": ready, "not_served": broken}

    def update(self, *, working: bool) -> None:
        """Tell everybody; `working` is whether the loop does its turns. Safe from any thread."""
        with self._lock:
            working = working and not self._dead
            self._working = working
            everything = working and all(lane.ready for lane in self._lanes) and not self._lanes.unserved()
            names = {"", SERVICE, OPEN_INFERENCE, *(lane.name for lane in self._lanes)}
            names |= {f"{lane.name}/{lane.version}" for lane in self._lanes}
            broken = {f"{name}/{version}" for name, version in self._lanes.broken} - names
            for name in (self._said.keys() - names) | broken | self._lanes.unserved():
                self._say(name, serving=False)  # not served, or not any more
            for name in ("", SERVICE, OPEN_INFERENCE):
                self._say(name, serving=everything)
            for lane in self._lanes:
                self._say(f"{lane.name}/{lane.version}", serving=working and lane.ready)
            for lane in self._lanes.newest():
                self._say(lane.name, serving=working and lane.ready)

    def die(self) -> None:
        """Say NOT_SERVING for good: the loop has died, whatever an update that is under way may think."""
        with self._lock:
            self._dead = True
        self.update(working=False)

    def leave(self) -> None:
        """Say NOT_SERVING to everybody from now on, whatever happens."""
        with self._lock:
            self._leaving = True
            for name in list(self._said):
                self._say(name, serving=False)

    def check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """What is said of a name. Raises UnknownModel."""
        said = self._said.get(request.service)
        if said is None:
            raise UnknownModel(f"health knows no {request.service[:MAX_NAME]!r}; ask for NAME, NAME/VERSION or nothing")
        return _Response(status=_STATUS[said])

    def watcher(self, call: Call) -> _Watcher:
        """The handler of a Watch call."""
        return _Watcher(self._watchers, self._said, call)

    def _say(self, name: str, *, serving: bool) -> None:
        serving = serving and not self._leaving
        if self._said.get(name) == serving:
            return  # whoever watches is told of changes only
        self._said[name] = serving
        for watcher in tuple(self._watchers):
            if watcher.name == name:
                self.post(watcher.tell, watcher.call)


class _Watcher:
    """One Watch call: it is told what is said of a name at first, and then changes."""

    def __init__(self, watchers: set[_Watcher], said: dict[str, bool], call: Call) -> None:
        self.call = call
        self.name: str | None = None
        self._watchers = watchers
        self._said = said
        self._told: int | None = None
        call.receive()

    def on_message(self, data: bytes) -> None:
        """The request has arrived."""
        try:
            self.name = health_pb2.HealthCheckRequest.FromString(data).service
        except DecodeError:
            self.call.finish(code_of(InvalidInput()), f"the message isn't a {HEALTH} request")
            return
        self._watchers.add(self)
        self.tell()

    def on_half_close(self) -> None:
        """The client sends no more."""
        if self.name is None:
            self.call.finish(StatusCode.INVALID_ARGUMENT, "the call ended without a request")

    def on_sent(self) -> None:
        """The client has read what it was told."""
        self.tell()

    def on_closed(self, *, cancelled: bool) -> None:  # noqa: ARG002  nothing is kept either way
        """The call is over."""
        self._watchers.discard(self)

    def tell(self) -> None:
        """Say how it stands, if that is new and the client has read what it was told before."""
        assert self.name is not None
        status = _STATUS[self._said.get(self.name)]
        if status != self._told and not self.call.unsent:
            self._told = status
            self.call.send(_Response(status=status).SerializeToString())
