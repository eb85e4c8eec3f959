"""Parity: what every form of the model answers to the same questions, compared level by level, as records.

The levels: reference cell in float64 (the truth) <-> nn.LSTM in float64 and float32 <-> model.onnx <-> resident.onnx.
Owns the levels and how each is run. Prints nothing and writes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.runtime import Portable, Resident
from export.samples import NON_ZERO, ZERO, Arrays, Sample, draw, lanes
from export.yardstick import Yardstick, compare, compare_bits, off_by
from model.cell import State
from model.contract import Contract, ParityRecord
from model.lstm import LSTM

STEPS = (1, 10, 100, 1000)
RAGGED_STREAMS = 7
RAGGED_STEPS = 40
RAGGED_CHUNK = 8


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread for the block: these tensors are small, and waiting threads would cost tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Levels:
    """All forms of one model, ready to be asked the same questions."""

    def __init__(self, module: LSTM, folder: Path, names: tuple[str, str], contract: Contract) -> None:
        self.contract = contract
        self._module = module.eval()
        self._double = copy.deepcopy(module).double().eval()
        self._portable = Portable(folder / names[0], contract)
        self._resident_path = folder / names[1]
        self._names = names
        spec = module.spec
        gates = spec.core_size + spec.hidden_size
        y = spec.hidden_size if spec.output_size is not None else gates
        self._terms = {"y": y, "h_out": gates, "c_out": gates}

    def records(self, seed: int = 0) -> Iterator[list[ParityRecord]]:
        """All comparisons, a batch of records at a time: `batches` batches."""
        for steps in STEPS:
            for initial in (ZERO, NON_ZERO):
                yield self.against_truth(draw(self.contract, steps, initial, lanes(self.contract, steps), seed))
        yield self.bit_for_bit(seed, most_steps=1)
        yield self.bit_for_bit(seed, most_steps=RAGGED_CHUNK)

    @property
    def batches(self) -> int:
        """How many batches of records there will be, for a progress bar."""
        return 2 * len(STEPS) + 2

    def against_truth(self, sample: Sample) -> list[ParityRecord]:
        """Every level against the reference cell in float64."""
        truth, slack = self._truth(sample)
        own = self._torch(sample, self._module)
        yardstick = Yardstick(own, slack, self._terms)
        answers = {
            "nn.LSTM float64": self._torch(sample, self._double),
            "nn.LSTM float32": own,
            self._names[0]: self._portable.run(sample.inputs, sample.states),
            self._names[1]: self._resident(sample),
        }
        records = []
        for subject, answer in answers.items():
            records += compare(subject=subject, sample=sample, answer=answer, truth=truth, yardstick=yardstick)
        return records

    @torch.inference_mode()
    @one_thread()
    def _truth(self, sample: Sample) -> tuple[Arrays, Arrays]:
        """The reference cell in float64, exact and with slack, in one run: the second half of its lanes has it."""
        x, state = _tensors(sample, torch.float64)
        shares = torch.cat([torch.zeros(len(x), 1), torch.ones(len(x), 1)]).double()
        twice = State(*(torch.cat([part, part]) for part in state))
        y, new = self._double.reference(torch.cat([x, x]), twice, off_by(shares))
        both = {"y": y.numpy(), "h_out": new.h.numpy(), "c_out": new.c.numpy()}
        return {k: v[: len(x)] for k, v in both.items()}, {k: v[len(x) :] for k, v in both.items()}

    @torch.inference_mode()
    @one_thread()
    def _torch(self, sample: Sample, module: LSTM) -> Arrays:
        """The module around nn.LSTM, in its own dtype."""
        y, state = module(*_tensors(sample, next(module.parameters()).dtype))
        return {"y": y.numpy(), "h_out": state.h.numpy(), "c_out": state.c.numpy()}

    def _resident(self, sample: Sample) -> Arrays:
        """One run of all lanes, from rows 1..B to rows B+1..2B."""
        batch = len(next(iter(sample.inputs.values())))
        resident = Resident(self._resident_path, self.contract, rows=2 * batch + 1)
        for lane in range(batch):
            resident.write_states(lane + 1, {name: value[lane] for name, value in sample.states.items()})
        read, write = list(range(1, batch + 1)), list(range(batch + 1, 2 * batch + 1))
        answer = resident.run(sample.inputs, [sample.steps] * batch, read, write)
        states = [resident.read_states(row) for row in write]
        return answer | {name: np.stack([state[name] for state in states]) for name in states[0]}

    def bit_for_bit(self, seed: int, *, most_steps: int) -> list[ParityRecord]:
        """Streams in ragged chunks and changing batches against each one alone in model.onnx, step by step."""
        kind = "step by step" if most_steps == 1 else f"ragged chunks of 1 to {most_steps}"
        sample = draw(self.contract, RAGGED_STEPS, NON_ZERO, RAGGED_STREAMS, seed)
        alone, together = self._alone(sample), self._ragged(sample, most_steps, seed)
        subject, truth = f"{self._names[1]}, {kind}", f"{self._names[0]}, each stream alone, bit for bit"
        return compare_bits(subject=subject, sample=sample, answer=together, truth_name=truth, truth=alone)

    def _alone(self, sample: Sample) -> Arrays:
        """Each stream by itself, one step per run, its state carried by hand."""
        lanes_found = []
        for lane in range(RAGGED_STREAMS):
            states = {name: value[lane : lane + 1] for name, value in sample.states.items()}
            outputs = []
            for step in range(sample.steps):
                inputs = {name: value[lane : lane + 1, step : step + 1] for name, value in sample.inputs.items()}
                answer = self._portable.run(inputs, states)
                states = {state.input: answer[state.output] for state in self.contract.states}
                outputs.append({tensor.name: answer[tensor.name] for tensor in self.contract.outputs})
            joined = {name: np.concatenate([output[name] for output in outputs], axis=1) for name in outputs[0]}
            lanes_found.append(joined | {state.output: states[state.input] for state in self.contract.states})
        return {name: np.concatenate([found[name] for found in lanes_found]) for name in lanes_found[0]}

    def _ragged(self, sample: Sample, most_steps: int, seed: int) -> Arrays:
        """All streams on one slab: random members, random lengths, a fresh random row for every new state."""
        random = np.random.default_rng([seed, most_steps])
        resident = Resident(self._resident_path, self.contract, rows=4 * RAGGED_STREAMS)
        free = list(range(1, 4 * RAGGED_STREAMS))
        random.shuffle(free)
        rows = [free.pop() for _ in range(RAGGED_STREAMS)]
        for lane, row in enumerate(rows):
            resident.write_states(row, {name: value[lane] for name, value in sample.states.items()})
        done = [0] * RAGGED_STREAMS
        answers = {
            tensor.name: np.zeros((RAGGED_STREAMS, sample.steps, *tensor.shape), tensor.dtype)
            for tensor in self.contract.outputs
        }
        while min(done) < sample.steps:
            waiting = [lane for lane in range(RAGGED_STREAMS) if done[lane] < sample.steps]
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


def _tensors(sample: Sample, dtype: torch.dtype) -> tuple[torch.Tensor, State]:
    """A sample as PyTorch takes it."""
    x = torch.from_numpy(sample.inputs["x"])
    state = State(*(torch.from_numpy(sample.states[name]).to(dtype) for name in ("h", "c")))
    return (x.to(dtype) if x.is_floating_point() else x), state


def _cut(value: npt.NDArray[Any], members: list[int], done: list[int], longest: int) -> npt.NDArray[Any]:
    """The next `longest` steps of each member, [B, T, *shape]; past a stream's end its last step is repeated."""
    last = value.shape[1] - 1
    return np.stack([value[lane, np.minimum(np.arange(longest) + done[lane], last)] for lane in members])
