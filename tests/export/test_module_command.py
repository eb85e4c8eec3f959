"""The command line of modules: files, weights inside bigger checkpoints, refusals in one line, proving again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from export import __main__ as command
from export import artifact, module_command
from export.module_calls import ModuleError
from export.module_code import first_state, load_module
from tests import modules

FILE = str(Path(modules.__file__))


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity over a few steps is enough to see the command."""
    monkeypatch.setattr(module_command, "STEPS", (1, 10))


def test_a_grus_weights_just_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m export gru.pt --name g`, out of a bigger checkpoint; proving again says what it can't."""
    gru, head = nn.GRU(5, 6, 2), nn.Linear(6, 3)
    weights = nn.ModuleDict({"rnn": gru, "fc": head, "other": nn.Linear(2, 2)}).state_dict()
    torch.save({"state_dict": weights, "epoch": 1}, tmp_path / "last.ckpt")
    out = tmp_path / "out"
    options = ["--name", "g", "--out", str(out)]
    assert command.main([str(tmp_path / "last.ckpt"), *options, "--prefix", "rnn", "--head", "fc"]) == 0
    text = capsys.readouterr().out
    assert "left out, of other modules: other.weight, other.bias" in text
    assert "planted faults caught" in text
    assert f"wrote {out / 'g' / 'config.pbtxt'}: Triton serves g, too" in text
    _, contract = artifact.read_graph(out / "g" / "1" / artifact.RESIDENT, weights=False)
    assert [(spec.name, spec.shape) for spec in (*contract.inputs, *contract.outputs)] == [("x", (5,)), ("y", (3,))]
    assert [state.shape for state in contract.states] == [(2, 6)]
    assert contract.ragged
    assert command.main(["prove", str(out / "g")]) == 0
    text = capsys.readouterr().out
    assert "not proved again: parity with the module" in text
    assert "is proved again by" in text


def test_a_module_in_a_file_with_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table says inputs, outputs and where states come from; the weights are those of the checkpoint."""
    torch.manual_seed(5)
    module = modules.Carrying()
    weights = {f"net.{name}": value for name, value in module.state_dict().items()} | {"loss": torch.zeros(1)}
    torch.save(weights, tmp_path / "a.pt")
    arguments = ["module", f"{FILE}:Carrying", "--name", "a", "--out", str(tmp_path / "out")]
    arguments += ["--input", "x=float32[time,batch,5]", "--weights", str(tmp_path / "a.pt"), "--prefix", "net"]
    assert command.main(arguments) == 0
    text = capsys.readouterr().out
    assert "modules.py:Carrying: what was understood" in text
    assert "left out, of other modules: loss" in text
    assert "forward's state" in " ".join(text.split())
    model, contract = artifact.read_graph(tmp_path / "out" / "a" / "1" / artifact.MODEL, weights=True)
    biases = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [2]]
    assert [tensor.raw_data for tensor in biases] == [module.head.bias.detach().numpy().tobytes()]
    assert contract.notes["wrapped"] == "modules.py:Carrying"


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("nowhere.py:A", "nowhere.py doesn't exist"),
        (FILE, "say which file and what in it"),
        (f"{FILE}:Nothing", "has no 'Nothing'; there are"),
        (f"{FILE}:not_a_module", "is a int"),
        (f"{FILE}:OverTime", r"OverTime\(\) fails: TypeError.*without arguments"),
        (f"{FILE}:seeded", r"seeded\(\) fails"),
    ],
)
def test_a_file_without_a_module_is_refused(where: str, text: str) -> None:
    """With what is there, or what to write."""
    with pytest.raises(ModuleError, match=text):
        load_module(where)


def test_code_that_fails_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cause is named, and no traceback shown."""
    (tmp_path / "bad.py").write_text("raise ValueError('no\\nluck')")
    assert command.main(["module", str(tmp_path / "bad.py:A"), "--name", "a", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: running ")
    assert "ValueError: no luck" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    """And make its module as a function or have it ready."""
    (tmp_path / "neighbour_of_mine.py").write_text("size = 6")
    text = "import neighbour_of_mine as n\nfrom torch import nn\nready = nn.GRU(5, n.size)\ndef make(): return ready\n"
    (tmp_path / "mine_to_export.py").write_text(text)
    for name in ("ready", "make"):
        module, _ = load_module(f"{tmp_path / 'mine_to_export.py'}:{name}")
        assert isinstance(module, nn.GRU)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """With the keys in question, and the prefix to try; shapes too."""
    weights = modules.Carrying().state_dict()
    torch.save({f"model.{name}": value for name, value in weights.items()}, tmp_path / "a.pt")
    with pytest.raises(ModuleError, match=r"missing gru.bias_hh_l0.*unknown model.gru.*try --prefix model"):
        load_module(f"{FILE}:Carrying", tmp_path / "a.pt")
    torch.save(weights | {"head.bias": torch.zeros(3)}, tmp_path / "b.pt")
    with pytest.raises(ModuleError, match=r"doesn't fit the module: .*head.bias"):
        load_module(f"{FILE}:Carrying", tmp_path / "b.pt")
    torch.save(weights | {"head.bias": torch.full((2,), float("nan"))}, tmp_path / "c.pt")
    with pytest.raises(ModuleError, match=r"NaN or infinity in head.bias"):
        load_module(f"{FILE}:Carrying", tmp_path / "c.pt")
    with pytest.raises(ModuleError, match=r"there are no --weights"):
        load_module(f"{FILE}:Carrying", prefix="a")


def test_a_first_state_reads_as_nested_as_it_is() -> None:
    """Zeros of each form; one argument, or several."""
    begin = first_state({"state": "(float32[2,batch,7],(int64[batch],float32[batch,3]))"})
    assert begin is not None
    first, (second, third) = begin(4)
    assert (first.shape, second.dtype, third.shape) == ((2, 4, 7), torch.int64, (4, 3))
    begin = first_state({"h": "float32[batch,7]", "c": "float32[batch,8]"})
    assert begin is not None
    assert [value.shape for value in begin(2)] == [(2, 7), (2, 8)]
    with pytest.raises(ModuleError, match=r"--state h=7"):
        first_state({"h": "7"})


def test_ranges_are_for_inputs_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name is refused with the right ones."""
    arguments = ["module", f"{FILE}:make_tagger", "--name", "a", "--out", str(tmp_path / "out"), "--range", "x=0:3"]
    assert command.main(arguments) == 1
    assert "--range x: no input is called so; there are tokens" in capsys.readouterr().err


def test_help_says_which_bidirectional_layers_stream() -> None:
    """Over time they don't; over frequency inside one step they do."""
    text = " ".join(module_command.parser().format_help().split())
    assert "bidirectional over time (over frequency inside one step they stream)" in text
