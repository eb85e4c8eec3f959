"""Protobuf's text format, which Triton's `config.pbtxt` is in: plain values written, and read.

Owns the syntax. Knows no schema: what is written as an enum value is told by the name of its field, and what is read
has a list in every field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ENUMS = frozenset({"data_type", "kind"})  # fields whose texts are names of enum values, and stand bare
INDENT = "  "
_TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*)*+(?:
    (?P<text>"(?:\\.|[^"\\\n])*+"|'(?:\\.|[^'\\\n])*+')
    |(?P<number>-?[0-9.][A-Za-z0-9_.+-]*) |(?P<word>[A-Za-z_][A-Za-z0-9_]*) |(?P<sign>[][{}<>:,;]) |(?P<end>\Z))""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u(?P<code>[0-9a-fA-F]{4})|(?P<letter>.))", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", **{sign: sign for sign in "\"'\\/?"}}
_CLOSING = {"{": "}", "<": ">"}
Message = dict[str, list[Any]]


class PbtxtError(ValueError):
    """No message in protobuf's text format; the text says in which line it stops being one."""


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


def read_pbtxt(text: str) -> Message:
    """The message that the text is of: fields by name, each a list of messages, texts, numbers, words or booleans.

    Raises PbtxtError.
    """
    try:
        return _Reader(text).message("")
    except RecursionError as error:
        raise PbtxtError("messages in messages, too many of them") from error


@dataclass(slots=True)
class _Reader:
    """A text with a place in it: the token that is here, its kind, and where the next one is."""

    text: str
    place: int = 0
    kind: str = ""
    here: str = ""

    def __post_init__(self) -> None:
        self._step()

    def message(self, closing: str) -> Message:
        """Fields up to the closing sign, or to the end."""
        found: Message = {}
        while self.here != closing:
            if self.kind != "word":
                raise self._fault("the name of a field")
            name = self._step()
            explicit = self._skip(":")
            found.setdefault(name, []).extend(self._values(explicit=explicit))
            self._skip(",", ";")
        if closing:
            self._step()
        return found

    def _values(self, *, explicit: bool) -> list[Any]:
        """What stands in a field: one value, or a list of them."""
        if not self._skip("["):
            return [self._value(explicit=explicit)]
        values: list[Any] = []
        while not self._skip("]"):
            values.append(self._value(explicit=True))
            if not self._skip(",") and self.here != "]":
                raise self._fault("',' or ']'")
        return values

    def _value(self, *, explicit: bool) -> Any:
        if self.here in _CLOSING:
            return self.message(_CLOSING[self._step()])
        if not explicit or self.kind in ("sign", "end"):
            raise self._fault("a value")
        if self.kind == "text":
            parts = []
            while self.kind == "text":  # neighbours are one text
                parts.append(self._plain(self._step()))
            return "".join(parts)
        if self.kind == "number":
            return self._number()
        word = self._step()
        return {"true": True, "false": False}.get(word, word)

    def _number(self) -> int | float:
        try:
            value: int | float = int(self.here, 0)
        except ValueError:
            try:
                value = float(self.here.rstrip("fF"))
            except ValueError:
                raise self._fault("a number") from None
        self._step()
        return value

    def _plain(self, quoted: str) -> str:
        def one(match: re.Match[str]) -> str:
            if match["code"]:
                return chr(int(match["code"], 16))
            if match["letter"] not in _LETTERS:
                raise self._fault(f"another escape than {match[0]}")
            return _LETTERS[match["letter"]]

        return _ESCAPE.sub(one, quoted[1:-1])

    def _skip(self, *signs: str) -> bool:
        """Step over one of these signs, if that is what comes."""
        found = self.kind == "sign" and self.here in signs
        if found:
            self._step()
        return found

    def _step(self) -> str:
        """Go on to the next token; the one that was here."""
        before = self.here
        match = _TOKEN.match(self.text, self.place)
        if match is None or match.lastgroup is None:
            raise self._fault("something else")
        self.kind, self.here, self.place = match.lastgroup, match[match.lastgroup], match.end()
        return before

    def _fault(self, wanted: str) -> PbtxtError:
        line = self.text.count("\n", 0, self.place) + 1
        return PbtxtError(f"line {line}: expected {wanted}, at {self.here or 'the end'!r}")
