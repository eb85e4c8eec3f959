"""gRPC reflection, so that tools find the services; bounded, so that it can't take the threads health needs.

The public server gives every open reflection call a thread for as long as the client likes. Here only a few may be open
at once, each for a minute.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

MOST_AT_ONCE = 8
SECONDS = 60.0


class BoundedReflection(reflection.ReflectionServicer):
    """The standard servicer for a few calls at a time."""

    def __init__(self, services: tuple[str, ...], pool: descriptor_pool.DescriptorPool) -> None:
        super().__init__(services, pool)  # type: ignore[no-untyped-call]
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)

    def ServerReflectionInfo(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Answer requests until the client ends the call, or its minute is over."""
        if not self._places.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MOST_AT_ONCE} reflection calls are open; the limit is {MOST_AT_ONCE}",
            )
        timer = threading.Timer(SECONDS, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)  # type: ignore[no-untyped-call]
        finally:
            timer.cancel()
            self._places.release()


def add_reflection(
    server: grpc.Server, services: tuple[str, ...], described: Iterable[descriptor_pb2.FileDescriptorProto] = ()
) -> None:
    """Answer reflection for `services` of this process, for those in the files `described`, and for itself."""
    pool = descriptor_pool.DescriptorPool()
    known, others = (*services, reflection.SERVICE_NAME), []
    for name in known:
        _copy(descriptor_pool.Default().FindFileContainingSymbol(name), pool)
    for file in described:
        pool.AddSerializedFile(file.SerializeToString())
        others += [f"{file.package}.{service.name}" for service in file.service]
    servicer = BoundedReflection((*known, *others), pool)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)


def _copy(file: Any, pool: descriptor_pool.DescriptorPool) -> None:
    """Put a file and what it imports into a pool, where they may be already."""
    for imported in file.dependencies:
        _copy(imported, pool)
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    pool.AddSerializedFile(copy.SerializeToString())
