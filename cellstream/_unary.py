"""One request and its answer, for threads: the client's worker asks gRPC, and the caller waits for the outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from cellstream._rpc import answer_timeout, unary_error
from cellstream._worker import Outcome, Worker

_SPARE_SECONDS = 1.0  # after gRPC's own deadline, should it not keep it


def ask(worker: Worker, begin: Callable[[], Any], timeout: float | None) -> Any:
    """The answer to the call that `begin` begins (a grpc.Future), within `timeout` seconds. Raises the typed error."""
    outcome, calls = Outcome[Any](), list[Any]()

    def start() -> None:
        try:
            calls.append(begin())
            calls[0].add_done_callback(lambda call: outcome.settle_by(call.result))
        except Exception as error:  # noqa: BLE001  it is raised to the one who waits
            outcome.settle(None, error)

    worker.put(start)
    arrived = False
    try:
        arrived = outcome.wait(None if timeout is None else timeout + _SPARE_SECONDS)
    finally:
        if not arrived:
            worker.put(lambda: [call.cancel() for call in calls])
    if not arrived:
        raise answer_timeout(timeout)
    try:
        return outcome.result()
    except grpc.RpcError as error:
        raise unary_error(error, timeout) from None
