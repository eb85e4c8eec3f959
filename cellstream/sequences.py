"""The operator's hand on sequences: see which are live on a server, and evict them. `python -m cellstream.sequences`.

Sequences are the streams that clients of the Open Inference Protocol know by an id (see docs/triton.md); a stream
opened by this package isn't one, and ends with its call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from cellstream._arguments import count, seconds, whole
from cellstream._rpc import EVICT_SEQUENCES, LIST_SEQUENCES, explained, plain_channel, time_limit, unary_error
from cellstream.errors import CellstreamError
from cellstream.v1 import stream_inference_pb2 as pb

_MOST_LISTED = (1 << 32) - 1  # that the protocol can ask for
Key = int | str  # an integer and its decimal text are two sequences

_EPILOG = """\
examples:
  python -m cellstream.sequences list bytelm                     those idle for longest come first
  python -m cellstream.sequences list bytelm --idle 600          nobody has asked for them in ten minutes
  python -m cellstream.sequences evict bytelm --id 17 --id 18
  python -m cellstream.sequences evict bytelm --text-id user-17  the id is a text, even if it's digits
  python -m cellstream.sequences evict bytelm --idle 3600        all that were idle for an hour

An evicted sequence's state is gone; its client's next request is told so, and may begin anew.
"""


@dataclass(frozen=True, slots=True)
class LiveSequence:
    """One sequence on the server."""

    key: Key
    idle_seconds: float  # since its latest request came
    steps: int  # computed
    waiting_steps: int
    attended: bool  # the call of its latest request is open


def list_sequences(
    channel: grpc.Channel,
    model: str,
    version: int = 0,
    *,
    min_idle_seconds: float = 0.0,
    limit: int = 0,
    timeout: float = 30.0,
) -> tuple[list[LiveSequence], int]:
    """Live sequences, those idle for longest first (at most `limit`; 0: 1000), and how many there are in all.

    Raises UnknownModel, Unavailable or DeadlineExceeded.
    """
    request = pb.ListSequencesRequest(
        model=model, version=version, min_idle_seconds=min_idle_seconds, limit=min(limit, _MOST_LISTED)
    )
    answer = _call(channel, LIST_SEQUENCES, request, pb.ListSequencesResponse, timeout)
    found = [
        LiveSequence(_key(one.id), one.idle_seconds, one.steps, one.waiting_steps, one.attended)
        for one in answer.sequences
    ]
    return found, answer.live


def evict_sequences(
    channel: grpc.Channel,
    model: str,
    version: int = 0,
    *,
    keys: Iterable[Key] = (),
    min_idle_seconds: float = 0.0,
    timeout: float = 30.0,
) -> list[Key]:
    """End these sequences, or all that are idle for so long; returns those that were live.

    Raises InvalidInput if neither is given, or both, UnknownModel, Unavailable or DeadlineExceeded.
    """
    ids = [pb.SequenceId(number=key) if isinstance(key, int) else pb.SequenceId(text=key) for key in keys]
    request = pb.EvictSequencesRequest(model=model, version=version, ids=ids, min_idle_seconds=min_idle_seconds)
    answer = _call(channel, EVICT_SEQUENCES, request, pb.EvictSequencesResponse, timeout)
    return [_key(one) for one in answer.ids]


def _key(wanted: pb.SequenceId) -> Key:
    return int(wanted.number) if wanted.WhichOneof("id") == "number" else str(wanted.text)


def _call(channel: grpc.Channel, method: str, request: Any, response: Any, timeout: float) -> Any:
    limit = time_limit(timeout)
    call = channel.unary_unary(method, type(request).SerializeToString, response.FromString)
    try:
        return call(request, timeout=limit)
    except grpc.RpcError as error:
        raise unary_error(error, limit) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cellstream.sequences",
        description="See which sequences are live on a server, and evict them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--address", default="127.0.0.1:50051", metavar="HOST:PORT", help="(default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("list", "show live sequences"), ("evict", "end sequences")):
        command = commands.add_parser(name, help=text)
        command.add_argument("model")
        command.add_argument("--version", type=count, default=0, metavar="N", help="0: the highest (default)")
        command.add_argument("--idle", type=seconds, default=0.0, metavar="SECONDS",
                             help="only those that nobody has asked for in so long")  # fmt: skip
        if name == "list":
            command.add_argument("--limit", type=count, default=0, metavar="N", help="at most so many (default: 1000)")
        else:
            command.add_argument("--id", type=whole, action="append", default=[], metavar="N", help="may be repeated")
            command.add_argument("--text-id", action="append", default=[], metavar="TEXT", help="may be repeated")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        with plain_channel(asked.address) as channel:
            _list(channel, asked) if asked.command == "list" else _evict(channel, asked)
    except CellstreamError as error:
        sys.stderr.write(f"{explained(error, asked.address)}\n")
        return 1
    return 0


def _list(channel: grpc.Channel, asked: argparse.Namespace) -> None:
    found, live = list_sequences(channel, asked.model, asked.version, min_idle_seconds=asked.idle, limit=asked.limit)
    lines = [f"{'id':<24} {'idle s':>10} {'steps':>10} {'waiting':>8}  call"]
    lines += [
        f"{one.key!r:<24} {one.idle_seconds:>10.1f} {one.steps:>10} {one.waiting_steps:>8}  "
        f"{'open' if one.attended else '-'}"
        for one in found
    ]
    sys.stdout.write("\n".join([*lines, f"{len(found)} of {live} live sequences"]) + "\n")


def _evict(channel: grpc.Channel, asked: argparse.Namespace) -> None:
    keys = [*asked.id, *asked.text_id]
    evicted = evict_sequences(channel, asked.model, asked.version, keys=keys, min_idle_seconds=asked.idle)
    missed = [key for key in keys if key not in evicted]
    sys.stdout.write(
        f"evicted {len(evicted)}" + (f"; not live: {', '.join(map(repr, missed))}" if missed else "") + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
