"""The command line of the server."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from serving import log_output
from serving.config import CUDA_ENVIRONMENT, WIRE_ENVIRONMENT, Batching, Limits, Sequencing, ServerConfig
from serving.errors import ConfigError
from serving.lifeline import Lifeline, Report

if TYPE_CHECKING:
    from serving.server import Server

_ANY_PORT = "127.0.0.1:0"
_LAST_LINES_SECONDS = 1.0  # for the log to be written before the process ends
# Sent by a terminal that is closed (HUP) or a keyboard (QUIT), by tools that rotate logs or reload (HUP, USR1, USR2),
# and by a terminal that a background process writes to (TTOU). Python itself ignores PIPE.
_IGNORED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU, signal.SIGPIPE)

_EPILOG = """\
examples:
  python -m serving                                   everything under artifacts/, on 127.0.0.1:50051
  python -m serving --listen 0.0.0.0:50051            reachable from other machines (plaintext: put TLS in front)
  python -m serving --metrics-listen 127.0.0.1:9464   Prometheus scrapes http://127.0.0.1:9464/metrics
  python -m serving --workers 4                       four processes on one port, each with streams of its own

With --workers the kernel spreads connections, not streams: a connection stays with the worker that took it, and so do
its streams. A client that wants more than one worker opens several connections. Limits hold for each worker. One that
dies is replaced at once, and one that hangs is killed and replaced; its clients' streams are lost, and they are told.

SIGTERM (or Ctrl-C) drains. At once health says NOT_SERVING and new streams are refused. After --drain-delay the port is
closed and every connection gets HTTP/2's GOAWAY, so that its next stream goes to another server. Open streams are told,
and go on stepping for --grace seconds; those that are left are then ended. The exit status is 0. A second signal ends
the process at once. SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 change nothing: the server outlives its terminal.

The log goes to stderr. Lines that can't be written are lost and counted, and so are those of a kind that comes too
often; nothing else depends on it.
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
    add("--device", default="cpu", metavar="cpu|cuda|cuda:N",
        help="where steps are computed; CUDA has never been run here: docs/gpu.md (default: %(default)s)")  # fmt: skip
    add("--metrics-listen", metavar="HOST:PORT", help="Prometheus endpoint (default: none)")
    add("--workers", type=int, default=1, metavar="N",
        help="processes that share the port, each of them a whole server (default: %(default)s)")  # fmt: skip
    add("--worker-silence", type=float, default=30.0, metavar="SECONDS",
        help="one that gives no sign of life for so long is killed and replaced; 0: never (%(default)s)")  # fmt: skip
    add("--threads", type=int, default=1, metavar="N",
        help="threads in one run; more than 1 pays for large models only (default: %(default)s)")  # fmt: skip
    add("--grace", type=float, default=10.0, metavar="SECONDS",
        help="how long open streams go on stepping in a drain (default: %(default)s)")  # fmt: skip
    add("--drain-delay", type=float, default=0.0, metavar="SECONDS",
        help="how long connections stay before that, for balancers to notice (default: %(default)s)")  # fmt: skip
    add("--allow-unproved", action="store_true", help="serve artifacts without a valid parity certificate")
    add("--log-format", choices=("auto", "console", "json"), default="auto",
        help="auto: console on a terminal, else JSON lines (default: %(default)s)")  # fmt: skip
    add("--as-worker", type=Lifeline.from_text, help=argparse.SUPPRESS)  # how the supervisor starts its workers
    add("--orders", type=int, help=argparse.SUPPRESS)  # and the socket by which it tells them to load and unload
    group = parser.add_argument_group("sequences (streams known by an id, of the Open Inference Protocol)")
    add = group.add_argument
    add("--sequence-idle", type=_idle, action="append", default=[], metavar="[MODEL=]SECONDS",
        help="idle sequences expire after so long; 0: never; MODEL= for one, repeatable (default: 0)")  # fmt: skip
    add("--sequence-idle-when-full", type=float, default=Sequencing().idle_when_full, metavar="SECONDS",
        help="after so long one makes room where every place is taken; 0: never (default: %(default)s)")  # fmt: skip
    add("--sequence-grace", type=float, default=Sequencing().grace, metavar="SECONDS",
        help="the same for one whose call was cut off (default: %(default)s)")  # fmt: skip
    add("--model-control", choices=("none", "explicit"), default="none",
        help="explicit: clients may load and unload models; all are there at first (default: %(default)s)")  # fmt: skip
    add("--server-name", default="cellstream", metavar="NAME",
        help="what ServerMetadata says; some tools of Triton's want triton (default: %(default)s)")  # fmt: skip
    group = parser.add_argument_group("limits (each refusal names its own; each worker has them for itself)")
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
    add("--max-metadata-bytes", type=int, default=limits.max_metadata_bytes, metavar="N",
        help="metadata of one call: names, values and 32 for each field (%(default)s)")  # fmt: skip
    add("--max-silent-calls", type=int, default=limits.max_silent_calls, metavar="N",
        help="open calls that have sent no message (%(default)s)")  # fmt: skip
    add("--max-silent-calls-per-connection", type=int, default=limits.max_silent_calls_per_connection, metavar="N",
        help="the same of one connection (%(default)s)")  # fmt: skip
    add("--max-unsent-bytes", type=int, default=limits.max_unsent_bytes, metavar="N",
        help="answers a client may leave unread before its stream waits (%(default)s)")  # fmt: skip
    group = parser.add_argument_group("batching")
    add = group.add_argument
    add("--max-batch", type=int, default=batching.max_batch, metavar="N", help="streams in one run (%(default)s)")
    add("--slice-steps", type=int, default=batching.slice_steps, metavar="N",
        help="steps of one stream in one run (%(default)s)")  # fmt: skip
    add("--shared-slice-steps", type=int, default=batching.shared_slice_steps, metavar="N",
        help="the same while others send in pieces no longer than this (%(default)s)")  # fmt: skip
    add("--max-run-steps", type=int, default=batching.max_run_steps, metavar="N",
        help="streams times steps in one run: bounds how long single steps wait for it (%(default)s)")  # fmt: skip
    return parser


def _idle(text: str) -> tuple[str, float]:
    model, equals, seconds = text.rpartition("=")
    if equals and not model:
        raise argparse.ArgumentTypeError(f"{text!r} names no model; write MODEL=SECONDS or SECONDS")
    try:
        return model, float(seconds)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{seconds!r} isn't a number of seconds") from None


def _config(arguments: argparse.Namespace) -> ServerConfig:
    def pick(kind: type) -> dict[str, int]:
        return {name: getattr(arguments, name) for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]

    return ServerConfig(
        model_repository=arguments.model_repository,
        listen=arguments.listen,
        device=arguments.device,
        metrics_listen=_ANY_PORT if arguments.metrics_listen and arguments.as_worker else arguments.metrics_listen,
        workers=1 if arguments.as_worker else arguments.workers,
        worker_silence=arguments.worker_silence,
        share_port=arguments.as_worker is not None,
        threads=arguments.threads,
        allow_unproved=arguments.allow_unproved,
        drain_delay=arguments.drain_delay,
        grace=arguments.grace,
        limits=Limits(**pick(Limits)),
        batching=Batching(**pick(Batching)),
        sequencing=Sequencing(
            idle=dict(arguments.sequence_idle).get("", 0.0),
            idle_of={model: seconds for model, seconds in arguments.sequence_idle if model},
            idle_when_full=arguments.sequence_idle_when_full,
            grace=arguments.sequence_grace,
        ),
        model_control=arguments.model_control == "explicit",
        server_name=arguments.server_name,
    )


def _supervise(config: ServerConfig) -> int:
    from serving.supervisor import StartError, Supervisor  # noqa: PLC0415  a single server needs none of it

    supervisor = Supervisor(config, [sys.executable, "-m", "serving", *sys.argv[1:]])
    try:
        return supervisor.run(on_serving=lambda: log_output.say(f"listening on {supervisor.address}"))
    except StartError as error:
        log_output.complain(f"error: {error}")
        return 1


def _serve(config: ServerConfig, worker: Lifeline | None, orders: int | None = None) -> int:
    leave = threading.Event()
    server: Server | None = None

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if leave.is_set() and worker is None:  # a worker may be told twice; its supervisor ends it at once by SIGKILL
            os._exit(128 + number)
        leave.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if worker is not None:
        worker.watch(on_loss=leave.set)
        worker.beat(lambda: server is None or server.works)
    for name, value in (WIRE_ENVIRONMENT | (CUDA_ENVIRONMENT if config.device != "cpu" else {})).items():
        os.environ.setdefault(name, value)
    from serving.server import Server  # noqa: PLC0415  after the handlers: its imports take a second
    from serving.worker_control import WorkerControl  # noqa: PLC0415

    server = Server(config, workers=None if orders is None else WorkerControl(orders))
    server.start()
    if worker is None:
        log_output.say(f"listening on {server.address}")
    else:
        worker.report(Report(models=server.models, metrics_port=server.metrics_port))
    while not leave.wait(1.0):
        server.look()
        log_output.tell_of_suppressed()
        if worker is not None and not server.loop.alive:
            break  # a new process can do what this one can't any more
    return 0 if server.drain() else 1


def _ignore_signals() -> None:
    """Let no signal but SIGTERM and SIGINT change anything: whoever is started from here inherits it."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """Run the server until a signal; the exit status."""
    log_output.keep_standard_files()
    _ignore_signals()
    arguments = _parser().parse_args()
    worker: Lifeline | None = arguments.as_worker
    log_output.set_up(arguments.log_format, None if worker is None else worker.number)
    try:
        config = _config(arguments)
        return _serve(config, worker, arguments.orders) if config.workers == 1 else _supervise(config)
    except ConfigError as error:
        if worker is None:
            log_output.complain(f"error: {error}")
        else:
            worker.report(Report(problem=str(error)))
        return 2
    finally:
        log_output.flush(_LAST_LINES_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
