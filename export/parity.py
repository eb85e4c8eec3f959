"""Parity: what every form of the model answers to the same questions, compared level by level, as records.

The levels: reference cell in float64 (the truth) <-> nn.LSTM in float64 and float32 <-> model.onnx, by ONNX Runtime
and by onnx's own reference evaluator <-> resident.onnx. In a reduced precision an emulation of its
roundings is asked too, by which the graphs are measured. Owns the levels and how each is run, a piece at a time, so
that memory stays bounded whatever the model's sizes. Prints nothing and writes nothing.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx.reference import ReferenceEvaluator

from export import bits
from export.emulation import emulate
from export.precision import Precision
from export.runtime import Portable, Resident
from export.samples import NON_ZERO, ZERO, Arrays, draw, lanes, parts
from export.yardstick import Case, Tally, Yardstick, compare, compare_bits, difference, off_by
from model.cell import State
from model.contract import Contract, ParityRecord
from model.lstm import LSTM

STEPS = (1, 10, 100, 1000)
ORACLE_STEPS = 10  # up to which onnx's own evaluator is asked: it is slow
RAGGED_STREAMS = 7
RAGGED_STEPS = 40
RAGGED_CHUNK = 8
DOUBLE, SINGLE = "nn.LSTM float64", "nn.LSTM float32"
ORACLE = ", by onnx's own evaluator"
EMULATED = "the same roundings, emulated in float64"
_EXACT, _SLACK = "exact", "slack"
Inputs = Mapping[str, npt.NDArray[Any]]
Level = Callable[[Inputs, Inputs], Arrays]  # inputs [B, T, *shape] and states [B, *shape] to outputs and new states


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
    """All forms of one model, ready to be asked the same questions.

    `resident` is what runs the resident graph; suites give one with a fault to see whether it is found.
    """

    def __init__(
        self,
        module: LSTM,
        folder: Path,
        names: tuple[str, str],
        contract: Contract,
        resident: type[Resident] = Resident,
    ) -> None:
        self.contract = contract
        self.curves: dict[str, npt.NDArray[np.float64]] = {}
        self._module = module.eval()
        self._double = copy.deepcopy(module).double().eval()
        self._portable = Portable(folder / names[0], contract)
        self._resident = resident(folder / names[1], contract, rows=1)
        self._path = folder / names[0]
        self._names = names
        spec = module.spec
        self._precision = Precision(contract.precision)
        self._emulation = emulate(module, self._precision) if self._precision.reduced else None
        gates = spec.core_size + spec.state_size
        h = gates if spec.proj_size is None else max(gates, spec.hidden_size)
        y = spec.state_size if spec.output_size is not None else h
        self._terms = {"y": y, "h_out": h, "c_out": gates}

    def records(self, seed: int = 0) -> Iterator[list[ParityRecord]]:
        """All comparisons, a batch of records at a time: `batches` batches."""
        for steps in STEPS:
            for initial in (ZERO, NON_ZERO):
                yield self.against_truth(steps, initial, seed)
        yield self.bit_for_bit(seed, most_steps=1)
        yield self.bit_for_bit(seed, most_steps=RAGGED_CHUNK)

    @property
    def batches(self) -> int:
        """How many batches of records there will be, for a progress bar."""
        return 2 * len(STEPS) + 2

    def against_truth(self, steps: int, initial: str, seed: int = 0) -> list[ParityRecord]:
        """Every level against the reference cell in float64; leaves the errors of y, step by step, in `curves`."""
        levels = self._levels(steps)
        batch = lanes(self.contract, steps)
        tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(lambda: Tally(batch)))
        self.curves = {subject: np.zeros(steps) for subject in levels}
        for part in parts(self.contract, steps, initial, batch, seed):
            carried: dict[str, Inputs] = dict.fromkeys([*levels, _EXACT, _SLACK], part.states)
            done = 0
            for inputs in part.slices:
                done += len(next(iter(inputs.values()))[0])
                exact, slack = self._truth(inputs, carried[_EXACT], carried[_SLACK])
                answers = {subject: level(inputs, carried[subject]) for subject, level in levels.items()}
                answers |= {_SLACK: slack, _EXACT: exact}
                for subject, answer in answers.items():
                    self._tally(tallies[subject], subject, answer, exact, lanes=part.lanes, done=done, steps=steps)
                    carried[subject] = {state.input: answer[state.output] for state in self.contract.states}
        self.curves = {subject: np.sqrt(squares / batch) for subject, squares in self.curves.items()}
        full = Yardstick(tallies[_EXACT], tallies[SINGLE], tallies[_SLACK], self._terms)
        reduced = full
        if self._emulation is not None:
            reduced = replace(full, emulated=tallies[EMULATED], share=self._precision.terms.share)
        records = []
        for subject in levels:
            records += compare(
                subject=subject,
                case=Case(steps, initial),
                answer=tallies[subject],
                yardstick=full if subject in (DOUBLE, SINGLE) else reduced,
                double=subject == DOUBLE,
            )
        return records

    def _tally(
        self,
        tallies: dict[str, Tally],
        subject: str,
        answer: Arrays,
        exact: Arrays,
        *,
        lanes: slice,
        done: int,
        steps: int,
    ) -> None:
        """Add the errors of one slice, which ends at step `done`; states count at the end, the truth by its size."""
        outputs = {tensor.name for tensor in self.contract.outputs}
        for name, truth in exact.items():
            if name not in outputs and done < steps:
                continue
            errors = truth if subject == _EXACT else difference(answer[name], truth)
            tallies[name].add(errors, lanes)
            if name in outputs and subject in self.curves:
                squares = np.mean(np.square(errors), axis=tuple(range(2, errors.ndim))).sum(axis=0)
                self.curves[subject][done - len(squares) : done] += squares

    def _levels(self, steps: int) -> dict[str, Level]:
        """What is compared with the truth, by name."""
        levels: dict[str, Level] = {
            DOUBLE: lambda inputs, states: self._torch(self._double, inputs, states),
            SINGLE: lambda inputs, states: self._torch(self._module, inputs, states),
        }
        if self._emulation is not None:
            levels[EMULATED] = self._emulate
        levels |= {self._names[0]: self._portable.run, self._names[1]: self._run_resident}
        if steps <= ORACLE_STEPS and self._precision is not Precision.INT8:  # of whose products it knows nothing
            levels[self._names[0] + ORACLE] = self._oracle()
        return levels

    @torch.inference_mode()
    @one_thread()
    def _truth(self, inputs: Inputs, states: Inputs, slack: Inputs) -> tuple[Arrays, Arrays]:
        """The reference cell in float64, exact and with slack, in one run: the second half of its lanes has it."""
        x, state = _tensors(inputs, states, torch.float64)
        _, other = _tensors(inputs, slack, torch.float64)
        shares = torch.cat([torch.zeros(len(x), 1), torch.ones(len(x), 1)]).double()
        twice = State(*(torch.cat(pair) for pair in zip(state, other, strict=True)))
        y, new = self._double.reference(torch.cat([x, x]), twice, off_by(shares))
        both = {"y": y.numpy(), "h_out": new.h.numpy(), "c_out": new.c.numpy()}
        return {k: v[: len(x)] for k, v in both.items()}, {k: v[len(x) :] for k, v in both.items()}

    @torch.inference_mode()
    @one_thread()
    def _torch(self, module: LSTM, inputs: Inputs, states: Inputs) -> Arrays:
        """The module around nn.LSTM, in its own dtype."""
        y, state = module(*_tensors(inputs, states, next(module.parameters()).dtype))
        return {"y": y.numpy(), "h_out": state.h.numpy(), "c_out": state.c.numpy()}

    @torch.inference_mode()
    @one_thread()
    def _emulate(self, inputs: Inputs, states: Inputs) -> Arrays:
        """What a reduced precision's own roundings make of the truth, and nothing else."""
        assert self._emulation is not None
        module, arithmetic = self._emulation
        y, new = module.reference(*_tensors(inputs, states, torch.float64), arithmetic)
        return {"y": y.numpy(), "h_out": new.h.numpy(), "c_out": new.c.numpy()}

    def _oracle(self) -> Level:
        """model.onnx as the ONNX project's own evaluator computes it, in numpy: nothing of ONNX Runtime in it."""
        evaluator = ReferenceEvaluator(str(self._path))
        names = list(evaluator.output_names)
        return lambda inputs, states: dict(zip(names, evaluator.run(names, {**inputs, **states}), strict=True))

    def _run_resident(self, inputs: Inputs, states: Inputs) -> Arrays:
        """One run of all lanes, from rows 1..B to rows B+1..2B."""
        batch, steps = next(iter(inputs.values())).shape[:2]
        self._resident.reset(rows=2 * batch + 1)
        for lane in range(batch):
            self._resident.write_states(lane + 1, {name: value[lane] for name, value in states.items()})
        read, write = list(range(1, batch + 1)), list(range(batch + 1, 2 * batch + 1))
        answer = self._resident.run(inputs, [steps] * batch, read, write)
        new = [self._resident.read_states(row) for row in write]
        return answer | {name: np.stack([state[name] for state in new]) for name in new[0]}

    def bit_for_bit(self, seed: int, *, most_steps: int) -> list[ParityRecord]:
        """Streams in ragged chunks and changing batches against each one alone in model.onnx, step by step."""
        kind = "step by step" if most_steps == 1 else f"ragged chunks of 1 to {most_steps}"
        sample = draw(self.contract, RAGGED_STEPS, NON_ZERO, RAGGED_STREAMS, seed)
        alone = bits.alone(self._portable, self.contract, sample)
        self._resident.reset(rows=bits.rows_needed(RAGGED_STREAMS))
        together = bits.ragged(self._resident, self.contract, sample, most_steps=most_steps, seed=seed)
        subject, truth = f"{self._names[1]}, {kind}", f"{self._names[0]}, each stream alone, bit for bit"
        return compare_bits(subject=subject, sample=sample, answer=together, truth_name=truth, truth=alone)


def _tensors(inputs: Inputs, states: Inputs, dtype: torch.dtype) -> tuple[torch.Tensor, State]:
    """Inputs and states as PyTorch takes them."""
    x = torch.from_numpy(inputs["x"])
    state = State(*(torch.from_numpy(states[name]).to(dtype) for name in ("h", "c")))
    return (x.to(dtype) if x.is_floating_point() else x), state
