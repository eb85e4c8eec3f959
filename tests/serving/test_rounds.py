"""Orders to all workers, without any: who is told, who catches up, and what the asker hears."""

from __future__ import annotations

from typing import Any

import pytest

from serving.orders import FAILED, LATER, LOAD, LOADED, UNLOAD, Change, Order, Outcome, joined
from serving.rounds import ROUND_SECONDS, Rounds

DONE = Outcome((Change(1, LOADED),))
LOAD_M, UNLOAD_M = Order(LOAD, "m"), Order(UNLOAD, "m")


class Post:
    """What was sent, and to whom; one that is full takes nothing."""

    def __init__(self, workers: int = 2, ready: tuple[int, ...] = (0, 1)) -> None:
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.full: set[int] = set()
        self.rounds = Rounds(workers, self.send)
        for worker in ready:
            self.rounds.ready(worker)

    def send(self, worker: int, message: dict[str, Any]) -> bool:
        if worker in self.full:
            return False
        self.sent.append((worker, message))
        return True

    def orders(self) -> list[tuple[int, Order, int]]:
        """What workers were told since the last look."""
        found = [(worker, sent["order"], sent["round"]) for worker, sent in self.sent if "order" in sent]
        self.sent = [one for one in self.sent if "order" not in one[1]]
        return found

    def replies(self) -> list[tuple[int, int, list[tuple[int, Outcome]]]]:
        """What askers were told since the last look: who, of which question, what."""
        found = [(worker, sent["reply"], sent["outcomes"]) for worker, sent in self.sent if "reply" in sent]
        self.sent = [one for one in self.sent if "reply" not in one[1]]
        return found


def test_every_worker_is_told_and_the_asker_hears_of_all() -> None:
    """The answer goes out when the last one has done it."""
    post = Post()
    post.rounds.ask(1, 7, LOAD_M, 0.0)
    assert post.orders() == [(0, LOAD_M, 1), (1, LOAD_M, 1)]
    post.rounds.answer(0, 1, DONE, None, 0.0)
    assert not post.replies()
    post.rounds.answer(1, 1, DONE, None, 0.0)
    assert post.replies() == [(1, 7, [(0, DONE), (1, DONE)])]


def test_orders_go_one_after_the_other_in_all_workers() -> None:
    """A second order waits for the first one's end, so that no two workers do them in another order."""
    post = Post()
    post.rounds.ask(0, 1, LOAD_M, 0.0)
    post.rounds.ask(1, 1, UNLOAD_M, 0.0)
    assert {order for _, order, _ in post.orders()} == {LOAD_M}
    post.rounds.answer(0, 1, DONE, None, 0.0)
    post.rounds.answer(0, 2, DONE, None, 0.0)  # of an order it wasn't given
    assert not post.orders()
    post.rounds.answer(1, 1, DONE, None, 0.0)
    assert post.orders() == [(0, UNLOAD_M, 2), (1, UNLOAD_M, 2)]


def test_a_worker_that_starts_catches_up() -> None:
    """It is told what came since, the asker that it will be, and one that starts later is told what isn't served."""
    post = Post(3, ready=(0, 1))
    post.rounds.ask(0, 1, UNLOAD_M, 0.0)
    assert [worker for worker, _, _ in post.orders()] == [0, 1]
    for worker in (0, 1):
        post.rounds.answer(worker, 1, DONE, None, 0.0)
    ((_, _, outcomes),) = post.replies()
    assert [change.done for change in joined(UNLOAD_M, outcomes)] == [LOADED, LOADED, LATER]
    post.rounds.ready(2)
    assert post.orders() == [(2, UNLOAD_M, 0)]
    post.rounds.ready(2)
    assert not post.orders(), "it is told once"


def test_a_worker_that_dies_or_takes_too_long_is_told_of() -> None:
    """The others' outcomes stand; the dead one's successor does the same, the slow one is given up."""
    post = Post(3, ready=(0, 1, 2))
    post.rounds.ask(0, 1, LOAD_M, 10.0)
    post.orders()
    post.rounds.answer(0, 1, DONE, None, 10.0)
    post.rounds.gone(1, 11.0)
    assert post.rounds.due == 10.0 + ROUND_SECONDS
    post.rounds.expire(post.rounds.due - 1.0)
    assert not post.replies()
    post.rounds.expire(post.rounds.due)
    ((_, _, outcomes),) = post.replies()
    changes = joined(LOAD_M, outcomes)
    assert [(change.worker, change.done) for change in changes] == [(0, LOADED), (1, FAILED), (2, FAILED)]
    assert "died" in changes[1].reason
    assert "within 600 s" in changes[2].reason
    post.rounds.ready(1)
    assert post.orders() == [(1, LOAD_M, 0)]
    assert post.rounds.due == float("inf")


def test_what_workers_serve_is_what_a_new_one_is_told() -> None:
    """The first one's word holds at the start, then that of those that carry out orders; a failure's doesn't."""
    post = Post()
    for content in ("a", "b"):
        post.rounds.hello({"m/1": content})
    assert dict(post.rounds.serves or {}) == {"m/1": "a"}
    post.rounds.ask(0, 1, LOAD_M, 0.0)
    post.rounds.answer(0, 1, DONE, {"m/1": "c"}, 0.0)
    post.rounds.answer(1, 1, Outcome((Change(1, FAILED, "no memory"),)), {"m/1": "a"}, 0.0)
    assert post.rounds.serves == {"m/1": "c"}
    post.rounds.ask(0, 2, UNLOAD_M, 0.0)
    for worker in (0, 1):
        post.rounds.answer(worker, 2, DONE, {}, 0.0)
    assert post.rounds.serves == {}


@pytest.mark.parametrize("full", [{0}, {0, 1}])
def test_a_worker_whose_socket_is_full_is_told_later(full: set[int]) -> None:
    """Nothing waits for it; the asker is told, if it can be."""
    post = Post()
    post.full = full
    post.rounds.ask(0, 1, LOAD_M, 0.0)
    post.rounds.answer(1, 1, DONE, None, 0.0)
    assert post.rounds.due == float("inf")
    post.full = set()
    post.rounds.ready(0)
    assert (0, LOAD_M, 0) in post.orders()
