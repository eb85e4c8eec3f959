"""A model's figures as the protocol asks for them, read from the loop's integers; each may be a moment old.

An inference is one sequence's turn in a run, whichever protocol it came by, and an execution is a run: so
inference_count is the sum over batch_stats of batch_size times count. The rest counts this protocol's requests.
Packing and unpacking aren't timed apart: they are part of compute_infer, and compute_input and compute_output are 0 ns.
"""

from __future__ import annotations

from serving.lane import Lane
from serving.oip.v1 import inference_pb2 as pb
from serving.streams import slab_rows


def statistics(lane: Lane, *, since_1970: float) -> pb.ModelStatistics:
    """One model's; `since_1970` is what to add to the monotonic clock."""
    stats, sequences = lane.stats, lane.sequences
    runs, micros = stats.runs.copy(), stats.run_micros.copy()
    answered, queue_us, compute_us = sequences.answered, sequences.queue_us, sequences.compute_us
    latest = stats.latest_run
    response = pb.ModelStatistics(
        name=lane.name,
        version=str(lane.version),
        last_inference=0 if latest is None else round((latest + since_1970) * 1000),
        inference_count=sum(size * count for size, count in runs.items()),
        execution_count=sum(runs.values()),
        inference_stats=pb.InferStatistics(
            success=_duration(answered, queue_us + compute_us),
            fail=_duration(sequences.failed, 0),
            queue=_duration(answered, queue_us),
            compute_input=_duration(answered, 0),
            compute_infer=_duration(answered, compute_us),
            compute_output=_duration(answered, 0),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(count, 0),
                compute_infer=_duration(count, micros[size]),
                compute_output=_duration(count, 0),
            )
            for size, count in sorted(runs.items())
        ],
    )
    slab = slab_rows(lane.limits, lane.batching) * lane.engine.row_bytes
    response.memory_usage.add(type=lane.engine.device.upper(), id=0, byte_size=slab)
    return response


def _duration(count: int, micros: int) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=1000 * micros)
