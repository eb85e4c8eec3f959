"""What `make bench-gpu` finds, as records that JSON can hold, and the file that grows with each of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

SCHEMA = 1
TORCH, OURS = "PyTorch", "our engine"  # who copied


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes per second, read plus written, of the device's memory and of a block that fits its cache."""

    bandwidth: float
    cache_bandwidth: float
    cache_bytes: int  # 0: nobody knows


@dataclass(frozen=True, slots=True)
class Launches:
    """Microseconds until something tiny is known to have ended."""

    replay_us: float  # a CUDA graph of one kernel
    kernel_us: float  # what one more dependent kernel in that graph costs
    launch_us: float  # one kernel outside any graph


@dataclass(frozen=True, slots=True)
class MatrixRate:
    """Multiplications plus additions per second of a large product."""

    precision: str
    rate: float


@dataclass(frozen=True, slots=True)
class Copy:
    """Moving one batch of inputs, in microseconds, until it's known to have ended."""

    size: int  # bytes
    pinned: bool
    to_device_us: float
    from_device_us: float
    by: str = TORCH  # or OURS: as the engine does it, gathering and giving out included


@dataclass(frozen=True, slots=True)
class Parity:
    """A resident graph on the device against float64: the worst ratios to the yardstick, as in the parity suite."""

    precision: str
    model: str
    steps: int
    rms_ratio: float
    max_ratio: float
    rms_bar: float
    max_bar: float
    share: float  # of the outputs' rms, the worst of all tensors
    passed: bool


@dataclass(frozen=True, slots=True)
class Company:
    """One lane's answers in batches of several sizes, step by step: what they depend on besides the lane."""

    precision: str
    model: str
    steps: int
    batches: tuple[int, ...]  # a bucket each
    within: bool  # the same bytes in every place of a bucket, whatever the neighbours, padding among them
    answers: int  # different ones among the buckets
    share: float  # rms of the largest difference from the first bucket, of the outputs' rms


@dataclass(frozen=True, slots=True)
class Step:
    """One contestant at one size: microseconds of a run of T steps of B lanes, one figure for each round."""

    hidden: int
    layers: int
    precision: str
    steps: int  # T
    batch: int  # B
    contestant: str
    device_us: tuple[float, ...]  # inputs and states on the device; empty: not measured
    host_us: tuple[float, ...]  # from host memory to host memory; empty: not measured
    error: float | None  # rms against float64, as a share of the outputs' rms; None: nobody was there to tell

    @property
    def size(self) -> tuple[int, int, str, int, int]:
        """What contestants share."""
        return self.hidden, self.layers, self.precision, self.steps, self.batch

    @property
    def device(self) -> float | None:
        """Microseconds per time step of the batch, the median of the rounds."""
        return statistics.median(self.device_us) / self.steps if self.device_us else None

    @property
    def host(self) -> float | None:
        """The same from and to host memory."""
        return statistics.median(self.host_us) / self.steps if self.host_us else None


@dataclass(frozen=True, slots=True)
class Served:
    """A server under load, end to end over gRPC. Latencies in microseconds, of the worst load process."""

    device: str
    precision: str
    workers: int
    streams: int
    steps_per_message: int
    generators: int
    seconds_to_ready: float
    steps_per_second: float
    p50: float
    p99: float
    p999: float
    server_cores: float  # that all server processes kept busy
    busy: float | None  # share of the time in which the GPU computed, in percent
    busy_unknown: str  # why not, if it isn't known
    error: float  # of a stream's answers against ONNX Runtime on the CPU


@dataclass(frozen=True, slots=True)
class Skipped:
    """What wasn't measured, and why."""

    what: str
    reason: str


Record = Memory | Launches | MatrixRate | Copy | Parity | Company | Step | Served | Skipped
KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (Memory, Launches, MatrixRate, Copy, Parity, Company, Step, Served, Skipped)
}
Kind = TypeVar("Kind", Memory, Launches, MatrixRate, Copy, Parity, Company, Step, Served, Skipped)


@dataclass(frozen=True, slots=True)
class Rates:
    """What the floor is made of: all that was measured of the machine."""

    memory: Memory
    launches: Launches
    matrix: Mapping[str, float]  # by precision


def plain(record: Record) -> dict[str, Any]:
    """For JSON."""
    return {"kind": type(record).__name__, **asdict(record)}


def from_plain(values: Mapping[str, Any]) -> Record:
    """Back from JSON. Raises ValueError for what is no record."""
    fields: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in values.items()}
    try:
        return KINDS[fields.pop("kind")](**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of make bench-gpu: {values!r:.200}") from error


@dataclass(slots=True)
class Document:
    """Everything found so far, where and when."""

    date: str
    commit: str
    machine: str
    device: str  # in words
    versions: Mapping[str, str]
    budget: float  # seconds that it was given
    load: float  # the machine's load average before it began
    quick: bool = False
    seconds: float = 0.0  # that it has taken so far
    finished: bool = False  # False: it was cut off; what is there still holds
    records: list[Record] = field(default_factory=list)

    def of(self, kind: type[Kind]) -> list[Kind]:
        """All records of a kind, in order."""
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def rates(self) -> Rates | None:
        """What the machine can do; None unless memory and launches were measured."""
        memory, launches = self.of(Memory), self.of(Launches)
        if not memory or not launches:
            return None
        return Rates(memory[0], launches[0], {one.precision: one.rate for one in self.of(MatrixRate)})

    def save(self, path: Path, targets: Sequence[Mapping[str, Any]] = ()) -> None:
        """As JSON, all at once, so that a reader never meets half a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "records"}
        records = [plain(record) for record in self.records]
        text = json.dumps({"schema": SCHEMA, **fields, "targets": list(targets), "records": records}, indent=1)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)


def load(path: Path) -> Document:
    """Back from JSON. Raises ValueError for a file that can't be read or has another schema."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} isn't a result of make bench-gpu: {error}") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA or "records" not in values:
        raise ValueError(f"{path} isn't a result of make bench-gpu of schema {SCHEMA}")
    fields = {name: value for name, value in values.items() if name not in ("schema", "targets", "records")}
    try:
        return Document(**fields, records=[from_plain(item) for item in values["records"]])
    except TypeError as error:
        raise ValueError(f"{path} isn't a result of make bench-gpu: {error}") from error
