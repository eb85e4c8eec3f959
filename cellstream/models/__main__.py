"""The operator's hand on models: `python -m cellstream.models`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import grpc

from cellstream._arguments import count, seconds
from cellstream._rpc import explained, plain_channel
from cellstream.errors import CellstreamError
from cellstream.models.control import FAILED, ModelChange, list_models, load_model, unload_model

_EPILOG = """\
examples:
  python -m cellstream.models list                         what is served, what could be, and why something isn't
  python -m cellstream.models load bytelm                  serve what the repository has of it now
  python -m cellstream.models load bytelm --version 3      that version only
  python -m cellstream.models unload bytelm --version 3    roll back: new streams get the highest version that is left

load and unload need a server that was started with --model-control explicit. With --workers, every worker does it. The
streams of what is unloaded, or replaced by other content, end and are told. The exit status is 1 if something failed.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cellstream.models",
        description="See which models a server has, and load and unload them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--address", default="127.0.0.1:50051", metavar="HOST:PORT", help="(default: %(default)s)")
    parser.add_argument("--timeout", type=seconds, default=600.0, metavar="SECONDS", help="(default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show every version in the repository")
    for name, text in (("load", "serve what is on the disk"), ("unload", "serve it no longer")):
        command = commands.add_parser(name, help=text)
        command.add_argument("model")
        command.add_argument("--version", type=count, default=0, metavar="N", help="0: every version (default)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        with plain_channel(asked.address) as channel:
            if asked.command == "list":
                return _list(channel, asked.timeout)
            change = load_model if asked.command == "load" else unload_model
            return _tell(asked.model, change(channel, asked.model, asked.version, timeout=asked.timeout))
    except CellstreamError as error:
        sys.stderr.write(f"{explained(error, asked.address)}\n")
        return 1


def _list(channel: grpc.Channel, timeout: float) -> int:
    lines = [f"{'model':<32} {'version':>8}  state"]
    lines += [
        f"{one.name:<32} {one.version:>8}  {'ready' if one.ready else one.reason or 'not ready'}"
        for one in list_models(channel, timeout=timeout)
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _tell(model: str, changes: Sequence[ModelChange]) -> int:
    for one in changes:
        where = "" if one.worker is None else f"worker {one.worker}: "
        what = f"{model}/{one.version}" if one.version else model
        reason = f": {one.reason}" if one.reason else ""
        (sys.stderr if one.done == FAILED else sys.stdout).write(f"{where}{what} {one.done}{reason}\n")
    return int(any(one.done == FAILED for one in changes))


if __name__ == "__main__":
    sys.exit(main())
