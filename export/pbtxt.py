"""Plain values as protobuf's text format, which Triton's `config.pbtxt` is in.

Owns the syntax. Knows no schema: enum values are told from texts by the names of their fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

ENUMS = frozenset({"data_type", "kind"})  # fields whose texts are names of enum values, and stand bare
INDENT = "  "


def pbtxt(message: Mapping[str, Any]) -> str:
    """The message's fields in their order: maps as messages, lists as repeated fields, and the rest as scalars."""
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _block(name, value)
        elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
            for part in value:
                yield from _block(name, part)
        elif isinstance(value, list):
            yield f"{name}: [{', '.join(_scalar(name, part) for part in value)}]"
        else:
            yield f"{name}: {_scalar(name, value)}"


def _block(name: str, message: Mapping[str, Any]) -> Iterator[str]:
    inside = [INDENT + line for line in _lines(message)]
    yield from [f"{name} {{", *inside, "}"] if inside else [f"{name} {{}}"]


def _scalar(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and name not in ENUMS:
        return json.dumps(value, ensure_ascii=False)  # a name's quotes and backslashes are escaped as in C
    return str(value)
