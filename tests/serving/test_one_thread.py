"""A thread of one's own: what is called returns or raises, in order, on that thread, which ends."""

from __future__ import annotations

import gc
import threading

import pytest

from serving.one_thread import OneThread
from tests.waiting import wait_until


def test_calls_happen_on_the_thread_and_give_their_result() -> None:
    """By name, and always the same."""
    thread = OneThread("owner")
    first, second = thread.call(threading.current_thread), thread.call(threading.current_thread)
    assert first is second
    assert first.name == "owner"
    assert thread.end(5)
    assert not first.is_alive()


def test_what_a_call_raises_is_raised_here_and_the_thread_goes_on() -> None:
    """As if it had been called on the spot."""
    thread = OneThread("owner")
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 / 0)
    assert thread.call(lambda: 7) == 7
    assert thread.end(5)


def test_what_was_begun_is_not_waited_for() -> None:
    """And ending has a limit, past which it says that the work isn't done."""
    thread, go = OneThread("owner"), threading.Event()

    def wait() -> None:
        go.wait(10)

    thread.begin(wait)
    assert not thread.end(0.01)
    go.set()
    assert thread.end(5)


def test_a_thread_that_nobody_refers_to_ends() -> None:
    """A server that could not be built leaves none behind."""
    thread = OneThread("owner")
    own = thread.call(threading.current_thread)
    del thread
    gc.collect()
    wait_until(lambda: not own.is_alive())
