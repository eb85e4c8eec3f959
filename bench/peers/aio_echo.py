"""What grpc.aio costs by itself: the same echo as echo.py on grpcio's public asyncio server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from bench.peers.aio_server import add_loop, run
from bench.peers.answers import MultiplexAnswers, StreamAnswers, add_sizes, answers_by_method


def _handler(answers: StreamAnswers | MultiplexAnswers) -> Any:
    async def echo(
        messages: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        opened = False
        async for data in messages:
            yield answers[len(data)] if opened else answers.opened
            opened = True

    return grpc.stream_stream_rpc_method_handler(echo)


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.aio_echo", description=__doc__)
    add_loop(parser)
    add_sizes(parser)
    options = parser.parse_args()
    handlers = {path: _handler(answers) for path, answers in answers_by_method(options).items()}
    return run(options, handlers)


if __name__ == "__main__":
    sys.exit(main())
