"""What Triton's `config.pbtxt` says of somebody else's model, as the options of a wrapping.

Owns which field means which option. Reads the configuration and the first states beside it; knows no graph.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from export.layouts import BATCH, Layout
from export.pbtxt import Message, PbtxtError, read_pbtxt
from export.theirs import WrapError
from export.understanding import Asked
from model.triton_config import DATA_TYPES

Array = npt.NDArray[Any]
Value = TypeVar("Value", int, str)
_DTYPES = {triton: ours for ours, triton in DATA_TYPES.items()}
_START, _READY, _END = (f"CONTROL_SEQUENCE_{kind}" for kind in ("START", "READY", "END"))
_FALSE_TRUE = ("int32_false_true", "fp32_false_true", "bool_false_true")
INITIAL = "initial_state"


def asked_by(path: Path, asked: Asked) -> Asked:
    """`asked`, and whatever it leaves open as the configuration at `path` has it; raises WrapError naming the file."""
    try:
        config = read_pbtxt(path.read_text(encoding="utf-8"))
        said = _asked(config, path.parent, settled=(*asked.constants, *asked.starts, *asked.states, *asked.inputs))
    except OSError as error:
        raise WrapError(f"{error.filename or path} can't be read: {error.strerror or error}") from error
    except (PbtxtError, UnicodeDecodeError, _ConfigError) as error:
        raise WrapError(f"{path}: {error}") from error
    return replace(
        asked,
        starts={**said.starts, **asked.starts},
        remarks=(*asked.remarks, *said.remarks),
        states=asked.states or said.states,
        outputs=asked.outputs or said.outputs,
        constants={**said.constants, **asked.constants},
        initial={**said.initial, **asked.initial},
        shapes={**said.shapes, **asked.shapes},
    )


class _ConfigError(ValueError):
    """A configuration that doesn't say what Triton asks of one."""


def _asked(config: Message, folder: Path, *, settled: Container[str]) -> Asked:
    batching = _message(config, "sequence_batching") or {}
    states = _all(batching, "state")
    pairs = {_text(state, "input_name"): _text(state, "output_name") for state in states}
    batched = _one(config, "max_batch_size", 0) > 0
    tensors = {_text(tensor, "name"): tensor for tensor in _all(config, "input")}
    tensors |= {_text(state, "input_name"): state for state in states}
    shapes = {name: _layout(tensor) for name, tensor in tensors.items()} if batched else {}
    firsts = {_text(state, "input_name"): _first(state, folder, batched=batched) for state in states}
    controls = [
        _control(control) for control in _all(batching, "control_input") if _text(control, "name") not in settled
    ]
    return Asked(
        states=pairs,
        outputs=tuple(_text(tensor, "name") for tensor in _all(config, "output")),
        constants={one.name: one.mid_sequence for one in controls if one.kind != _START},
        initial={name: value for name, value in firsts.items() if value is not None},
        shapes={name: layout for name, layout in shapes.items() if layout is not None},
        starts={one.name: (one.false, one.true) for one in controls if one.kind == _START},
        remarks=tuple(one.never_told() for one in controls if one.kind == _END),
    )


def _layout(tensor: Message) -> Layout | None:
    """Its axes, if the configuration leaves none open: none of -1, and none in front that may be a single step's."""
    reshape = _message(tensor, "reshape")
    dims = tensor.get("dims", []) if reshape is None else reshape.get("shape", [])
    if any(not isinstance(size, int) for size in dims):
        raise _ConfigError(f"dims {dims} aren't whole numbers")
    open_axes = any(size < 1 for size in dims) or dims[:1] == [1]
    return None if open_axes else (BATCH, *dims)


def _first(state: Message, folder: Path, *, batched: bool) -> Array | None:
    """A new sequence's state; None where Triton leaves it undefined, which a START in the graph must then settle."""
    first = _message(state, "initial_state")
    if first is None:
        return None
    name, kind = _text(state, "input_name"), _text(first, "data_type")
    if kind not in _DTYPES:
        raise _ConfigError(f"state {name!r} is of {kind}, which isn't one of {', '.join(_DTYPES)}")
    file = _one(first, "data_file", "")
    if not file:
        return np.zeros((), _DTYPES[kind])
    shape = [1] * batched + first.get("dims", [])
    value = np.fromfile(folder / INITIAL / file, np.dtype(_DTYPES[kind]).newbyteorder("<"))
    if value.size != np.prod(shape):
        raise _ConfigError(f"{INITIAL}/{file} has {value.size} values of {kind}, and state {name!r} is {shape}")
    return value.reshape(shape)


class _Control(NamedTuple):
    """A control input: what it tells the graph, and how."""

    name: str
    kind: str
    false: Array
    true: Array

    @property
    def mid_sequence(self) -> Array:
        """What it says in the middle of a sequence: that is there, and doesn't end."""
        return self.true if self.kind == _READY else self.false

    def never_told(self) -> str:
        """The line for people whose graph may wait for a sequence's end."""
        return (
            f"end {self.name!r} stays {self.false}: Triton says {self.true} with a sequence's last request, and no step"
            " of a stream is known to be its last; where a graph answers otherwise then, it doesn't here"
        )


def _control(control: Message) -> _Control:
    """A control input, if it tells one thing that has a place here."""
    name = _text(control, "name")
    said = _all(control, "control")
    kinds = [str(_one(part, "kind", _START)) for part in said]
    if len(said) != 1 or kinds[0] not in (_START, _READY, _END):
        raise _ConfigError(
            f"control input {name!r} is {' and '.join(kinds) or 'nothing'}, which has no one value here: if the graph"
            f" computes nothing with it, say --constant {name}=0"
        )
    for field in _FALSE_TRUE:
        values = said[0].get(field, [])
        if len(values) == len(("false", "true")):
            return _Control(name, kinds[0], *(np.array(value) for value in values))
    raise _ConfigError(f"control input {name!r} has none of {', '.join(_FALSE_TRUE)}, with two values")


def _all(message: Message, field: str) -> list[Message]:
    parts = message.get(field, [])
    if not all(isinstance(part, dict) for part in parts):
        raise _ConfigError(f"{field} isn't a message")
    return parts


def _message(message: Message, field: str) -> Message | None:
    """The field's message, if there is one."""
    parts = _all(message, field)
    return parts[-1] if parts else None


def _one(message: Message, field: str, default: Value) -> Value:
    """The field's last value, as protobuf has it for fields that aren't repeated."""
    value = message.get(field, [default])[-1]
    if not isinstance(value, type(default)):
        raise _ConfigError(f"{field} is {value!r}, not a {type(default).__name__}")
    return value


def _text(message: Message, field: str) -> str:
    value = _one(message, field, "")
    if not value:
        raise _ConfigError(f"there is no {field}, where one must be")
    return str(value)
