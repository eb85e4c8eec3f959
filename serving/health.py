"""The standard gRPC health service, following real work.

Owns who is told what: "" and the service's name stand for the whole server (the loop lives, every model computes, and
none is there whose versions are all broken); "NAME" and "NAME/VERSION" stand for one model, its newest version that is
served or any one, broken ones too.
"""

from __future__ import annotations

import threading

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving.endpoint import HealthState
from serving.front import OPEN_INFERENCE, SERVICE
from serving.lane import Lane, Lanes


class Health:
    """What health says at the moment."""

    def __init__(self, server: grpc.Server, lanes: Lanes) -> None:
        self._lanes = lanes
        self._servicer = health.HealthServicer()
        self._working = False
        self._dead = False
        self._leaving = False
        self._said: dict[str, bool] = {}
        self._lock = threading.Lock()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
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
        self._leaving = True
        self._servicer.enter_graceful_shutdown()

    def _say(self, name: str, *, serving: bool) -> None:
        if self._said.get(name) == serving:
            return  # whoever watches is told of changes only
        self._said[name] = serving
        status = health_pb2.HealthCheckResponse
        self._servicer.set(name, status.SERVING if serving else status.NOT_SERVING)
