"""What another thread has the loop's thread do for it, and waits for.

Owns the waiting. What the loop owns (streams, sequences, which models there are) is looked at and changed so alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from serving.errors import Unavailable

SECONDS = 60.0  # that the loop may take until it has time

R = TypeVar("R")
Post = Callable[[Callable[[], None]], None]


def on_loop(post: Post, work: Callable[[], R], *, seconds: float = SECONDS) -> R:
    """Have `work` done on the loop's thread by way of `post`, and return what it gives, or raise what it raises.

    Raises Unavailable if the loop doesn't come to it within `seconds`.
    """
    done = threading.Event()
    results: list[R] = []
    errors: list[Exception] = []

    def carry_out() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001  it's the caller's, and must not kill the loop
            errors.append(error)
        done.set()

    post(carry_out)
    if not done.wait(seconds):
        raise Unavailable("the server is too busy at the moment; try again")
    if errors:
        raise errors[0]
    return results[0]
