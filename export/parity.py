"""Parity: what every form of the model answers, compared with the float64 truth and with each other, as records.

The levels: reference cell in float64 (the truth) <-> nn.LSTM in float64 and float32 <-> model.onnx <-> resident.onnx.
Owns the comparisons and their bars. Prints nothing and writes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.runtime import Arrays, Portable, Resident
from model.cell import Activations, State
from model.contract import Contract, ParityRecord, TensorSpec
from model.lstm import LSTM

STEPS = (1, 10, 100, 1000)
ZERO, NON_ZERO = "zero", "non-zero"
TRUTH = "reference cell float64"
RMS_BAR, MAX_BAR = 2.0, 4.0  # times PyTorch's own float32 error
FLOAT64_BAR = 1e-4  # nn.LSTM in float64 must be closer to the truth than float32 by at least this
USABLE = 1e-2  # a net whose float32 error in PyTorch is above this share of its output proves nothing
GROUPS = 5  # independent draws: the median of their ratios counts
POOLED = 256  # elements that a ratio should rest on: fewer are noise
FEWEST = 2  # streams in a group
GROSS = 25.0  # times the bar: what no single group may reach
EPSILON = float(np.finfo(np.float32).eps)
SLACK = 1.5  # epsilons: between the worst of PyTorch's activations and of ONNX Runtime's
RIPPLE = 20.0  # how fast the slack of an activation changes with its argument
NOT_A_NUMBER = 1e30  # the error of an answer that isn't finite

RAGGED_STREAMS = 7
RAGGED_STEPS = 40
RAGGED_CHUNK = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """What all levels are given: inputs [B, T, *shape] and states [B, *shape], by input name."""

    steps: int
    initial: str
    inputs: Arrays
    states: Arrays


def lanes(contract: Contract, steps: int) -> int:
    """B: how many streams to draw, so that in each group every tensor has about POOLED elements."""
    sizes = [tensor.elements * steps for tensor in contract.outputs] + [state.elements for state in contract.states]
    return GROUPS * max(FEWEST, math.ceil(POOLED / min(sizes)))


def draw(contract: Contract, steps: int, initial: str, batch: int, seed: int) -> Sample:
    """A random sample: normal vectors, tokens from the whole vocabulary, states as an LSTM's (h within ±1)."""
    random = np.random.default_rng([seed, steps, initial == ZERO])
    inputs = {tensor.name: _input(tensor, (batch, steps), random) for tensor in contract.inputs}
    states: Arrays = {}
    for state in contract.states:
        shape = (batch, *state.shape)
        value = np.broadcast_to(state.initial_value().reshape(state.shape), shape)
        if initial == NON_ZERO:
            value = random.standard_normal(shape)
            value = np.tanh(value) if state.input == "h" else value
        states[state.input] = value.astype(state.dtype)
    return Sample(steps, initial, inputs, states)


def _input(tensor: TensorSpec, front: tuple[int, int], random: np.random.Generator) -> npt.NDArray[Any]:
    shape = (*front, *tensor.shape)
    if np.issubdtype(np.dtype(tensor.dtype), np.integer):
        low, high = tensor.minimum or 0, tensor.maximum if tensor.maximum is not None else 1
        return random.integers(low, high, shape, dtype=tensor.dtype, endpoint=True)
    return random.standard_normal(shape).astype(tensor.dtype)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What an answer's error is measured by: PyTorch's own in float32, and what counts as nothing.

    `slack` is what the truth becomes when every activation is off by up to SLACK epsilons. `terms` are those of
    the last sum that makes each tensor.
    """

    own: Arrays
    slack: Arrays
    terms: Mapping[str, int]

    def of(self, tensor: str, exact: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
        """The rms and the maximum, for each group of streams, that ratios are taken to.

        The larger of three. PyTorch's own error. The slack: sigmoid and tanh are approximations in every library
        (worst measured: PyTorch 0.8 and 0.3 eps, ONNX Runtime 1.4 and 2.8), the same at each step, and a net with a
        long memory adds them up, which nobody can blame on the export. And the rounding of a sum, relatively about
        eps·√terms/7 where it is made in order (measured: 2.4 eps for 256 terms; PyTorch's blocks do better).
        """
        rounding = EPSILON * max(1.0, math.sqrt(self.terms[tensor]) / 7) * _rms(exact)
        least = max(rounding, float(np.finfo(np.float32).tiny))
        errors = [np.array_split(_difference(answer[tensor], exact), GROUPS) for answer in (self.own, self.slack)]
        return [
            (max(_rms(own), _rms(slack), least), max(float(np.max(own)), float(np.max(slack)), least))
            for own, slack in zip(*errors, strict=True)
        ]


def off_by(shares: torch.Tensor) -> Activations:
    """Activations off by up to `shares` [B, 1] of the SLACK: by how much is up to the argument and the lane."""
    slack = shares * (SLACK * EPSILON)
    phase = torch.arange(len(shares), dtype=shares.dtype)[:, None]

    def ripple(value: torch.Tensor) -> torch.Tensor:
        return slack * torch.cos(RIPPLE * value + phase)

    return Activations(
        sigmoid=lambda value: torch.sigmoid(value) + ripple(value),
        tanh=lambda value: torch.tanh(value) * (1 + ripple(value)),
    )


def compare(*, subject: str, sample: Sample, answer: Arrays, truth: Arrays, yardstick: Yardstick) -> list[ParityRecord]:
    """Records of `answer` against `truth`, tensor by tensor, as ratios to the yardstick.

    Ratios are taken in each of GROUPS groups of streams and their median counts, because a single stream near a
    tipping point can own all error of its group, on either side, by chance; a fault is in every group, or is GROSS.
    """
    double = all(value.dtype == np.float64 for value in answer.values())
    rms_bar, max_bar = (FLOAT64_BAR, FLOAT64_BAR) if double else (RMS_BAR, MAX_BAR)
    records = []
    for tensor, exact in truth.items():
        error = _difference(answer[tensor], exact)
        groups = [(_rms(group), float(np.max(group))) for group in np.array_split(error, GROUPS)]
        found = np.array(groups) / np.array(yardstick.of(tensor, exact))
        rms_ratio, max_ratio = (float(ratio) for ratio in np.median(found, axis=0))
        gross = bool(np.any(found > (GROSS * rms_bar, GROSS * max_bar)))
        useless = answer is yardstick.own and _rms(error) > USABLE * _rms(exact) and rms_ratio >= 1
        records.append(
            ParityRecord(
                subject=subject,
                truth=TRUTH,
                tensor=tensor,
                steps=sample.steps,
                initial=sample.initial,
                rms_error=_rms(error),
                max_error=float(np.max(error)),
                rms_ratio=rms_ratio,
                max_ratio=max_ratio,
                rms_bar=rms_bar,
                max_bar=max_bar,
                passed=rms_ratio <= rms_bar and max_ratio <= max_bar and not gross and not useless,
            )
        )
    return records


def _difference(answer: npt.NDArray[Any], exact: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    assert answer.shape == exact.shape, f"{answer.shape} against {exact.shape}"
    difference = np.abs(answer.astype(np.float64) - exact)
    return np.asarray(np.nan_to_num(difference, nan=NOT_A_NUMBER, posinf=NOT_A_NUMBER))


def _rms(values: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


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
        records = []
        for tensor, exact in alone.items():
            difference = _difference(together[tensor], exact)
            equal = together[tensor].tobytes() == exact.tobytes()
            scale = max(EPSILON * _rms(exact), float(np.finfo(np.float32).tiny))
            records.append(
                ParityRecord(
                    subject=f"{self._names[1]}, {kind}",
                    truth=f"{self._names[0]}, each stream alone, bit for bit",
                    tensor=tensor,
                    steps=RAGGED_STEPS,
                    initial=NON_ZERO,
                    rms_error=_rms(difference),
                    max_error=float(np.max(difference)),
                    rms_ratio=_rms(difference) / scale,
                    max_ratio=float(np.max(difference)) / scale,
                    rms_bar=0.0,
                    max_bar=0.0,
                    passed=equal,
                )
            )
        return records

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
