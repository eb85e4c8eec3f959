"""What an operator can set, with units, defaults and what goes wrong at either end.

Owns the values only. Knows nothing of where they come from (the command line) or of who uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import ConfigError

UINT32_MAX = 2**32 - 1
# What the environment must say before gRPC is imported: sockets are then read and written by whoever waits for events,
# the loop's thread most of all, and not by threads of gRPC's own that have to wake it (docs/performance.md).
WIRE_ENVIRONMENT = {"GRPC_EXPERIMENTS": "-event_engine_listener"}
# The same for a GPU: cuBLAS then sums in one order, whatever runs beside (docs/gpu.md).
CUDA_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:2"}
LARGEST = 2**30  # of any count or size: what is passed on to clients and to gRPC has 32 bits, some of it signed
LONGEST_GRACE = 7 * 24 * 3600.0  # seconds
LONGEST_IDLE = 366 * 24 * 3600.0  # seconds
MOST_WORKERS = 1024
MOST_GPUS = 256  # of one machine; any number that isn't there is refused when the device is looked for


def _check_counts(values: Limits | Batching) -> None:
    for name in values.__dataclass_fields__:
        value = getattr(values, name)
        if not 1 <= value <= LARGEST:
            raise ConfigError(f"{name} is {value}; it must be from 1 to {LARGEST}")


def host_and_port(address: str) -> tuple[str, int]:
    """HOST:PORT taken apart; IPv6 hosts stand in brackets. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address!r} isn't an address; it must be HOST:PORT, with a port from 0 to 65535")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigError(f"{address!r}: write an IPv6 host in brackets, as in [::1]:50051")
    return host, int(port)


def device_number(name: str) -> int | None:
    """The number of the GPU that a device's name stands for; None for the CPU. Raises ConfigError."""
    if name in ("cpu", "cuda"):
        return 0 if name == "cuda" else None
    kind, _, number = name.partition(":")
    if kind == "cuda" and number.isascii() and number.isdecimal() and int(number) < MOST_GPUS:
        return int(number)
    raise ConfigError(f"device {name!r}: it must be cpu, cuda or cuda:N, N below {MOST_GPUS}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that protect the server and every client from one of them; each refusal names its own."""

    # Open streams per model. Too low: clients are refused; too high: the slab (max_streams rows) takes memory.
    max_streams: int = 4096
    # Time steps in one message of one stream. Too low: clients pay per message; too high: one message holds memory.
    max_steps_per_message: int = 2048
    # Steps a stream may have waiting before its next message isn't read (flow control reaches the client). Too low:
    # pipelining stalls; too high: a fast client's work piles up here instead of there.
    window_steps: int = 2048
    # Steps waiting in all streams of a model before new ones are refused, and the same in bytes of inputs. Bound the
    # memory that waits under overload.
    max_waiting_steps: int = 1_000_000
    max_waiting_bytes: int = 256 << 20
    # Bytes of one message. gRPC itself cuts off at twice this, so that the refusal with our text comes first.
    max_message_bytes: int = 1 << 20
    # Bytes of one call's metadata: names and values, and 32 for each field. gRPC itself cuts off far beyond it, so that
    # the refusal with our text comes first. Too low: long tokens and cookies are refused; too high: calls hold memory.
    max_metadata_bytes: int = 16 << 10
    # Open calls that have sent no message, per server and per connection. Too low: a crowd that connects at once is
    # refused; too high: such calls hold memory.
    max_silent_calls: int = 4096
    max_silent_calls_per_connection: int = 1024
    # Bytes of answers a client may leave unread before its stream stops being computed.
    max_unsent_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        _check_counts(self)


@dataclass(frozen=True, slots=True)
class Batching:
    """How work is cut and joined."""

    # Streams in one run. Too low: runs are many; too high: a lone step waits for a long run. Costs as many slab rows.
    max_batch: int = 128
    # Time steps of one stream in one run: a longer chunk takes several turns, so that others get theirs between.
    slice_steps: int = 32
    # Streams times steps in one run, padding included. Bounds how long a run takes, and so how long a lone step can
    # have to wait for one. Too low: long chunks lose the gain of batching; too high: single steps wait.
    max_run_steps: int = 512
    # slice_steps while others send in pieces no longer than this. Too low: long chunks pay more per step (with 6 a
    # tenth); too high: single steps wait longer behind them (docs/performance.md).
    shared_slice_steps: int = 6

    def __post_init__(self) -> None:
        _check_counts(self)


@dataclass(frozen=True, slots=True)
class Sequencing:
    """How long sequences (streams known by an id, not by their call) are kept without a request."""

    # Seconds until an idle sequence expires; 0: never. Too short: streams that pause lose their state; too long: what
    # clients forgot to end takes places.
    idle: float = 0.0
    # The same for single models, by name.
    idle_of: Mapping[str, float] = field(default_factory=dict)
    # Seconds until an idle sequence may make room for a new stream where every place is taken; 0: never. Too short: a
    # pause costs a state; too long: sequences of clients that died keep others out.
    idle_when_full: float = 3600.0
    # Seconds until a sequence whose call was cut off expires, if nobody asks for it; 0: never.
    grace: float = 60.0

    def __post_init__(self) -> None:
        named = {f"idle of {name!r}": seconds for name, seconds in self.idle_of.items()}
        for what, seconds in {
            "idle": self.idle,
            "idle when full": self.idle_when_full,
            "grace": self.grace,
            **named,
        }.items():
            if not 0 <= seconds <= LONGEST_IDLE:
                raise ConfigError(f"sequence {what} is {seconds} s; it must be from 0 to {LONGEST_IDLE:.0f}")

    def idle_seconds(self, model: str) -> float:
        """What holds for a model."""
        return self.idle_of.get(model, self.idle)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything `python -m serving` can be told."""

    model_repository: Path
    listen: str = "127.0.0.1:50051"
    # Processes that serve, each with all models, a slab and limits of its own. Too few: cores idle; too many: they take
    # each other's time, and every one takes the memory of a whole server.
    workers: int = 1
    # Seconds without a sign of life after which a worker is killed and replaced; 0: never. Too short: one that only has
    # to wait for the processor loses its streams; too long: its share of new connections hangs for as long.
    worker_silence: float = 30.0
    # Listen where other processes listen too (SO_REUSEPORT), and not before every model is loaded. For workers.
    share_port: bool = False
    # Where steps are computed: cpu, cuda (the first GPU) or cuda:N.
    device: str = "cpu"
    # host:port of the Prometheus endpoint; None: no endpoint.
    metrics_listen: str | None = None
    # Threads ONNX Runtime may use inside one run. 1 is fastest for small models; large ones gain from more.
    threads: int = 1
    # Serve artifacts whose parity certificate is missing or failed.
    allow_unproved: bool = False
    # Seconds between SIGTERM and HTTP/2's GOAWAY: the server opens no new streams and says so to health checks, while
    # connections stay. Too short: balancers that learn by health checks still send connections to a closed port.
    drain_delay: float = 0.0
    # Seconds that open streams go on after that. Too short: they are cut off; too long: a restart takes as long.
    grace: float = 10.0
    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)
    sequencing: Sequencing = field(default_factory=Sequencing)
    # Let clients have models loaded and unloaded. Anybody who reaches the port can then stop what is served.
    model_control: bool = False
    # What the server calls itself in the Open Inference Protocol; some of Triton's tools want "triton".
    server_name: str = "cellstream"

    def __post_init__(self) -> None:
        device_number(self.device)
        if not 1 <= self.workers <= MOST_WORKERS:
            raise ConfigError(f"workers is {self.workers}; it must be from 1 to {MOST_WORKERS}")
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; it must be at least 1")
        durations = {"grace": self.grace, "drain delay": self.drain_delay, "worker silence": self.worker_silence}
        for what, seconds in durations.items():
            if not 0 <= seconds <= LONGEST_GRACE:
                raise ConfigError(f"{what} is {seconds} s; it must be from 0 to {LONGEST_GRACE:.0f}")
