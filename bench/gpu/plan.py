"""What is measured, in which order and for how long: jobs for child processes. Values only.

The order is that of importance: whatever is cut off by the deadline is the last of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Self

from bench.gpu.roofline import WEIGHT_BYTES


class Work(StrEnum):
    """What a job does."""

    RATES = "rates"
    COPIES = "copies"
    PARCELS = "our copies"
    PARITY = "parity"
    COMPANY = "company"
    STEPS = "steps"
    SERVED = "served"


class Who(StrEnum):
    """Who races."""

    OURS = "ours, graphs"  # ONNX Runtime on our graph
    PLAIN = "ours, no graphs"
    PARTS = "ours, rows in parts"  # which more of a GPU's threads scatter; with graphs, too
    ENGINE = "our engine"  # which copies inputs up and outputs down, as the server uses it
    EAGER = "torch.nn.LSTM"
    CELL = "compiled cell in a graph"

    @property
    def torch(self) -> bool:
        """Whether it is PyTorch's."""
        return self in (Who.EAGER, Who.CELL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work for a child process; `limit` is the seconds after which it must have ended."""

    work: Work
    limit: float
    precision: str = "fp32"
    features: int = 8  # F
    hidden: int = 8
    layers: int = 1
    outputs: int | None = None  # O of a head; None: no head
    gain: float = 1.0
    steps: tuple[int, ...] = (1,)  # T
    batches: tuple[int, ...] = (1,)  # B, of single steps
    chunk_batches: tuple[int, ...] = (1,)  # B, of several steps
    parts_at: tuple[int, ...] = ()  # B, of single steps, at which ours races with rows in parts, too
    seconds: float = 0.02  # of each figure
    rounds: int = 2
    largest: int = 8192  # what the floors are measured at: rows of a square matrix
    most_bytes: int = 128 << 20  # of the inputs of one run: more take seconds to move
    without: tuple[str, ...] = ()  # contestants that have crashed, or can't be
    done: tuple[tuple[int, int], ...] = ()  # (T, B) that an earlier try has measured
    device: str = ""  # where a server computes, if not where everything else does
    workers: int = 1
    streams: int = 1
    generators: int = 1
    steps_per_message: int = 1

    @property
    def name(self) -> str:
        """For people."""
        match self.work:
            case Work.STEPS:
                return f"steps: hidden {self.hidden}, layers {self.layers}, {self.precision}"
            case Work.PARITY | Work.COMPANY:
                return f"{self.work}: hidden {self.hidden}, layers {self.layers}, {self.precision}"
            case Work.SERVED:
                where = f" on {self.device}" if self.device else ""
                load = f"{self.streams} streams of {self.steps_per_message} steps a message"
                return f"over gRPC{where}: {self.workers} workers, {load}, {self.precision}"
            case _:
                return str(self.work)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(T, B) in order, without what an earlier try has measured."""
        every = [(steps, batch) for steps in self.steps for batch in (self.batches, self.chunk_batches)[steps > 1]]
        return [size for size in every if size not in self.done]

    def contestants(self, size: tuple[int, int]) -> list[Who]:
        """Who races at that size (T, B)."""
        parted = size[0] == 1 and size[1] in self.parts_at
        return [who for who in Who if who not in self.without and (parted or who is not Who.PARTS)]

    @property
    def figures(self) -> int:
        """How many records it should give, for a progress bar."""
        match self.work:
            case Work.STEPS:
                return sum(len(self.contestants(size)) for size in self.sizes)
            case Work.RATES:
                return 2 + len(WEIGHT_BYTES)
            case Work.COPIES | Work.PARCELS:
                return 2 * len(self.batches)
            case Work.PARITY:
                return len(self.steps)
            case Work.SERVED | Work.COMPANY:
                return 1

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of to_json."""
        values = json.loads(text)
        for one in fields(cls):
            if isinstance(values[one.name], list):
                values[one.name] = tuple(tuple(item) if isinstance(item, list) else item for item in values[one.name])
        return cls(**{**values, "work": Work(values["work"])})


BATCHES = (1, 8, 64, 1024, 8192, 4, 16, 256, 4096)  # the telling ones first
CHUNK_BATCHES = (1, 64, 1024, 8192)
PARTS_AT = (1, 64, 1024, 8192)
LONG = 16  # T of a chunk


def _race(hidden: int, layers: int, precision: str) -> Job:
    return Job(
        work=Work.STEPS,
        limit=45,
        features=hidden,
        hidden=hidden,
        layers=layers,
        precision=precision,
        steps=(1, LONG),
        batches=BATCHES,
        chunk_batches=CHUNK_BATCHES,
        parts_at=PARTS_AT,
    )


def full() -> list[Job]:
    """For a GPU, in eight minutes."""
    parity = [
        Job(
            work=Work.PARITY, limit=40, precision=precision, features=64, hidden=256, layers=2, steps=(1, 10, 100, 1000)
        )
        for precision in ("fp32", "tf32", "fp16")
    ]
    parity += [
        replace(parity[0], precision=precision, features=37, hidden=70, gain=3.0, steps=(1, 10, 100))
        for precision in ("fp32", "tf32", "fp16")
    ]
    parity += [
        replace(parity[0], precision=precision, hidden=1024, layers=1, steps=(1, 10))
        for precision in ("fp32", "tf32", "fp16")
    ]
    first = [_race(1024, 1, "tf32"), _race(256, 1, "tf32"), _race(1024, 1, "fp32"), _race(1024, 1, "fp16")]
    sizes = ((512, 1), (2048, 1), (1024, 2), (256, 2), (2048, 2), (512, 2))
    second = [_race(hidden, layers, "tf32") for hidden, layers in sizes]
    third = [
        _race(hidden, layers, precision) for precision in ("fp32", "fp16") for hidden, layers in ((256, 1), *sizes)
    ]
    served = Job(
        work=Work.SERVED,
        limit=60,
        precision="tf32",
        features=64,
        hidden=1024,
        layers=2,
        outputs=16,
        workers=4,
        streams=1024,
        generators=4,
        seconds=3.0,
    )
    eight = replace(served, workers=8, generators=6)
    load = [served, replace(served, workers=1), replace(served, steps_per_message=LONG)]
    copies = Job(work=Work.COPIES, limit=20, hidden=1024, batches=(1, 64, 1024, 8192))
    parcels = replace(copies, work=Work.PARCELS, features=1024, precision="tf32")  # a model that has raced already
    company = [
        replace(one, work=Work.COMPANY, limit=20, steps=(20,), batches=(1, 2, 4, 8, 16, 64, 256, 1024))
        for one in parity[:3]
    ]
    begin = [Job(work=Work.RATES, limit=40), *parity[:3], first[0], load[0], company[0], *first[1:], copies, parcels]
    return [*begin, *company[1:], *load[1:], *second, eight, replace(eight, device="cpu"), *parity[3:], *third]


def quick() -> list[Job]:
    """Through everything once in tiny sizes: a rehearsal that says whether the code runs, and nothing of speed."""
    race = Job(
        work=Work.STEPS,
        limit=60,
        layers=2,
        steps=(1, 3),
        batches=(1, 5),
        chunk_batches=(1, 5),
        parts_at=(5,),
        seconds=0.001,
        rounds=1,
    )
    served = Job(work=Work.SERVED, limit=60, workers=2, streams=4, generators=2, seconds=0.3)
    return [
        Job(work=Work.RATES, limit=60, largest=64, seconds=0.001),
        *(Job(work=Work.PARITY, limit=60, precision=one, steps=(1, 70)) for one in ("fp32", "tf32", "fp16")),
        Job(work=Work.COMPANY, limit=60, steps=(5,), batches=(1, 2, 4)),
        *(replace(race, precision=one) for one in ("tf32", "fp16")),
        *(Job(work=one, limit=60, batches=(1, 8), seconds=0.001) for one in (Work.COPIES, Work.PARCELS)),
        served,
    ]
