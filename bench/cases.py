"""What `make bench` measures: which server, in which shape, with how many streams. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Peer(StrEnum):
    """A server process."""

    OURS = "ours"
    ECHO = "echo"  # bench/peers/echo.py: our wire and nothing else
    FLOOR = "echo with a run in its loop"  # the same, and raw ONNX Runtime between receiving and sending
    AIO_ECHO = "echo, uvloop"
    NAIVE = "a run per message, grpc.aio"
    NAIVE_UVLOOP = "a run per message, uvloop"

    @property
    def computes(self) -> bool:
        """Whether its answers are the model's."""
        return self not in (Peer.ECHO, Peer.FLOOR, Peer.AIO_ECHO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is measured once in every round."""

    peer: Peer
    streams: int
    connections: int = 1
    steps_per_message: int = 1
    multiplex: bool = False
    infer: bool = False  # by the Open Inference Protocol
    rate: float | None = None  # messages per second of all streams; None: flat out
    client: bool = False  # load by the Python client instead of the generator
    bare: bool = False  # load by bare calls of grpcio, as much as the client can't do without

    @property
    def by_generator(self) -> bool:
        """Whether the load is the generator's, not Python's."""
        return not (self.client or self.bare)

    @property
    def shape(self) -> str:
        """The shape in words, without the server: on one connection unless it says otherwise."""
        if self.multiplex:
            return f"{self.streams} streams in one message"
        steps = "" if self.steps_per_message == 1 else f", {self.steps_per_message} steps a message"
        protocol = ", Open Inference Protocol" if self.infer else ""
        return f"{self.streams} stream{'s' * (self.streams > 1)}{steps}{self._connected}{protocol}"

    @property
    def _connected(self) -> str:
        if self.connections == 1:
            return ""
        return ", a connection each" if self.connections == self.streams else f", {self.connections} connections"

    def of(self, peer: Peer) -> Case:
        """The same on another server, which speaks our own protocol alone."""
        return Case(
            peer=peer,
            streams=self.streams,
            connections=self.connections,
            steps_per_message=self.steps_per_message,
            multiplex=self.multiplex,
            rate=self.rate,
        )


def single(streams: int, connections: int = 1) -> Case:
    """One RPC per stream, one step per message."""
    return Case(peer=Peer.OURS, streams=streams, connections=connections)


def infer(streams: int) -> Case:
    """The same by the Open Inference Protocol."""
    return Case(peer=Peer.OURS, streams=streams, infer=True)


def chunks(steps: int, streams: int = 64) -> Case:
    """One RPC per stream, several steps per message."""
    return Case(peer=Peer.OURS, streams=streams, steps_per_message=steps)


def many(streams: int) -> Case:
    """Many streams per message."""
    return Case(peer=Peer.OURS, streams=streams, multiplex=True)


def client(streams: int) -> Case:
    """The same by the Python client."""
    return Case(peer=Peer.OURS, streams=streams, multiplex=True, client=True)


def bare(streams: int) -> Case:
    """The same by calls of grpcio with nothing around them."""
    return Case(peer=Peer.OURS, streams=streams, multiplex=True, bare=True)


FEW = 4  # connections
FULL = (
    *(single(streams) for streams in (1, 16, 64, 256, 1024)),
    *(single(streams, FEW) for streams in (64, 256, 1024)),
    *(single(streams, streams) for streams in (16, 64, 256, 1024)),
    *(chunks(steps) for steps in (4, 16, 64)),
    *(many(streams) for streams in (16, 64, 256, 1024)),
)
QUICK = (single(1), single(64), single(64, 64), chunks(16), many(64))
COMPARED = (single(1), single(64), single(256), single(64, 64))  # with grpc.aio servers
FLOORS = (single(1), single(64), single(256))
CLIENT = (64, 256)


def full() -> list[Case]:
    """Every closed loop of `make bench`, in the order of one round: what is compared lies side by side."""
    cases = []
    for case in FULL:
        cases += [case, case.of(Peer.ECHO)]
        if case in FLOORS:
            cases.append(case.of(Peer.FLOOR))
        if case in COMPARED:
            cases += [case.of(Peer.NAIVE_UVLOOP), case.of(Peer.AIO_ECHO)]
        if case in (single(64), single(256)):
            cases += [case.of(Peer.NAIVE), infer(case.streams)]
        if case == chunks(16):
            cases.append(case.of(Peer.NAIVE_UVLOOP))
        if case.multiplex and case.streams in CLIENT:
            cases += [client(case.streams), bare(case.streams)]
    return cases


def quick() -> list[Case]:
    """Of `make bench-quick`."""
    cases = []
    for case in QUICK:
        cases += [case, case.of(Peer.ECHO)]
    return [*cases, single(64).of(Peer.NAIVE_UVLOOP), infer(64), client(64)]
