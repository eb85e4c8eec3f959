"""The module: explicit state, sizes read from weights, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
import torch

from model.cell import State
from model.lstm import LSTM, Spec
from model.weights import UnsupportedLSTMError, WeightsError

SPECS = [
    Spec(input_size=1, hidden_size=1),
    Spec(input_size=5, hidden_size=37, layers=3, bias=False),
    Spec(input_size=5, encoder_size=3, hidden_size=4, output_size=2),
    Spec(vocabulary=11, encoder_size=3, hidden_size=4, layers=2, output_size=11),
    Spec(vocabulary=11, encoder_size=3, hidden_size=4, bias=False),
    Spec(input_size=5, encoder_size=3, hidden_size=4, proj_size=1, bias=False, layers=2, output_size=2),
]


def sample(spec: Spec, batch: int, steps: int) -> torch.Tensor:
    """A random input [B, T] or [B, T, F] of that spec."""
    if spec.vocabulary is not None:
        return torch.randint(spec.vocabulary, (batch, steps))
    return torch.randn(batch, steps, spec.core_size if spec.encoder_size is None else spec.input_size or 0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_forward_gives_outputs_and_state_batch_first(spec: Spec) -> None:
    """Outputs are [B, T, O], states [B, L, H], and the state that was given is left alone."""
    torch.manual_seed(0)
    module = LSTM(spec)
    before = State(*(torch.randn(3, spec.layers, size) for size in (spec.state_size, spec.hidden_size)))
    given = State(before.h.clone(), before.c.clone())
    y, state = module(sample(spec, 3, 4), given)
    assert y.shape == (3, 4, spec.outputs)
    assert state.h.shape == (3, spec.layers, spec.state_size)
    assert state.c.shape == (3, spec.layers, spec.hidden_size)
    assert torch.equal(given.h, before.h)
    assert torch.equal(given.c, before.c)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_reference_agrees_with_forward(spec: Spec) -> None:
    """Encoder, layers and head by the formula give, in float64, what the module gives in float64."""
    torch.manual_seed(0)
    module = LSTM(spec)
    double = LSTM.from_state_dict(module.state_dict(), spec).double()
    x = sample(spec, 2, 5)
    state = double.zero_state(2)
    y, new = double(x if spec.vocabulary else x.double(), state)
    exact, exact_state = module.reference(x, state)
    torch.testing.assert_close(y, exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(new.c, exact_state.c, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_spec_survives_json_and_is_inferred_from_the_weights(spec: Spec) -> None:
    """The JSON form gives the spec back, and the weights alone say the same spec."""
    assert Spec.from_json(spec.to_json()) == spec
    module = LSTM(spec)
    again = LSTM.from_state_dict(module.state_dict())
    assert again.spec == spec
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "lstm.", "model.rnn."])
def test_any_torch_lstm_under_one_prefix(prefix: str) -> None:
    """The state dict of a plain torch.nn.LSTM, bare or under one prefix, gives a module that computes the same."""
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(6, 7, 2, batch_first=True)
    module = LSTM.from_state_dict({prefix + name: value for name, value in theirs.state_dict().items()})
    x = torch.randn(2, 3, 6)
    assert torch.equal(module(x)[0], theirs(x)[0])


def test_weights_of_other_float_types_are_taken_as_float32() -> None:
    """Half precision weights are exact in float32, and that is what the module holds."""
    half = {name: value.half() for name, value in torch.nn.LSTM(2, 3).state_dict().items()}
    module = LSTM.from_state_dict(half)
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    assert torch.equal(module.lstm.all_weights[0][0], half["weight_ih_l0"].float())


def bidirectional() -> dict[str, torch.Tensor]:
    """The weights of an LSTM that reads both ways."""
    return dict(torch.nn.LSTM(2, 3, bidirectional=True).state_dict())


def projected(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights of an LSTM with a projection, some replaced."""
    return {**torch.nn.LSTM(2, 5, 2, proj_size=3).state_dict(), **changes}


@pytest.mark.parametrize("bias", [True, False])
def test_a_projected_lstm_under_its_own_keys(bias: bool) -> None:
    """The state dict of a torch.nn.LSTM with proj_size gives its sizes, and a module and reference that agree."""
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(6, 7, 2, batch_first=True, proj_size=3, bias=bias).double()
    module = LSTM.from_state_dict(theirs.state_dict()).double()
    assert (module.spec.proj_size, module.spec.hidden_size, module.spec.bias) == (3, 7, bias)
    assert (module.spec.state_size, module.spec.outputs) == (3, 3)
    theirs.load_state_dict({name.removeprefix("lstm."): value for name, value in module.state_dict().items()})
    x = torch.randn(2, 9, 6).double()
    h, c = torch.randn(2, 2, 3).double(), torch.randn(2, 2, 7).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oneDNN has no projections
        y, (h_out, c_out) = theirs(x, (h, c))
    for way in (module.forward, module.reference):
        found, state = way(x, State(h.transpose(0, 1), c.transpose(0, 1)))
        torch.testing.assert_close(found, y, rtol=0, atol=1e-14)
        torch.testing.assert_close(state.h, h_out.transpose(0, 1), rtol=0, atol=1e-14)
        torch.testing.assert_close(state.c, c_out.transpose(0, 1), rtol=0, atol=1e-14)
    assert [tuple(part.shape) for part in module.zero_state(4)] == [(4, 2, 3), (4, 2, 7)]


@pytest.mark.parametrize(
    ("weights", "words"),
    [(bidirectional(), "bidirectional.*weight_ih_l0_reverse")],
)
def test_unsupported_kinds_are_named(weights: dict[str, torch.Tensor], words: str) -> None:
    """A bidirectional LSTM is refused by its kind, with the keys that gave it away."""
    with pytest.raises(UnsupportedLSTMError, match=words):
        LSTM.from_state_dict(weights)


def changed(**changes: object) -> dict[str, object]:
    """The weights of two layers with some replaced, added or (None) removed."""
    weights: dict[str, object] = dict(torch.nn.LSTM(2, 3, 2).state_dict())
    for name, value in changes.items():
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({}, "no weights of an LSTM"),
        ({"linear.weight": torch.zeros(2, 2)}, "no weights of an LSTM.*linear.weight"),
        (dict(torch.nn.GRU(2, 3).state_dict()), "3H would be a GRU"),
        (changed(bias_hh_l1=None), "missing: lstm.bias_hh_l1"),
        (changed(weight_ih_l1=None), "missing: lstm.weight_ih_l1"),
        (changed(decoder=torch.zeros(2)), "unknown keys decoder"),
        (changed(weight_ih_l1=torch.zeros(12, 5)), r"lstm.weight_ih_l1 has shape \(12, 5\) where \(12, 3\)"),
        (changed(weight_hh_l1=torch.full((12, 3), float("nan"))), "NaN or infinity in lstm.weight_hh_l1"),
        (changed(bias_ih_l0=torch.zeros(12, dtype=torch.int64)), "not floating point: lstm.bias_ih_l0"),
        (changed(epoch=3), "not tensors: epoch"),
        (projected(weight_hr_l0=torch.zeros(3, 4)), r"weight_hr_l0 \(3, 4\).*proj_size are.*\[P, H\]"),
        (projected(weight_hr_l1=torch.zeros(2, 5)), r"weight_hr_l1 has shape \(2, 5\) where \(3, 5\)"),
        ({k: v for k, v in projected().items() if k != "weight_hr_l1"}, "missing: lstm.weight_hr_l1"),
        ({f"{p}.weight_ih_l0": torch.zeros(4, 1) for p in "ab"}, "several LSTMs under the prefixes 'a.', 'b.'"),
    ],
)
def test_weights_that_make_no_lstm_are_refused_by_name(weights: dict[str, object], words: str) -> None:
    """Each way of being wrong has a message that names the keys."""
    with pytest.raises(WeightsError, match=words):
        LSTM.from_state_dict(weights)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 1},
        {"hidden_size": 1, "input_size": 1, "vocabulary": 2, "encoder_size": 1},
        {"hidden_size": 1, "vocabulary": 2},
        {"hidden_size": 0, "input_size": 1},
        {"hidden_size": 1, "input_size": 1, "layers": -1},
        {"hidden_size": 3, "input_size": 1, "proj_size": 3},
        {"hidden_size": 3, "input_size": 1, "proj_size": 0},
    ],
)
def test_impossible_specs_are_refused(sizes: dict[str, int]) -> None:
    """A spec that contradicts itself can't be made."""
    with pytest.raises(WeightsError):
        Spec(**sizes)  # type: ignore[arg-type]
