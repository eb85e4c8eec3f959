"""A made-up GPU run, for tests of what is done with one."""

from __future__ import annotations

from bench.gpu.plan import Who
from bench.gpu.records import (
    Company,
    Copy,
    Document,
    Launches,
    MatrixRate,
    Memory,
    Parity,
    Record,
    Served,
    Skipped,
    Step,
)

MACHINE: tuple[Record, ...] = (
    Launches(replay_us=5.0, kernel_us=1.0, launch_us=8.0),
    Memory(bandwidth=4e12, cache_bandwidth=6e12, cache_bytes=50 << 20),
    MatrixRate("tf32", 400e12),
    MatrixRate("fp16", 800e12),
)


def step(
    batch: int, who: Who = Who.OURS, *, device: float | None = 10.0, host: float | None = None, steps: int = 1
) -> Step:
    """At hidden 1024, one layer, TF32."""
    runs = () if host is None else (host * steps,)
    rounds = () if device is None else (device * steps, device * steps * 1.5, device * steps / 2)
    return Step(1024, 1, "tf32", steps, batch, who, rounds, runs, 1e-4)


def served(workers: int, busy: float | None = 40.0) -> Served:
    """With round figures."""
    return Served(
        device="cuda:0",
        precision="tf32",
        workers=workers,
        streams=1024,
        steps_per_message=1,
        generators=4,
        seconds_to_ready=9.0,
        steps_per_second=100_000.0 * workers,
        p50=1000.0,
        p99=2000.0,
        p999=3000.0,
        server_cores=float(workers),
        busy=busy,
        busy_unknown="" if busy is not None else "nvidia-smi doesn't tell",
        error=1e-4,
    )


def parity(precision: str, ratio: float) -> Parity:
    """Off by so many times the yardstick."""
    return Parity(precision, "F64 H256 L2", 10, ratio, ratio, 2.0, 4.0, 1e-4, ratio <= 2.0)


def a_document(*more: Record) -> Document:
    """Where every contestant was measured at two batches."""
    records: list[Record] = [*MACHINE]
    for batch, ours in ((1, 12.0), (64, 13.0)):
        records.append(step(batch, device=ours))
        records.append(step(batch, Who.PARTS, device=2 * ours))
        records.append(step(batch, Who.PLAIN, device=3 * ours))
        records.append(step(batch, Who.EAGER, device=4 * ours, host=50.0))
        records.append(step(batch, Who.CELL, device=ours / 2))
        records.append(step(batch, Who.ENGINE, device=None, host=20.0))
    records.append(Company("tf32", "F64 H256 L2", 20, (1, 8), within=True, answers=2, share=3e-7))
    records += [Copy(4096, True, 6.0, 7.0), parity("fp32", 0.5), served(1), served(4, None), *more]
    records.append(Skipped("copies", "the time was over"))
    return Document(
        date="2026-11-25T03:00:00+00:00",
        commit="abc",
        machine="a machine",
        device="cuda:0: NVIDIA H100",
        versions={"torch": "2"},
        budget=450.0,
        load=0.5,
        records=records,
    )
