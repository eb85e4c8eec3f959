"""Samples: they cover what a model can be given, and the same seed draws the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export import portable
from export.ranges import note
from export.samples import BUDGET, FEWEST, GROUPS, NON_ZERO, POOLED, ZERO, draw, lanes, parts, values
from export.wrap_parity import draw as wrap_draw
from model.contract import TensorSpec
from model.lstm import Spec
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


@pytest.mark.parametrize("steps", [1, 1000])
@pytest.mark.parametrize(
    "spec",
    [
        SINGLE,
        VECTORS,
        Spec(vocabulary=50_000, encoder_size=2, hidden_size=3, output_size=50_000),
        Spec(input_size=50_000, hidden_size=1),
        Spec(input_size=2, hidden_size=2048, layers=4),
    ],
    ids=str,
)
def test_no_part_is_larger_than_the_budget(spec: Spec, steps: int) -> None:
    """However wide a model is, only a bounded piece is held at once; the pieces are all lanes and all steps."""
    contract = portable.contract_of(spec, name="a", weights_digest="sha256:0", notes={})
    batch = lanes(contract, steps)
    widest = max(spec.outputs, spec.input_size or 1, spec.layers * spec.hidden_size)
    seen: list[int] = []
    for part in parts(contract, steps, NON_ZERO, batch, 0):
        if not seen:
            piece = next(part.slices)["x"]
            assert piece.shape[0] * piece.shape[1] * widest <= BUDGET
            assert spec.vocabulary is None or sum(len(x["x"][0]) for x in part.slices) == steps - piece.shape[1]
        assert len(part.states["h"]) == part.lanes.stop - part.lanes.start
        seen += range(part.lanes.start, part.lanes.stop)
    assert seen == list(range(batch))


def test_flags_are_set_at_another_rate_in_each_stream() -> None:
    """Mixed, never, always, seldom, mostly: bools, integers of two values, and floats from 0 to 1."""
    random = np.random.default_rng(0)
    for spec, between in (
        (TensorSpec("x", "bool", ()), None),
        (TensorSpec("x", "uint8", (), minimum=0, maximum=1), None),
        (TensorSpec("x", "float32", ()), (0.0, 1.0)),
    ):
        drawn = values(spec, (5, 400), random, between)
        assert drawn.dtype == spec.dtype
        never, always = drawn[1], drawn[2]
        assert not never.any()
        assert np.all(always == 1)
        assert np.any(drawn[0] == 0)
        assert np.any(drawn[0] == 1)
        assert 0 < np.mean(drawn[3] == 1) < 0.5 or spec.dtype == "float32"


def test_floats_of_a_range_lie_in_it_with_its_ends() -> None:
    """A note of the contract says the range, and every sample keeps it."""
    contract = portable.contract_of(VECTORS, name="a", weights_digest="sha256:0", notes=note({"x": (0.5, 3.0)}))
    for sample in (draw(contract, 50, NON_ZERO, 5, 0), wrap_draw(contract, 5, 50, NON_ZERO, 0)):
        assert sample.inputs["x"].min() == 0.5
        assert sample.inputs["x"].max() == 3.0
        assert len(np.unique(sample.inputs["x"])) > 100


def test_integers_without_bounds_may_be_flags() -> None:
    """A mask of which nothing is known is drawn as one, among larger values."""
    drawn = values(TensorSpec("x", "int64", ()), (5, 400), np.random.default_rng(0))
    assert drawn.max() > 50
    assert (drawn == 0).mean() > 0.1
    assert (drawn == 1).mean() > 0.1
