"""What a caller can set about connections and retries, with units and defaults.

Owns the values and the arithmetic of backing off; whoever waits brings the clock and the dice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cellstream.errors import CellstreamError, Overloaded, Unavailable


@dataclass(frozen=True, slots=True)
class Channel:
    """How the connection is kept: gRPC connects again by itself, between these bounds."""

    # Milliseconds from a failed attempt to connect to the next one, growing from the first value to the second.
    # Too low: a crowd of clients hammers a server that starts; too high: they find it late.
    initial_backoff_ms: int = 100
    max_backoff_ms: int = 5_000
    # Milliseconds that one attempt to connect may take. Too low: slow networks and TLS never get there; too high: a
    # host that swallows packets is given up late.
    connect_timeout_ms: int = 10_000
    # Milliseconds of silence after which the connection is probed; None: never. Servers end connections that are
    # probed more often than they allow (gRPC's default: every 300,000).
    keepalive_ms: int | None = None
    # Milliseconds that the answer to a probe may take before the connection counts as broken.
    keepalive_timeout_ms: int = 20_000
    # Wait for the server to come up instead of raising Unavailable at once; bounded by Retry.total.
    wait_for_ready: bool = False
    # Bytes of the largest answer that is taken.
    max_receive_bytes: int = 64 << 20
    # Any other gRPC channel arguments, by name; they win over the ones above.
    extra: tuple[tuple[str, int | str], ...] = ()

    def arguments(self) -> list[tuple[str, int | str]]:
        """As gRPC's channel arguments."""
        arguments: dict[str, int | str] = {
            "grpc.initial_reconnect_backoff_ms": self.initial_backoff_ms,
            "grpc.min_reconnect_backoff_ms": self.connect_timeout_ms,
            "grpc.max_reconnect_backoff_ms": self.max_backoff_ms,
            "grpc.max_receive_message_length": self.max_receive_bytes,
            "grpc.max_send_message_length": -1,  # the server's own limit is what counts, and its refusal names it
        }
        if self.keepalive_ms is not None:
            arguments["grpc.keepalive_time_ms"] = self.keepalive_ms
            arguments["grpc.keepalive_timeout_ms"] = self.keepalive_timeout_ms
            arguments["grpc.http2.max_pings_without_data"] = 0
        arguments.update(self.extra)
        return list(arguments.items())


@dataclass(frozen=True, slots=True)
class Retry:
    """How often opening a stream is tried. A stream that is open is never started again behind its user's back."""

    # Attempts in all; 1: no second one.
    attempts: int = 4
    # Seconds for all attempts together, the waiting for the server's answer included.
    total: float = 30.0
    # Seconds: the wait before attempt n + 1 is drawn evenly from 0 … min(longest, first * 2 ** (n - 1)).
    first: float = 0.1
    longest: float = 5.0
    # Try again as well when the server has no room (Overloaded).
    when_overloaded: bool = False

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; it must be at least 1")
        if self.total <= 0 or self.first < 0 or self.longest < 0:
            raise ValueError(
                f"total {self.total} must be above 0, first {self.first} and longest {self.longest} not below"
            )

    def delay(self, failed: int, error: CellstreamError, elapsed: float, random: Callable[[], float]) -> float | None:
        """Seconds to wait after the `failed`-th attempt, which ended with `error`; None: give up.

        `elapsed`: seconds since the first attempt began; `random`: draws from [0, 1).
        """
        transient = isinstance(error, Unavailable) or (self.when_overloaded and isinstance(error, Overloaded))
        if not transient or failed >= self.attempts:
            return None
        # The exponent is bounded so that a generous number of attempts can't overflow a float.
        wait = random() * min(self.longest, self.first * 2.0 ** min(failed - 1, 60))
        return wait if elapsed + wait < self.total else None
