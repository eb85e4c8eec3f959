"""`python -m bench.record`: a server that writes down what arrives, for `python -m bench.simulate --recorded`.

It serves a repository as `python -m serving` does, and notes every chunk that reaches a model's batcher (when, of which
stream, how many steps; never what is in it) until Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from bench.simulation import arrivals
from serving.batcher import Batcher, Chunk
from serving.config import ServerConfig
from serving.errors import ConfigError
from serving.server import Server
from serving.streams import Stream

LOOK_SECONDS = 1.0  # between two looks at the server's health


class Noted(NamedTuple):
    """A chunk that reached the batcher."""

    seconds: float  # of the server's clock
    stream: int  # numbered from 1, as they first send
    steps: int


class Recorder:
    """Notes what is pushed into one batcher, by standing before its `push` and `discard`.

    Everything but `rows` happens on the server's own thread.
    """

    def __init__(self, batcher: Batcher[Stream]) -> None:
        self._noted: list[Noted] = []
        self._numbers: dict[Stream, int] = {}  # of live streams: an ended one's number isn't used again
        self._streams = 0
        self._push, self._discard = batcher.push, batcher.discard
        batcher.push = self._on_push  # type: ignore[method-assign]
        batcher.discard = self._on_discard  # type: ignore[method-assign]

    def rows(self) -> list[Noted]:
        """What has been noted, in order of time, counted from the first."""
        noted = self._noted[:]
        return [row._replace(seconds=row.seconds - noted[0].seconds) for row in noted]

    def _on_push(self, stream: Stream, chunk: Chunk) -> None:
        number = self._numbers.get(stream)
        if number is None:
            self._streams += 1
            number = self._numbers[stream] = self._streams
        self._noted.append(Noted(chunk.arrived, number, chunk.steps))
        self._push(stream, chunk)

    def _on_discard(self, stream: Stream) -> None:
        self._numbers.pop(stream, None)
        self._discard(stream)


def record(
    config: ServerConfig, model: str, *, started: Callable[[str], None], leave: threading.Event
) -> tuple[list[Noted], bool]:
    """Serve until `leave` is set; what arrived for `model` ("" for the only one), and whether the server left well.

    `started` is told the address. Raises ConfigError.
    """
    server = Server(config)
    lanes = {lane.name: lane for lane in server.lanes.newest()}
    if not model and len(lanes) > 1:
        raise ConfigError(f"which model's streams? name one of {', '.join(sorted(lanes))} with --model")
    if model and model not in lanes:
        raise ConfigError(f"no model {model!r} under {config.model_repository}; there are {', '.join(sorted(lanes))}")
    lane = lanes[model] if model else next(iter(lanes.values()))
    recorder = Recorder(lane.streams.batcher)
    server.start()
    started(server.address)
    while not leave.wait(LOOK_SECONDS):
        server.look()
    left_well = server.drain()
    return recorder.rows(), left_well


def main(words: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0 if something was recorded."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=__doc__.partition("\n\n")[2])
    parser.add_argument("out", type=Path, metavar="OUT.csv", help="lines of seconds,stream,steps")
    parser.add_argument("--model-repository", type=Path, default=Path("artifacts"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--model", default="", metavar="NAME", help="whose streams to note, if several are served")
    parser.add_argument("--listen", default="127.0.0.1:50051", metavar="HOST:PORT", help="(%(default)s)")
    parser.add_argument("--allow-unproved", action="store_true", help="serve artifacts without a valid certificate")
    arguments = parser.parse_args(words)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    leave = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: leave.set())
    began = time.monotonic()
    try:
        config = ServerConfig(
            arguments.model_repository, arguments.listen, allow_unproved=arguments.allow_unproved, grace=1.0
        )
        arguments.out.touch()  # a folder that isn't there is told now, not after an hour
        rows, left_well = record(
            config,
            arguments.model,
            started=lambda address: print(f"listening on {address}, noting until Ctrl-C", flush=True),
            leave=leave,
        )
        count = arrivals.write(arguments.out, rows)
    except OSError as error:
        print(f"error: {arguments.out}: can't be written ({error.strerror})", file=sys.stderr)
        return 2
    except (ConfigError, arrivals.RecordingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {count} chunks of {time.monotonic() - began:.0f} s to {arguments.out}")
    return 0 if count and left_well else 1


if __name__ == "__main__":
    sys.exit(main())
