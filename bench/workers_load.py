"""One process of load for `bench.workers`: connections with streams that each ask for chunk after chunk.

Opens everything, says "open", waits for a line, then runs for some seconds and says how many steps were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

import cellstream
from cellstream.models import Tensor

_OWN_CONNECTION = cellstream.Channel(extra=(("grpc.use_local_subchannel_pool", 1),))


async def run(address: str, model: str, *, connections: int, streams: int, steps: int, seconds: float) -> int:
    """Steps answered within `seconds` to `streams` streams on each of `connections` connections."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(cellstream.aio.connect(address, channel=_OWN_CONNECTION))
            for _ in range(connections)
        ]
        chunk = {tensor.name: random_steps(tensor, steps) for tensor in (await clients[0].model(model)).inputs}
        opened = [await stack.enter_async_context(client.stream(model)) for client in clients for _ in range(streams)]
        print("open", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        until = time.monotonic() + seconds
        return sum(await asyncio.gather(*(_ask(stream, chunk, steps, until) for stream in opened)))


async def _ask(stream: Any, chunk: dict[str, npt.NDArray[Any]], steps: int, until: float) -> int:
    answered = 0
    while time.monotonic() < until:
        await stream.step(chunk)
        answered += steps
    return answered


def random_steps(tensor: Tensor, steps: int) -> npt.NDArray[Any]:
    """Values [T, *shape] that the model takes."""
    random, shape = np.random.default_rng(0), (steps, *tensor.shape)
    if np.issubdtype(tensor.dtype, np.floating):
        return random.standard_normal(shape).astype(tensor.dtype)
    low = 0 if tensor.minimum is None else tensor.minimum
    high = low + 1 if tensor.maximum is None else tensor.maximum
    return random.integers(low, high, shape, endpoint=True).astype(tensor.dtype)


def main() -> None:
    """The command line, as `bench.workers` writes it."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers_load")
    for name in ("address", "model"):
        parser.add_argument(name)
    for name in ("connections", "streams", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("seconds", type=float)
    print(asyncio.run(run(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
