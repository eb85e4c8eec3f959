"""The engine on real resident graphs: state in place, rows untouched, every lane as if alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.engine import Engine, EngineError
from serving.errors import ConfigError

F, ROWS = 5, 40
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def make_engine(artifacts: Path) -> MakeEngine:
    """Engines on the "vectors" model."""

    def make(model: str = "vectors/1", threads: int = 1) -> Engine:
        return Engine(
            artifacts / model / "resident.onnx",
            rows=ROWS,
            max_batch=8,
            slice_steps=16,
            max_run_steps=128,
            threads=threads,
        )

    return make


def vectors(steps: int, seed: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
    """X [T, F]."""
    x = np.random.default_rng(seed).standard_normal((steps, F), dtype=np.float32)
    return (x * np.float32(scale)).astype(np.float32)


def steps_alone(engine: Engine, x: npt.NDArray[Any]) -> tuple[bytes, bytes]:
    """Outputs and final state of x computed one step at a time in a batch of one."""
    row, outputs = 0, []
    for step, values in enumerate(x):
        fresh = 1 + step % 2
        outputs.append(engine.run([(values.tobytes(),)], [1], [row], [fresh])[0][0])
        row = fresh
    return b"".join(outputs), b"".join(state.tobytes() for state in engine.read_state(row))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=8),
    rows=st.permutations(range(1, ROWS)),
    seed=st.integers(0, 2**32 - 1),
    wild=st.integers(0, 7),
    threads=st.sampled_from([1, 2]),
)
def test_a_lane_is_the_same_bytes_in_any_company(
    make_engine: MakeEngine, lengths: list[int], rows: list[int], seed: int, wild: int, threads: int
) -> None:
    """Any batch size, place, rows, lengths, threads and neighbours (one of them wild): the bytes stay."""
    engine, lanes = make_engine(threads=threads), len(lengths)
    x = [vectors(steps, seed + lane, 1e4 if lane == wild else 1.0) for lane, steps in enumerate(lengths)]
    write = rows[:lanes]
    outputs = engine.run([(lane.tobytes(),) for lane in x], lengths, [0] * lanes, write)
    states = [b"".join(state.tobytes() for state in engine.read_state(row)) for row in write]
    other = make_engine()
    for lane in range(lanes):
        assert (outputs[lane][0], states[lane]) == steps_alone(other, x[lane]), f"lane {lane}"


def test_a_state_written_back_goes_on_where_it_was_read(make_engine: MakeEngine) -> None:
    """A copy of a row, put into another, computes the same bytes as the row itself."""
    engine, x = make_engine(), vectors(7, 3)
    engine.run([(x[:6].tobytes(),)], [6], [0], [1])
    engine.write_state(9, engine.read_state(1))
    original, copy = engine.run([(x[6:].tobytes(),)] * 2, [1, 1], [1, 9], [2, 3])
    assert original == copy
    assert engine.read_state(2)[0].tobytes() == engine.read_state(3)[0].tobytes()


def test_a_new_stream_computes_what_the_portable_model_does_from_the_initial_state(
    make_engine: MakeEngine, artifacts: Path
) -> None:
    """Row 0 is the contract's initial state: the first steps are those of model.onnx from zeros, bit for bit."""
    x = vectors(9, 5)
    portable = onnxruntime.InferenceSession(artifacts / "vectors/1/model.onnx", providers=["CPUExecutionProvider"])
    state = np.zeros((1, 2, 7), np.float32)
    (y,) = portable.run(["y"], {"x": x[None], "h": state, "c": state})
    (outputs,) = make_engine().run([(x.tobytes(),)], [9], [0], [1])
    assert outputs[0] == np.asarray(y).tobytes()


def test_only_the_rows_to_write_are_written(make_engine: MakeEngine) -> None:
    """A run leaves every other row as it was, those it reads among them, and row 0 the first state."""
    engine = make_engine()
    engine.run([(vectors(1, 1).tobytes(),)] * 3, [1, 1, 1], [0, 0, 0], [1, 2, 3])
    before = [engine.read_state(row)[0] for row in range(ROWS)]
    engine.run([(vectors(2, 2).tobytes(),), (vectors(1, 3).tobytes(),)], [2, 1], [1, 3], [9, 4])
    for row in range(ROWS):
        same = np.array_equal(before[row], engine.read_state(row)[0])
        assert same == (row not in (9, 4)), f"row {row}"


def test_running_again_gives_the_same(make_engine: MakeEngine) -> None:
    """Rows that are read aren't changed, so a run can be made twice."""
    engine = make_engine()
    x = (vectors(3, 1).tobytes(),)
    engine.run([x], [3], [0], [1])
    assert engine.run([x], [3], [1], [2]) == engine.run([x], [3], [1], [2])


@pytest.mark.parametrize(
    ("read", "write", "text"),
    [
        ([0, 0], [1, 1], "two lanes write one row"),
        ([1, 0], [1, 2], "read and written in one run"),
        ([0, 0], [0, 1], "is row 0"),
        ([0, ROWS], [1, 2], "outside the slab"),
        ([0, 0], [1, ROWS], "outside the slab"),
        ([-1, 0], [1, 2], "outside the slab"),
    ],
)
def test_bad_rows_never_reach_the_device(make_engine: MakeEngine, read: list[int], write: list[int], text: str) -> None:
    """A device may clamp a bad row in silence and overwrite somebody's state, so the host checks before every run."""
    with pytest.raises(AssertionError, match=text):
        make_engine().run([(vectors(1, 1).tobytes(),)] * 2, [1, 1], read, write)


@pytest.mark.parametrize("row", [0, -1, ROWS])
def test_a_probe_of_a_bad_row_never_reaches_the_device(make_engine: MakeEngine, row: int) -> None:
    """It would overwrite row 0, or what a device clamps it to."""
    with pytest.raises(AssertionError, match="outside the slab, or is row 0"):
        make_engine().probe(row)


def test_a_run_that_fails_leaves_everything_as_it_was(make_engine: MakeEngine) -> None:
    """A token that the graph can't look up raises EngineError, and no row has changed."""
    engine = make_engine("tokens/1")
    good, bad = np.array([3]).tobytes(), np.array([999]).tobytes()
    engine.run([(good,)], [1], [0], [1])
    before = engine.read_state(1)[0]
    with pytest.raises(EngineError):
        engine.run([(good,), (bad,)], [1, 1], [1, 1], [2, 3])
    assert np.array_equal(engine.read_state(1)[0], before)
    assert not engine.read_state(2)[0].any()
    engine.run([(good,)], [1], [1], [2])


def test_what_is_not_a_resident_graph_is_refused(artifacts: Path, tmp_path: Path) -> None:
    """A file that can't be loaded, or has no contract, is an error of configuration that names it."""
    broken = tmp_path / "resident.onnx"
    broken.write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match=r"resident\.onnx: ONNX Runtime can't load it"):
        Engine(broken, rows=4, max_batch=1, slice_steps=1, max_run_steps=1, threads=1)


def test_a_probe_changes_only_its_scratch_row(make_engine: MakeEngine) -> None:
    """Warming up disturbs no stream's state."""
    engine = make_engine()
    engine.run([(vectors(1, 1).tobytes(),)], [1], [0], [1])
    before = [engine.read_state(row)[0] for row in range(ROWS)]
    engine.probe(7, lanes=8, steps=16)
    for row in set(range(ROWS)) - {7}:
        assert np.array_equal(engine.read_state(row)[0], before[row])
