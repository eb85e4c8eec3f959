"""Samples: they cover what a model can be given, and the same seed draws the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export import portable
from export.samples import (
    ALL_STEPS,
    BUDGET,
    COMPUTED,
    FEWEST,
    GROUPS,
    NON_ZERO,
    POOLED,
    WIDE,
    ZERO,
    Course,
    count_pieces,
    courses,
    draw,
    lanes,
    parts,
)
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
    course = Course((steps,), (ZERO, NON_ZERO), batch)
    compared = max(min(spec.outputs, WIDE), spec.input_size or 1, spec.layers * spec.hidden_size)
    seen: list[int] = []
    for part in parts(contract, course, 0):
        if not seen:
            pieces = list(part.pieces) if spec.vocabulary else [next(part.pieces)]
            sizes = [piece.inputs["x"].shape[0] * piece.inputs["x"].shape[1] for piece in pieces]
            assert max(sizes) * compared <= BUDGET
            assert max(sizes) * spec.outputs <= COMPUTED
            assert spec.vocabulary is None or pieces[-1].done == steps
        assert len(part.states["h"]) == part.lanes.stop - part.lanes.start
        seen += range(part.lanes.start, part.lanes.stop)
    assert seen == list(range(2 * batch))


def test_a_course_is_cut_at_its_marks_and_goes_the_same_way_again() -> None:
    """Pieces end where answers are compared, each lane starts as it is told, and the same seed draws the same."""
    contract = portable.contract_of(VECTORS, name="a", weights_digest="sha256:0", notes={})
    course = Course((1, 10, 100), (ZERO, NON_ZERO), 3)
    (first,), (second,) = (list(parts(contract, course, 5)) for _ in range(2))
    pieces = list(first.pieces)
    assert {1, 10, 100} <= {piece.done for piece in pieces}
    assert sum(piece.inputs["x"].shape[1] for piece in pieces) == 100
    assert count_pieces(contract, course) == len(pieces)
    assert not first.states["c"][course.lanes_of(ZERO)].any()
    assert first.states["c"][course.lanes_of(NON_ZERO)].all()
    for one, other in zip(pieces, second.pieces, strict=True):
        assert np.array_equal(one.inputs["x"], other.inputs["x"])


def test_one_course_serves_all_steps_that_ask_for_the_same_streams() -> None:
    """A wide model's 1,000 steps hold its 1, 10 and 100; a narrow one needs more streams for few steps."""
    wide, narrow = (
        portable.contract_of(spec, name="a", weights_digest="sha256:0", notes={})
        for spec in (Spec(input_size=2, hidden_size=300), SINGLE)
    )
    assert [course.marks for course in courses(wide, (1, 10, 100), (ZERO,))] == [(1, 10, 100)]
    asked = courses(narrow, (1, 1000), (ZERO,))
    assert [mark for course in asked for mark in course.marks] == [1, 1000]


def test_a_wide_output_is_compared_whole_at_first_and_by_turns_then() -> None:
    """All 9,000 outputs count for ten steps; after that 8,192 of each piece do, and each has its turn."""
    spec = Spec(input_size=2, hidden_size=3, output_size=9000)
    contract = portable.contract_of(spec, name="a", weights_digest="sha256:0", notes={})
    (part,) = parts(contract, Course((1, 10, 200), (ZERO,), 2), 0)
    columns = {piece.done: piece.columns for piece in part.pieces}
    assert all(drawn is None for done, drawn in columns.items() if done <= ALL_STEPS)
    later = [drawn for done, drawn in columns.items() if done > ALL_STEPS]
    assert all(drawn is not None and len(set(drawn.tolist())) == WIDE for drawn in later)
    assert set(np.concatenate([drawn for drawn in later if drawn is not None])) == set(range(9000))
