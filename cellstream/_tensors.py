"""Values to wire bytes and back: the only place that knows how a model's tensors look on both sides.

Owns the rules on what an input may be. Knows no messages and no RPC. Axis letters: T time, K streams of a multiplexed
step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from cellstream.errors import InvalidInput, ProtocolError, UnsupportedModel
from cellstream.models import Model, Tensor

Array = npt.NDArray[Any]
# Outputs for the user: an array for a model with one output, else a dict of arrays by name. Any, because the model and
# not the type checker knows which: a union would ask every caller for an assertion.
Values: TypeAlias = Any


class Slot:
    """One tensor of a model, ready for use."""

    __slots__ = ("dtype", "elements", "maximum", "minimum", "name", "shape", "step_bytes", "text")

    def __init__(self, tensor: Tensor) -> None:
        try:
            # Little-endian is the wire's order, and nearly every machine's.
            self.dtype = np.dtype(tensor.dtype).newbyteorder("<")
        except TypeError:
            raise UnsupportedModel(f"tensor {tensor.name!r} has dtype {tensor.dtype!r}, unknown to numpy") from None
        self.name = tensor.name
        self.shape = tensor.shape
        self.minimum = tensor.minimum
        self.maximum = tensor.maximum
        self.elements = math.prod(tensor.shape)
        self.step_bytes = self.elements * self.dtype.itemsize
        self.text = f"{tensor.dtype}{list(tensor.shape)}"


@dataclass(frozen=True, slots=True)
class Request:
    """Checked inputs of one model, [T, *shape] each; `chunk` tells a chunk from a single step."""

    signature: Signature
    steps: int
    chunk: bool
    columns: tuple[Array, ...]

    def cut(self, start: int, stop: int) -> list[bytes]:
        """Steps start … stop - 1 of every input as wire bytes."""
        return [column[start:stop].tobytes() for column in self.columns]

    def views(self, start: int, stop: int) -> list[memoryview]:
        """The same without a copy, for a message that is put together at once."""
        return [column[start:stop].view(np.uint8).data for column in self.columns]


class Signature:
    """One model's inputs and outputs, ready for use. Raises UnsupportedModel."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.digest = bytes.fromhex(model.digest)
        self.inputs = tuple(Slot(tensor) for tensor in model.inputs)
        self.outputs = tuple(Slot(tensor) for tensor in model.outputs)
        self.input_step_bytes = sum(slot.step_bytes for slot in self.inputs)

    def encode(self, values: Any, *, streams: int | None = None) -> Request:
        """Check one step ([*shape]) or a chunk ([T, *shape]) of every input. Raises InvalidInput.

        With `streams` every input has a leading axis of that length K more, and the request has all K rows' steps
        one after the other: T is K times what each row has.
        """
        lead = 0 if streams is None else 1
        given = zip(self.inputs, self._in_order(values), strict=True)
        arrays = [_checked(slot, value, lead) for slot, value in given]
        first, shape = self.inputs[0], arrays[0].shape
        forms = {self._form(slot, array, lead) for slot, array in zip(self.inputs, arrays, strict=True)}
        if len(forms) > 1:
            shapes = ", ".join(f"{s.name!r} {list(a.shape)}" for s, a in zip(self.inputs, arrays, strict=True))
            raise InvalidInput(f"the inputs differ in their numbers of steps: {shapes}")
        if streams is not None and shape[0] != streams:
            raise InvalidInput(f"input {first.name!r} has shape {list(shape)}; {streams} keys need {streams} rows")
        chunk = len(shape) - len(first.shape) - lead == 1
        steps = math.prod(forms.pop())
        if steps < 1:
            raise InvalidInput(f"input {first.name!r} has shape {list(shape)}; there must be at least one step")
        columns = (a.reshape(steps, *slot.shape) for slot, a in zip(self.inputs, arrays, strict=True))
        return Request(self, steps, chunk, tuple(columns))

    def _in_order(self, values: Any) -> Sequence[Any]:
        if not isinstance(values, Mapping):
            if len(self.inputs) == 1:
                return [values]
            raise InvalidInput(f"the model has {len(self.inputs)} inputs; give a dict with {self._names()}")
        if set(values) != {slot.name for slot in self.inputs}:
            raise InvalidInput(f"inputs {sorted(map(str, values))}; the model takes {self._names()}")
        return [values[slot.name] for slot in self.inputs]

    def _names(self) -> str:
        return ", ".join(repr(slot.name) for slot in self.inputs)

    @staticmethod
    def _form(slot: Slot, array: Array, lead: int) -> tuple[int, ...]:
        extra = array.ndim - len(slot.shape) - lead
        if extra not in (0, 1) or array.shape[lead + extra :] != slot.shape:
            rows, step = ["K"][:lead], [str(size) for size in slot.shape]
            one, many = ", ".join([*rows, *step]), ", ".join([*rows, "T", *step])
            raise InvalidInput(
                f"input {slot.name!r} has shape {list(array.shape)}; one step is [{one}], a chunk [{many}]"
            )
        return array.shape[: lead + extra]


class Answer:
    """One request's outputs, put together from however many slices they come in: [T, *shape] each."""

    __slots__ = ("_chunk", "_outputs", "_slots", "missing")

    def __init__(self, signature: Signature, steps: int, *, chunk: bool) -> None:
        self._slots = signature.outputs
        self._chunk = chunk
        self._outputs = [np.empty((steps, *slot.shape), slot.dtype) for slot in self._slots]
        self.missing = steps

    @property
    def done(self) -> bool:
        """Everything is here."""
        return self.missing == 0

    def fill(self, rows: slice | Array, count: int, slices: Sequence[Array]) -> None:
        """Put `count` steps into their places; `slices` come from `decode`."""
        for output, values in zip(self._outputs, slices, strict=True):
            output[rows] = values
        self.missing -= count

    def append(self, slices: Sequence[Array]) -> None:
        """Put the next steps behind those that are here."""
        count = len(slices[0])
        at = len(self._outputs[0]) - self.missing
        self.fill(slice(at, at + count), count, slices)

    def value(self) -> Values:
        """The outputs in the form of the request: bare for a single output, else by name."""
        return self.rows(slice(None) if self._chunk else 0)

    def rows(self, index: slice | int, shape: tuple[int, ...] | None = None) -> Values:
        """Some steps' outputs; `shape` replaces the leading axis."""
        values = [output[index] for output in self._outputs]
        if shape is not None:
            values = [v.reshape(*shape, *slot.shape) for slot, v in zip(self._slots, values, strict=True)]
        if len(values) == 1:
            return values[0]
        return {slot.name: value for slot, value in zip(self._slots, values, strict=True)}


def decode(slots: Sequence[Slot], steps: int, tensors: Sequence[bytes]) -> list[Array]:
    """Wire bytes as read-only arrays [steps, *shape]. Raises ProtocolError where they don't fit."""
    if len(tensors) != len(slots):
        raise ProtocolError(f"the server sent {len(tensors)} output tensors; the model has {len(slots)}")
    arrays = []
    for slot, data in zip(slots, tensors, strict=True):
        if len(data) != steps * slot.step_bytes:
            raise ProtocolError(
                f"the server sent {len(data)} bytes of output {slot.name!r}; {steps} steps of {slot.text} are "
                f"{steps * slot.step_bytes}"
            )
        arrays.append(np.frombuffer(data, slot.dtype).reshape(steps, *slot.shape))
    return arrays


def _checked(slot: Slot, value: Any, lead: int) -> Array:
    """An input as a C-ordered array of the slot's dtype that the model takes; `lead`: axes before the steps'."""
    try:
        array = np.asarray(value)
    except Exception as error:  # noqa: BLE001  a ragged list, a tensor with gradients or on a GPU, whatever is no array
        raise InvalidInput(f"input {slot.name!r} is no array: {error}") from None
    if array.dtype != slot.dtype:
        array = _converted(slot, array, lead)
    if array.size:
        _check_range(slot, array, lead)
    return np.ascontiguousarray(array) if array.ndim else array


def _converted(slot: Slot, array: Array, lead: int) -> Array:
    source, target = array.dtype, slot.dtype
    if source.kind == "b" and target.kind in "iuf":
        return array.astype(target)
    if source.kind in "iu" and target.kind in "iu":
        return _narrowed(slot, array, lead)
    if source.kind == "f" and target.kind == "f":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
            return array.astype(target)
    if source.kind in "iu" and target.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            converted = array.astype(target)
            exact = converted.astype(source) == array
        if not exact.all():
            _refuse(slot, array, ~exact, f"{target.name} can't hold it exactly", lead)
        return converted
    hint = " (an empty list has no integers)" if not array.size else _HINTS.get(source.kind, "").format(target.name)
    raise InvalidInput(f"input {slot.name!r} has dtype {source}; {slot.text} takes no {source}{hint}")


# How to convert what isn't converted by itself, by numpy's kind of dtype; {}: the model's.
_HINTS = {
    "U": ": convert text first, numbers with np.asarray(x, '{}'), a text's bytes with list(x.encode())",
    "S": ": convert bytes first, to numbers with list(x), a list of them as text with np.asarray(x, '{}')",
    "O": ": give numbers that fit, not objects; np.asarray(x, '{}') says which of them is none",
    "f": ": round or convert it first, as np.asarray(x).astype('{}') does",
    "c": ": give real numbers, as x.real or two inputs",
    "M": ": convert times first, as x.astype('int64')",
    "m": ": convert times first, as x.astype('int64')",
}


def _narrowed(slot: Slot, array: Array, lead: int) -> Array:
    info = np.iinfo(slot.dtype)
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < info.min or high > info.max:
            wrong = array == (low if low < info.min else high)
            _refuse(slot, array, wrong, f"{slot.dtype.name} holds {info.min} … {info.max}", lead)
    return array.astype(slot.dtype)


def _check_range(slot: Slot, array: Array, lead: int) -> None:
    if slot.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            _refuse(slot, array, ~finite, f"every value must be finite and within {slot.dtype.name}", lead)
        return
    if slot.minimum is not None and (low := int(array.min())) < slot.minimum:
        _refuse(slot, array, array == low, f"the smallest value is {slot.minimum}", lead)
    if slot.maximum is not None and (high := int(array.max())) > slot.maximum:
        _refuse(slot, array, array == high, f"the largest value is {slot.maximum}", lead)


def _refuse(slot: Slot, array: Array, wrong: Array, limit: str, lead: int) -> NoReturn:
    """Name the first of the wrong values, and where it stands in what was given."""
    at = np.unravel_index(int(np.argmax(wrong)), array.shape)
    raise InvalidInput(f"input {slot.name!r} holds {array[at]}{_place(slot, array, at, lead)}; {limit}")


def _place(slot: Slot, array: Array, at: tuple[Any, ...], lead: int) -> str:
    """Where a value stands: the row of a multiplexed step, the step of a chunk, the element of a step."""
    steps = array.ndim - len(slot.shape) - lead
    if steps not in (0, 1) or array.shape[lead + steps :] != slot.shape:
        return ""  # it's no step of the model's, which is said next
    index = [int(place) for place in at]
    words = [f"row {index[0]}"] if lead else []
    words += [f"step {index[lead] + 1} of the {array.shape[lead]} given"] if steps else ["the one step given"]
    element = index[lead + steps :]
    words += [f"element {element[0] if len(element) == 1 else element}"] if element else []
    return f" in {', '.join(words)}"
