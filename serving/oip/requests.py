"""Requests: what a ModelInferRequest asks for, checked against the contract of its model.

Owns the rules of the protocol and of its sequence extension, and the words in which a breach is told: tools match
some of them. Values out; what becomes of a request is serving.sequences' business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from serving.config import LONGEST_IDLE
from serving.errors import InvalidInput, TooLarge, UnknownModel, Unsupported
from serving.front import MAX_NAME, Front
from serving.lane import Lane
from serving.oip.answers import STEP, Form
from serving.oip.tensors import Tensor, check_state, contents, refuse_shared_memory, steps_of
from serving.oip.v1 import inference_pb2 as pb
from serving.sequences import Ask, Key

ENABLE_FINAL = "triton_enable_empty_final_response"
_READ, _SET, _FORK = "cellstream_read_state", "cellstream_set_state", "cellstream_fork_of"
_IDLE = "cellstream_idle_seconds"
_OURS = frozenset({STEP, _READ, _SET, _FORK, _IDLE})
_PREFIXES = ("triton_", "cellstream_")  # names that are nobody's own

Parameters = Mapping[str, pb.InferParameter]


class Parsed(NamedTuple):
    """A request, understood."""

    ask: Ask
    form: Form


def find_lane(front: Front, name: str, version: str) -> Lane:
    """The model a request names; version "" is the highest. Raises UnknownModel or InvalidInput."""
    if len(name) > MAX_NAME:
        raise TooLarge(f"a model name of {len(name)} characters; the limit is {MAX_NAME}")
    if version and not (version.isascii() and version.isdecimal() and len(version) <= 19 and int(version) > 0):
        raise InvalidInput(
            f"failed to get model version from specified version string '{version[:MAX_NAME]}': version should be an "
            "integral value > 0"
        )
    try:
        return front.lanes.find(name, int(version or 0))
    except UnknownModel as error:
        asked = f"'{name}' version {version}" if version else f"'{name}'"
        raise UnknownModel(f"Request for unknown model: {asked} is not found; {error}") from None


def parse(lane: Lane, request: pb.ModelInferRequest, *, streamed: bool) -> Parsed:
    """Understand a request for this model. Raises InvalidInput, TooLarge or Unsupported."""
    parameters = request.parameters
    _check_names(parameters)
    key = _key(lane, parameters)
    start, end = _flag(parameters, "sequence_start"), _flag(parameters, "sequence_end")
    sets_state, reads_state = _flag(parameters, _SET), _flag(parameters, _READ)
    fork_of = _id(parameters, _FORK) if _FORK in parameters else None
    for what, given in ((_SET, sets_state), (_FORK, fork_of is not None)):
        if given and not start:
            raise InvalidInput(f"parameter '{what}' says where a sequence starts; it goes with sequence_start only")
    if sets_state and fork_of is not None:
        raise InvalidInput(f"parameters '{_SET}' and '{_FORK}' both say where the sequence starts; send one of them")
    tensors = _tensors(lane, request)
    state = _state(lane, tensors) if sets_state else None
    stepless = not tensors and (reads_state or end or sets_state or fork_of is not None)
    steps, axes, inputs = (0, 2, ()) if stepless else _inputs(lane, tensors)
    ask = Ask(
        key=key,
        steps=steps,
        inputs=inputs,
        start=start,
        end=end,
        first_step=_number(parameters, STEP),
        read_state=reads_state,
        state=state,
        fork_of=fork_of,
        idle_seconds=_seconds(parameters),
    )
    form = Form(
        lane,
        _wanted(lane, request),
        axes=axes,
        streamed=streamed,
        final=streamed and wants_final(parameters),
        numbered=ask.first_step is not None,
    )
    return Parsed(ask, form)


def wants_final(parameters: Parameters) -> bool:
    """Whether the client wants to be told that an answer is the last one to its request. Raises InvalidInput."""
    return _flag(parameters, ENABLE_FINAL)


def _check_names(parameters: Parameters) -> None:
    for name in parameters:
        if name.startswith(_PREFIXES) and name not in _OURS and name != ENABLE_FINAL:
            raise InvalidInput(
                f"parameter '{name[:MAX_NAME]}' isn't known, and names that begin with 'triton_' or 'cellstream_' are "
                f"reserved; known: {', '.join(sorted(_OURS))}, {ENABLE_FINAL}"
            )


def _key(lane: Lane, parameters: Parameters) -> Key:
    key = _id(parameters, "sequence_id") if "sequence_id" in parameters else 0
    if not key:
        raise InvalidInput(
            f"inference request to model '{lane.name}' must specify a non-zero or non-empty correlation ID"
        )
    return key


def _id(parameters: Parameters, name: str) -> Key:
    value = parameters[name]
    match value.WhichOneof("parameter_choice"):
        case "int64_param":
            return value.int64_param
        case "string_param":
            if len(value.string_param) > MAX_NAME:
                raise TooLarge(f"a '{name}' of {len(value.string_param)} characters; the limit is {MAX_NAME}")
            return value.string_param
    raise InvalidInput(f"invalid value type for '{name}' parameter, expected int64_param or string_param.")


def _typed(parameters: Parameters, name: str, kinds: tuple[str, ...]) -> Any:
    value = parameters[name]
    kind = value.WhichOneof("parameter_choice")
    if kind not in kinds:
        raise InvalidInput(f"invalid value type for '{name}' parameter, expected {' or '.join(kinds)}.")
    return getattr(value, kind)


def _flag(parameters: Parameters, name: str) -> bool:
    return name in parameters and bool(_typed(parameters, name, ("bool_param",)))


def _number(parameters: Parameters, name: str) -> int | None:
    if name not in parameters:
        return None
    number: int = _typed(parameters, name, ("int64_param", "uint64_param"))
    if number < 1:
        raise InvalidInput(f"parameter '{name}' is {number}; steps are numbered from 1")
    return number


def _seconds(parameters: Parameters) -> float | None:
    if _IDLE not in parameters:
        return None
    seconds = float(_typed(parameters, _IDLE, ("double_param", "int64_param", "uint64_param")))
    if not 0 <= seconds <= LONGEST_IDLE:
        raise InvalidInput(f"parameter '{_IDLE}' is {seconds}; it must be from 0 (for ever) to {LONGEST_IDLE:.0f}")
    return seconds


def _tensors(lane: Lane, request: pb.ModelInferRequest) -> dict[str, tuple[Tensor, Callable[[str], bytes]]]:
    """The request's tensors by name, each with what gives its bytes once its dtype is known."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(
            f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs in a request to model '{lane.name}'; "
            "they come for every input or for none"
        )
    found: dict[str, tuple[Tensor, Callable[[str], bytes]]] = {}
    for place, tensor in enumerate(request.inputs):
        if tensor.name in found:
            raise InvalidInput(f"input '{tensor.name[:MAX_NAME]}' stands twice in a request to model '{lane.name}'")
        refuse_shared_memory(tensor.name[:MAX_NAME], tensor.parameters)
        if raw and tensor.HasField("contents"):
            raise InvalidInput(
                f"contents field must not be specified when using raw_input_contents, and input "
                f"'{tensor.name[:MAX_NAME]}' has it"
            )
        data = raw[place] if raw else None
        found[tensor.name] = tensor, _raw(data) if data is not None else _typed_contents(tensor)
    return found


def _raw(data: bytes) -> Callable[[str], bytes]:
    return lambda _dtype: data


def _typed_contents(tensor: Tensor) -> Callable[[str], bytes]:
    return lambda dtype: contents(tensor, dtype)


def _state(lane: Lane, tensors: dict[str, tuple[Tensor, Callable[[str], bytes]]]) -> tuple[bytes, ...]:
    """The state a request brings, taken out of its tensors."""
    found = []
    for state in lane.contract.states:
        if state.input not in tensors:
            raise InvalidInput(f"state '{state.input}' is missing from a request with '{_SET}'")
        tensor, data = tensors.pop(state.input)
        check_state(lane.name, state.input, state.dtype, state.shape, tensor)
        found.append(data(state.dtype))
    return tuple(found)


def _inputs(
    lane: Lane, tensors: dict[str, tuple[Tensor, Callable[[str], bytes]]]
) -> tuple[int, int, tuple[bytes, ...]]:
    """T, how many axes stand before a step's own, and every input's bytes."""
    specs = lane.contract.inputs
    unexpected = tensors.keys() - {spec.name for spec in specs}
    if unexpected:
        raise InvalidInput(f"unexpected inference input '{min(unexpected)[:MAX_NAME]}' for model '{lane.name}'")
    if len(tensors) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise InvalidInput(
            f"expected {len(specs)} inputs but got {len(tensors)} inputs for model '{lane.name}' (it takes {names})"
        )
    shapes = [steps_of(lane.name, spec, tensors[spec.name][0]) for spec in specs]
    steps, axes = shapes[0]
    if any(count != steps for count, _ in shapes):
        raise InvalidInput(f"inputs of {sorted({count for count, _ in shapes})} steps in one request; give all as many")
    return steps, axes, tuple(tensors[spec.name][1](spec.dtype) for spec in specs)


def _wanted(lane: Lane, request: pb.ModelInferRequest) -> tuple[int, ...]:
    """The places of the outputs that are asked for."""
    places = {spec.name: place for place, spec in enumerate(lane.contract.outputs)}
    if not request.outputs:
        return tuple(places.values())
    wanted: dict[int, None] = {}
    for output in request.outputs:
        place = places.get(output.name)
        if place is None:
            raise InvalidInput(f"unexpected inference output '{output.name[:MAX_NAME]}' for model '{lane.name}'")
        refuse_shared_memory(output.name, output.parameters)
        if "classification" in output.parameters:
            raise Unsupported(f"output '{output.name}' is asked for as a classification, which isn't offered here")
        wanted[place] = None
    return tuple(wanted)
