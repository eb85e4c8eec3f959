"""The process that measures: jobs as lines in, records as lines out. It may crash; `bench.gpu.children` goes on then.

A GPU that has met a bad kernel is lost to its process, and libraries may end it: neither may cost the other figures.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from bench.gpu.desk import Desk, PoisonedError
from bench.gpu.plan import Job, Work
from bench.gpu.records import Record, Skipped, plain

POISONED = 75


def work_of(job: Job) -> Callable[[Job, Desk], Iterator[Record]]:
    """What does a job; imported only when it's wanted, since torch isn't everywhere."""
    match job.work:
        case Work.RATES:
            from bench.gpu.floors import rates as work  # noqa: PLC0415
        case Work.COPIES:
            from bench.gpu.floors import copies as work  # type: ignore[assignment]  # noqa: PLC0415
        case Work.PARCELS:
            from bench.gpu.parcels import parcels as work  # type: ignore[assignment]  # noqa: PLC0415
        case Work.PARITY:
            from bench.gpu.parity import parity as work  # type: ignore[assignment]  # noqa: PLC0415
        case Work.COMPANY:
            from bench.gpu.company import company as work  # type: ignore[assignment]  # noqa: PLC0415
        case Work.STEPS:
            from bench.gpu.steps import race as work  # type: ignore[assignment]  # noqa: PLC0415
        case Work.SERVED:
            from bench.gpu.served import served as work  # type: ignore[assignment]  # noqa: PLC0415
    return work


def do(job: Job, desk: Desk, give: Callable[[Record], None]) -> None:
    """All of a job's records; what goes wrong is one too. Raises PoisonedError."""
    try:
        for record in work_of(job)(job, desk):
            give(record)
    except PoisonedError:
        raise
    except Exception as error:  # noqa: BLE001  a job that can't be done doesn't stop the others
        said = " ".join(str(error).split())
        give(Skipped(job.name, f"{type(error).__name__}: {said:.400}"))


def main() -> int:
    """`child DEVICE MODELS`: reads lines {"job": …, "until": …} until there are no more."""
    device, models = sys.argv[1], Path(sys.argv[2])
    channel = _channel()

    def say(**message: object) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    for line in sys.stdin:
        asked = json.loads(line)
        job = Job.from_json(asked["job"])
        note = lambda text, contestant: say(begin=text, contestant=contestant)  # noqa: E731
        desk = Desk(device, models, asked["until"], note)
        try:
            do(job, desk, lambda record: say(record=plain(record)))
        except PoisonedError:
            os._exit(POISONED)  # a library's own clean-up may hang on such a GPU
        say(end=job.name)
    return 0


def _channel() -> IO[str]:
    """What was standard output, for us alone: whatever libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


if __name__ == "__main__":
    sys.exit(main())
