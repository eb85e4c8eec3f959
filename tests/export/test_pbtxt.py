"""Protobuf's text format: what is written reads back, by protobuf's own parser, as what was meant."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from export.pbtxt import pbtxt


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
