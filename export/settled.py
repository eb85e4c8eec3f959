"""The states of a third party's graph, settled once: what was asked, what the graph shows, and what is connected.

Owns the order of the three. Runs nothing but what `connected` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from export import connected
from export.pairing import settle
from export.pairs import NoStateError, StateQuestionError
from export.theirs import Theirs
from export.understanding import Asked


@dataclass(slots=True)
class Settled:
    """The pairs, what says so of each, and the nodes that were connected (`told`: by the user's word)."""

    pairs: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, str] = field(default_factory=dict)
    first: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    connected: tuple[str, ...] = ()
    told: bool = False
    remarks: tuple[str, ...] = ()
    question: StateQuestionError | None = None  # to be asked where a connection can't be proved

    def asked(self, asked: Asked) -> Asked:
        """What is asked then: the settled pairs and first values with the rest."""
        return replace(asked, states=dict(self.pairs), initial={**self.first, **asked.initial})

    def refusal(self) -> StateQuestionError:
        """The question; there is one wherever something was connected untold."""
        assert self.question is not None
        return self.question


def settle_states(theirs: Theirs, asked: Asked) -> Settled:
    """Find the states, and connect recurrent nodes: those that are told, or all where there is no other state.

    Raises WrapError where that is open or can't be.
    """
    begun = connected.begun_by(theirs, asked.connect)
    plain = (*asked.inputs, *asked.constants, *asked.starts, *begun)
    try:
        states = settle(theirs, asked.states, plain)
    except NoStateError:
        if not asked.connect and not connected.recurrent(theirs):
            if asked.starts:
                return Settled()
            raise
        return _connected(theirs, asked, {}, {}, asked.connect or (connected.ALL,))
    if not asked.connect:
        return Settled(states.pairs, states.evidence, remarks=_remarks(theirs, asked))
    return _connected(theirs, asked, states.pairs, states.evidence, asked.connect)


def _remarks(theirs: Theirs, asked: Asked) -> tuple[str, ...]:
    """A line for each recurrent node that carries nothing from call to call, where states were inferred."""
    if asked.states:
        return ()
    return tuple(
        f"{node.op_type} node {node.name!r} begins anew at every call, as the file has it; if it goes along the"
        f" stream's time, --connect {node.name} carries its state"
        for node in connected.begins_anew(theirs)
        if connected.is_forward(node)
    )


def _connected(
    theirs: Theirs, asked: Asked, pairs: Mapping[str, str], evidence: Mapping[str, str], wanted: tuple[str, ...]
) -> Settled:
    nodes = connected.begins_anew(theirs)
    made = connected.connect(theirs, wanted, pairs)
    reason = "a call takes a fixed number of steps, so nothing tells whether a stream should carry it"
    return Settled(
        {**pairs, **made.states.pairs},
        {**evidence, **made.states.evidence},
        made.first,
        tuple(made.nodes),
        told=bool(asked.connect),
        question=None if asked.connect else connected.offer(nodes, reason),
    )
