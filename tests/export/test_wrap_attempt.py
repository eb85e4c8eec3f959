"""What a wrapping certifies: its own model.onnx and its way to run lanes, against the file as it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto

from export import artifact, wrap, wrap_parity
from export.layouts import Layout
from export.resident import SEQUENCE_LENS, BackwardsError
from export.runtime import Resident
from export.triton import configuration
from export.understanding import Asked
from export.yardstick import RMS_BAR
from model.contract import LENGTHS
from model.triton_config import TritonError
from tests import wrapped


def wrapped_as(model: ModelProto | str, tmp_path: Path, batching: wrap.Batching = wrap.Batching.AUTO) -> wrap.Wrapped:
    """The artifact of a model."""
    given = wrapped.save(model, tmp_path / "given.onnx")
    told = Asked(states={"h": "h_out"} if isinstance(model, str) and "h_out" in model else {})
    return wrap.wrap(given, tmp_path / "a" / "1", name="a", asked=told, batching=batching)


def by_hand(path: Path, steps: int = 20) -> list[np.ndarray]:
    """What a file with x and h answers to one stream, called by plain ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {v.name: [size if isinstance(size, int) else 1 for size in v.shape] for v in session.get_inputs()}
    random, h, found = np.random.default_rng(3), np.zeros(shapes["h"], np.float32), []
    for _ in range(steps):
        y, h = session.run(["y", "h_out"], {"x": random.standard_normal(shapes["x"]).astype(np.float32), "h": h})
        found += [y, h]
    return found


@pytest.mark.parametrize("model", [wrapped.FUSIBLE, wrapped.FRAMED], ids=["fusible", "framed"])
def test_model_onnx_gives_the_bytes_of_the_given_file(tmp_path: Path, model: str) -> None:
    """Where a free batch changes last bits, the artifact's own graph keeps the sizes that it was given with."""
    made = wrapped_as(model, tmp_path)
    ours, given = by_hand(made.folder / artifact.MODEL), by_hand(tmp_path / "given.onnx")
    assert [value.tobytes() for value in ours] == [value.tobytes() for value in given]
    assert any("model.onnx keeps the given file's fixed sizes" in text for text in made.remarks)
    compared = [record for record in made.records if record.subject.startswith(artifact.MODEL)]
    assert {record.tensor for record in compared} == {"y", "h_out"}
    assert all(record.passed and record.rms_bar == 0 for record in compared)
    with pytest.raises(TritonError, match="keeps the given file's fixed batch"):
        configuration(made.contract)
    assert wrap.prove(made.folder).records


def test_what_free_sizes_do_not_change_has_them(tmp_path: Path) -> None:
    """A graph whose bytes don't depend on how its batch is declared takes any batch."""
    made = wrapped_as(wrapped.CONVOLVED, tmp_path)
    model, _ = artifact.read_graph(made.folder / artifact.MODEL, weights=False)
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input} == {"batch"}
    assert any(record.subject.startswith(artifact.MODEL) for record in made.records)


@pytest.mark.parametrize("batching", [wrap.Batching.AUTO, wrap.Batching.ALONE])
def test_lanes_as_calls(tmp_path: Path, batching: wrap.Batching) -> None:
    """Convolutions that round otherwise inside a Scan run in the main graph, one lane a call."""
    made = wrapped_as(wrapped.FRAMED, tmp_path, batching)
    assert made.contract.single_lane
    assert made.contract.notes["batches"] == "one by one"
    assert any("not streams one by one, single steps" in text for text in made.remarks)
    graph, contract = artifact.read_graph(made.folder / artifact.RESIDENT, weights=False)
    assert contract == made.contract
    assert not [node for node in graph.graph.node if node.op_type == "Scan"]
    runner = Resident(made.folder / artifact.RESIDENT, contract, rows=8)
    x = np.random.default_rng(0).standard_normal((3, 1, 3, 40)).astype(np.float32)
    answer = runner.run({"x": x}, [1] * 3, [0] * 3, [5, 2, 7])
    session = onnxruntime.InferenceSession(tmp_path / "given.onnx")
    for lane, row in enumerate((5, 2, 7)):
        y, h = session.run(["y", "h_out"], {"x": x[lane], "h": np.zeros((1, 8), np.float32)})
        assert answer["y"][lane].tobytes() == y.tobytes()
        assert runner.slabs["float32"][row].tobytes() == h.tobytes()


def test_a_graph_that_takes_several_lanes_is_not_called_for_each(tmp_path: Path) -> None:
    """Where a Scan gives the same bytes, the lanes of a run are one call."""
    made = wrapped_as(wrapped.FIXED, tmp_path)
    assert (made.contract.notes["batches"], made.contract.single_lane) == ("one by one", False)


@pytest.mark.parametrize(("model", "ragged"), [(wrapped.BANDS, False), (wrapped.TIMED_BANDS, True)])
def test_a_layer_across_the_bands_of_a_frame(tmp_path: Path, model: str, ragged: bool) -> None:
    """A bidirectional layer whose sequence lies inside one step is none that reads time backwards."""
    made = wrapped_as(model, tmp_path)
    assert (made.contract.ragged, made.contract.notes["batches"]) == (ragged, "together")
    graph, _ = artifact.read_graph(made.folder / artifact.RESIDENT, weights=False)
    layers = [node for node in graph.graph.node if node.op_type == "GRU"]
    assert [len(node.input) > SEQUENCE_LENS and node.input[SEQUENCE_LENS] == LENGTHS for node in layers] == (
        [False, True] if ragged else [False]
    )


@pytest.mark.parametrize("size", ["t", "5", "1"])
def test_a_layer_that_reads_the_streams_time_backwards_is_refused(tmp_path: Path, size: str) -> None:
    """However the time axis is declared: a state that is carried backwards is one of the stream's time."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    backwards (float[SIZE,1,4] x, float[2,1,4] h) => (float[SIZE,1,8] y, float[2,1,4] h_out)
    <float[2,12,4] w, float[2,12,4] r, int64[3] flat = {0, 1, 8}>
    {
      both, h_out = GRU<hidden_size = 4, direction = "bidirectional">(x, w, r, , , h)
      swapped = Transpose<perm = [0, 2, 1, 3]>(both)
      y = Reshape(swapped, flat)
    }
    """
    with pytest.raises(BackwardsError, match="reads its sequence backwards"):
        wrapped_as(text.replace("SIZE", size), tmp_path)


def test_a_file_that_can_not_be_run_as_ours_has_a_bar(tmp_path: Path) -> None:
    """A given batch of 3 isn't a batch of 1: the certificate says by what model.onnx may be off, and by what it is."""
    model = wrapped.recurrent("RNN")
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[1].dim_value = 3
    given = wrapped.save(model, tmp_path / "given.onnx")
    shapes: dict[str, Layout] = {"x": ("time", "batch", 5), "h0": (1, "batch", 6)}
    made = wrap.wrap(given, tmp_path / "a" / "1", name="a", asked=Asked(shapes=shapes))
    compared = [record for record in made.records if record.subject.startswith(artifact.MODEL)]
    assert compared
    assert all(record.passed for record in compared)
    assert any(record.rms_bar == RMS_BAR and "epsilons" in record.truth for record in compared)
    assert wrap.prove(made.folder).records


def test_a_bar_is_missed_by_another_graph(tmp_path: Path) -> None:
    """Weights that are off in their last digits are over the bar, which roundings aren't."""
    made = wrapped_as(wrapped.recurrent("GRU"), tmp_path)
    given = wrap_parity.ByHand(tmp_path / "given.onnx", made.contract)
    asked = wrap_parity.truths(given, "given.onnx")
    assert all(record.passed for record in wrap_parity.close_records(given, given, asked))
    changed = wrapped.recurrent("GRU")
    for tensor in changed.graph.initializer:
        if tensor.name == "r":
            values = np.frombuffer(tensor.raw_data, np.float32) * np.float32(1 + 2**-17)
            tensor.raw_data = values.tobytes()
    other = wrap_parity.ByHand(wrapped.save(changed, tmp_path / "changed.onnx"), made.contract)
    assert not all(record.passed for record in wrap_parity.close_records(other, given, asked))
