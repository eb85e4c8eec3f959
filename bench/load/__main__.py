"""The command line of the load generator."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from bench.load.connection import LoadError
from bench.load.course import course_of, unchecked
from bench.load.frames import FrameError
from bench.load.measure import Job, measure
from bench.load.result import Result

_EPILOG = """\
examples:
  python -m bench.load --artifact artifacts/.bench/lstm/1 --address 127.0.0.1:50051 --streams 64
      64 streams flat out on one connection, one step per message, every answer compared with model.onnx's
  python -m bench.load ... --streams 64 --connections 64        a connection for each
  python -m bench.load ... --streams 64 --steps-per-message 16  chunks of 16 steps
  python -m bench.load ... --streams 256 --multiplex            one call, each message a step of every stream
  python -m bench.load ... --streams 256 --rate 25600           open loop: each stream one step every 10 ms
  python -m bench.load --no-check --input-size 64 ...           a server whose answers nobody knows, an echo say
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description="Put load on a server of cellstream.v1 and measure it: steps per second, latencies, processor time."
        " A wrong answer, a refusal or a lost connection ends the run with status 1.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--address", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: %(default)s")
    add("--artifact", type=Path, metavar="DIR",
        help="NAME/VERSION with the model.onnx that is served: what answers are checked against")  # fmt: skip
    add("--model", metavar="NAME", help="what the server calls it (default: the artifact's NAME, or 'model')")
    add("--streams", type=int, default=64, metavar="N", help="default: %(default)s")
    add("--connections", type=int, default=1, metavar="N",
        help="TCP connections that streams are dealt out to (default: %(default)s)")  # fmt: skip
    add("--steps-per-message", type=int, default=1, metavar="K", help="of each stream (default: %(default)s)")
    add("--multiplex", action="store_true", help="steps of many streams in each message")
    add("--calls", type=int, metavar="N", help="Multiplex calls (default: one for each connection)")
    add("--rate", type=float, metavar="M",
        help="open loop: messages per second in all; latency counts from the plan (default: closed loop)")  # fmt: skip
    add("--in-flight", type=int, default=1, metavar="N",
        help="closed loop: unanswered messages of each call (default: %(default)s)")  # fmt: skip
    add("--seconds", type=float, default=3.0, metavar="S", help="the window that is measured (default: %(default)s)")
    add("--warm-up", type=float, default=0.5, metavar="S", help="before it (default: %(default)s)")
    add("--measure-at", type=float, metavar="T",
        help="begin the window no earlier than time.perf_counter() = T, so that several generators agree")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of the phases of an open loop (default: %(default)s)")
    add("--server-process", type=int, metavar="PID", help="a local server's process, to measure its processor time")
    add("--no-check", action="store_true", help="take every message as the answer to one; needs --input-size")
    add("--infer", action="store_true",
        help="sequences of the Open Inference Protocol: works with Triton too")  # fmt: skip
    add("--input-size", type=int, metavar="F", help="floats of one step of input, where there is no artifact")
    add("--pin", type=int, metavar="CORE", help="stay on this core (default: wherever the system puts it)")
    add("--json", action="store_true", help="the result as one line of JSON")
    return parser


def _job(parser: argparse.ArgumentParser) -> tuple[Job, argparse.Namespace]:
    options = parser.parse_args()
    for name in ("streams", "connections", "steps_per_message", "in_flight"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    if options.rate is not None and options.rate <= 0:
        parser.error(f"--rate is {options.rate}; it must be above 0")
    if options.infer and (options.multiplex or options.no_check):
        parser.error("--infer goes with neither --multiplex nor --no-check")
    if not options.no_check and options.artifact is None:
        parser.error("give --artifact to check the answers, or --no-check --input-size not to")
    if options.no_check and options.artifact is None and options.input_size is None:
        parser.error("--no-check needs --input-size where there is no --artifact")
    name = options.model or (options.artifact.resolve().parent.name if options.artifact else "model")
    copied = {field: getattr(options, field) for field in Job.__dataclass_fields__ if field not in ("model", "check")}
    return Job(model=name, check=not options.no_check, **copied), options


def table_of(result: Result) -> str:
    """The result for people."""
    late = result.latency_us
    lines = [
        ("steps/s", f"{result.steps_per_second:,.0f}"),
        ("messages/s", f"{result.messages / result.seconds:,.0f}"),
        ("p50 / p99 / p99.9", f"{late.p50:,.0f} / {late.p99:,.0f} / {late.p999:,.0f} us"),
        ("this generator's CPU", f"{result.load_cpu_us:.2f} us per step"),
    ]
    if result.server_cpu_us is not None:
        lines.append(("the server's CPU", f"{result.server_cpu_us:.2f} us per step"))
    if result.asked_rate is not None:
        lines.append(("unanswered at the end", f"{result.unanswered:,} messages"))
    return "\n".join(f"{name:<22} {value}" for name, value in lines)


def main() -> int:
    """Run it; the exit status."""
    job, options = _job(_parser())
    if options.pin is not None:
        os.sched_setaffinity(0, {options.pin})
    try:
        size = options.input_size
        course = course_of(options.artifact) if options.artifact is not None else unchecked(4 * size)
        result = measure(job, course)
    except (LoadError, FrameError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(asdict(result)) if options.json else table_of(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
