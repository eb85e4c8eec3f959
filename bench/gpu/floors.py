"""What the device can do at best, measured by PyTorch on the spot: bandwidths, matrix rates, launches, copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bench.gpu.desk import Desk, timed
from bench.gpu.plan import Job
from bench.gpu.records import Copy, Launches, MatrixRate, Memory
from bench.gpu.roofline import FLOAT, WEIGHT_BYTES
from bench.gpu.torch_device import TorchDevice

_CHAIN = 64  # more kernels in the longer graph
_COPIES = 20  # within the cache, in one graph
_PATIENCE = 5  # times a figure's usual seconds: everything else is divided by these
_BUFFERS = 4  # a copied buffer is so many times the square matrix, to be well beyond any cache


@torch.inference_mode()
def rates(job: Job, desk: Desk) -> Iterator[Memory | Launches | MatrixRate]:
    """What the floor is made of."""
    at, seconds = TorchDevice(desk.device), job.seconds * _PATIENCE
    desk.note("waking the device", "")
    _multiplying(at, "tf32", job.largest, seconds)  # an idle GPU's clocks are low
    desk.note("launches", "")
    yield _launches(at, seconds)
    desk.note("bandwidth", "")
    cache = at.cache_bytes
    cached = _copying(at, (cache or FLOAT * job.largest) // 3 // FLOAT, _COPIES, seconds)
    yield Memory(_copying(at, _BUFFERS * job.largest**2, 1, seconds), cached, cache)
    for precision in sorted(WEIGHT_BYTES, reverse=True):
        desk.note(f"matrix rate, {precision}", "")
        yield MatrixRate(precision, _multiplying(at, precision, job.largest, seconds))


def _launches(at: TorchDevice, seconds: float) -> Launches:
    """A chain of kernels on one number, short and long, in a graph; and one kernel without."""
    one = torch.zeros(1, device=at.device)

    def chain(kernels: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(kernels):
                one.add_(1.0)

        return work

    replay, longer = (_waited(at, at.graph(chain(kernels)), seconds) for kernels in (1, 1 + _CHAIN))
    return Launches(replay, max(longer - replay, 0.0) / _CHAIN, _waited(at, chain(1), seconds))


def _waited(at: TorchDevice, work: Callable[[], object], seconds: float) -> float:
    """Microseconds until work is known to have ended."""

    def call() -> None:
        work()
        at.wait()

    return timed(call, seconds)


def _copying(at: TorchDevice, floats: int, times: int, seconds: float) -> float:
    """Bytes per second, read plus written."""
    source, target = at.on_device(floats), at.on_device(floats)

    def work() -> None:
        for _ in range(times):
            target.copy_(source)

    return 2 * FLOAT * floats * times / (_waited(at, at.graph(work), seconds) / 1e6)


def _multiplying(at: TorchDevice, precision: str, size: int, seconds: float) -> float:
    """Operations per second of a square product."""
    dtype = at.set_precision(precision)
    a, b, c = (at.on_device(size, size, dtype=dtype) for _ in range(3))
    return 2 * size**3 / (_waited(at, lambda: torch.mm(a, b, out=c), seconds) / 1e6)


@torch.inference_mode()
def copies(job: Job, desk: Desk) -> Iterator[Copy]:
    """Batches of inputs to the device and back, from pinned memory and not."""
    at = TorchDevice(desk.device)
    for batch in job.batches:
        for pinned in (True, False):
            desk.note(f"copying {batch} lanes", "")
            host, device = at.on_host(batch, job.hidden, pinned=pinned), at.on_device(batch, job.hidden)
            host.normal_()
            yield Copy(
                FLOAT * batch * job.hidden,
                pinned,
                _waited(at, lambda to=device, of=host: to.copy_(of, non_blocking=True), job.seconds),  # type: ignore[misc]
                _waited(at, lambda to=host, of=device: to.copy_(of, non_blocking=True), job.seconds),  # type: ignore[misc]
            )
