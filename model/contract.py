"""The contract: what an artifact promises, carried in the metadata of its ONNX files.

Owns the names, dtypes, shapes and state pairs of a stateful model and their text form. Knows no torch, no onnx
and no onnxruntime, so that exporter and server read the same page.

Axis letters, used everywhere in this repository:
B batch, T time, F features, L layers, H hidden, O outputs, N rows of the slab, W width of a slab row, K parts of a
row.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = 1
METADATA_KEY = "cellstream.contract"
_METADATA_PROPS = 14  # the field of onnx.ModelProto

# What a resident graph has besides the model's own tensors.
LENGTHS = "lengths"  # int32 [B], host memory: valid steps of each row, 1..T, never 0
READ_ROWS = "read_rows"  # int64 [B]: the slab row each lane starts from
WRITE_ROWS = "write_rows"  # int64 [B]: the slab row each lane's new state goes to, never a row that is read
SLAB_PREFIX = "slab_"  # + dtype: [N*K, W/K], which is [N, W] where rows have one part
SLAB_NEXT_SUFFIX = "_next"  # the same buffer, bound again as output
OLDER_STEPS = 8  # the longest chunks that were proved before contracts said how long


class ContractError(ValueError):
    """The metadata of an ONNX file isn't a contract that this version understands."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a step.

    `shape` is the shape of one time step of one stream, without the batch and time axes. `batch_axis` and
    `time_axis` say where these stand in `model.onnx`; in `resident.onnx` it is always [B, T, *shape].
    `minimum` and `maximum` bound integer values (an embedding's vocabulary), both inclusive.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    batch_axis: int = 0
    time_axis: int | None = 1
    minimum: int | None = None
    maximum: int | None = None

    @property
    def elements(self) -> int:
        """Elements in one time step."""
        return math.prod(self.shape)

    @property
    def step_bytes(self) -> int:
        """Bytes of one time step on the wire."""
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class StatePair:
    """One state tensor: the graph input that takes it and the graph output that gives its successor.

    `shape` is without the batch axis, whose place in `model.onnx` is `batch_axis`. `initial` is a new stream's
    value as little-endian bytes in C order; None means zeros.
    """

    input: str
    output: str
    dtype: str
    shape: tuple[int, ...]
    batch_axis: int = 0
    initial: bytes | None = None

    @property
    def elements(self) -> int:
        """Elements of one stream's state."""
        return math.prod(self.shape)

    def initial_value(self) -> npt.NDArray[Any]:
        """A new stream's state, flattened: [elements]."""
        if self.initial is None:
            return np.zeros(self.elements, dtype=self.dtype)
        return np.frombuffer(self.initial, dtype=np.dtype(self.dtype).newbyteorder("<")).astype(self.dtype)


@dataclass(frozen=True, slots=True)
class Constant:
    """A side input of `model.onnx` that never changes (a sampling rate, say); folded into `resident.onnx`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: bytes


@dataclass(frozen=True, slots=True)
class SlabSpec:
    """The slab of one dtype: N rows, each the states of that dtype, flattened and joined in contract order.

    The graph sees the same memory in `parts` (K) parts a row: [N*K, W/K]. Only what binds the slab needs to know.
    """

    dtype: str
    states: tuple[StatePair, ...]
    parts: int = 1

    @property
    def input(self) -> str:
        """The resident graph's input that takes the slab."""
        return SLAB_PREFIX + self.dtype

    @property
    def output(self) -> str:
        """The resident graph's output that gives it back, bound to the same buffer."""
        return self.input + SLAB_NEXT_SUFFIX

    @property
    def width(self) -> int:
        """W: elements in a row."""
        return sum(state.elements for state in self.states)

    @property
    def row_bytes(self) -> int:
        """Bytes in a row."""
        return self.width * np.dtype(self.dtype).itemsize

    @property
    def axes(self) -> tuple[str, int]:
        """How the graph declares it: a symbolic N*K, and W/K."""
        return "rows" if self.parts == 1 else "row_parts", self.width // self.parts

    def shape(self, rows: int) -> list[int]:
        """What the graph is told of a slab of so many rows: [N*K, W/K]."""
        return [rows * self.parts, self.width // self.parts]

    def initial_row(self) -> npt.NDArray[Any]:
        """What row 0, every new stream's first state, holds: [W]."""
        return np.concatenate([state.initial_value() for state in self.states])


@dataclass(frozen=True, slots=True)
class ParityRecord:
    """One comparison: `subject` against `truth`, on one tensor, as a ratio to PyTorch's own float32 error.

    `rms_ratio` = rms(subject - truth) / rms(pytorch32 - truth); `max_ratio` likewise with the maximum.
    `passed` needs rms_ratio <= rms_bar and max_ratio <= max_bar; export.yardstick says what else, and how PyTorch's
    error is taken where it is nearly zero. Bars of 0 ask for the same bytes. In a reduced precision the ratio is to
    what the same roundings cost when emulated in float64, where that is more.

    `share` is rms(subject - truth) / rms(truth), which must not exceed `share_bar` (0: nothing is asked of it).
    `failed_by` says by which criterion it failed, and the figures: "criterion: figures"; nothing where it passed.
    """

    subject: str
    truth: str
    tensor: str
    steps: int
    initial: str
    rms_error: float
    max_error: float
    rms_ratio: float
    max_ratio: float
    rms_bar: float
    max_bar: float
    passed: bool
    share: float = 0.0
    share_bar: float = 0.0
    failed_by: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The parity certificate: what was checked, on which machine, with which versions, and what came out.

    `invariances` says which of a stream's circumstances changed no bit of its answers on that machine. `controls` are
    faults that were planted into copies of the graphs, with the error found, in multiples of what would have passed
    (0: this model's answers don't show it).
    """

    created: str
    machine: str
    versions: Mapping[str, str]
    weights_digest: str
    records: tuple[ParityRecord, ...]
    not_checked: tuple[str, ...] = ()
    invariances: Mapping[str, bool] = field(default_factory=dict)
    controls: Mapping[str, float] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)  # of a wrapped graph: by input, what says it is a state
    # What the proof is for besides the weights: each graph's `graph_digest` by file name, and `Contract.digest`.
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True when something was checked and every record passed."""
        return bool(self.records) and all(record.passed for record in self.records)


@dataclass(frozen=True, slots=True)
class Contract:
    """Everything a server needs to know of a model, and the proof that its export computes the same.

    `weights_digest` is "sha256:" and the hexadecimal SHA-256 of all bytes of the external weights file,
    `model.onnx.data`, which lies beside both graphs; whoever loads a graph can so tell that file's weights are the
    ones that were proved.

    `max_steps` is the most steps of a stream in one run of `resident.onnx` that were proved. `single_lane` says that a
    call of `resident.onnx` takes one lane, [1, T, *shape]: a run of B lanes is B calls.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StatePair, ...]
    weights_digest: str
    precision: str = "fp32"
    ragged: bool = True  # False: the resident graph takes T = 1 only
    max_steps: int = OLDER_STEPS
    single_lane: bool = False
    row_parts: Mapping[str, int] = field(default_factory=dict)  # by dtype: K of that slab's rows, where it isn't 1
    constants: tuple[Constant, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)  # free text for people: tokenizer, training data
    certificate: Certificate | None = None

    def slabs(self) -> tuple[SlabSpec, ...]:
        """The slabs of the resident graph, one per state dtype, in order of first appearance."""
        dtypes = dict.fromkeys(state.dtype for state in self.states)
        return tuple(
            SlabSpec(dtype, tuple(state for state in self.states if state.dtype == dtype), self.row_parts.get(dtype, 1))
            for dtype in dtypes
        )

    @property
    def run_steps(self) -> int:
        """The most steps of a stream that one run may take."""
        return self.max_steps if self.ragged else 1

    def digest(self) -> str:
        """A SHA-256 ("sha256:…") over everything here but the certificate."""
        plain = {name: value for name, value in _plain(self).items() if name != "certificate"}
        return "sha256:" + hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def to_metadata(self) -> dict[str, str]:
        """The contract as ONNX metadata properties."""
        return {METADATA_KEY: json.dumps(_plain(self), sort_keys=True)}

    @staticmethod
    def from_metadata(metadata: Mapping[str, str]) -> Contract:
        """Read a contract out of ONNX metadata properties.

        Raises ContractError if there is none, its schema is another one, or it is damaged.
        """
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise ContractError(f"no contract: the metadata has no {METADATA_KEY!r} (was it made by `make export`?)")
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or data.get("schema") != SCHEMA:
                found = data.get("schema") if isinstance(data, dict) else None
                raise ContractError(f"contract schema {found!r}, and this version reads schema {SCHEMA}")
            contract = _contract(data)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ContractError):
                raise
            raise ContractError(f"damaged contract: {error!r}") from error
        contract.check()
        return contract

    def check(self) -> None:
        """Raise ContractError where the contract contradicts itself."""
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            if not tensors:
                raise ContractError(f"the model has no {kind}")
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        names += [name for state in self.states for name in (state.input, state.output)]
        names += [constant.name for constant in self.constants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ContractError(f"names used twice: {', '.join(twice)}")
        shaped = [(spec.dtype, spec.shape) for spec in (*self.inputs, *self.outputs)]
        shaped += [(state.dtype, state.shape) for state in self.states]
        for dtype, shape in shaped:
            try:
                np.dtype(dtype)
            except TypeError as error:
                raise ContractError(f"dtype {dtype!r} isn't one") from error
            if any(size < 1 for size in shape):
                raise ContractError(f"shape {shape} has a size below 1")
        for state in self.states:
            if state.initial is not None and len(state.initial) != state.elements * np.dtype(state.dtype).itemsize:
                raise ContractError(f"state {state.input!r}: {len(state.initial)} bytes of initial value")
        if self.max_steps < 1:
            raise ContractError(f"max_steps is {self.max_steps}; it must be at least 1")
        self._check_row_parts()

    def _check_row_parts(self) -> None:
        strange = sorted(self.row_parts.keys() - {state.dtype for state in self.states})
        if strange:
            raise ContractError(f"row_parts of {strange[0]!r}, and no state has that dtype")
        for slab in self.slabs():
            if slab.parts < 1 or slab.width % slab.parts:
                raise ContractError(f"row_parts of {slab.dtype!r}: {slab.parts} don't divide {slab.width} elements")


def graph_digest(data: bytes) -> str:
    """A SHA-256 ("sha256:…") over an ONNX file without its metadata properties, where its own certificate stands.

    Raises ContractError if the bytes aren't a protobuf message.
    """
    sha, at = hashlib.sha256(), 0
    while at < len(data):
        start, (tag, at) = at, _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                at += size
            case 5:
                at += 4
            case _:
                raise ContractError("damaged graph: not a protobuf message")
        if at > len(data):
            raise ContractError("damaged graph: it ends too early")
        if tag >> 3 != _METADATA_PROPS:
            sha.update(data[start:at])
    return "sha256:" + sha.hexdigest()


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The protobuf varint at `at`, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ContractError("damaged graph: not a protobuf message")


def _plain(contract: Contract) -> dict[str, Any]:
    """The contract as JSON values."""

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        return {name: getattr(spec, name) for name in TensorSpec.__dataclass_fields__}

    def state(pair: StatePair) -> dict[str, Any]:
        plain = {name: getattr(pair, name) for name in StatePair.__dataclass_fields__}
        return plain | {"initial": None if pair.initial is None else base64.b64encode(pair.initial).decode()}

    def constant(value: Constant) -> dict[str, Any]:
        plain = {name: getattr(value, name) for name in Constant.__dataclass_fields__}
        return plain | {"value": base64.b64encode(value.value).decode()}

    certificate = contract.certificate
    # What an older version doesn't know is left out where it says nothing new: an older artifact's digest stays.
    newer: dict[str, Any] = {"row_parts": dict(contract.row_parts)} if contract.row_parts else {}
    newer |= {"max_steps": contract.max_steps} if contract.max_steps != OLDER_STEPS else {}
    newer |= {"single_lane": True} if contract.single_lane else {}
    return {
        "schema": SCHEMA,
        "name": contract.name,
        "inputs": [tensor(spec) for spec in contract.inputs],
        "outputs": [tensor(spec) for spec in contract.outputs],
        "states": [state(pair) for pair in contract.states],
        "constants": [constant(value) for value in contract.constants],
        "weights_digest": contract.weights_digest,
        "precision": contract.precision,
        "ragged": contract.ragged,
        **newer,
        "notes": dict(contract.notes),
        "certificate": None if certificate is None else certificate_to_plain(certificate),
    }


def certificate_to_plain(certificate: Certificate) -> dict[str, Any]:
    """The certificate as JSON values, `passed` spelled out for people."""
    return {
        "passed": certificate.passed,
        "created": certificate.created,
        "machine": certificate.machine,
        "versions": dict(certificate.versions),
        "weights_digest": certificate.weights_digest,
        "records": [
            {
                name: getattr(record, name)
                for name in ParityRecord.__dataclass_fields__
                if name != "failed_by" or record.failed_by
            }
            for record in certificate.records
        ],
        "not_checked": list(certificate.not_checked),
        "invariances": dict(certificate.invariances),
        "controls": dict(certificate.controls),
        "states": dict(certificate.states),
        "digests": dict(certificate.digests),
    }


def _contract(data: Mapping[str, Any]) -> Contract:
    def shaped(plain: Mapping[str, Any]) -> dict[str, Any]:
        return {**plain, "shape": tuple(int(size) for size in plain["shape"])}

    def state(plain: Mapping[str, Any]) -> StatePair:
        initial = plain["initial"]
        return StatePair(**shaped(plain) | {"initial": None if initial is None else base64.b64decode(initial)})

    def constant(plain: Mapping[str, Any]) -> Constant:
        return Constant(**shaped(plain) | {"value": base64.b64decode(plain["value"])})

    plain_certificate = data["certificate"]
    return Contract(
        name=str(data["name"]),
        inputs=tuple(TensorSpec(**shaped(plain)) for plain in data["inputs"]),
        outputs=tuple(TensorSpec(**shaped(plain)) for plain in data["outputs"]),
        states=tuple(state(plain) for plain in data["states"]),
        constants=tuple(constant(plain) for plain in data["constants"]),
        weights_digest=str(data["weights_digest"]),
        precision=str(data["precision"]),
        ragged=bool(data["ragged"]),
        max_steps=int(data.get("max_steps", OLDER_STEPS)),
        single_lane=bool(data.get("single_lane", False)),
        row_parts={str(dtype): int(parts) for dtype, parts in dict(data.get("row_parts", {})).items()},
        notes=dict(data["notes"]),
        certificate=None if plain_certificate is None else _certificate(plain_certificate),
    )


def _certificate(plain: Mapping[str, Any]) -> Certificate:
    return Certificate(
        created=str(plain["created"]),
        machine=str(plain["machine"]),
        versions=dict(plain["versions"]),
        weights_digest=str(plain["weights_digest"]),
        records=tuple(ParityRecord(**record) for record in plain["records"]),
        not_checked=tuple(plain["not_checked"]),
        invariances={str(name): bool(held) for name, held in plain.get("invariances", {}).items()},
        controls={str(name): float(ratio) for name, ratio in plain.get("controls", {}).items()},
        states={str(name): str(text) for name, text in plain.get("states", {}).items()},
        digests={str(name): str(digest) for name, digest in plain.get("digests", {}).items()},
    )
