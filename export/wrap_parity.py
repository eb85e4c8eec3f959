"""Parity of a wrapped graph: the resident one against plain runs of theirs, states carried by hand, byte for byte.

Owns what is run and how it is compared. Knows neither PyTorch's model nor how the contract was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from export.ranges import noted as noted_ranges
from export.runtime import Resident
from export.samples import NON_ZERO, Sample, values
from export.starts import Start, noted
from export.yardstick import compare_bits
from model.contract import Contract, ParityRecord, StatePair, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
STREAMS, STEPS = 9, 24
CROWD, CROWD_STEPS = 128, 2  # the server's largest batch, as it comes: kernels change with their number of rows
CHUNK = 8
WILD = 100.0  # what stands in the padding, times a normal number: it may reach nothing
INITIAL = "initial"


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
    start_ranks: Mapping[str, int] = field(default_factory=dict)  # axes of theirs that say a start, if fewer than ours
    from_start: bool = True  # False: from the middle of a sequence, which doesn't start any more
    _session: Any = None
    _starts: tuple[Start, ...] = ()

    def __post_init__(self) -> None:
        self._session = session(self.path)
        self._starts = noted(self.contract)

    def run(self, sample: Sample) -> Arrays:
        """Outputs [S, T, *shape] and last states [S, *shape] of every stream alone."""
        lanes = len(next(iter(sample.inputs.values())))
        found = [self._stream(sample, lane) for lane in range(lanes)]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    def _stream(self, sample: Sample, lane: int) -> Arrays:
        states = {name: value[lane] for name, value in sample.states.items()}
        outputs: list[Arrays] = []
        for start in range(0, sample.steps, self.steps):
            inputs = {name: value[lane, start : start + self.steps] for name, value in sample.inputs.items()}
            states |= self._said(first=start == 0 and self.from_start)
            answer = self._call(inputs, states) | self._said_next()
            states = {state.input: answer[state.output] for state in self.contract.states}
            outputs.append(answer)
        joined = {o.name: np.concatenate([one[o.name] for one in outputs]) for o in self.contract.outputs}
        return joined | {state.output: states[state.input] for state in self.contract.states}

    def _call(self, inputs: Arrays, states: Arrays) -> Arrays:
        """Inputs [T, *shape] and states [*shape] of one stream; outputs and new states likewise."""
        contract, name_of = self.contract, self._name
        feeds = {
            name_of(spec.name): self._batch(model_axes(spec, inputs[spec.name][None]), spec) for spec in contract.inputs
        }
        for state in contract.states:
            feeds[name_of(state.input)] = self._batch(np.expand_dims(states[state.input], state.batch_axis), state)
        for constant in contract.constants:
            value = np.frombuffer(constant.value, constant.dtype)
            feeds[name_of(constant.name)] = value.reshape(constant.shape)
        feeds = {name: np.asarray(value[0]) if name in self.bare else value for name, value in feeds.items()}
        for name, rank in self.start_ranks.items():
            feeds[name] = np.asarray(feeds[name][:, 0] if rank else feeds[name][0, 0])
        for name in self.lengths:
            feeds[name] = np.full(self.streams, self.steps, np.int32)
        carried = [state for state in contract.states if state.output not in self._said_next()]
        names = [*(spec.name for spec in contract.outputs), *(state.output for state in carried)]
        found = self._session.run([name_of(name) for name in names], feeds)
        pairs = zip(names, found, strict=True)
        values = {name: value[None] if name_of(name) in self.bare else value for name, value in pairs}
        answer = {spec.name: batch_and_time(spec, values[spec.name])[0] for spec in contract.outputs}
        return answer | {s.output: np.take(values[s.output], 0, s.batch_axis) for s in carried}

    def _said(self, *, first: bool) -> Arrays:
        """What a call is told of whether its sequence starts."""
        return {start.state.input: start.said(first=first) for start in self._starts}

    def _said_next(self) -> Arrays:
        """What the call after any other is told."""
        return {start.state.output: start.said(first=False) for start in self._starts}

    def _batch(self, value: npt.NDArray[Any], spec: TensorSpec | StatePair) -> npt.NDArray[Any]:
        return np.repeat(value, self.streams, spec.batch_axis) if self.streams > 1 else value

    def _name(self, name: str) -> str:
        return self.theirs.get(name, name)


def session(path: Path) -> Any:
    """ONNX Runtime on the CPU as it comes, but silent."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def model_axes(spec: TensorSpec, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[B, T, *shape] on the axes of model.onnx."""
    if spec.time_axis is None:
        assert value.shape[1] == 1, "a model without a time axis takes one step at a time"
        return np.moveaxis(value[:, 0], 0, spec.batch_axis)
    return np.moveaxis(value, (0, 1), (spec.batch_axis, spec.time_axis))


def batch_and_time(spec: TensorSpec, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse: [B, T, *shape]."""
    if spec.time_axis is None:
        return np.moveaxis(value, spec.batch_axis, 0)[:, None]
    return np.moveaxis(value, (spec.batch_axis, spec.time_axis), (0, 1))


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


def records(
    folder: Path, names: tuple[str, str], by_hand: ByHand, contract: Contract, seed: int = 0
) -> Iterator[list[ParityRecord]]:
    """All comparisons, a batch of records at a time: `batches` batches."""
    truth_name = f"{names[0]}, each stream alone, {by_hand.steps} step(s) a run, states carried by hand"
    steps = -(-STEPS // by_hand.steps) * by_hand.steps
    for initial in (INITIAL, NON_ZERO):
        sample = draw(contract, STREAMS, steps, initial, seed)
        truth = by_hand.run(sample)
        for most in (1, CHUNK) if contract.ragged else (1,):
            kind = "step by step" if most == 1 else f"ragged chunks of 1 to {most}"
            answer = in_changing_batches(folder / names[1], contract, sample, most, seed)
            subject = f"{names[1]}, {kind}, in batches that change"
            yield compare_bits(subject=subject, sample=sample, answer=answer, truth_name=truth_name, truth=truth)
    steps = -(-CROWD_STEPS // by_hand.steps) * by_hand.steps
    sample = draw(contract, CROWD, steps, INITIAL, seed)
    answer = _in_one_batch(folder / names[1], contract, sample)
    subject = f"{names[1]}, {CROWD} streams in one batch, one thread"
    yield compare_bits(subject=subject, sample=sample, answer=answer, truth_name=truth_name, truth=by_hand.run(sample))


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
