"""Orders as values: how they travel, and how several outcomes become one answer."""

from __future__ import annotations

import pytest

from serving.errors import InvalidInput, Unavailable, UnknownModel
from serving.orders import (
    FAILED,
    LOAD,
    LOADED,
    LONGEST,
    UNCHANGED,
    UNLOAD,
    Change,
    Order,
    Outcome,
    decode,
    encode,
    joined,
    refuse_failures,
    shortened,
)


def test_messages_come_out_as_they_went_in() -> None:
    """Orders, outcomes and lists of them."""
    outcome = Outcome((Change(1, LOADED), Change(2, FAILED, "why")))
    message = {
        "order": Order(LOAD, "m", 2),
        "outcome": outcome,
        "outcomes": [(0, outcome), (1, Outcome((), "no", True))],
    }
    assert decode(encode(**message)) == message


@pytest.mark.parametrize("workers", [1, 8, 1024])
def test_a_message_of_all_workers_fits_the_socket(workers: int) -> None:
    """However many changes there are and however long their reasons, failures are what stays."""
    outcome = Outcome((*(Change(number, UNCHANGED) for number in range(9000)), Change(9999, FAILED, "why " * 1000)))
    short = [(worker, shortened(outcome, of=workers)) for worker in range(workers)]
    assert len(encode(reply=1, outcomes=short)) < LONGEST
    assert all(one.changes[0].version == 9999 for _, one in short)


def test_a_refusal_by_all_is_one_and_by_some_a_failure() -> None:
    """The same text is said once, others by worker; who did it and who didn't is told."""
    order, gone = Order(UNLOAD, "m"), Outcome(refusal="it isn't served", unknown=True)
    with pytest.raises(UnknownModel, match=r"^it isn't served$"):
        joined(order, [(0, gone), (1, gone)])
    with pytest.raises(Unavailable, match="worker 0: it isn't served; worker 1: it died"):
        joined(order, [(0, gone), (1, Outcome(refusal="it died"))])
    changes = joined(order, [(0, gone), (1, Outcome((Change(1, "unloaded"),)))])
    assert changes == [Change(0, FAILED, "it isn't served", 0), Change(1, "unloaded", "", 1)]
    with pytest.raises(InvalidInput) as caught:
        refuse_failures(order, changes, [])
    text = "failed to unload 'm' on worker 0: it isn't served; version 1 is unloaded on worker 1"
    assert str(caught.value) == text


def test_what_all_workers_say_is_said_once() -> None:
    """No worker is named where they agree; what has succeeded everywhere raises nothing."""
    order = Order(LOAD, "m")
    outcome = Outcome((Change(1, UNCHANGED), Change(2, FAILED, "broken"), Change(3, LOADED)))
    with pytest.raises(InvalidInput, match=r"^failed to load 'm' version 2: broken; version 3 is loaded$"):
        refuse_failures(order, joined(order, [(0, outcome), (1, outcome)]), [])
    refuse_failures(order, [Change(1, UNCHANGED), Change(3, LOADED)], [1, 3])
