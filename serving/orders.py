"""What an operator orders of models, and what has come of it, as values that go between processes.

Owns the words and their form on a socket. Knows no model: the supervisor imports it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from serving.errors import InvalidInput, Refusal, Unavailable, UnknownModel

LONGEST = 200_000  # bytes of one message: what a socket's buffer holds by default
LOAD, UNLOAD = "load", "unload"
LOADED, RELOADED, UNCHANGED, UNLOADED, FAILED, LATER = (
    "loaded", "reloaded", "unchanged", "unloaded", "failed", "later",
)  # fmt: skip
_LONGEST_REASON, _SHORTEST_REASON = 500, 80  # characters, of one worker and of very many
_MOST_CHANGES = 200  # in one message


@dataclass(frozen=True, slots=True)
class Order:
    """Load or unload a model, or one version of it."""

    verb: str
    model: str
    version: int = 0  # 0: every one

    @property
    def subject(self) -> str:
        """What it's about, for messages."""
        return f"'{self.model}' version {self.version}" if self.version else f"'{self.model}'"


@dataclass(frozen=True, slots=True)
class Change:
    """What an order has done to one version of a model."""

    version: int
    done: str  # LOADED, RELOADED, UNCHANGED, UNLOADED, FAILED, or LATER: a worker that starts does it when it's ready
    reason: str = ""  # of a failure, and of what wasn't asked for
    worker: int | None = None  # None: there is one process


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an order has come to in one worker."""

    changes: tuple[Change, ...] = ()
    refusal: str = ""  # why nothing was done
    unknown: bool = False  # it was refused because there is no such model


def encode(**message: Any) -> bytes:
    """One message; orders and outcomes as lists."""
    return json.dumps(message, default=astuple).encode()


def decode(data: bytes) -> dict[str, Any]:
    """What encode() was given, orders and outcomes as values again."""
    message: dict[str, Any] = json.loads(data)
    if "order" in message:
        message["order"] = Order(*message["order"])
    if "outcome" in message:
        message["outcome"] = _outcome(message["outcome"])
    if "outcomes" in message:
        message["outcomes"] = [(worker, _outcome(plain)) for worker, plain in message["outcomes"]]
    return message


def shortened(outcome: Outcome, *, of: int = 1) -> Outcome:
    """An outcome that fits a message `of` so many: long reasons are cut, and of very many changes the failures stay."""
    longest = max(_SHORTEST_REASON, _LONGEST_REASON * 8 // (8 + of))
    changes = sorted(outcome.changes, key=lambda one: one.done != FAILED)[: max(1, _MOST_CHANGES // of)]
    cut = tuple(replace(one, reason=one.reason[:longest]) for one in changes)
    return Outcome(cut, outcome.refusal[:longest], outcome.unknown)


def joined(order: Order, outcomes: Iterable[tuple[int, Outcome]]) -> list[Change]:
    """All workers' changes, a refusal as a failure; if nobody did anything, raises the Refusal to answer."""
    found = list(outcomes)
    if found and all(outcome.refusal for _, outcome in found):
        texts = {outcome.refusal for _, outcome in found}
        text = texts.pop() if len(texts) == 1 else "; ".join(f"worker {n}: {outcome.refusal}" for n, outcome in found)
        raise UnknownModel(text) if all(outcome.unknown for _, outcome in found) else Unavailable(text)
    changes: list[Change] = []
    for worker, outcome in found:
        if outcome.refusal:
            changes.append(Change(order.version, FAILED, outcome.refusal, worker))
        changes += [replace(one, worker=worker) for one in outcome.changes]
    return changes


def refuse_failures(order: Order, changes: Sequence[Change], served: Sequence[int]) -> None:
    """Raise InvalidInput, saying all that was done, if an order has failed in part.

    `served`: the model's versions now, where there is one process.
    """
    if not any(one.done == FAILED for one in changes):
        return
    parts = [
        f"failed to {order.verb} " + ", ".join(
            f"{replace(order, version=version).subject}{where}: {reason}"
            for (version, done, reason), where in _grouped(changes) if done == FAILED
        ),
        *(
            f"version {version} is {done}{where}"
            for (version, done, _), where in _grouped(changes) if done not in (FAILED, UNCHANGED)
        ),
    ]  # fmt: skip
    if {one.worker for one in changes} == {None}:
        now = f"version {', '.join(map(str, served))}" if served else "no version of it"
        parts.append(f"served now: {now}")
    raise InvalidInput("; ".join(parts))


def _grouped(changes: Sequence[Change]) -> list[tuple[tuple[int, str, str], str]]:
    """Each thing that was done once, and on which workers, unless all of them did it."""
    workers = {one.worker for one in changes}
    groups: dict[tuple[int, str, str], list[int]] = {}
    for one in changes:
        group = groups.setdefault((one.version, one.done, one.reason), [])
        if one.worker is not None:
            group.append(one.worker)
    return [
        (what, "" if len(group) in (0, len(workers)) else f" on worker {', '.join(map(str, group))}")
        for what, group in groups.items()
    ]


def _outcome(plain: Sequence[Any]) -> Outcome:
    changes, refusal, unknown = plain
    return Outcome(tuple(Change(*one) for one in changes), refusal, unknown)


def outcome_of(refusal: Refusal) -> Outcome:
    """A refusal as it goes to other processes."""
    return Outcome(refusal=str(refusal), unknown=isinstance(refusal, UnknownModel))
