"""How much is asked of a model: everything of a usual one, and of a large one what ends in minutes."""

from __future__ import annotations

import pytest

from export import portable
from export.effort import LONGEST, Effort, effort_for, recurrent_weights
from model.lstm import LSTM, Spec

KINDS = ("weight_ih", "weight_hh")


def effort_of(spec: Spec) -> Effort:
    """The effort for a model of this spec."""
    return effort_for(spec, portable.contract_of(spec, name="a", weights_digest="sha256:0", notes={}))


@pytest.mark.parametrize(
    "spec", [Spec(input_size=3, hidden_size=5, layers=3), Spec(input_size=8, hidden_size=9, proj_size=4, layers=2)]
)
def test_recurrent_weights_are_those_of_the_layers(spec: Spec) -> None:
    """The count is that of the gates' weights; biases and projections are beside the point."""
    found = sum(weight.numel() for name, weight in LSTM(spec).lstm.named_parameters() if name[:9] in KINDS)
    assert recurrent_weights(spec) == found


def test_nothing_is_left_out_of_a_usual_model() -> None:
    """Up to 40 million recurrent weights all steps are compared, in float64 too, and streams are as many as ever."""
    effort = effort_of(Spec(vocabulary=8000, encoder_size=512, hidden_size=1024, layers=3, output_size=8000))
    assert effort.steps == LONGEST
    assert effort.double_steps == 1000
    assert (effort.ragged_streams, effort.ragged_steps) == (7, 40) or effort.ragged_streams * effort.ragged_steps >= 32
    assert effort.thorough


def test_a_large_model_is_asked_less_and_says_so() -> None:
    """400 million recurrent weights are compared up to 100 steps; a vocabulary of 267,000 costs none of its steps."""
    deep = effort_of(Spec(input_size=4096, hidden_size=4096, layers=3))
    assert deep.steps == (1, 10, 100)
    assert deep.double_steps == 10
    assert not deep.thorough
    assert deep.ragged_streams * deep.ragged_steps >= 28
    wide = effort_of(Spec(vocabulary=267_000, encoder_size=400, hidden_size=400, layers=2, output_size=267_000))
    assert wide.steps == LONGEST
    assert wide.wide
    assert not wide.thorough
