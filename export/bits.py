"""The very same bytes: streams in ragged chunks and changing batches against each one alone, step by step.

Owns the two ways to run the same streams. Knows no torch; works for any contract.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from export.runtime import Portable, Resident
from export.samples import Arrays, Sample
from model.contract import Contract


def alone(portable: Portable, contract: Contract, sample: Sample) -> Arrays:
    """Each stream by itself in model.onnx, one step per run, its state carried by hand."""
    lanes_found = []
    for lane in range(_batch(sample)):
        states = {name: value[lane : lane + 1] for name, value in sample.states.items()}
        outputs = []
        for step in range(sample.steps):
            inputs = {name: value[lane : lane + 1, step : step + 1] for name, value in sample.inputs.items()}
            answer = portable.run(inputs, states)
            states = {state.input: answer[state.output] for state in contract.states}
            outputs.append({tensor.name: answer[tensor.name] for tensor in contract.outputs})
        joined = {name: np.concatenate([output[name] for output in outputs], axis=1) for name in outputs[0]}
        lanes_found.append(joined | {state.output: states[state.input] for state in contract.states})
    return {name: np.concatenate([found[name] for found in lanes_found]) for name in lanes_found[0]}


def rows_needed(streams: int) -> int:
    """Rows of the slab that `ragged` takes."""
    return 4 * streams


def ragged(resident: Resident, contract: Contract, sample: Sample, *, most_steps: int, seed: int) -> Arrays:
    """All streams on one slab: random members, random lengths, a fresh random row for every new state."""
    random = np.random.default_rng([seed, most_steps])
    streams = _batch(sample)
    free = list(range(1, rows_needed(streams)))
    random.shuffle(free)
    rows = [free.pop() for _ in range(streams)]
    for lane, row in enumerate(rows):
        resident.write_states(row, {name: value[lane] for name, value in sample.states.items()})
    done = [0] * streams
    answers = {
        tensor.name: np.zeros((streams, sample.steps, *tensor.shape), tensor.dtype) for tensor in contract.outputs
    }
    while min(done) < sample.steps:
        waiting = [lane for lane in range(streams) if done[lane] < sample.steps]
        members = [int(lane) for lane in random.permutation(waiting)[: random.integers(1, len(waiting) + 1)]]
        lengths = [int(random.integers(1, min(most_steps, sample.steps - done[lane]) + 1)) for lane in members]
        inputs = {name: _cut(value, members, done, max(lengths)) for name, value in sample.inputs.items()}
        fresh = [free.pop() for _ in members]
        answer = resident.run(inputs, lengths, [rows[lane] for lane in members], fresh)
        for place, (lane, length) in enumerate(zip(members, lengths, strict=True)):
            for name, value in answer.items():
                answers[name][lane, done[lane] : done[lane] + length] = value[place, :length]
            done[lane] += length
            free.insert(0, rows[lane])
            rows[lane] = fresh[place]
    states = [resident.read_states(row) for row in rows]
    return answers | {name: np.stack([state[name] for state in states]) for name in states[0]}


def _batch(sample: Sample) -> int:
    return len(next(iter(sample.inputs.values())))


def _cut(value: npt.NDArray[Any], members: list[int], done: list[int], longest: int) -> npt.NDArray[Any]:
    """The next `longest` steps of each member, [B, T, *shape]; past a stream's end its last step is repeated."""
    last = value.shape[1] - 1
    return np.stack([value[lane, np.minimum(np.arange(longest) + done[lane], last)] for lane in members])
