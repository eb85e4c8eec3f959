"""Arrays kept in order, in memory or in a file."""

from __future__ import annotations

import numpy as np
import pytest

from export import spill
from export.spill import Spill


@pytest.mark.parametrize("limit", [1, 2**20])
def test_what_is_written_is_read_in_any_order(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of arrays come back with their dtypes and shapes, from memory and from a file, while more are written."""
    monkeypatch.setattr(spill, "IN_MEMORY", limit)
    kept = Spill()
    sets: list[dict[str, np.ndarray]] = [
        {"y": np.full((2, 3), place, np.float64), "h": np.array([place], np.int32)} for place in range(3)
    ]
    kept.write(sets[0])
    kept.write(sets[1])
    assert kept.read(1)["y"].tolist() == sets[1]["y"].tolist()
    kept.write(sets[2])
    for place in (2, 0, 1):
        found = kept.read(place)
        assert found.keys() == {"y", "h"}
        for name, value in found.items():
            assert (value.dtype, value.tolist()) == (sets[place][name].dtype, sets[place][name].tolist())
