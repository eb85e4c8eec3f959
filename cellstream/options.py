"""What a caller can set about connections and retries, with units and defaults.

Owns the values and the arithmetic of backing off; whoever waits brings the clock and the dice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from cellstream._addresses import proxy_arguments
from cellstream.errors import CellstreamError, DeadlineExceeded, Overloaded, Unavailable

_LEAST_KEEPALIVE_MS = 1_000
_LEAST_SECONDS = 1e-6


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
    # Milliseconds of silence after which the connection is probed; None: never, and a server that vanishes without a
    # word is never noticed. At least 1,000. Cellstream's server allows a probe a second; other servers and proxies end
    # connections that are probed more often than they allow (gRPC's own default: every 300,000).
    keepalive_ms: int | None = 8_000
    # Milliseconds that the answer to a probe may take before the connection counts as broken. Open streams end as
    # StreamLost keepalive_ms + keepalive_timeout_ms after the last byte came. However long a server computes, gRPC
    # answers its probes, on threads of its own.
    keepalive_timeout_ms: int = 8_000
    # Wait for the server to come up instead of raising Unavailable at once; bounded by Retry.total.
    wait_for_ready: bool = False
    # Bytes of the largest answer that is taken.
    max_receive_bytes: int = 64 << 20
    # Any other gRPC channel arguments, by name; they win over the ones above.
    extra: tuple[tuple[str, int | str], ...] = ()

    def __post_init__(self) -> None:
        if self.keepalive_ms is not None and self.keepalive_ms < _LEAST_KEEPALIVE_MS:
            raise ValueError(
                f"keepalive_ms is {self.keepalive_ms}; it must be at least {_LEAST_KEEPALIVE_MS}, or the server ends "
                "the connection for too many probes"
            )
        if self.keepalive_timeout_ms < 1:
            raise ValueError(f"keepalive_timeout_ms is {self.keepalive_timeout_ms}; it must be above 0")

    def arguments(self, address: str = "") -> list[tuple[str, int | str]]:
        """As gRPC's channel arguments for a server at `address`."""
        arguments: dict[str, int | str] = {
            "grpc.initial_reconnect_backoff_ms": self.initial_backoff_ms,
            "grpc.min_reconnect_backoff_ms": self.connect_timeout_ms,
            "grpc.max_reconnect_backoff_ms": self.max_backoff_ms,
            "grpc.max_receive_message_length": self.max_receive_bytes,
            "grpc.max_send_message_length": -1,  # the server's own limit is what counts, and its refusal names it
            **proxy_arguments(address),
        }
        if self.keepalive_ms is not None:
            arguments["grpc.keepalive_time_ms"] = self.keepalive_ms
            arguments["grpc.keepalive_timeout_ms"] = self.keepalive_timeout_ms  # of TCP
            arguments["grpc.http2.ping_timeout_ms"] = self.keepalive_timeout_ms
            arguments["grpc.http2.max_pings_without_data"] = 0
            arguments["grpc.keepalive_permit_without_calls"] = 1  # else the next stream finds a dead connection
        arguments.update(self.extra)
        return list(arguments.items())


@dataclass(frozen=True, slots=True)
class Retry:
    """How often opening a stream is tried. A stream that is open is never started again behind its user's back."""

    # Attempts in all; 1: no second one; None: as many as `total` has time for.
    attempts: int | None = None
    # Seconds for all attempts together, the waiting for the server's answer included. It is used up before the last
    # error is raised, as far as `attempts` allows. Too low: a server that restarts isn't found again; too high: a wrong
    # address is told late.
    total: float = 30.0
    # Seconds: the wait before attempt n + 1 is drawn evenly from 0 … min(longest, first * 2 ** (n - 1)).
    first: float = 0.1
    longest: float = 2.0
    # Try again as well when the server has no room (Overloaded).
    when_overloaded: bool = False

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; it must be at least 1")
        if not self.total > 0 or not self.first >= 0 or not self.longest >= 0:
            raise ValueError(
                f"total {self.total} must be above 0, first {self.first} and longest {self.longest} not below"
            )

    def delay(self, failed: int, error: CellstreamError, elapsed: float, random: Callable[[], float]) -> float | None:
        """Seconds to wait after the `failed`-th attempt, which ended with `error`; None: give up.

        `elapsed`: seconds since the first attempt began; `random`: draws from [0, 1).
        """
        transient = isinstance(error, Unavailable) or (self.when_overloaded and isinstance(error, Overloaded))
        if not transient or (self.attempts is not None and failed >= self.attempts):
            return None
        # The exponent is bounded so that a generous number of attempts can't overflow a float.
        most = min(self.longest, self.first * 2.0 ** min(failed - 1, 60))
        left = self.total - elapsed
        if left <= min(self.first, self.longest):
            return None
        return random() * min(most, left)


class Attempts:
    """The attempts at one opening: how much time is left, and how long to wait before the next."""

    def __init__(self, retry: Retry, timeout: float | None, clock: Callable[[], float]) -> None:
        """`timeout`: the user's own limit in seconds, or None."""
        total = retry.total if timeout is None else min(retry.total, max(timeout, _LEAST_SECONDS))
        self._retry = replace(retry, total=total)
        self._clock = clock
        self._began = clock()
        self._failed = 0
        self._cause: CellstreamError | None = None  # of the latest failure that wasn't a lack of time

    def seconds_left(self) -> float:
        """For the attempt that begins now."""
        return max(0.0, self._retry.total - (self._clock() - self._began))

    def wait_after(self, error: CellstreamError) -> float:
        """Seconds to wait after an attempt that ended so. Raises the error if there is no next one."""
        self._failed += 1
        wait = self._retry.delay(self._failed, error, self._clock() - self._began, random.random)
        if wait is None:
            if isinstance(error, DeadlineExceeded) and self._cause is not None:
                raise DeadlineExceeded(
                    f"no answer within {self._retry.total:.3g} s; the attempt before the last ended so: {self._cause}"
                ) from None
            raise error
        self._cause = error
        return wait
