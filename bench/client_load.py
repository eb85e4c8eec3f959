"""Load by the Python client itself: many streams in one message, and chunks of one stream; what that costs a step."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import grpc
import numpy as np

import cellstream
from bench.load.result import latency_of
from cellstream.v1 import stream_inference_pb2 as pb

_BARE_MESSAGES = 2000  # more than any measurement sends


def _multiplex(client: cellstream.Client, model: str, streams: int, size: int) -> tuple[ExitStack, Callable[[], int]]:
    """Steps all streams once."""
    stack, keys = ExitStack(), range(streams)
    call = stack.enter_context(client.multiplex(model))
    call.open(*keys)
    values = np.random.default_rng(0).standard_normal((streams, size)).astype(np.float32)

    def step() -> int:
        call.step_rows(keys, values)
        return streams

    return stack, step


def _chunks(client: cellstream.Client, model: str, chunk: int, size: int) -> tuple[ExitStack, Callable[[], int]]:
    """Steps one stream a chunk."""
    stack = ExitStack()
    stream = stack.enter_context(client.stream(model))
    values = np.random.default_rng(0).standard_normal((chunk, size)).astype(np.float32)

    def step() -> int:
        stream.step(values)
        return chunk

    return stack, step


def _bare(address: str, model: str, streams: int, size: int) -> tuple[ExitStack, Callable[[], int]]:
    """The same exchange of messages by grpcio alone: requests are made beforehand, answers are only counted."""
    stack, keys = ExitStack(), range(streams)
    tensor = np.random.default_rng(0).standard_normal((streams, size)).astype(np.float32).tobytes()
    opens = [pb.MultiplexOpen(key=key, open=pb.Open(model=model)) for key in keys]
    requests = [pb.MultiplexRequest(opens=opens).SerializeToString()]
    for number in range(1, _BARE_MESSAGES + 1):
        rows = pb.StepRows(keys=keys, first_steps=[number] * streams, tensors=[tensor])
        requests.append(pb.MultiplexRequest(steps=[rows]).SerializeToString())
    turns = threading.Semaphore()

    def outgoing() -> Iterator[bytes]:
        for request in requests:
            turns.acquire()
            yield request

    channel = stack.enter_context(grpc.insecure_channel(address))
    start: Any = channel.stream_stream("/cellstream.v1.StreamInference/Multiplex")
    call = start(outgoing())
    stack.callback(call.cancel)
    next(call)

    def step() -> int:
        turns.release()
        due = streams  # which may come in several messages
        while due > 0:
            due -= sum(len(rows.keys) for rows in pb.MultiplexResponse.FromString(next(call)).outputs)
        return streams

    return stack, step


def measure(
    work: tuple[AbstractContextManager[object], Callable[[], int]], warm_up: float, seconds: float
) -> dict[str, object]:
    """Call it again and again; steps, latencies and this process's own processor time."""
    stack, step = work
    with stack:
        until = time.perf_counter() + warm_up
        while time.perf_counter() < until:
            step()
        steps, latencies = 0, []
        started, cpu = time.perf_counter_ns(), time.process_time()
        now = started
        while now - started < seconds * 1e9:
            steps += step()
            before, now = now, time.perf_counter_ns()
            latencies.append(now - before)
        used = time.process_time() - cpu
    late = latency_of(latencies)
    return {
        "steps": steps,
        "steps_per_second": steps / (now - started) * 1e9,
        "client_cpu_us": used / steps * 1e6,
        "p50_us": late.p50,
        "p99_us": late.p99,
        "p999_us": late.p999,
    }


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.client_load", description=__doc__)
    parser.add_argument("--address", required=True, metavar="HOST:PORT")
    parser.add_argument("--model", default="lstm", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--streams", type=int, default=64, metavar="N", help="in one message (default: %(default)s)")
    parser.add_argument("--chunk", type=int, metavar="K", help="one stream, K steps in a message, instead of many")
    parser.add_argument("--bare", action="store_true", help="by calls of grpcio alone, without the client")
    parser.add_argument("--input-size", type=int, default=64, metavar="F", help="default: %(default)s")
    parser.add_argument("--warm-up", type=float, default=0.3, metavar="S", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="default: %(default)s")
    options = parser.parse_args()
    try:
        with ExitStack() as stack:
            if options.bare:
                work = _bare(options.address, options.model, options.streams, options.input_size)
            else:
                client = stack.enter_context(cellstream.connect(options.address))
                if options.chunk is not None:
                    work = _chunks(client, options.model, options.chunk, options.input_size)
                else:
                    work = _multiplex(client, options.model, options.streams, options.input_size)
            print(json.dumps(measure(work, options.warm_up, options.seconds)))
    except StopIteration:
        print(f"error: --bare has no more than {_BARE_MESSAGES:,} messages; measure for less long", file=sys.stderr)
        return 1
    except (cellstream.CellstreamError, grpc.RpcError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
