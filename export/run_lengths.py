"""How many steps of a stream a run may have: which lengths are tried, and the proof of these, byte for byte.

A graph may treat a chunk of 41 steps otherwise than one of 40: a lag, a dilation, a window, a table of positions. So
runs are tried at every length of the server's usual slices, around every number that stands in the graph, and at the
longest; the contract says up to which one all of them gave the bytes of single steps. Owns that limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.artifact import SMALL
from export.rewriting import attribute
from export.runtime import Resident
from export.samples import NON_ZERO, Arrays, Sample, values
from export.subgraphs import all_graphs, all_nodes
from export.wrap_parity import ByHand, draw
from export.yardstick import compare_bits
from model.contract import Contract, ParityRecord

MOST = 512  # steps: the server's largest run
EVERY = 32  # every length up to the server's slices
ELEMENTS = 1 << 22  # of the widest tensor, in one run
TRAFFIC = 1 << 34  # bytes of weights that are read for the longest stream, step by step
TRIED = 8  # times the longest: steps of all lengths above EVERY together


@dataclass(frozen=True, slots=True)
class Lengths:
    """What was found of runs of several steps: records that passed, up to the longest run that did."""

    records: tuple[ParityRecord, ...]
    longest: int
    fault: str = ""  # why not more
    failed: tuple[ParityRecord, ...] = ()  # records of the first length that didn't


def most_steps(contract: Contract, weights: int) -> int:
    """The longest run that is worth proving: MOST, or less where `weights` bytes or wide tensors make it long."""
    if not contract.ragged:
        return 1
    tensors = (*contract.inputs, *contract.outputs)
    widest = max([spec.elements for spec in tensors] + [state.elements for state in contract.states])
    return max(2, min(MOST, ELEMENTS // widest, TRAFFIC // max(1, weights)))


def numbers(model: ModelProto, folder: Path) -> set[int]:
    """Every number in a graph that could be one of steps: in attributes, small constants, sizes of weights.

    Windows of convolutions and pools count with their dilation, and all of them together. Weights lie in `folder`.
    """
    graphs: list[GraphProto] = [model.graph, *all_graphs(model.graph.node)]
    found = {abs(number) for graph in graphs for tensor in graph.initializer for number in _of_tensor(tensor, folder)}
    reach = 1
    for node in all_nodes(model.graph.node):
        for one in node.attribute:
            if one.type == AttributeProto.TENSOR:
                found.update(abs(number) for number in _of_tensor(one.t, folder))
            elif one.type in (AttributeProto.INT, AttributeProto.INTS):
                found.update(abs(number) for number in (one.i, *one.ints))
        windows = _windows(node, graphs)
        found.update(windows)
        reach += max(windows, default=1) - 1
    return {number for number in found | {reach} if number > 1}


def _windows(node: NodeProto, graphs: Sequence[GraphProto]) -> list[int]:
    """How many steps a convolution or pool reaches over, for each of its axes."""
    kernel = list(attribute(node, "kernel_shape", []))
    if not kernel and node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1:
        weights = [t for graph in graphs for t in graph.initializer if t.name == node.input[1]]
        kernel = [size for tensor in weights for size in tensor.dims[2:]]
    dilations = list(attribute(node, "dilations", [])) or [1] * len(kernel)
    return [(size - 1) * wide + 1 for size, wide in zip(kernel, dilations, strict=False)]


def _of_tensor(tensor: TensorProto, folder: Path) -> Iterable[int]:
    """A tensor's sizes, and its values where they are few and whole."""
    yield from tensor.dims
    if np.prod(tensor.dims, dtype=np.int64) > SMALL or tensor.data_type == TensorProto.STRING:
        return
    array = _small(tensor, folder)
    if array.dtype.kind in "iuf":
        flat = array.astype(np.float64).ravel()
        yield from (int(number) for number in flat if np.isfinite(number) and number == np.round(number))


def _small(tensor: TensorProto, folder: Path) -> npt.NDArray[Any]:
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        return np.frombuffer(file.read(int(place["length"])), dtype)


def tried(known: Iterable[int], most: int, multiple: int = 1) -> list[int]:
    """The lengths to try, in order: all up to EVERY, around each known number while TRIED lasts, and `most`."""
    found = set(range(1, min(EVERY, most) + 1)) | {most}
    left = TRIED * most
    for number in sorted(known):
        for length in (number - 1, number, number + 1):
            if 1 <= length <= most and length not in found and length <= left:
                found.add(length)
                left -= length
    return sorted({-(-length // multiple) * multiple for length in found if -(-length // multiple) * multiple <= most})


def prove(folder: Path, names: tuple[str, str], by_hand: ByHand, lengths: Sequence[int]) -> Lengths:
    """Try runs of every one of these lengths, beside shorter ones, against single calls by hand; up to the first fault.

    `names` are what the truth is called, and the resident graph's file. One session is open at a time.
    """
    if not lengths:
        return Lengths((), 1)
    contract, told = by_hand.contract, by_hand.told(names[0])
    asked = _Asked.of(by_hand, lengths)
    full = _full_run(by_hand, max(lengths))
    by_hand.let_go()
    resident = Resident(folder / names[1], contract, rows=5)
    subject = f"{names[1]}, runs of every length to {min(EVERY, max(lengths))}, and of up to {max(lengths)}"
    worst: dict[str, ParityRecord] = {}
    longest, fault, failed = 0, "", list[ParityRecord]()
    try:
        for length in lengths:
            found = list(_worst(asked.compared(resident, contract, length, subject, told)))
            failed = [record for record in found if not record.passed]
            if failed:
                most = max(failed, key=lambda record: record.max_error)
                fault = f"runs of {length} steps differ from single ones in {most.tensor!r}, by {most.max_error:.2g}"
                break
            worst |= {record.tensor: record for record in found}
            longest = length
    except Exception as error:  # noqa: BLE001  ONNX Runtime's own: a table is too short, say
        fault = f"runs of more than {longest} steps don't run: {' '.join(str(error).split())[:200]}"
    records = list(worst.values())
    if longest:
        sample, truth = full if longest >= full[0].steps else _full_run(by_hand, longest)
        records += _compare_full(resident, sample, truth, told, names[1])
    return Lengths(tuple(records), longest, fault, tuple(failed))


@dataclass(frozen=True, slots=True)
class _Asked:
    """Two streams' first steps, a long one's and a short one's, and what single calls say of them."""

    sample: Sample
    short: list[int]  # lengths that the second stream's answers are known for
    truths: tuple[tuple[Arrays, Mapping[int, Arrays]], ...]

    @staticmethod
    def of(by_hand: ByHand, lengths: Sequence[int]) -> _Asked:
        short = [length for length in lengths if length <= EVERY] or list(lengths[:1])
        sample = draw(by_hand.contract, 2, max(lengths), NON_ZERO, seed=6)
        brief = replace(sample, steps=max(short), inputs={n: v[:, : max(short)] for n, v in sample.inputs.items()})
        return _Asked(sample, short, (_course(by_hand, sample, 0, lengths), _course(by_hand, brief, 1, short)))

    def compared(
        self, resident: Resident, contract: Contract, length: int, subject: str, told: str
    ) -> Iterator[ParityRecord]:
        """What comparing bytes says of a run of so many steps of the one stream beside some of the other."""
        random = np.random.default_rng([6, length])
        both = (length, int(random.choice([size for size in self.short if size <= length])))
        for lane in (0, 1):
            resident.write_states(lane + 1, {name: value[lane] for name, value in self.sample.states.items()})
        inputs = {}
        for spec in contract.inputs:
            inputs[spec.name] = values(spec, (2, length, *spec.shape), random)
            for lane, size in enumerate(both):
                inputs[spec.name][lane, :size] = self.sample.inputs[spec.name][lane, :size]
        answer = resident.run(inputs, list(both), [1, 2], [3, 4])
        for lane, size in enumerate(both):
            mine = {name: value[lane, :size] for name, value in answer.items()} | resident.read_states(3 + lane)
            outputs, states = self.truths[lane]
            truth = {name: value[:size] for name, value in outputs.items()} | states[size]
            part = replace(self.sample, steps=size)
            yield from compare_bits(subject=subject, sample=part, answer=mine, truth_name=told, truth=truth)


def _worst(records: Iterable[ParityRecord]) -> Iterator[ParityRecord]:
    """One record for each tensor: one that failed, or the longest."""
    found = list(records)
    for tensor in dict.fromkeys(record.tensor for record in found):
        yield max((r for r in found if r.tensor == tensor), key=lambda r: (not r.passed, r.max_error, r.steps))


def _course(by_hand: ByHand, sample: Sample, lane: int, lengths: Sequence[int]) -> tuple[Arrays, Mapping[int, Arrays]]:
    """One stream's outputs [T, *shape], and its states after each of these lengths, by single calls."""
    contract, wanted = by_hand.contract, set(lengths)
    pieces: list[Arrays] = []
    states: dict[int, Arrays] = {}
    for place, answer in enumerate(by_hand.calls(sample, lane), start=1):
        pieces.append({spec.name: answer[spec.name] for spec in contract.outputs})
        if place * by_hand.steps in wanted:
            states[place * by_hand.steps] = {state.output: answer[state.output] for state in contract.states}
    return {spec.name: np.concatenate([piece[spec.name] for piece in pieces]) for spec in contract.outputs}, states


def _full_run(by_hand: ByHand, longest: int) -> tuple[Sample, Arrays]:
    """Slices of EVERY steps, as many in all as the longest run has, at least two; what single calls say of them."""
    streams, steps = max(2, longest // EVERY), max(by_hand.steps, min(longest, EVERY) // by_hand.steps * by_hand.steps)
    sample = draw(by_hand.contract, streams, steps, NON_ZERO, seed=7)
    return sample, by_hand.run(sample)


def _compare_full(resident: Resident, sample: Sample, truth: Arrays, told: str, name: str) -> list[ParityRecord]:
    """The server's largest run: all of these streams' steps at once."""
    streams, steps = next(iter(sample.inputs.values())).shape[:2]
    resident.reset(rows=2 * streams + 1)
    rows, fresh = list(range(1, streams + 1)), list(range(streams + 1, 2 * streams + 1))
    for lane, row in enumerate(rows):
        resident.write_states(row, {name: value[lane] for name, value in sample.states.items()})
    answer = resident.run(sample.inputs, [steps] * streams, rows, fresh)
    new = [resident.read_states(row) for row in fresh]
    answer |= {name: np.stack([states[name] for states in new]) for name in new[0]}
    subject = f"{name}, {streams} streams of {steps} steps in one run"
    return compare_bits(subject=subject, sample=sample, answer=answer, truth_name=told, truth=truth)
