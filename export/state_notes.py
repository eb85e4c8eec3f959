"""What says of each state that it is one, as a note of the contract.

Owns that note. Knows no graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from model.contract import Contract

STATES = "states"  # the note: by input, the evidence in words, as JSON


def note(evidence: Mapping[str, str]) -> dict[str, str]:
    """The note; none where there is no state."""
    return {STATES: json.dumps(dict(evidence))} if evidence else {}


def noted(contract: Contract) -> dict[str, str]:
    """By state input, what said so; empty for contracts without the note."""
    found = json.loads(contract.notes.get(STATES, "{}"))
    return {state.input: str(found[state.input]) for state in contract.states if state.input in found}
