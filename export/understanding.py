"""From somebody else's graph to a contract: states, inputs, outputs, constants, axes, ranges and first values.

Owns what is asked by options and how it meets what the graph says. Runs the graph only to try axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from export import artifact
from export.layouts import BATCH, TIME, Layout, Trial, batch_names, candidates, choose, sized
from export.pairs import find_pairs
from export.samples import values
from export.theirs import Theirs, WrapError, dims, dtype, has
from export.wrap_parity import session
from model.contract import Constant, Contract, StatePair, TensorSpec

Array = npt.NDArray[Any]
# What leaves an index as it is, on its way to the table that it looks up.
_PASSING = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Flatten", "Expand"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options say; whatever they don't is inferred."""

    states: Mapping[str, str] = field(default_factory=dict)  # all pairs, or none
    inputs: tuple[str, ...] = ()  # no states, whatever they are called
    outputs: tuple[str, ...] = ()  # what clients get, states aside; empty is everything
    constants: Mapping[str, Array] = field(default_factory=dict)
    initial: Mapping[str, Array] = field(default_factory=dict)
    shapes: Mapping[str, Layout] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # whole numbers for integers
    starts: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)  # whether a sequence starts: false, true
    connect: tuple[str, ...] = ()  # recurrent nodes that begin anew at every call, to be carried all the same
    remarks: tuple[str, ...] = ()  # what to tell people of where this comes from


@dataclass(frozen=True, slots=True)
class Understood:
    """A contract without name and digest, and what of the graph's own axes it came from."""

    contract: Contract
    layouts: Mapping[str, Layout]  # of inputs and outputs, states among them
    steps: int  # the most that one run takes: 1, or more
    fixed_streams: int  # what their own file takes in one run
    fixed_steps: int


def understand(theirs: Theirs, asked: Asked, folder: Path, *, together: bool) -> Understood:
    """What the graph is, `together` or one stream at a time; its weights lie in `folder` already.

    Raises WrapError naming the option that settles what is open.
    """
    _check_asked(theirs, asked)
    pairs = find_pairs(theirs, asked.states, (*asked.inputs, *asked.constants))
    _keep_outputs(theirs, pairs, asked.outputs)
    _give_something(theirs, pairs)
    constants = constants_of(theirs, asked)
    values_in = {value.name: value for value in theirs.inputs if value.name not in asked.constants}
    known = batch_names(values_in[name] for name in pairs)
    choices = {
        name: candidates(value, asked.shapes, state=name in pairs, batch_names=known)
        for name, value in values_in.items()
    }
    first = {name: _initial(theirs, values_in[name], asked) for name in pairs}
    ranges = {name: asked.ranges.get(name) or _looked_up(theirs, name) for name in values_in if name not in pairs}
    random = np.random.default_rng(0)

    def make(name: str, shape: tuple[int, ...]) -> Array:
        kind = dtype(values_in[name])
        if name in first:
            value = first[name]
            return np.zeros(shape, kind) if value is None else np.broadcast_to(value, shape)
        if np.dtype(kind).kind == "f":
            return values(TensorSpec(name, kind, ()), shape, random, ranges[name])
        low, high = _whole(name, kind, ranges[name])
        return values(TensorSpec(name, kind, (), minimum=low, maximum=high), shape, random)

    names = [value.name for value in theirs.outputs]
    path = folder / artifact.MODEL
    path.write_bytes(_free(theirs.model).SerializeToString())
    runner = session(path)
    fixed = {
        constant.name: np.frombuffer(constant.value, constant.dtype).reshape(constant.shape) for constant in constants
    }
    trial = choose(
        choices,
        pairs,
        make,
        lambda feeds: dict(zip(names, runner.run(names, {**feeds, **fixed}), strict=True)),
        together=together,
    )
    contract = Contract(
        name="",
        inputs=tuple(
            _spec(value, trial.inputs[name], ranges[name]) for name, value in values_in.items() if name not in pairs
        ),
        outputs=tuple(
            _spec(value, trial.outputs[value.name], None)
            for value in theirs.outputs
            if value.name not in pairs.values()
        ),
        states=tuple(_pair(values_in[name], pairs[name], trial.inputs[name], first[name]) for name in pairs),
        weights_digest="",
        precision="as given",
        constants=constants,
        ragged=_may_be_ragged(trial, pairs),
    )
    streams, steps = (_fixed(values_in, trial.inputs, kind) for kind in (BATCH, TIME))
    return Understood(contract, {**trial.inputs, **trial.outputs}, trial.steps, streams, steps)


def loosened(model: ModelProto, found: Understood) -> ModelProto:
    """The model, its inputs and outputs declared with the axes that were found."""
    loose = _without_shapes(model)
    for value in [*loose.graph.input, *loose.graph.output]:
        if value.name in found.layouts:
            _declare(value, found.layouts[value.name])
    return loose


def _check_asked(theirs: Theirs, asked: Asked) -> None:
    """Options speak of what is there."""
    names = {value.name for value in theirs.inputs}
    for option, given in (
        ("constant", asked.constants),
        ("initial", asked.initial),
        ("range", asked.ranges),
        ("shape", asked.shapes),
        ("input", asked.inputs),
    ):
        for name in given:
            if name not in names and not (option == "constant" and has(theirs, name)):
                raise WrapError(f"--{option} {name}: no input is called so; there are {', '.join(sorted(names))}")


def _keep_outputs(theirs: Theirs, pairs: Mapping[str, str], wanted: Sequence[str]) -> None:
    """Leave out the outputs that nobody asked for."""
    graph = theirs.model.graph
    names = {value.name for value in graph.output}
    for name in wanted:
        if name not in names:
            raise WrapError(f"--output {name}: no output is called so; there are {', '.join(sorted(names))}")
    for value in list(graph.output):
        if wanted and value.name not in (*wanted, *pairs.values()):
            graph.output.remove(value)
    both = [name for name in wanted if name in pairs.values()]
    for name in both:
        _repeat(theirs, name)


def _give_something(theirs: Theirs, pairs: Mapping[str, str]) -> None:
    """Where the states are all that a graph gives, let the first be its output too."""
    graph = theirs.model.graph
    if any(value.name not in pairs.values() for value in graph.output):
        return
    _repeat(theirs, next(value.name for value in graph.output if value.name in pairs.values()))


def _repeat(theirs: Theirs, state: str) -> None:
    """Let clients get a state's successor too."""
    graph, name = theirs.model.graph, f"{state}_value"
    if name in theirs.added:
        return
    source = next(value for value in graph.output if value.name == state)
    graph.node.append(helper.make_node("Identity", [source.name], [name], name=f"{name}/Identity"))
    copy = ValueInfoProto()
    copy.CopyFrom(source)
    copy.name = name
    graph.output.append(copy)
    theirs.added[name] = source.name


def constants_of(theirs: Theirs, asked: Asked) -> tuple[Constant, ...]:
    """The side inputs whose values were given; raises WrapError for one that doesn't fit."""
    found = []
    for value in theirs.inputs:
        if value.name in asked.constants:
            array = fitted(value, asked.constants[value.name])
            found.append(Constant(value.name, array.dtype.name, array.shape, array.tobytes()))
    return tuple(found)


def fitted(value: ValueInfoProto, given: Array) -> Array:
    """A constant in the dtype and shape that the graph declares; raises WrapError where it doesn't fit."""
    kind, declared = dtype(value), dims(value)
    with np.errstate(all="ignore"):
        array = np.asarray(given).astype(kind)
    if not np.array_equal(array.astype(np.float64), np.asarray(given, dtype=np.float64)) and array.dtype.kind != "f":
        raise WrapError(f"--constant {value.name}: {given} is no {kind}")
    if array.ndim != len(declared) and array.size == 1:
        array = array.reshape([1] * len(declared))
    sizes = zip(array.shape, declared, strict=False)
    if array.ndim != len(declared) or any(isinstance(want, int) and got != want for got, want in sizes):
        raise WrapError(f"--constant {value.name} has shape {list(array.shape)}, and the graph declares {declared}")
    return np.ascontiguousarray(array) if array.ndim else array


def _initial(theirs: Theirs, value: ValueInfoProto, asked: Asked) -> Array | None:
    """A new stream's state, to be broadcast to the state's own shape; None is zero."""
    default = theirs.defaults.get(value.name)
    given = asked.initial.get(value.name, None if default is None else numpy_helper.to_array(default))
    if given is None:
        return None
    array = np.asarray(given).astype(dtype(value))
    declared = [size if isinstance(size, int) else 1 for size in dims(value)]
    if array.ndim and array.shape != tuple(declared):
        try:
            array = array.reshape(declared)
        except ValueError as error:
            raise WrapError(
                f"--initial {value.name} has shape {list(array.shape)}, and one stream's state is {declared}"
            ) from error
    return array


def _looked_up(theirs: Theirs, name: str) -> tuple[int, int] | None:
    """The range of an input that is an index into a table of weights."""
    sizes = {tensor.name: list(tensor.dims) for tensor in theirs.model.graph.initializer}
    names, found = {name}, None
    for node in theirs.model.graph.node:  # in the order of computing
        if node.op_type == "Gather" and node.input[1] in names and node.input[0] in sizes:
            found = (0, sizes[node.input[0]][_axis(node)] - 1)
        elif node.op_type in _PASSING and node.input and node.input[0] in names:
            names.add(node.output[0])
    return found


def _axis(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 0)


def _spec(value: ValueInfoProto, layout: Layout, bounds: tuple[float, float] | None) -> TensorSpec:
    kind = dtype(value)
    low, high = _whole(value.name, kind, bounds)
    return TensorSpec(
        value.name,
        kind,
        tuple(size for size in layout if isinstance(size, int)),
        batch_axis=layout.index(BATCH),
        time_axis=layout.index(TIME) if TIME in layout else None,
        minimum=low,
        maximum=high,
    )


def _whole(name: str, kind: str, bounds: tuple[float, float] | None) -> tuple[int, int] | tuple[None, None]:
    """The bounds of an integer input; raises WrapError where they aren't whole numbers."""
    if bounds is None or np.dtype(kind).kind not in "iu":
        return None, None
    low, high = bounds
    if low != int(low) or high != int(high):
        raise WrapError(f"--range {name}={low}:{high}: {name} is {kind}, and its bounds are whole numbers")
    return int(low), int(high)


def _pair(value: ValueInfoProto, successor: str, layout: Layout, first: Array | None) -> StatePair:
    kind, axis = dtype(value), layout.index(BATCH)
    initial = None
    if first is not None:
        one = np.take(np.broadcast_to(first, sized(layout, 1, 1)), 0, axis)
        data = np.ascontiguousarray(one, np.dtype(kind).newbyteorder("<")).tobytes()
        initial = data if any(data) else None
    shape = tuple(size for size in layout if isinstance(size, int))
    return StatePair(value.name, successor, kind, shape, batch_axis=axis, initial=initial)


def _may_be_ragged(trial: Trial, pairs: Mapping[str, str]) -> bool:
    """Whether streams of different lengths could share a run: every input and output has time. Parity will tell."""
    inputs = [layout for name, layout in trial.inputs.items() if name not in pairs]
    outputs = [layout for name, layout in trial.outputs.items() if name not in pairs.values()]
    return trial.steps > 1 and all(TIME in layout for layout in (*inputs, *outputs))


def _fixed(values_in: Mapping[str, ValueInfoProto], layouts: Mapping[str, Layout], kind: str) -> int:
    """What size their own file fixes the batch or time axis to; 1 where it is free."""
    sizes = {dims(values_in[name])[layout.index(kind)] for name, layout in layouts.items() if kind in layout}
    numbers = [size for size in sizes if isinstance(size, int)]
    return max(numbers, default=1)


def _free(model: ModelProto) -> ModelProto:
    """The model with all sizes of its inputs and outputs undeclared."""
    free = _without_shapes(model)
    for value in free.graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}.{place}"
    return free


def _without_shapes(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def _declare(value: ValueInfoProto, layout: Layout) -> None:
    value.type.tensor_type.ClearField("shape")
    for size in layout:
        dim = value.type.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
