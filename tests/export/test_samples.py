"""Samples: they cover what a model can be given, and the same seed draws the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export import portable
from export.samples import FEWEST, GROUPS, NON_ZERO, POOLED, ZERO, draw, lanes
from tests.export.conftest import SINGLE, TOKENS, VECTORS


def test_small_models_get_more_streams() -> None:
    """A model of one unit is asked with as many streams as make a fair ratio, a big one with a few."""
    single, vectors = (
        portable.contract_of(spec, name="a", weights_digest="sha256:0", notes={}) for spec in (SINGLE, VECTORS)
    )
    assert lanes(single, 1000) == GROUPS * POOLED
    assert lanes(vectors, 1) > lanes(vectors, 100) >= GROUPS * FEWEST


def test_samples_cover_the_vocabulary_and_are_the_same_each_time() -> None:
    """Every token is drawn, states start where they are said to, and the same seed draws the same."""
    contract = portable.contract_of(TOKENS, name="a", weights_digest="sha256:0", notes={})
    sample = draw(contract, 100, NON_ZERO, 20, 0)
    assert set(np.unique(sample.inputs["x"])) == set(range(11))
    assert np.abs(sample.states["h"]).max() < 1
    assert not np.array_equal(sample.states["h"], sample.states["c"])
    assert np.array_equal(draw(contract, 100, NON_ZERO, 20, 0).inputs["x"], sample.inputs["x"])
    assert not draw(contract, 100, ZERO, 20, 0).states["c"].any()
    first = replace(contract.states[0], initial=np.ones(6, "<f4").tobytes())
    begun = draw(replace(contract, states=(first, contract.states[1])), 1, ZERO, 2, 0)
    assert begun.states["h"].tolist() == np.ones((2, 1, 6)).tolist()
