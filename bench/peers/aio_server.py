"""A grpc.aio server of a few methods, on asyncio's own loop or on uvloop."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Mapping
from typing import Any

import grpc

OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class _Methods(grpc.GenericRpcHandler):
    """Handlers by full name."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The method's handler; None if there is none."""
        return self._handlers.get(handler_call_details.method)


async def _serve(listen: str, handlers: Mapping[str, Any]) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Methods(handlers),))
    port = server.add_insecure_port(listen)
    await server.start()
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    print(f"listening on {listen.rpartition(':')[0]}:{port}", flush=True)
    await leave.wait()
    await server.stop(0)


def add_loop(parser: argparse.ArgumentParser) -> None:
    """The options that every such server has."""
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop instead of asyncio's own event loop")


def run(options: argparse.Namespace, handlers: Mapping[str, Any]) -> int:
    """Serve until a signal; the exit status."""
    make = None
    if options.uvloop:
        import uvloop  # noqa: PLC0415  a development machine's only

        make = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(_serve(options.listen, handlers))
    return 0
