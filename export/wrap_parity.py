"""Parity of a wrapped graph: the resident one against plain runs of theirs, states carried by hand, byte for byte.

Owns what is run and how it is compared. Knows neither PyTorch's model nor how the contract was found.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import ModelProto

from export.ranges import noted as noted_ranges
from export.runtime import Resident
from export.samples import NON_ZERO, Sample, values
from export.starts import Start, noted
from export.yardstick import MAX_BAR, RIPPLE, RMS_BAR, SLACK, TINY, compare_bits, difference
from model.contract import Contract, ParityRecord, StatePair, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
STREAMS, STEPS = 9, 24
CROWD, CROWD_STEPS = 128, 2  # the server's largest batch, as it comes: kernels change with their number of rows
CHUNK = 8
WILD = 100.0  # what stands in the padding, times a normal number: it may reach nothing
INITIAL = "initial"
CLOSENESS = f"ratios to its own change where inputs and states are off by {SLACK:g} epsilons"


@dataclass(slots=True)
class ByHand:
    """Their graph as anybody would run it: one stream at a time, the states carried from call to call.

    `streams` and `steps` are what one call takes: a batch that is fixed is filled with the same stream. An input that
    says whether a sequence starts says so in the first call and never again, whatever the graph gives as its successor.
    """

    path: Path
    contract: Contract
    streams: int = 1
    steps: int = 1
    theirs: Mapping[str, str] = field(default_factory=dict)  # our name -> their name, where they differ
    lengths: tuple[str, ...] = ()  # inputs of theirs that say how many steps each row has
    bare: frozenset[str] = frozenset()  # tensors of theirs without a batch axis
    fixed: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # inputs of theirs that are weights of ours
    start_ranks: Mapping[str, int] = field(default_factory=dict)  # axes of theirs that say a start, if fewer than ours
    from_start: bool = True  # False: from the middle of a sequence, which doesn't start any more
    slack: float = 0.0  # epsilons by which inputs and states are off, to see what rounding alone does
    _session: Any = None
    _starts: tuple[Start, ...] = ()

    def __post_init__(self) -> None:
        self._starts = noted(self.contract)

    def let_go(self) -> None:
        """Free the session; the next call opens another."""
        self._session = None

    def run(self, sample: Sample) -> Arrays:
        """Outputs [S, T, *shape] and last states [S, *shape] of every stream alone."""
        lanes = len(next(iter(sample.inputs.values())))
        found = [self._stream(sample, lane) for lane in range(lanes)]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    def calls(self, sample: Sample, lane: int) -> Iterator[Arrays]:
        """What each call for one stream answers: outputs [steps, *shape] and new states [*shape]."""
        states = {name: value[lane] for name, value in sample.states.items()}
        for start in range(0, sample.steps, self.steps):
            inputs = {name: value[lane, start : start + self.steps] for name, value in sample.inputs.items()}
            states |= self._said(first=start == 0 and self.from_start)
            answer = self._call(inputs, states) | self._said_next()
            states = {state.input: answer[state.output] for state in self.contract.states}
            yield answer

    def _stream(self, sample: Sample, lane: int) -> Arrays:
        answers = list(self.calls(sample, lane))
        joined = {o.name: np.concatenate([one[o.name] for one in answers]) for o in self.contract.outputs}
        return joined | {state.output: answers[-1][state.output] for state in self.contract.states}

    def told(self, name: str) -> str:
        """What the answers are called in a record; `name` is the graph's."""
        return f"{name}, each stream alone, {self.steps} step(s) a run, states carried by hand"

    def _call(self, inputs: Arrays, states: Arrays) -> Arrays:
        """Inputs [T, *shape] and states [*shape] of one stream; outputs and new states likewise."""
        contract, name_of = self.contract, self._name
        feeds = {
            name_of(spec.name): self._batch(model_axes(spec, inputs[spec.name][None]), spec) for spec in contract.inputs
        }
        for state in contract.states:
            feeds[name_of(state.input)] = self._batch(state_axes(state, states[state.input][None]), state)
        feeds |= {name_of(name): value for name, value in constants(contract).items()}
        feeds = {name: np.asarray(value[0]) if name in self.bare else value for name, value in feeds.items()}
        for name, rank in self.start_ranks.items():
            feeds[name] = np.asarray(feeds[name][:, 0] if rank else feeds[name][0, 0])
        feeds |= self.fixed
        for name in self.lengths:
            feeds[name] = np.full(self.streams, self.steps, np.int32)
        if self._session is None:
            self._session = session(self.path)
        carried = [state for state in contract.states if state.output not in self._said_next()]
        names = [*(spec.name for spec in contract.outputs), *(state.output for state in carried)]
        found = self._session.run([name_of(name) for name in names], feeds)
        pairs = zip(names, found, strict=True)
        values = {name: value[None] if name_of(name) in self.bare else value for name, value in pairs}
        if self.streams > 1:
            specs = {spec.name: spec for spec in contract.outputs} | {state.output: state for state in carried}
            values = {name: self._first(value, specs[name]) for name, value in values.items()}
        answer = {spec.name: batch_and_time(spec, values[spec.name])[0] for spec in contract.outputs}
        return answer | {s.output: np.take(values[s.output], 0, s.batch_axis) for s in carried}

    def _first(self, value: npt.NDArray[Any], spec: TensorSpec | StatePair) -> npt.NDArray[Any]:
        """The first stream's part of a filled batch, whichever of several axes of size 1 the contract has it on."""
        time = spec.time_axis if isinstance(spec, TensorSpec) else None
        places = (spec.batch_axis,) if time is None else (spec.batch_axis, time)
        one = np.empty((1, *[self.steps] * (len(places) - 1), *spec.shape), dtype=bool)
        wanted = one.transpose(_moved(places, one.ndim))
        for axis, (size, alone) in enumerate(zip(value.shape, wanted.shape, strict=True)):
            value = np.take(value, [0], axis) if size == self.streams != alone else value
        return value

    def _said(self, *, first: bool) -> Arrays:
        """What a call is told of whether its sequence starts."""
        return {start.state.input: start.said(first=first) for start in self._starts}

    def _said_next(self) -> Arrays:
        """What the call after any other is told."""
        return {start.state.output: start.said(first=False) for start in self._starts}

    def _batch(self, value: npt.NDArray[Any], spec: TensorSpec | StatePair) -> npt.NDArray[Any]:
        if self.slack and value.dtype.kind == "f":
            value = value * (1 + self.slack * np.finfo(value.dtype).eps * np.cos(RIPPLE * value)).astype(value.dtype)
        return np.repeat(value, self.streams, spec.batch_axis) if self.streams > 1 else value

    def _name(self, name: str) -> str:
        return self.theirs.get(name, name)


def of_portable(path: Path, model: ModelProto, contract: Contract) -> ByHand:
    """The artifact's own model.onnx, run with the batch and steps that it declares."""
    declared = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    places = [(spec.input, spec.batch_axis) for spec in contract.states]
    places += [(spec.name, spec.batch_axis) for spec in contract.inputs]
    streams = max((declared[name][axis].dim_value for name, axis in places), default=1)
    timed = [(spec.name, spec.time_axis) for spec in contract.inputs if spec.time_axis is not None]
    steps = max((declared[name][axis].dim_value for name, axis in timed), default=1)
    return ByHand(path, contract, max(1, streams), max(1, steps))


def session(path: Path) -> Any:
    """ONNX Runtime on the CPU as it comes, but silent."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def model_axes(spec: TensorSpec, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[B, T, *shape] on the axes of model.onnx."""
    if spec.time_axis is None:
        assert value.shape[1] == 1, "a model without a time axis takes one step at a time"
        return value[:, 0].transpose(_moved((spec.batch_axis,), value.ndim - 1))
    return value.transpose(_moved((spec.batch_axis, spec.time_axis), value.ndim))


def state_axes(state: StatePair, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[B, *shape] on the axes of model.onnx."""
    return value.transpose(_moved((state.batch_axis,), value.ndim))


def batch_and_time(spec: TensorSpec, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of `model_axes`: [B, T, *shape]."""
    if spec.time_axis is None:
        return np.moveaxis(value, spec.batch_axis, 0)[:, None]
    return np.moveaxis(value, (spec.batch_axis, spec.time_axis), (0, 1))


@functools.cache
def _moved(places: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The permutation that takes the first axes to these places: what np.moveaxis finds anew in every call."""
    rest = iter(range(len(places), rank))
    return tuple(places.index(axis) if axis in places else next(rest) for axis in range(rank))


def constants(contract: Contract) -> Arrays:
    """The side inputs of model.onnx that never change, by name."""
    return {c.name: np.frombuffer(c.value, c.dtype).reshape(c.shape) for c in contract.constants}


def draw(contract: Contract, streams: int, steps: int, initial: str, seed: int) -> Sample:
    """A sample: normal floats, integers from their whole range, states as they begin, or (floats) random."""
    random = np.random.default_rng([seed, streams, steps, initial == INITIAL])
    ranges = noted_ranges(contract)
    inputs = {s.name: values(s, (streams, steps, *s.shape), random, ranges.get(s.name)) for s in contract.inputs}
    starts = [start.state for start in noted(contract)]
    states: Arrays = {}
    for state in contract.states:
        shape = (streams, *state.shape)
        value = np.broadcast_to(state.initial_value().reshape(state.shape), shape).copy()
        if initial == NON_ZERO and value.dtype.kind == "f" and state not in starts:
            value = np.tanh(random.standard_normal(shape)).astype(state.dtype)
        states[state.input] = value
    return Sample(steps, initial, inputs, states)


@dataclass(frozen=True, slots=True)
class Truths:
    """What is asked of every form of a graph, and what single calls by hand answer; `name` says whose calls."""

    name: str
    cases: tuple[tuple[Sample, Arrays], ...]  # few streams from either state, then the server's largest batch


def truths(by_hand: ByHand, name: str, seed: int = 0) -> Truths:
    """Ask a graph, whose file is called `name`."""
    contract, steps = by_hand.contract, by_hand.steps
    few = [draw(contract, STREAMS, -(-STEPS // steps) * steps, initial, seed) for initial in (INITIAL, NON_ZERO)]
    crowd = draw(contract, CROWD, -(-CROWD_STEPS // steps) * steps, INITIAL, seed)
    return Truths(by_hand.told(name), tuple((sample, by_hand.run(sample)) for sample in (*few, crowd)))


def records(path: Path, contract: Contract, asked: Truths, seed: int = 0) -> Iterator[list[ParityRecord]]:
    """All comparisons of the resident graph at `path`, a batch of records at a time: `batches` batches."""
    *few, (crowd, crowds) = asked.cases
    for sample, truth in few:
        for most in (1, CHUNK) if contract.ragged else (1,):
            kind = "step by step" if most == 1 else f"ragged chunks of 1 to {most}"
            answer = in_changing_batches(path, contract, sample, most, seed)
            subject = f"{path.name}, {kind}, in batches that change"
            yield compare_bits(subject=subject, sample=sample, answer=answer, truth_name=asked.name, truth=truth)
    answer = _in_one_batch(path, contract, crowd)
    subject = f"{path.name}, {CROWD} streams in one batch, one thread"
    yield compare_bits(subject=subject, sample=crowd, answer=answer, truth_name=asked.name, truth=crowds)


def portable_records(ours: ByHand, asked: Truths) -> list[ParityRecord]:
    """The artifact's own model.onnx against the given graph: the same calls by hand."""
    subject = f"{ours.path.name}, each stream alone, states carried by hand"
    found = []
    for sample, truth in asked.cases:
        answer = ours.run(sample)
        found += compare_bits(subject=subject, sample=sample, answer=answer, truth_name=asked.name, truth=truth)
    return found


def close_records(ours: ByHand, given: ByHand, asked: Truths) -> list[ParityRecord]:
    """The same where the given graph can't be run as ours is, by what it makes itself of values that are barely off."""
    subject = f"{ours.path.name}, each stream alone, states carried by hand"
    shaken = replace(given, slack=SLACK)
    found = []
    for sample, truth in asked.cases:
        own, answer = shaken.run(sample), ours.run(sample)
        exact = compare_bits(subject=subject, sample=sample, answer=answer, truth_name=asked.name, truth=truth)
        found += [_close(record, own[record.tensor], truth[record.tensor]) for record in exact]
    return found


def _close(record: ParityRecord, own: npt.NDArray[Any], exact: npt.NDArray[Any]) -> ParityRecord:
    """A record of equal bytes as one with bars, where its tensor has floats."""
    if exact.dtype.kind != "f":
        return record
    errors, eps = difference(own, exact), float(np.finfo(exact.dtype).eps)
    least = max(eps * float(np.sqrt(np.mean(np.square(exact, dtype=np.float64)))), TINY)
    rms_ratio = record.rms_error / max(float(np.sqrt(np.mean(np.square(errors)))), least)
    max_ratio = record.max_error / max(float(np.max(errors)), least)
    return replace(
        record,
        truth=f"{record.truth}; {CLOSENESS}",
        rms_ratio=rms_ratio,
        max_ratio=max_ratio,
        rms_bar=RMS_BAR,
        max_bar=MAX_BAR,
        passed=rms_ratio <= RMS_BAR and max_ratio <= MAX_BAR,
    )


def invariances(contract: Contract) -> dict[str, bool]:
    """What equal bytes in all those runs say of a stream's circumstances."""
    found = ["batch size", "position in the batch", "row placement", "number of threads", "chunking"]
    return dict.fromkeys(found + ["neighbours' lengths"] * contract.ragged, True)


def batches(contract: Contract) -> int:
    """How many batches of records there will be."""
    return 2 * (1 + contract.ragged) + 1


def in_changing_batches(
    path: Path, contract: Contract, sample: Sample, most: int, seed: int, *, runs: type[Resident] = Resident
) -> Arrays:
    """All streams on one slab: random members, random lengths, a fresh random row for every new state.

    `runs` is what runs the graph; suites give one with a fault to see whether it is found.
    """
    random = np.random.default_rng([seed, most])
    streams = len(next(iter(sample.inputs.values())))
    resident = runs(path, contract, rows=4 * streams)
    free = [int(row) for row in 1 + random.permutation(4 * streams - 1)]
    rows = [free.pop() for _ in range(streams)]
    _begin(resident, rows, sample)
    done = [0] * streams
    parts: dict[int, list[Arrays]] = {lane: [] for lane in range(streams)}
    while min(done) < sample.steps:
        waiting = [lane for lane in range(streams) if done[lane] < sample.steps]
        members = [int(lane) for lane in random.permutation(waiting)[: random.integers(1, len(waiting) + 1)]]
        lengths = [int(random.integers(1, min(most, sample.steps - done[lane]) + 1)) for lane in members]
        slices = [(lane, done[lane], length) for lane, length in zip(members, lengths, strict=True)]
        inputs = _padded(contract, sample, slices, random)
        fresh = [free.pop() for _ in members]
        answer = resident.run(inputs, lengths, [rows[lane] for lane in members], fresh)
        for place, (lane, length) in enumerate(zip(members, lengths, strict=True)):
            parts[lane].append({name: value[place, :length].copy() for name, value in answer.items()})
            done[lane] += length
            free.insert(0, rows[lane])
            rows[lane] = fresh[place]
    return _answers(resident, contract, rows, [parts[lane] for lane in range(streams)])


def _in_one_batch(path: Path, contract: Contract, sample: Sample) -> Arrays:
    """All streams in every batch, one step a run."""
    streams = len(next(iter(sample.inputs.values())))
    resident = Resident(path, contract, rows=2 * streams + 1, threads=1)
    rows, fresh = list(range(1, streams + 1)), list(range(streams + 1, 2 * streams + 1))
    _begin(resident, rows, sample)
    parts: list[list[Arrays]] = [[] for _ in rows]
    for step in range(sample.steps):
        inputs = {name: value[:, step : step + 1] for name, value in sample.inputs.items()}
        answer = resident.run(inputs, [1] * streams, rows, fresh)
        for lane, part in enumerate(parts):
            part.append({name: value[lane].copy() for name, value in answer.items()})
        rows, fresh = fresh, rows
    return _answers(resident, contract, rows, parts)


def _begin(resident: Resident, rows: list[int], sample: Sample) -> None:
    for lane, row in enumerate(rows):
        resident.write_states(row, {name: value[lane] for name, value in sample.states.items()})


def _answers(resident: Resident, contract: Contract, rows: list[int], parts: list[list[Arrays]]) -> Arrays:
    answers = {
        spec.name: np.stack([np.concatenate([part[spec.name] for part in lane]) for lane in parts])
        for spec in contract.outputs
    }
    states = [resident.read_states(row) for row in rows]
    return answers | {name: np.stack([state[name] for state in states]) for name in states[0]}


def _padded(
    contract: Contract, sample: Sample, slices: list[tuple[int, int, int]], random: np.random.Generator
) -> Arrays:
    """The members' next steps [B, T, *shape]; after a member's last one stands what may reach nothing."""
    padded: Arrays = {}
    longest = max(length for _, _, length in slices)
    for spec in contract.inputs:
        value = values(spec, (len(slices), longest, *spec.shape), random)
        if value.dtype.kind == "f":
            value *= value.dtype.type(WILD)
        for place, (lane, start, length) in enumerate(slices):
            value[place, :length] = sample.inputs[spec.name][lane, start : start + length]
        padded[spec.name] = value
    return padded
