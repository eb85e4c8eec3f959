"""Inputs that say whether a sequence starts: wrapped as states, proved by plain calls that are told so, and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from export import __main__ as command
from export import artifact, run_faults, starts, wrap_parity, wrap_proof
from export.runtime import Resident
from export.wrap_parity import INITIAL, ByHand, draw, in_changing_batches
from model.contract import Contract
from tests import starting, wrapped
from tests.starting import Arrays

STREAMS, STEPS = 4, 7
Wrap = Callable[..., Contract]


@pytest.fixture
def wrap(tmp_path: Path) -> Wrap:
    """Wrap a model by the command line, and give the contract that its artifact has."""

    def run(model: str, *options: str) -> Contract:
        path = wrapped.save(model, tmp_path / "theirs.onnx")
        arguments = ["wrap", str(path), "--name", "a", "--out", str(tmp_path / "out")]
        assert command.main([*arguments, *(options or ["--start", "START"])]) == 0
        return artifact.read_graph(tmp_path / "out" / "a" / "1" / artifact.RESIDENT, weights=False)[1]

    return run


def drawn(contract: Contract, seed: int) -> list[Arrays]:
    """A stream's inputs, step by step."""
    random = np.random.default_rng(seed)
    return [
        {spec.name: (9 * random.standard_normal(spec.shape)).astype(spec.dtype) for spec in contract.inputs}
        for _ in range(STEPS)
    ]


def streamed(folder: Path, contract: Contract, xs: list[list[Arrays]]) -> list[list[bytes]]:
    """The answers to all streams, each in every batch."""
    resident = Resident(folder / artifact.RESIDENT, contract, rows=2 * len(xs) + 1, threads=1)
    (x,), (y,) = contract.inputs, contract.outputs
    answers: list[list[bytes]] = [[] for _ in xs]
    for step in range(STEPS):
        read, write = ([1 + (step + turn) % 2 + 2 * lane for lane in range(len(xs))] for turn in (0, 1))
        inputs = {x.name: np.stack([stream[step][x.name][None] for stream in xs])}
        found = resident.run(inputs, [1] * len(xs), read if step else [0] * len(xs), write)[y.name]
        for lane, answer in enumerate(answers):
            answer.append(found[lane].tobytes())
    return answers


@pytest.mark.parametrize(
    ("model", "dtype", "batches", "options"),
    [
        (starting.SIMPLE, "int32", "together", ()),
        (starting.READY, "int32", "together", ("--constant", "READY=1")),
        (starting.FLAGGED, "bool", "together", ()),
        (starting.FLAT, "float32", "together", ()),
        (starting.RESET, "float32", "together", ()),
        (starting.TIMED, "int32", "together", ("--shape", "h=batch,1,4")),
        (starting.BARE, "float32", "one by one", ()),
        (starting.STATELESS, "float32", "one by one", ()),
        (starting.SCALAR, "float32", "one by one", ()),
        (starting.BRANCHED, "bool", "one by one", ()),
    ],
    ids=["simple", "ready", "flagged", "flat", "reset", "timed", "bare", "stateless", "scalar", "branched"],
)
def test_a_stream_is_told_its_start(
    wrap: Wrap, tmp_path: Path, model: str, dtype: str, batches: str, options: tuple[str, ...]
) -> None:
    """Whatever its dtype and axes, START is a state [1] that says so once; all streams get their file's own bytes."""
    contract = wrap(model, "--start", "START", *options)
    (start,) = starts.noted(contract)
    assert (start.state.input, start.state.shape, start.state.batch_axis) == ("START", (1,), 0)
    assert (start.state.dtype, start.state.initial) == (dtype, np.array([1], dtype).tobytes())
    assert contract.notes["batches"] == batches
    assert contract.ragged == (model == starting.RESET)  # there only the first step of a chunk hears of a start
    xs = [drawn(contract, seed) for seed in range(STREAMS)]
    states = {state.input: state.output for state in contract.states if state != start.state}
    wanted = [starting.plainly(tmp_path / "theirs.onnx", x, states, contract.outputs[0].name) for x in xs]
    found = streamed(tmp_path / "out" / "a" / "1", contract, xs)
    assert found == [[answer.tobytes() for answer in stream] for stream in wanted]
    assert contract.certificate is not None
    assert all(contract.certificate.controls.values()), contract.certificate.controls
    assert {"a start never told", "a start told at every step"} <= contract.certificate.controls.keys()
    assert command.main(["prove", str(tmp_path / "out" / "a")]) == 0


def test_other_values_than_0_and_1(wrap: Wrap, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FALSE:TRUE is what is said, even where true is zero, and the table shows it."""
    contract = wrap(starting.SIMPLE, "--start", "START=7:0")
    assert "first 0," in capsys.readouterr().out
    xs = [drawn(contract, 0)]
    (answers,) = streamed(tmp_path / "out" / "a" / "1", contract, xs)
    told = [0] + [7] * (STEPS - 1)
    assert answers == [(x["INPUT"] + np.int32(said)).tobytes() for x, said in zip(xs[0], told, strict=True)]


def prove(folder: Path, contract: Contract, by_hand: ByHand) -> None:
    """Compare the resident graph with single calls of another."""
    asked = wrap_parity.truths(by_hand, by_hand.path.name)
    wrap_proof.proved(folder / artifact.RESIDENT, contract, asked, lambda *_: None)


@pytest.mark.parametrize("model", [starting.SIMPLE, starting.RESET], ids=["simple", "reset"])
def test_a_start_never_told_is_found(wrap: Wrap, tmp_path: Path, model: str) -> None:
    """A first value that doesn't say so fails against their own file, wherever the contract has it from."""
    contract = wrap(model)
    (start,) = starts.noted(contract)
    wrong = replace(start.state, initial=np.zeros(1, start.state.dtype).tobytes())
    states = tuple(wrong if state == start.state else state for state in contract.states)
    by_hand = ByHand(tmp_path / "theirs.onnx", replace(contract, states=states))
    with pytest.raises(wrap_proof.WrapParityError, match="differ in their bytes"):
        prove(tmp_path / "out" / "a" / "1", contract, by_hand)


@pytest.mark.parametrize("model", [starting.SIMPLE, starting.RESET], ids=["simple", "reset"])
def test_a_start_told_at_every_step_is_found(wrap: Wrap, tmp_path: Path, model: str) -> None:
    """A successor that says so again fails against their own file, and when the artifact is proved again."""
    contract = wrap(model)
    folder = tmp_path / "out" / "a" / "1"
    (start,) = starts.noted(contract)
    for name in (artifact.MODEL, artifact.RESIDENT):
        graph, _ = artifact.read_graph(folder / name, weights=False)
        (node,) = [node for node in graph.graph.node if node.op_type == "ConstantOfShape"]
        node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones(1, start.state.dtype)))
        artifact.write_graph(graph, folder / name, contract)
    for path in (tmp_path / "theirs.onnx", folder / artifact.MODEL):
        with pytest.raises(wrap_proof.WrapParityError, match="differ in their bytes"):
            prove(folder, contract, ByHand(path, contract))


def test_a_start_that_changes_nothing(wrap: Wrap) -> None:
    """Where no answer depends on START, the certificate says that faults in it weren't seen."""
    contract = wrap(starting.SIMPLE.replace("Add(INPUT, START)", "Neg(INPUT)"))
    assert contract.certificate is not None
    assert contract.certificate.passed
    assert contract.certificate.controls["a start told at every step"] == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--start", "NONE"), "--start NONE: no input is called so; there are INPUT, START"),
        (("--start", "START=1"), "--start START=1: it has the form NAME=FALSE:TRUE"),
        (("--start", "START=x:1"), "--start: 'x' is no number"),
        (("--start", "START=1:1"), "--start START=1:1: a start must say something else than no start"),
        (("--start", "START=0:0.5"), "--start START=0:0.5: 0.5 is no int32, and 'START' is of int32"),
        (("--start", "START=0:1,2"), "--start START=0:[1 2]: [1 2] is no int32"),
        (("--start", "START", "--start", "START=1:0"), "--start START is given twice"),
        (("--start", "START", "--constant", "START=0"), "--start START and --constant START: "),
        (("--start", "START", "--state", "START=OUTPUT"), "--start START and --state START: "),
        (("--start", "START", "--shape", "START=batch,1"), "--start START and --shape START: "),
        (("--start", "INPUT"), "--start INPUT: its shape ['n', 3] is more than one value a stream ([batch]"),
    ],
)
def test_what_is_no_start(
    options: tuple[str, ...], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is named in a line, and nothing is written."""
    model = starting.SIMPLE.replace("int32[n,1] INPUT", "int32[n,3] INPUT")
    path = wrapped.save(model, tmp_path / "theirs.onnx")
    assert command.main(["wrap", str(path), "--name", "a", "--out", str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {why}")
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_a_successor_that_triton_pairs(wrap: Wrap) -> None:
    """It is called so that states sort alike as inputs and as outputs, and like nothing else in the graph."""
    contract = wrap(starting.NAMES, "--start", "START", "--state", "A=Z")
    assert {state.input: state.output for state in contract.states} == {"A": "Z", "START": "Z_START"}


def test_an_input_with_a_value_of_its_own(wrap: Wrap) -> None:
    """It is an input again, and its successor is called like nothing else in the graph."""
    (start,) = starts.noted(wrap(starting.DEFAULT))
    assert (start.state.input, start.state.output) == ("START", "START_next_")


def test_a_start_is_never_taken_for_another_state(
    wrap: Wrap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no name tells states, what is proposed is never what says a start, though its shape is the same."""
    path = wrapped.save(starting.SHAPED, tmp_path / "theirs.onnx")
    assert command.main(["wrap", str(path), "--name", "a", "--out", str(tmp_path), "--start", "START"]) == 1
    error = capsys.readouterr().err
    assert error.endswith("--start START --state q=z\n")
    assert "START=" not in error
    contract = wrap(starting.SHAPED, "--start", "START", "--state", "q=z")
    assert {state.input: state.output for state in contract.states} == {"START": "START_next", "q": "z"}


def test_a_table_gets_no_batch_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A graph whose only state is a start has its batch where its inputs have it."""
    path = wrapped.save(starting.TABLE, tmp_path / "theirs.onnx")
    assert command.main(["wrap", str(path), "--name", "a", "--out", str(tmp_path), "--start", "START"]) == 1
    assert "input 'k' [3] has no free axis" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "told"), [(run_faults.NeverStarted, 0), (run_faults.AlwaysStarted, 1)], ids=["never", "always"]
)
def test_what_the_planted_faults_do(wrap: Wrap, tmp_path: Path, fault: type[Resident], told: int) -> None:
    """One tells no step of a start, the other all of them."""
    contract = wrap(starting.SIMPLE)
    sample = draw(contract, 3, 4, INITIAL, seed=0)
    path = tmp_path / "out" / "a" / "1" / artifact.RESIDENT
    answer = in_changing_batches(path, contract, sample, 1, 0, runs=fault)["OUTPUT"]
    assert (answer - sample.inputs["INPUT"] == told).all()
