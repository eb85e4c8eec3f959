"""The contract: what goes into ONNX metadata comes out again, damage is named, and digests cover what they should."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, parser

from model.contract import (
    METADATA_KEY,
    Certificate,
    Constant,
    Contract,
    ContractError,
    ParityRecord,
    StatePair,
    TensorSpec,
    graph_digest,
)

RECORD = ParityRecord("a", "b", "y", 10, "zero", 1e-8, 2e-8, 0.5, 0.75, 2.0, 4.0, passed=True)
CERTIFICATE = Certificate(
    created="2026-11-24",
    machine="here",
    versions={"onnx": "1"},
    weights_digest="sha256:0",
    records=(RECORD,),
    not_checked=("CUDA",),
    invariances={"batch size": True},
    controls={"a fault": 30.0},
    digests={"model.onnx": "sha256:1"},
)
CONTRACT = Contract(
    name="everything",
    inputs=(TensorSpec("x", "int64", (), minimum=0, maximum=10), TensorSpec("z", "float32", (3, 2), 1, None)),
    outputs=(TensorSpec("y", "float32", (4,)),),
    states=(
        StatePair("h", "h_out", "float32", (2, 3), 1, np.arange(6, dtype="<f4").tobytes()),
        StatePair("n", "n_out", "int64", ()),
        StatePair("c", "c_out", "float32", (5,)),
    ),
    weights_digest="sha256:0",
    ragged=False,
    row_parts={"float32": 11},
    constants=(Constant("sr", "int64", (), np.int64(16000).tobytes()),),
    notes={"tokens": "bytes"},
    certificate=CERTIFICATE,
)


def test_metadata_keeps_everything() -> None:
    """What is written into an ONNX file is read back equal."""
    assert Contract.from_metadata(CONTRACT.to_metadata()) == CONTRACT


def test_slabs_join_states_by_dtype_in_contract_order() -> None:
    """One slab per dtype; a row is its states, flattened, in the contract's order; row 0 holds their first values."""
    floats, integers = CONTRACT.slabs()
    assert [state.input for state in floats.states] == ["h", "c"]
    assert (floats.input, floats.output, floats.width, floats.row_bytes) == (
        "slab_float32",
        "slab_float32_next",
        11,
        44,
    )
    assert floats.initial_row().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert integers.initial_row().dtype.name == "int64"
    assert integers.width == 1
    assert (floats.axes, floats.shape(7)) == (("row_parts", 1), [77, 1])
    assert (integers.axes, integers.shape(7)) == (("rows", 1), [7, 1])


def test_whole_rows_are_what_older_versions_wrote() -> None:
    """An artifact from before there were parts reads as one of whole rows, and its digest is what it was."""
    whole = replace(CONTRACT, row_parts={})
    text = whole.to_metadata()[METADATA_KEY]
    assert "row_parts" not in text
    assert Contract.from_metadata({METADATA_KEY: text}) == whole
    assert whole.digest() == "sha256:e6f2c2a0de2096655b40af4d4cbaf143d54358b8d8af6b42d2e32905b4ecbcf7"
    assert CONTRACT.digest() != whole.digest()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "no contract"),
        ({METADATA_KEY: "{"}, "damaged contract"),
        ({METADATA_KEY: "[]"}, "schema None"),
        ({METADATA_KEY: '{"schema": 99}'}, "schema 99, and this version reads schema 1"),
        ({METADATA_KEY: '{"schema": 1}'}, "damaged contract"),
    ],
)
def test_what_is_no_contract_is_named(change: dict[str, str], text: str) -> None:
    """Missing, damaged or of another schema: each says which."""
    with pytest.raises(ContractError, match=text):
        Contract.from_metadata(change)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (replace(CONTRACT, inputs=()), "no input"),
        (replace(CONTRACT, outputs=()), "no output"),
        (replace(CONTRACT, outputs=(TensorSpec("x", "float32", ()),)), "names used twice: x"),
        (replace(CONTRACT, outputs=(TensorSpec("y", "float32", (0,)),)), "size below 1"),
        (replace(CONTRACT, outputs=(TensorSpec("y", "nonsense", ()),)), "nonsense"),
        (replace(CONTRACT, states=(StatePair("h", "h_out", "float32", (2,), 0, b"123"),)), "3 bytes of initial value"),
        (replace(CONTRACT, row_parts={"float32": 3}), "'float32': 3 don't divide 11 elements"),
        (replace(CONTRACT, row_parts={"float32": 0}), "0 don't divide"),
        (replace(CONTRACT, row_parts={"float64": 1}), "row_parts of 'float64', and no state has that dtype"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(wrong: Contract, text: str) -> None:
    """The reader checks what it reads, so that nobody behind it has to."""
    with pytest.raises(ContractError, match=text):
        Contract.from_metadata(wrong.to_metadata())


def test_a_certificate_passes_only_if_something_was_checked_and_all_of_it_passed() -> None:
    """No record, or one that failed, is no proof."""
    assert CERTIFICATE.passed
    assert not replace(CERTIFICATE, records=()).passed
    assert not replace(CERTIFICATE, records=(RECORD, replace(RECORD, passed=False))).passed


def test_the_digest_covers_everything_but_the_certificate() -> None:
    """Any change of the contract changes it; being certified doesn't."""
    assert replace(CONTRACT, certificate=None).digest() == CONTRACT.digest()
    assert replace(CONTRACT, states=CONTRACT.states[::-1]).digest() != CONTRACT.digest()
    assert replace(CONTRACT, ragged=True).digest() != CONTRACT.digest()
    plain = json.loads(CONTRACT.to_metadata()[METADATA_KEY])
    for name in set(plain) - {"certificate", "schema"}:
        assert name in Contract.__dataclass_fields__, f"{name} isn't the contract's"


GRAPH = "agraph (float[N] x) => (float[N] y) { y = Add(x, x) }"


def model() -> ModelProto:
    """A small ONNX model."""
    made: ModelProto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 20]> {GRAPH}')
    return made


@given(st.dictionaries(st.text(), st.text(), max_size=4))
def test_metadata_does_not_change_a_graph_s_digest(metadata: dict[str, str]) -> None:
    """The certificate stands in the metadata and holds the digest, so the digest can't cover it."""
    changed = model()
    for key, value in metadata.items():
        changed.metadata_props.add(key=key, value=value)
    assert graph_digest(changed.SerializeToString()) == graph_digest(model().SerializeToString())


def test_any_other_change_changes_a_graph_s_digest() -> None:
    """Nodes, names, operator sets and documentation are all covered."""
    digest = graph_digest(model().SerializeToString())
    for change in (
        lambda made: made.graph.node[0].input.__setitem__(1, "y"),
        lambda made: setattr(made.graph.node[0], "op_type", "Mul"),
        lambda made: setattr(made.opset_import[0], "version", 21),
        lambda made: setattr(made, "doc_string", "new"),
    ):
        changed = model()
        change(changed)
        assert graph_digest(changed.SerializeToString()) != digest


@given(st.binary(max_size=200))
def test_rubbish_has_a_digest_or_is_refused(data: bytes) -> None:
    """Bytes that aren't a protobuf message raise ContractError, never anything else."""
    try:
        digest = graph_digest(data)
    except ContractError as error:
        digest = f"sha256: {error}"
    assert digest.startswith("sha256:")
