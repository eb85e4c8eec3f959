"""What the wire costs by itself: serving/wire.py on one thread, answering every message with one ready-made.

The answers have the size of the real server's. The first message of a call is answered as if it opened the stream.
With an artifact it is a server's floor: between receiving and sending it runs the graph for as many lanes as there are
messages, with nothing of their own, and nothing of ours.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from bench.ceilings import LARGEST_BATCH, Raw
from bench.peers.answers import MultiplexAnswers, StreamAnswers, add_sizes, answers_by_method
from serving.call import Call, Handler
from serving.wire import SERVER_OPTIONS, Wire

_POLL_SECONDS = 0.05
_STOP_SECONDS = 2.0


class _Echo:
    """One call."""

    __slots__ = ("_answers", "_call", "_computed", "_opened")

    def __init__(self, call: Call, answers: StreamAnswers | MultiplexAnswers, computed: Computed | None) -> None:
        self._call, self._answers, self._computed = call, answers, computed
        self._opened = False
        call.receive()

    def on_message(self, data: bytes) -> None:
        """Answer it, whatever it says, and take the next."""
        if self._opened and self._computed is not None:
            self._computed.add(self._call, self._answers[len(data)], len(data) // self._answers.inputs)
        elif self._opened:
            self._call.send(self._answers[len(data)])
        else:
            self._opened = True
            self._call.send(self._answers.opened)
        self._call.receive()

    def on_half_close(self) -> None:
        """The client has done."""
        self._call.finish(grpc.StatusCode.OK)

    def on_sent(self) -> None:
        """Nothing waits for that."""

    def on_closed(self, *, cancelled: bool) -> None:
        """Nothing is kept."""


class Computed:
    """Answers that wait for a run."""

    def __init__(self, artifact: Path) -> None:
        self._raw = Raw(artifact)
        self._bound: dict[tuple[int, int], Callable[[int], None]] = {}
        self._waiting: list[tuple[Call, bytes, int]] = []
        self._runs = 0

    def add(self, call: Call, answer: bytes, steps: int) -> None:
        """Answer that call after the next run."""
        self._waiting.append((call, answer, steps))

    def run(self) -> None:
        """Compute as many lanes as wait, a batch at a time, and answer."""
        while self._waiting:
            batch, self._waiting = self._waiting[:LARGEST_BATCH], self._waiting[LARGEST_BATCH:]
            size = len(batch), max(steps for _, _, steps in batch)
            if size not in self._bound:
                self._bound[size] = self._raw.bound(*size)
            self._bound[size](self._runs)
            self._runs += 1
            for call, answer, _ in batch:
                call.send(answer)


def serve(
    listen: str,
    answers: Mapping[str, StreamAnswers | MultiplexAnswers],
    leave: Callable[[], bool],
    say: Callable[[str], None],
    computed: Computed | None = None,
) -> None:
    """Echo until `leave()`; `say` is told the address. Streams' answers are `computed` first, if there is such."""
    server = grpc.server(ThreadPoolExecutor(1), options=[*SERVER_OPTIONS, ("grpc.max_receive_message_length", -1)])
    port = server.add_insecure_port(listen)

    def echo(of_method: StreamAnswers | MultiplexAnswers) -> Callable[[Call], Handler]:
        return lambda call: _Echo(call, of_method, computed if isinstance(of_method, StreamAnswers) else None)

    wire = Wire(server, {path: echo(of_method) for path, of_method in answers.items()})
    server.start()
    wire.start()
    say(f"{listen.rpartition(':')[0]}:{port}")
    while not leave():
        # As the real loop does: wait when there is nothing to do, then take what has come.
        wire.poll(_POLL_SECONDS)
        if computed is not None:
            computed.run()
    wire.refuse_all(grpc.StatusCode.UNAVAILABLE, "the echo has shut down")
    server.stop(0)
    wire.stop(_STOP_SECONDS)


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.echo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="default: %(default)s")
    add_sizes(parser)
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="run its resident.onnx before each answer")
    options = parser.parse_args()
    left: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: left.append(number))
    signal.signal(signal.SIGINT, lambda number, _frame: left.append(number))
    serve(
        options.listen,
        answers_by_method(options),
        lambda: bool(left),
        lambda address: print(f"listening on {address}", flush=True),
        Computed(options.artifact) if options.artifact else None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
