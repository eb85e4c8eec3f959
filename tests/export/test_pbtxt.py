"""Protobuf's text format: what is written reads back, by protobuf's own parser, as what was meant."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from export.pbtxt import Message, PbtxtError, pbtxt, read_pbtxt

MODEL = """\
# A model of somebody's, in several styles.
name: "net" 'work'  # joined
platform: 'onnxruntime_onnx', max_batch_size: 8;
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] }, { name: "z", dims: 3 dims: 4 } ]
output < name: "y" dims: [ ] >
sequence_batching: {
  state { initial_state { zero_data: true } }
  direct { minimum_slot_utilization: 2.5e-1 }
}
"""


def same(message: dict[str, Any]) -> bool:
    """Whether text and values parse as the same message."""
    by_text = text_format.Parse(pbtxt(message), model_config_pb2.ModelConfig())
    return bool(by_text == ParseDict(message, model_config_pb2.ModelConfig()))


@pytest.mark.parametrize(
    "message",
    [
        {"name": "a", "max_batch_size": 3},
        {"version_policy": {"all": {}}},
        {"version_policy": {"specific": {"versions": [1, 12]}}},
        {"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4], "reshape": {"shape": []}}, {"name": "y"}]},
        {"instance_group": [{"kind": "KIND_CPU", "gpus": []}], "response_cache": {"enable": False}},
        {"sequence_batching": {"state": [{"initial_state": [{"zero_data": True, "dims": [1]}]}]}},
    ],
)
def test_messages_read_back(message: dict[str, Any]) -> None:
    """Nested, repeated, empty, negative and false."""
    assert same(message)


@given(st.text(st.characters(codec="utf-8")))
def test_any_name_reads_back(name: str) -> None:
    """Quotes, backslashes, line ends and other alphabets are escaped."""
    assert same({"name": name})


def test_the_text_is_for_people() -> None:
    """One field a line, indented."""
    text = pbtxt({"name": "a", "input": [{"data_type": "TYPE_BOOL", "dims": [2, 3]}], "version_policy": {"all": {}}})
    assert text == ('name: "a"\ninput {\n  data_type: TYPE_BOOL\n  dims: [2, 3]\n}\nversion_policy {\n  all {}\n}\n')


def plain(message: Any) -> Message:
    """A protobuf message as the reader gives it."""
    found: Message = {}
    for field, value in message.ListFields():
        values = list(value) if field.is_repeated else [value]
        if field.message_type:
            found[field.name] = [plain(part) for part in values]
        elif field.enum_type:
            found[field.name] = [field.enum_type.values_by_number[part].name for part in values]
        else:
            found[field.name] = values
    return found


def test_what_people_write_is_read() -> None:
    """Comments, both kinds of quotes and brackets, joined texts and separators, as protobuf's own parser has it."""
    expected = plain(text_format.Parse(MODEL, model_config_pb2.ModelConfig()))
    found = read_pbtxt(MODEL)
    assert found["output"][0].pop("dims") == []
    assert found == expected


@given(st.text(st.characters(codec="utf-8")))
def test_what_is_written_is_read(name: str) -> None:
    """Any text comes back as it was."""
    assert read_pbtxt(pbtxt({"name": name, "dims": [-1, 2]})) == {"name": [name], "dims": [-1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a:",
        "a {",
        "a: {",
        'a: "x',
        "}",
        "a { }}",
        "a: [1 2]",
        "a: [1",
        "a 3",
        "a: ~",
        "a: 1x",
        r'a: "\q"',
        '"a": 1',
        "a{" * 10_000,
    ],
)
def test_what_is_no_message_is_refused(text: str) -> None:
    """With a typed error, never another one; and the line where it stops."""
    with pytest.raises(PbtxtError):
        read_pbtxt(text)
    with pytest.raises(PbtxtError, match="line 3: expected a number, at '1x'"):
        read_pbtxt("b: 1\n# b\na: 1x")


@given(st.text(st.sampled_from("ab:{}<>[],;\"'\\#\n 1.-")))
def test_no_text_makes_another_error(text: str) -> None:
    """Whatever it is, it is a message or refused as none."""
    with suppress(PbtxtError):
        read_pbtxt(text)
