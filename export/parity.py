"""Parity: what every form of the model answers to the same questions, compared level by level, as records.

The levels: reference cell in float64 (the truth) <-> nn.LSTM in float64 and float32 <-> model.onnx, by ONNX Runtime
and by onnx's own reference evaluator <-> resident.onnx. In a reduced precision an emulation of its
roundings is asked too, by which the graphs are measured. Owns the levels and how each is run: one after the other and
a piece at a time, so that memory stays bounded whatever the model's sizes. Prints nothing and writes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx.reference import ReferenceEvaluator

from export import artifact, bits, run_lengths
from export.checks import StructureError
from export.effort import Effort, effort_for
from export.emulation import emulate
from export.findings import Findings
from export.freed import give_back
from export.precision import Precision
from export.runtime import Planted, Portable, Resident
from export.samples import NON_ZERO, ZERO, Arrays, Course, Part, Piece, count_pieces, courses, draw, lanes, parts
from export.spill import Spill
from export.wrap_parity import ByHand
from export.yardstick import Case, Yardstick, compare, compare_bits, difference, off_by
from model.cell import State
from model.contract import Contract, ParityRecord
from model.lstm import LSTM

ORACLE_STEPS = 10  # up to which onnx's own evaluator is asked: it is slow
RAGGED_CHUNK = 8
DOUBLE, SINGLE = "nn.LSTM float64", "nn.LSTM float32"
ORACLE = ", by onnx's own evaluator"
EMULATED = "the same roundings, emulated in float64"
_EXACT, _SLACK = "exact", "slack"
Inputs = Mapping[str, npt.NDArray[Any]]
Level = Callable[[Inputs, Inputs], Arrays]  # inputs [B, T, *shape] and states [B, *shape] to outputs and new states
Columns = npt.NDArray[np.int64] | None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch on `count` threads for the block (0: as it is): for small tensors, waiting threads would cost tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
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
        self.module = module.eval()
        self.folder = folder
        self.curves: dict[str, npt.NDArray[np.float64]] = {}
        self.effort: Effort = effort_for(module.spec, contract)
        self._runs = resident
        self._kept: dict[str, Any] = {}
        self._names = names
        spec = module.spec
        self._precision = Precision(contract.precision)
        gates = spec.core_size + spec.state_size
        h = gates if spec.proj_size is None else max(gates, spec.hidden_size)
        y = spec.state_size if spec.output_size is not None else h
        self._terms = {"y": y, "h_out": h, "c_out": gates}

    def records(self, seed: int = 0) -> Iterator[list[ParityRecord]]:
        """All comparisons, a batch of records at a time (some are empty): `batches` batches."""
        for course in self._courses():
            yield from self._go(course, seed)
        yield self.bit_for_bit(seed, most_steps=1)
        yield self.bit_for_bit(seed, most_steps=RAGGED_CHUNK)
        yield self.every_length()

    @property
    def batches(self) -> int:
        """How many batches of records there will be, for a progress bar."""
        total = 3
        for course in self._courses():
            pieces = count_pieces(self.contract, course, self.effort.budget)
            total += pieces * (1 + len(self._graphs())) + len(course.marks) * len(course.initials)
        return total

    def _courses(self) -> list[Course]:
        return courses(self.contract, self.effort.steps, (ZERO, NON_ZERO))

    def against_truth(self, steps: int, initial: str, seed: int = 0) -> list[ParityRecord]:
        """Every level against the reference cell in float64; leaves the errors of y, step by step, in `curves`."""
        course = Course((steps,), (initial,), lanes(self.contract, steps))
        return [record for batch in self._go(course, seed) for record in batch]

    def of_planted(self, plant: Callable[[], Planted], steps: int) -> list[ParityRecord]:
        """The records of another resident graph over `steps` steps, whose truth is computed once."""
        course, subject = Course((steps,), (NON_ZERO,), lanes(self.contract, steps)), self._names[1]
        known, truths = self._keep(f"truth of {steps} steps", lambda: self._truth_of(course))
        findings, planted = copy.deepcopy(known), plant()
        self._kept[subject] = self._runs(self.folder / subject, self.contract, rows=1, planted=planted)
        for _ in self._ask_graph(subject, course, 0, findings, truths):
            pass
        self._kept.pop(subject, None)
        return [record for record in self._compared(findings, Case(steps, NON_ZERO)) if record.subject == subject]

    def _truth_of(self, course: Course) -> tuple[Findings, Spill]:
        findings, truths = Findings(course, self.contract), Spill()
        for _ in self._ask_torch(course, 0, findings, truths):
            pass
        return findings, truths

    def _go(self, course: Course, seed: int) -> Iterator[list[ParityRecord]]:
        """PyTorch's levels and the truth, which is kept; then one graph after the other against it; then the records.

        A graph's weights and the float64 copy are never in memory at once where they are large.
        """
        findings, truths = Findings(course, self.contract), Spill()
        yield from ([] for _ in self._ask_torch(course, seed, findings, truths))
        for subject in self._graphs():
            yield from ([] for _ in self._ask_graph(subject, course, seed, findings, truths))
        whole = findings.of(course.steps, course.initials[0]).keys() - {_EXACT, _SLACK}
        curves = findings.curves.items()
        self.curves = {name: np.sqrt(squares / course.lanes) for name, squares in curves if name in whole}
        for steps in course.marks:
            for initial in course.initials:
                yield self._compared(findings, Case(steps, initial))

    def _parts(self, course: Course, seed: int) -> Iterator[Part]:
        return parts(self.contract, course, seed, self.effort.budget)

    def _ask_torch(self, course: Course, seed: int, findings: Findings, truths: Spill) -> Iterator[None]:
        """The truth of the whole course, put into `truths`, and all that PyTorch computes of it."""
        for part in self._parts(course, seed):
            carried: dict[str, Inputs] = dict.fromkeys((_EXACT, _SLACK, DOUBLE, SINGLE, EMULATED), part.states)
            for piece in part.pieces:
                exact, slack = self._truth(piece, carried[_EXACT], carried[_SLACK])
                truths.write(exact)
                answers = {_EXACT: exact, _SLACK: slack}
                if piece.done <= self.effort.double_steps:
                    answers[DOUBLE] = self._torch(self._double(), piece, carried[DOUBLE])
                answers[SINGLE] = self._torch(self.module, piece, carried[SINGLE])
                if self._precision.reduced:
                    answers[EMULATED] = self._emulate(piece, carried[EMULATED])
                for subject, answer in answers.items():
                    same = subject == _EXACT
                    errors = exact if same else {name: difference(answer[name], exact[name]) for name in exact}
                    findings.add(subject, part, piece.done, errors)
                    carried[subject] = self._successors(answer)
                yield
        self._let_go(_EXACT)

    def _ask_graph(self, subject: str, course: Course, seed: int, findings: Findings, truths: Spill) -> Iterator[None]:
        """One graph's answers to the whole course, against the truth that was kept."""
        level = self._level(subject)
        place = 0
        for part in self._parts(course, seed):
            states: Inputs = part.states
            for piece in part.pieces:
                exact = truths.read(place)
                place += 1
                if piece.done <= (ORACLE_STEPS if subject.endswith(ORACLE) else course.steps):
                    answer = level(piece.inputs, states)
                    states = self._successors(answer)
                    if piece.columns is not None:
                        answer["y"] = answer["y"][..., piece.columns]
                    errors = {name: difference(answer[name], exact[name]) for name in exact}
                    findings.add(subject, part, piece.done, errors)
                yield
        del level
        self._let_go(subject)

    def _successors(self, answer: Arrays) -> Arrays:
        """What an answer gives the next piece as its states."""
        return {state.input: answer[state.output] for state in self.contract.states}

    def _compared(self, findings: Findings, case: Case) -> list[ParityRecord]:
        """The records of every subject that went so far."""
        at = findings.of(case.steps, case.initial)
        full = Yardstick(at[_EXACT], at[SINGLE], at[_SLACK], self._terms)
        reduced = full
        if self._precision.reduced:
            reduced = replace(full, emulated=at[EMULATED], share=self._precision.terms.share)
        records = []
        for subject, answer in at.items():
            if subject in (_EXACT, _SLACK):
                continue
            yardstick = full if subject in (DOUBLE, SINGLE) else reduced
            records += compare(subject=subject, case=case, answer=answer, yardstick=yardstick, double=subject == DOUBLE)
        return records

    def _graphs(self) -> list[str]:
        """The levels that are graphs; of int8's products onnx's own evaluator knows nothing."""
        oracle = [] if self._precision is Precision.INT8 else [self._names[0] + ORACLE]
        return [self._names[0], self._names[1], *oracle]

    def _level(self, subject: str) -> Level:
        if subject == self._names[0]:
            return self._portable().run
        return self._run_resident if subject == self._names[1] else self._oracle()

    def _keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once, until it is let go."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def _let_go(self, name: str) -> None:
        """Free it, where it is large."""
        if self.effort.large:
            self._kept.pop(name, None)
            give_back()

    def _portable(self) -> Portable:
        path = self.folder / self._names[0]
        return self._keep(self._names[0], lambda: Portable(path, self.contract))  # type: ignore[no-any-return]

    def _resident(self) -> Resident:
        path = self.folder / self._names[1]
        return self._keep(self._names[1], lambda: self._runs(path, self.contract, rows=1))  # type: ignore[no-any-return]

    def _double(self) -> LSTM:
        return self._keep(_EXACT, lambda: self.module.in_double().eval())  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _truth(self, piece: Piece, states: Inputs, slack: Inputs) -> tuple[Arrays, Arrays]:
        """The reference cell in float64, exact and with slack, in one run: the second half of its lanes has it."""
        x, state = _tensors(piece.inputs, states, torch.float64)
        _, other = _tensors(piece.inputs, slack, torch.float64)
        shares = torch.cat([torch.zeros(len(x), 1), torch.ones(len(x), 1)]).double()
        twice = State(*(torch.cat(pair) for pair in zip(state, other, strict=True)))
        with threads(self.effort.threads):
            y, new = self._double().reference(torch.cat([x, x]), twice, off_by(shares), _columns(piece))
        both = {"y": y.numpy(), "h_out": new.h.numpy(), "c_out": new.c.numpy()}
        return {k: v[: len(x)] for k, v in both.items()}, {k: v[len(x) :] for k, v in both.items()}

    @torch.inference_mode()
    def _torch(self, module: LSTM, piece: Piece, states: Inputs) -> Arrays:
        """The module around nn.LSTM, in its own dtype."""
        x, state = _tensors(piece.inputs, states, module.lstm.all_weights[0][0].dtype)
        with threads(self.effort.threads):
            y, state = module(x, state, _columns(piece))
        return {"y": y.numpy(), "h_out": state.h.numpy(), "c_out": state.c.numpy()}

    @torch.inference_mode()
    def _emulate(self, piece: Piece, states: Inputs) -> Arrays:
        """What a reduced precision's own roundings make of the truth, and nothing else."""
        module, arithmetic = self._keep(EMULATED, lambda: emulate(self.module, self._precision))
        with threads(self.effort.threads):
            y, new = module.reference(*_tensors(piece.inputs, states, torch.float64), arithmetic, _columns(piece))
        return {"y": y.numpy(), "h_out": new.h.numpy(), "c_out": new.c.numpy()}

    def _oracle(self) -> Level:
        """model.onnx as the ONNX project's own evaluator computes it, in numpy: nothing of ONNX Runtime in it.

        Its weights are given as inputs, mapped from their file, so that it makes no copies of them.
        """
        model, _ = artifact.read_graph(self.folder / self._names[0], weights=False)
        weights = artifact.read_weights(model, self.folder)
        del model.graph.initializer[:]
        evaluator = ReferenceEvaluator(model)
        names = list(evaluator.output_names)

        def run(inputs: Inputs, states: Inputs) -> Arrays:
            with np.errstate(over="ignore"):  # its sigmoid is 1 / (1 + exp(-x)): 0 beyond exp's range
                return dict(zip(names, evaluator.run(names, {**inputs, **states, **weights}), strict=True))

        return run

    def _run_resident(self, inputs: Inputs, states: Inputs) -> Arrays:
        """One run of all lanes, from rows 1..B to rows B+1..2B."""
        resident = self._resident()
        batch, steps = next(iter(inputs.values())).shape[:2]
        resident.reset(rows=2 * batch + 1)
        for lane in range(batch):
            resident.write_states(lane + 1, {name: value[lane] for name, value in states.items()})
        read, write = list(range(1, batch + 1)), list(range(batch + 1, 2 * batch + 1))
        answer = resident.run(inputs, [steps] * batch, read, write)
        new = [resident.read_states(row) for row in write]
        return answer | {name: np.stack([state[name] for state in new]) for name in new[0]}

    def bit_for_bit(self, seed: int, *, most_steps: int, runs: type[Resident] | None = None) -> list[ParityRecord]:
        """Streams in ragged chunks and changing batches against each one alone in model.onnx, step by step.

        `runs`: what runs the resident graph instead, with a fault that is to be found.
        """
        kind = "step by step" if most_steps == 1 else f"ragged chunks of 1 to {most_steps}"
        sample = draw(self.contract, self.effort.ragged_steps, NON_ZERO, self.effort.ragged_streams, seed)
        alone = self._keep(f"alone {seed}", lambda: bits.alone(self._portable(), self.contract, sample))
        self._let_go(self._names[0])
        rows = bits.rows_needed(self.effort.ragged_streams)
        resident = self._resident() if runs is None else runs(self.folder / self._names[1], self.contract, rows=1)
        resident.reset(rows=rows)
        together = bits.ragged(resident, self.contract, sample, most_steps=most_steps, seed=seed)
        del resident
        self._let_go(self._names[1])
        subject, truth = f"{self._names[1]}, {kind}", f"{self._names[0]}, each stream alone, bit for bit"
        return compare_bits(subject=subject, sample=sample, answer=together, truth_name=truth, truth=alone)

    def every_length(self) -> list[ParityRecord]:
        """Runs as long as the contract promises, and of all lengths that could matter, against single steps."""
        path = self.folder / self._names[0]
        model, _ = artifact.read_graph(path, weights=False)
        lengths = run_lengths.tried(run_lengths.numbers(model, self.folder), self.contract.run_steps)
        self._let_go(self._names[1])
        found = run_lengths.prove(self.folder, self._names, ByHand(path, self.contract), lengths)
        if found.fault and not found.failed:
            raise StructureError(f"{self._names[1]}: {found.fault}")
        return [*found.records, *found.failed]


def _columns(piece: Piece) -> torch.Tensor | None:
    return None if piece.columns is None else torch.from_numpy(piece.columns)


def _tensors(inputs: Inputs, states: Inputs, dtype: torch.dtype) -> tuple[torch.Tensor, State]:
    """Inputs and states as PyTorch takes them."""
    x = torch.from_numpy(inputs["x"])
    state = State(*(torch.from_numpy(states[name]).to(dtype) for name in ("h", "c")))
    return (x.to(dtype) if x.is_floating_point() else x), state
