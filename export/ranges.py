"""The ranges that a model's float inputs are drawn from, as a note of the contract.

Owns that note. A server refuses no value for it, and values outside weren't proved. Integers' bounds stand in the
contract.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from model.contract import Contract

RANGES = "ranges"  # the note: by float input, its lowest and highest value, as JSON


def note(ranges: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """The note of a contract whose float inputs have these ranges; none where there are none."""
    return {RANGES: json.dumps({name: list(both) for name, both in ranges.items()})} if ranges else {}


def noted(contract: Contract) -> dict[str, tuple[float, float]]:
    """The ranges of a contract's float inputs, by name."""
    plain = json.loads(contract.notes.get(RANGES, "{}"))
    return {name: (float(low), float(high)) for name, (low, high) in plain.items()}


def outside(contract: Contract) -> list[str]:
    """What a proof over these ranges leaves unproved, for a certificate."""
    return [f"{name} outside {low:g} … {high:g}" for name, (low, high) in noted(contract).items()]
