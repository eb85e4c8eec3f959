"""An artifact's folder as Triton has it: its configuration is of the graph, runs it right, and stays people's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ValueInfoProto, helper

from export import __main__ as command
from export import artifact, module, pipeline, triton, wrap
from export.runtime import Resident
from export.understanding import Asked
from model.checkpoint import Checkpoint
from model.contract import Constant, Contract
from model.lstm import Spec
from model.triton_config import initial_files
from tests import modules, wrapped
from tests.export.conftest import PROJECTED, TOKENS, VECTORS, seeded
from tests.triton import Array, Arrays, Sequences, dtype, read_config

LEAKY = """
<ir_version: 8, opset_import: ["" : 17]>
leaky (float[n,4] x, int64[n] turn, float[n,4] s, double[n,1] k) => (float[n,4] y, float[n,4] s_out, double[n,1] k_out)
<int64[1] axis = {1}, float half = {0.5}, float[4,4] w>
{
  kept = Mul(s, half)
  new = MatMul(x, w)
  s_out = Add(kept, new)
  column = Unsqueeze(turn, axis)
  wide = Cast<to = 11>(column)
  k_out = Add(k, wide)
  narrow = Cast<to = 1>(k)
  y = Add(s_out, narrow)
}
"""


def an_lstm(folder: Path, spec: Spec = VECTORS) -> Contract:
    """Both graphs of a small LSTM in a new folder, with the configuration that an export writes."""
    folder.mkdir(parents=True)
    contract = pipeline.write_graphs(Checkpoint(seeded(spec)), folder, folder.parent.name)
    assert triton.describe(folder)
    return contract


def a_module(folder: Path, make: Any, *inputs: str) -> Contract:
    """A module's artifact, proved over a few steps."""
    return module.export_module(modules.seeded(make), folder, name="m", inputs=inputs, steps=(1, 2)).contract


def a_graph(folder: Path, model: Any, **asked: Any) -> Contract:
    """Somebody else's graph, wrapped."""
    folder.parent.mkdir(parents=True)
    path = wrapped.save(model, folder.parent / "theirs.onnx")
    return wrap.wrap(path, folder, name="w", asked=Asked(**asked)).contract


X, STEP = "x=float32[batch,time,5]", "x=float32[batch,5]"
FIRST = {"s": np.array([1, -2, 3, 0.5]), "k": np.array([7.0])}
KINDS: dict[str, Callable[[Path], Contract]] = {
    "LSTM": an_lstm,
    "tokens": lambda folder: an_lstm(folder, TOKENS),
    "projected": lambda folder: an_lstm(folder, PROJECTED),
    "cells with a first state": lambda folder: a_module(folder, modules.Cells, STEP),
    "one by one, single steps": lambda folder: a_module(folder, modules.Mixed, X, "kind=int64[batch,time]"),
    "wrapped, a number a step": lambda folder: a_graph(folder, LEAKY, initial=FIRST),
}


@pytest.fixture(scope="module", params=list(KINDS.values()), ids=list(KINDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contract]:
    """A model's folder with one version, and the contract of that."""
    folder = tmp_path_factory.mktemp("artifacts") / "net"
    return folder, request.param(folder / "1")


def values(contract: Contract, name: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Random values that the input takes."""
    (spec,) = [spec for spec in contract.inputs if spec.name == name]
    if np.dtype(spec.dtype).kind == "f":
        return random.standard_normal(shape).astype(spec.dtype)
    return random.integers(spec.minimum or 0, (spec.maximum or 9) + 1, shape).astype(spec.dtype)


def request_of(config: Any, contract: Contract, steps: int, random: np.random.Generator) -> Arrays:
    """What a client sends that knows the configuration alone: so many steps where it takes steps."""
    shapes = {spec.name: (1, *(steps if size < 0 else size for size in spec.dims)) for spec in config.input}
    return {name: values(contract, name, shape, random) for name, shape in shapes.items()}


def test_the_configuration_is_the_graphs(made: tuple[Path, Contract]) -> None:
    """It parses by Triton's schema, and names, dtypes and sizes are those that model.onnx declares, batch in front."""
    folder, _ = made
    config = read_config(folder)
    graph = onnx.load(folder / "1" / config.default_model_filename, load_external_data=False).graph
    states = config.sequence_batching.state
    for tensors, declared, of_state in (
        (config.input, graph.input, "input_name"),
        (config.output, graph.output, "output_name"),
    ):
        said = {spec.name: (spec, dims_of(spec)) for spec in tensors}
        said |= {getattr(state, of_state): (state, list(state.dims)) for state in states}
        assert said.keys() == {value.name for value in declared}
        for value in declared:
            spec, dims = said[value.name]
            kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            assert dtype(spec.data_type) == kind
            assert fits([-1, *dims], value), (value.name, dims)
    assert (config.name, config.max_batch_size > 0) == (folder.name, True)


def dims_of(spec: Any) -> list[int]:
    """The dims that the graph gets, without the batch."""
    return list(spec.reshape.shape if spec.HasField("reshape") else spec.dims)


def fits(dims: list[int], value: ValueInfoProto) -> bool:
    """Whether dims are what a graph declares: a free axis takes any, a fixed one itself only."""
    declared = value.type.tensor_type.shape.dim
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in declared]
    return len(sizes) == len(dims) and all(size in (-1, want) for size, want in zip(sizes, dims, strict=True))


def test_tritons_way_gives_the_same_bytes(made: tuple[Path, Contract]) -> None:
    """Sequences in changing batches, run by config.pbtxt alone, answer what the resident graph answers each stream."""
    folder, contract = made
    random = np.random.default_rng(0)
    served = Sequences(folder, "1")
    resident = Resident(folder / "1" / artifact.RESIDENT, contract, rows=12, threads=1)
    rows = dict.fromkeys(range(5), 0)
    for turn in range(12):
        most = min(len(rows), served.config.max_batch_size)
        live = random.permutation(len(rows))[: random.integers(1, most + 1)].tolist()
        if turn in (0, 7):  # all begin, and once more later
            for sequence in rows:
                first = {sequence: request_of(served.config, contract, 2, random)}
                check(served.infer(first, start=True), first, {sequence: 0}, resident, contract, rows)
        steps = int(random.integers(1, 4))
        batch = {sequence: request_of(served.config, contract, steps, random) for sequence in live}
        check(served.infer(batch), batch, {one: rows[one] for one in live}, resident, contract, rows)


def check(
    answers: dict[int, Arrays],
    batch: dict[int, Arrays],
    read: dict[int, int],
    resident: Resident,
    contract: Contract,
    rows: dict[int, int],
) -> None:
    """Compare the answers with each stream's own run of the resident graph, which moves it to another row."""
    for sequence, request in batch.items():
        steps = {spec.name: request[spec.name].reshape(1, -1, *spec.shape) for spec in contract.inputs}
        write = 2 * sequence + 1 + (read[sequence] == 2 * sequence + 1)
        length = len(next(iter(steps.values()))[0])
        expected = resident.run(steps, [length], [read[sequence]], [write])
        rows[sequence] = write
        for name, value in answers[sequence].items():
            assert value.size == expected[name].size
            assert value.tobytes() == expected[name].tobytes(), (name, sequence)


def test_a_first_state_lies_beside_the_versions(tmp_path: Path) -> None:
    """The file that the configuration names holds the contract's bytes."""
    contract = a_graph(tmp_path / "w" / "1", LEAKY, initial=FIRST)
    files = {path.name: path.read_bytes() for path in (tmp_path / "w" / triton.INITIAL).iterdir()}
    assert files == initial_files(contract)
    assert sorted(files.values(), key=len) == [np.float64(7).tobytes(), FIRST["s"].astype("<f4").tobytes()]


def test_a_second_version_changes_nothing(tmp_path: Path) -> None:
    """With the same tensors the file says the same of both."""
    an_lstm(tmp_path / "a" / "1")
    before = (tmp_path / "a" / triton.CONFIG).read_bytes()
    an_lstm(tmp_path / "a" / "2")
    assert (tmp_path / "a" / triton.CONFIG).read_bytes() == before
    assert read_config(tmp_path / "a").version_policy.WhichOneof("policy_choice") == "all"


def test_a_version_with_other_tensors_is_told_apart(tmp_path: Path) -> None:
    """The configuration is the newest version's and for its likes alone; the others are named."""
    an_lstm(tmp_path / "a" / "1")
    an_lstm(tmp_path / "a" / "2", PROJECTED)
    config = read_config(tmp_path / "a")
    assert list(config.version_policy.specific.versions) == [2]
    assert [list(state.dims) for state in config.sequence_batching.state] == [[2, 3], [2, 7]]
    an_lstm(tmp_path / "a" / "3")
    assert "but not version 2" in triton.write(tmp_path / "a")
    config = read_config(tmp_path / "a")
    assert list(config.version_policy.specific.versions) == [1, 3]
    assert [list(state.dims) for state in config.sequence_batching.state] == [[2, 7], [2, 7]]


def unable(version: Path) -> None:
    """Give the artifact's model.onnx a contract that Triton can't serve."""
    model, contract = artifact.read_graph(version / artifact.MODEL, weights=False)
    constant = Constant("rate", "int64", (), b"\0" * 8)
    artifact.write_graph(model, version / artifact.MODEL, replace(contract, constants=(constant,)))


def test_a_version_that_triton_cannot_serve(tmp_path: Path) -> None:
    """It is named with the reason; the others keep their configuration, and it goes with the last of them."""
    for version in ("1", "2"):
        an_lstm(tmp_path / "a" / version)
    unable(tmp_path / "a" / "2")
    (line,) = triton.describe(tmp_path / "a" / "2")
    assert line.startswith("not for Triton: side input 'rate' is a constant")
    assert list(read_config(tmp_path / "a").version_policy.specific.versions) == [1]
    unable(tmp_path / "a" / "1")
    (line,) = triton.describe(tmp_path / "a" / "1")
    assert line.startswith("not for Triton: side input 'rate' is a constant")
    assert not (tmp_path / "a" / triton.CONFIG).exists()


@pytest.mark.parametrize(
    "edit", [lambda text: text + "# mine\n", lambda text: text.replace("4096", "64"), lambda _: ""]
)
def test_what_people_wrote_stays(tmp_path: Path, edit: Any) -> None:
    """A file that was edited, or is nobody's of ours, is kept and named, whatever comes after."""
    an_lstm(tmp_path / "a" / "1")
    path = tmp_path / "a" / triton.CONFIG
    path.write_text(edit(path.read_text()))
    mine = path.read_bytes()
    an_lstm(tmp_path / "a" / "2", PROJECTED)
    assert path.read_bytes() == mine
    assert "edited by hand and stays so" in triton.write(tmp_path / "a")
    unable(tmp_path / "a" / "1")
    unable(tmp_path / "a" / "2")
    assert triton.describe(tmp_path / "a" / "2")
    assert path.read_bytes() == mine


def test_an_export_is_fine_where_no_configuration_can_be_written(tmp_path: Path) -> None:
    """The reason is told in a line; and nothing is written where the folder is no version's."""
    an_lstm(tmp_path / "a" / "1")
    (tmp_path / "a" / triton.CONFIG).unlink()
    (tmp_path / "a" / triton.CONFIG).mkdir()
    (line,) = triton.describe(tmp_path / "a" / "1")
    assert line.startswith(f"not for Triton: can't write {tmp_path / 'a' / triton.CONFIG}")
    (tmp_path / "a" / "1").rename(tmp_path / "a" / "latest")
    assert triton.describe(tmp_path / "a" / "latest") == ()


def test_the_command_writes_it_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m export triton artifacts/NAME`, and every refusal in one line."""
    folder = tmp_path / "a"
    an_lstm(folder / "1")
    before = (folder / triton.CONFIG).read_bytes()
    (folder / triton.CONFIG).unlink()
    assert command.main(["triton", str(folder)]) == 0
    assert capsys.readouterr().out == f"wrote {folder / triton.CONFIG}: Triton serves a, too\n"
    assert (folder / triton.CONFIG).read_bytes() == before
    unable(folder / "1")
    for path, why in ((folder, "'rate' is a constant"), (tmp_path / "none", "no artifact at")):
        assert command.main(["triton", str(path)]) == 1
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1
