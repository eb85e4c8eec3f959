"""Which tensors are taken for states: what the graph's nodes show, what names may only propose, and what is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export import __main__ as command
from export.pairing import settle
from export.pairs import NoStateError, StateQuestionError, States
from export.state_evidence import Kind
from export.theirs import WrapError, read
from tests import wrapped

Settle = Callable[..., States]
# An LSTM by its formula: {outs} are the names of y, h' and c' in the header.
FORMULA = """
<ir_version: 8, opset_import: ["" : 17]>
formula (float[n,3] {x}, float[n,4] {h}, float[n,4] {c}) => (float[n,4] y, float[n,4] {first}, float[n,4] {second})
<float[3,16] w, float[4,16] u>
{{
  a = MatMul({x}, w)
  b = MatMul({h}, u)
  gates = Add(a, b)
  i, f, g, o = Split<axis = 1>(gates)
  si = Sigmoid(i)
  sf = Sigmoid(f)
  so = Sigmoid(o)
  tg = Tanh(g)
  kept = Mul(sf, {c})
  new = Mul(si, tg)
  {next_c} = Add(kept, new)
  bent = Tanh({next_c})
  {next_h} = Mul(so, bent)
  y = Neg({next_h})
}}
"""
NAMED = {"x": "x", "h": "h_in", "c": "c_in", "first": "h_out", "second": "c_out", "next_h": "h_out", "next_c": "c_out"}
EXCHANGED = {**NAMED, "next_h": "c_out", "next_c": "h_out"}
UNNAMED = {"x": "a0", "h": "a1", "c": "a2", "first": "r1", "second": "r2", "next_h": "r1", "next_c": "r2"}
# A GRU node with its states, and beside it what {nodes} do with another input and output.
BESIDE = """
<ir_version: 8, opset_import: ["" : 17]>
beside (float[1,n,3] x, {ins}, float[1,n,4] h0) => ({outs}, float[1,n,4] hn)
<float[1,12,3] w, float[1,12,4] r, float[3,3] v, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
 int64[1] four = {{4}}, int64[2] pick = {{0, 1}}>
{{
  all, hn = GRU<hidden_size = 4>(x, w, r, , , h0)
  y = Squeeze(all, one)
  rows = Squeeze(x, zero)
  mixed = MatMul(rows, v)
  {nodes}
}}
"""


def beside(ins: str, outs: str, nodes: str) -> str:
    """A GRU with another input and output."""
    return BESIDE.format(ins=ins, outs=outs, nodes=nodes)


POLICY = beside("float[n,3] prev_action", "float[n,3] action", "p = MatMul(prev_action, v)\n  action = Add(p, mixed)")


@pytest.fixture
def settled(tmp_path: Path) -> Settle:
    """The states of a model that is given as text."""

    def run(text: str, **asked: str) -> States:
        return settle(read(wrapped.save(text, tmp_path / "given.onnx")), asked, ())

    return run


@pytest.mark.parametrize(
    ("text", "pairs", "kind"),
    [
        (beside("float[n,2,4] conv_cache", "float[n,2,4] new_conv_cache", "new_conv_cache = Neg(conv_cache)"), 2, None),
        (
            beside(
                "float[n,4] window_buf, float[n,1] v1",
                "float[n,4] late",
                "long = Concat<axis = 1>(window_buf, v1)\n  five = Constant<value = int64[1] {5}>()\n"
                "  late = Slice(long, one, five, one)",
            ),
            2,
            Kind.SHIFTED,
        ),
        (
            beside(
                "float[n,4] window_buf, float[n,1] v1",
                "float[n,4] late",
                "kept = Slice(window_buf, one, four, one)\n  late = Concat<axis = 1>(kept, v1)",
            ),
            2,
            Kind.SHIFTED,
        ),
        (
            beside(
                "float[n,4] ring_buf, int64[n,1] at, float[n,1] v1",
                "float[n,4] later",
                "later = ScatterElements<axis = 1>(ring_buf, at, v1)",
            ),
            2,
            Kind.WRITTEN,
        ),
        (beside("int64[n] frames", "int64[n] frames_out", "frames_out = Add(frames, one)"), 2, Kind.COUNTED),
        (beside("float[n,3] mean_in", "float[n,3] mean_out", "mean_out = Add(mean_in, mixed)"), 2, Kind.SUMMED),
        (beside("float[n,3] context", "float[n,3] context_out", "context_out = Identity(rows)"), 2, Kind.DELAYED),
        (beside("float[n,3] speaker", "float[n,3] z", "z = Mul(speaker, mixed)"), 1, None),
    ],
)
def test_what_a_graph_shows(settled: Settle, text: str, pairs: int, kind: Kind | None) -> None:
    """A recurrent node, a shift, a write at a position, a count, a sum and a delay are states; a factor is none."""
    found = settled(text)
    assert found.pairs["h0"] == "hn"
    assert found.evidence["h0"].startswith("GRU node")
    assert len(found.pairs) == pairs
    assert kind is None or str(kind) in found.evidence.values()


def test_names_are_not_believed_where_nodes_say_otherwise(settled: Settle) -> None:
    """States that are numbered otherwise going out than coming in are paired by the nodes that carry them."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    two (float[1,n,3] x, float[1,n,4] state_0, float[1,n,4] state_1)
      => (float[1,n,4] y, float[1,n,4] state_0_out, float[1,n,4] state_1_out)
    <float[1,12,3] w, float[1,12,4] r, float[1,12,4] w2, float[1,12,4] r2, int64[1] one = {1}>
    {
      all, state_1_out = GRU<hidden_size = 4>(x, w, r, , , state_0)
      z = Squeeze(all, one)
      all2, state_0_out = GRU<hidden_size = 4>(z, w2, r2, , , state_1)
      y = Squeeze(all2, one)
    }
    """
    assert settled(text).pairs == {"state_0": "state_1_out", "state_1": "state_0_out"}


def test_states_packed_masked_and_inside_a_branch(settled: Settle) -> None:
    """States in one tensor, reset by a mask, of a node inside an If, are still what the node takes and gives."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    packed (float[1,n,3] x, float[1,n,1] mask, float[2,n,4] both, bool[1] fast) => (float[1,n,4] y, float[2,n,4] after)
    <float[1,16,3] w, float[1,16,4] r, int64[1] one = {1}>
    {
      y, after = If (fast) <
        then_branch = yes () => (float[1,n,4] y1, float[2,n,4] a1) {
          h, c = Split<axis = 0>(both)
          hm = Mul(h, mask)
          cm = Mul(c, mask)
          all, hn, cn = LSTM<hidden_size = 4>(x, w, r, , , hm, cm)
          y1 = Squeeze(all, one)
          a1 = Concat<axis = 0>(hn, cn) },
        else_branch = no () => (float[1,n,4] y2, float[2,n,4] a2) {
          h, c = Split<axis = 0>(both)
          y2 = Neg(h)
          a2 = Identity(both) }
      >
    }
    """
    found = settled(text)
    assert found.pairs == {"both": "after"}
    assert found.evidence["both"].startswith("LSTM node")


def test_an_lstm_by_its_formula(settled: Settle) -> None:
    """The cell state is a gated sum, and h what a gate makes of it; names agree."""
    found = settled(FORMULA.format(**NAMED))
    assert found.pairs == {"h_in": "h_out", "c_in": "c_out"}
    assert found.evidence == {"c_in": str(Kind.GATED), "h_in": str(Kind.FORMULA)}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (FORMULA.format(**EXCHANGED), "--state h_in=c_out --state c_in=h_out"),
        (FORMULA.format(**UNNAMED), "--state a2=r2 --state a1=r1"),
        (
            POLICY,
            "--state h0=hn --state prev_action=action",
        ),
        (
            beside("float[n,3] obs, float[n,3] act", "float[n,3] next_obs", "next_obs = Add(obs, mixed)"),
            "--state h0=hn --state obs=next_obs",
        ),
        (
            beside(
                "float[n,3] state, float[n,3] act",
                "float[n,3] next_state",
                "p = MatMul(state, v)\n  next_state = Add(state, p)",
            ),
            "--state h0=hn --state state=next_state",
        ),
        (
            beside("float[n,3] audio_in", "float[n,3] audio_out", "m = Sigmoid(mixed)\n  audio_out = Mul(audio_in, m)"),
            "--state h0=hn --state audio_in=audio_out",
        ),
        (
            beside("float[n,3] spec_in", "float[n,3] spec_out", "a, b = Split<axis = 1>(spec_in, pick)\n"
                   "  m = Sigmoid(mixed)\n  k = Slice(m, zero, one, one)\n  l = Slice(m, one, one, one)\n"
                   "  spec_out = Concat<axis = 1>(a, b)").replace("pick = {0, 1}", "pick = {1, 2}"),
            "--state h0=hn --state spec_in=spec_out",
        ),
        (
            beside("float[n,3] hidden", "float[n,3] hidden_out", "p = MatMul(hidden, v)\n  q = Add(p, mixed)\n"
                   "  hidden_out = Tanh(q)"),
            "--state h0=hn --state hidden=hidden_out",
        ),
        (
            beside("float[n,3] lstm_state", "float[n,3] z", "z = MatMul(lstm_state, v)"),
            "--state h0=hn --state lstm_state=z",
        ),
    ],
    ids=["exchanged", "unnamed", "policy", "world model", "world model of states", "mask", "spectrum", "tanh", "left"],
)  # fmt: skip
def test_what_names_alone_say_is_asked(settled: Settle, text: str, options: str) -> None:
    """Without evidence, or against it, the question proposes the pairs with all others, as options to copy."""
    with pytest.raises(StateQuestionError) as question:
        settled(text)
    assert options in [" ".join(choice.options) for choice in question.value.choices]
    assert all(choice.options for choice in question.value.choices)


def test_an_input_that_is_all_a_stream_sends_is_no_state(settled: Settle) -> None:
    """A denoiser's audio isn't asked about: with it as a state too, there would be no input."""
    text = beside("float[n,1] g", "float[1,n,3] audio_out", "m = Sigmoid(x)\n  audio_out = Mul(x, m)")
    text = text.replace(" x,", " audio_in,").replace("(x", "(audio_in").replace(", float[n,1] g", "")
    assert settled(text).pairs == {"h0": "hn"}


@pytest.mark.parametrize("asked", [{}, {"past_key": "present_key"}])
def test_a_cache_that_grows_is_refused_as_such(settled: Settle, asked: dict[str, str]) -> None:
    """All of an input with new steps behind it is no state of one size, told or not."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    grows (float[n,1,3] x, float[n,p,3] past_key) => (float[n,1,3] y, float[n,q,3] present_key)
    {
      present_key = Concat<axis = 1>(past_key, x)
      y = Neg(x)
    }
    """
    with pytest.raises(WrapError, match="'past_key' is a cache that grows"):
        settled(text, **asked)


def test_told_pairs_are_believed(settled: Settle) -> None:
    """What --state says needs no evidence, and the note says that it was told."""
    found = settled(beside("float[n,3] a", "float[n,3] z", "z = MatMul(a, v)"), a="z", h0="hn")
    assert found.pairs == {"a": "z", "h0": "hn"}
    assert set(found.evidence.values()) == {"as told"}


def test_nothing_that_is_a_state(settled: Settle) -> None:
    """A graph that only computes has no state."""
    with pytest.raises(NoStateError, match="no state found"):
        settled("""
        <ir_version: 8, opset_import: ["" : 17]>
        none (float[n,3] x) => (float[n,3] y) { y = Neg(x) }
        """)


def test_the_proposed_command_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal has the whole command line, quoted, and both answers to it are obeyed."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    path = wrapped.save(POLICY, folder / "given.onnx")
    arguments = ["wrap", str(path), "--name", "a", "--out", str(folder / "out")]
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    line = f"python -m export wrap '{path}' --name a --out '{folder / 'out'}'"
    assert f"'prev_action' as state: {line} --state h0=hn --state prev_action=action;" in error
    assert error.endswith(f"'prev_action' sent with every step: {line} --input prev_action\n")
    assert command.main([*arguments, "--input", "prev_action"]) == 0
    shown = capsys.readouterr().out
    assert "GRU node" in shown
    assert "GRU node" in (folder / "out" / "a" / "1" / "parity.json").read_text()
    assert "GRU node" in (folder / "out" / "a" / "1" / "parity.html").read_text()


ELMAN = """
<ir_version: 8, opset_import: ["" : 17]>
elman (float[n,3] x, float[n,4] {h}) => (float[n,3] y, float[n,4] {next}) <float[3,4] w, float[4,4] u, float[4,3] v>
{{
  a = MatMul(x, w)
  b = MatMul({h}, u)
  sum = Add(a, b)
  {next} = {what}(sum)
  y = MatMul({next}, v)
}}
"""


@pytest.mark.parametrize(("h", "successor"), [("h", "h_out"), ("hidden_in", "hidden_out"), ("hx", "hy")])
def test_a_plain_rnn_by_its_formula_needs_a_name_that_says_hidden(settled: Settle, h: str, successor: str) -> None:
    """f(W x + R h) is the next h where both are called so: there is no other reading in which a state is left."""
    found = settled(ELMAN.format(h=h, next=successor, what="Tanh"))
    assert found.pairs == {h: successor}
    assert found.evidence == {h: str(Kind.RECURRED)}


@pytest.mark.parametrize(
    ("h", "successor", "what"),
    [
        ("prev_action", "action", "Tanh"),
        ("obs", "next_obs", "Tanh"),
        ("state", "next_state", "Relu"),
        ("h", "h_out", "Identity"),  # a linear layer: any output is one
    ],
)
def test_the_same_formula_is_asked_about_by_any_other_name(settled: Settle, h: str, successor: str, what: str) -> None:
    """An action, an observation and a linear map have the same form, and aren't taken for states."""
    with pytest.raises(StateQuestionError, match=f"--input|--state {h}={successor}|{h}"):
        settled(ELMAN.format(h=h, next=successor, what=what))


def test_a_gated_sum_of_an_input_without_a_name_is_a_state_where_nothing_else_can_be(settled: Settle) -> None:
    """Numbers alone name nothing, so the nodes decide; where a second output would do, it is asked."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    gated (float[n,4] input_4, float[n,4,1] input_5) => (float[n,2] conv1d_3, float[n,4,1] stack_5{more})
    <float[4,2] v, int64[1] last = {{2}}>
    {{
      gate = Sigmoid(input_4)
      wide = Unsqueeze(gate, last)
      kept = Mul(wide, input_5)
      news = Tanh(input_4)
      new = Unsqueeze(news, last)
      stack_5 = Add(kept, new)
      flat = Squeeze(stack_5, last)
      conv1d_3 = MatMul(flat, v)
      {node}
    }}
    """
    assert settled(text.format(more="", node="")).pairs == {"input_5": "stack_5"}
    with pytest.raises(StateQuestionError):
        settled(text.format(more=", float[n,4,1] other", node="other = Neg(input_5)"))


@pytest.mark.parametrize(
    ("ins", "outs", "nodes"),
    [
        (
            "float[n,4] x1, float[n,1] v1",
            "float[n,4] later",
            "kept = Slice(x1, one, four, one)\n  later = Concat<axis = 1>(kept, v1)",
        ),
        (
            "float[n,4] x1, float[n,1] v1",
            "float[n,4] later",
            (
                "long = Concat<axis = 1>(x1, v1)\n  five = Constant<value = int64[1] {5}>()\n"
                "  later = Slice(long, one, five, one)"
            ),
        ),
        (
            "float[n,4] bias, int64[n,1] at, float[n,1] v1",
            "float[n,4] logits",
            "logits = ScatterElements<axis = 1>(bias, at, v1)",
        ),
        ("float[n,3] speaker", "float[n,3] speaker_out", "speaker_out = Identity(speaker)"),
        ("float[n,3] prev_action", "float[n,3] action", "q = Add(prev_action, mixed)\n  action = Tanh(q)"),
    ],
)
def test_data_that_moves_like_a_state_is_asked_about(settled: Settle, ins: str, outs: str, nodes: str) -> None:
    """Data that is delayed, overwritten or handed on is no state in silence, beside a state that is found."""
    name = ins.split(",")[1].rsplit(maxsplit=1)[-1]
    with pytest.raises(StateQuestionError, match=f"{name!r}") as asked:
        settled(beside(ins, outs, nodes))
    assert any(f"--input {name}" in " ".join(choice.options) for choice in asked.value.choices)
