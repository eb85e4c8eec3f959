"""Copies of one batch as our engine makes them: gathered on the host and moved at once, page-locked and not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bench.gpu.desk import Desk, timed
from bench.gpu.models import artifact_of
from bench.gpu.plan import Job
from bench.gpu.records import OURS, Copy, Skipped
from bench.gpu.roofline import FLOAT
from export.artifact import RESIDENT
from serving.device import Device, Memory, check, cuda_runtime, open_session
from serving.device_runs import Parcel
from serving.pinned import Bytes, PageLockError, page_lock, whole_pages


def parcels(job: Job, desk: Desk) -> Iterator[Copy | Skipped]:
    """Batches of inputs to the device and back; where pages can't be locked, that is said once."""
    device = Device.named(desk.device)
    check(device)
    memory = Memory(open_session(artifact_of(job, desk.models) / RESIDENT, device, threads=1), device)
    reason = ""
    for batch in job.batches:
        host = whole_pages(FLOAT * batch * job.hidden)
        desk.note(f"our copies of {batch} lanes", "")
        yield _copied(memory, host, job.seconds, pinned=False)
        try:
            unlock = _locked(host, device)
        except PageLockError as error:
            reason = str(error)
        else:
            yield _copied(memory, host, job.seconds, pinned=True)
            unlock()
    if reason:
        yield Skipped("our copies, page-locked", reason)


def _locked(host: Bytes, device: Device) -> Callable[[], None]:
    runtime = cuda_runtime(device)
    if runtime is None:
        raise PageLockError("on the CPU there is nobody to lock pages for")
    return page_lock([host], runtime, device=device.number or 0)


def _copied(memory: Memory, host: Bytes, seconds: float, *, pinned: bool) -> Copy:
    there = memory.allocate([host.size], np.uint8)
    values = np.random.default_rng(0).standard_normal(host.size // FLOAT, np.float32)
    parcel = Parcel(memory, there.data_ptr(), [("x", values, [values.size])], host)
    return Copy(host.size, pinned, timed(parcel.send, seconds), timed(parcel.fetch, seconds), OURS)
