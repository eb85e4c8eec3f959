"""The command line of the server."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import structlog

from serving.config import Batching, Limits, ServerConfig
from serving.errors import ConfigError

_EPILOG = """\
examples:
  python -m serving                                   everything under artifacts/, on 127.0.0.1:50051
  python -m serving --listen 0.0.0.0:50051            reachable from other machines (plaintext: put TLS in front)
  python -m serving --metrics-listen 127.0.0.1:9464   Prometheus scrapes http://127.0.0.1:9464/metrics

SIGTERM (or Ctrl-C) drains: new streams are refused, open ones have --grace seconds to finish, exit status 0. A second
signal exits at once.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serve recurrent models over gRPC, every stream's state kept on the server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    limits, batching = Limits(), Batching()
    add = parser.add_argument
    add("--model-repository", type=Path, default=Path("artifacts"), metavar="DIR",
        help="holds <name>/<version>/resident.onnx, as `make export` writes it (default: %(default)s)")  # fmt: skip
    add("--listen", default="127.0.0.1:50051", metavar="HOST:PORT",
        help="port 0 takes a free one (default: %(default)s)")  # fmt: skip
    add("--device", default="cpu", help="where steps are computed (default: %(default)s)")
    add("--metrics-listen", metavar="HOST:PORT", help="Prometheus endpoint (default: none)")
    add("--threads", type=int, default=1, metavar="N",
        help="threads in one run; more than 1 pays for large models only (default: %(default)s)")  # fmt: skip
    add("--grace", type=float, default=10.0, metavar="SECONDS",
        help="what open streams get after SIGTERM (default: %(default)s)")  # fmt: skip
    add("--allow-unproved", action="store_true", help="serve artifacts without a valid parity certificate")
    add("--log-format", choices=("auto", "console", "json"), default="auto",
        help="auto: console on a terminal, else JSON lines (default: %(default)s)")  # fmt: skip
    group = parser.add_argument_group("limits (each refusal names its own)")
    add = group.add_argument
    add("--max-streams", type=int, default=limits.max_streams, metavar="N", help="open streams per model (%(default)s)")
    add("--max-steps-per-message", type=int, default=limits.max_steps_per_message, metavar="N", help="(%(default)s)")
    add("--window-steps", type=int, default=limits.window_steps, metavar="N",
        help="steps a stream may have waiting before its next message isn't read (%(default)s)")  # fmt: skip
    add("--max-waiting-steps", type=int, default=limits.max_waiting_steps, metavar="N",
        help="steps waiting in all streams of a model before more are refused (%(default)s)")  # fmt: skip
    add("--max-waiting-bytes", type=int, default=limits.max_waiting_bytes, metavar="N",
        help="the same in bytes of inputs (%(default)s)")  # fmt: skip
    add("--max-message-bytes", type=int, default=limits.max_message_bytes, metavar="N", help="(%(default)s)")
    add("--max-unsent-bytes", type=int, default=limits.max_unsent_bytes, metavar="N",
        help="answers a client may leave unread before its stream waits (%(default)s)")  # fmt: skip
    group = parser.add_argument_group("batching")
    add = group.add_argument
    add("--max-batch", type=int, default=batching.max_batch, metavar="N", help="streams in one run (%(default)s)")
    add("--slice-steps", type=int, default=batching.slice_steps, metavar="N",
        help="steps of one stream in one run (%(default)s)")  # fmt: skip
    add("--max-run-steps", type=int, default=batching.max_run_steps, metavar="N",
        help="streams times steps in one run: bounds how long single steps wait for it (%(default)s)")  # fmt: skip
    return parser


def _config(arguments: argparse.Namespace) -> ServerConfig:
    def pick(kind: type) -> dict[str, int]:
        return {name: getattr(arguments, name) for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]

    return ServerConfig(
        model_repository=arguments.model_repository,
        listen=arguments.listen,
        device=arguments.device,
        metrics_listen=arguments.metrics_listen,
        threads=arguments.threads,
        allow_unproved=arguments.allow_unproved,
        grace=arguments.grace,
        limits=Limits(**pick(Limits)),
        batching=Batching(**pick(Batching)),
    )


def _set_up_logs(choice: str) -> None:
    json = choice == "json" or (choice == "auto" and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *(
                [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
                if json
                else [
                    structlog.dev.ConsoleRenderer(
                        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
                    )
                ]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main() -> int:
    """Run the server until a signal; the exit status."""
    arguments = _parser().parse_args()
    _set_up_logs(arguments.log_format)
    leave = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if leave.is_set():
            os._exit(128 + number)
        leave.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    from serving.server import Server  # noqa: PLC0415  after the handlers: its imports take a second

    try:
        server = Server(_config(arguments))
        server.start()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with contextlib.suppress(BrokenPipeError):  # whoever started it needn't listen to it
        print(f"listening on {server.address}", flush=True)
    while not leave.wait(1.0):
        server.look()
    return 0 if server.drain() else 1


if __name__ == "__main__":
    sys.exit(main())
