"""Parity of a user's module: its graphs against the formulas in float64, step by step, as records.

The levels: formulas in float64, streamed (the truth) <-> the untouched module in float64 over whole sequences <-> the
same formulas' PyTorch kernels in float32 <-> model.onnx <-> resident.onnx. Owns the levels; prints and writes nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from export import artifact, wrap_parity
from export.module_plan import Plan
from export.module_streams import Streamed, Whole, held
from export.runtime import Portable, Resident
from export.samples import BUDGET, GROUPS, NON_ZERO, Arrays, Sample, lanes
from export.wrap_parity import INITIAL, batch_and_time, model_axes
from export.yardstick import EPSILON, RIPPLE, SLACK, Case, Tally, Yardstick, compare, difference
from model.contract import Contract, ParityRecord
from model.recurrent import pytorch

STEPS = (1, 10, 100, 1000)
SLICE = 100  # steps that are computed at once
WHOLE, SINGLE = "your module float64, whole sequences", "your module float32, streamed"
_SLACK = "slack"
Level = Callable[[Mapping[str, npt.NDArray[Any]], Mapping[str, npt.NDArray[Any]]], Arrays]


class Slack(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every activation is off by up to SLACK float32 epsilons, by an amount that is up to its value.

    Libraries approximate them differently, and a net with a long memory adds that up, which isn't the export's doing.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, and move its answer."""
        answer = func(*args, **(kwargs or {}))
        if func is not ABSOLUTE and func not in RELATIVE:
            return answer
        value = answer[0] if isinstance(answer, tuple) else answer
        ripple = SLACK * EPSILON * torch.cos(RIPPLE * args[0])
        moved = value + ripple if func is ABSOLUTE else value * (1 + ripple)
        return (moved, *answer[1:]) if isinstance(answer, tuple) else moved


ATEN = torch.ops.aten
ABSOLUTE = ATEN.sigmoid.default
RELATIVE = frozenset(
    getattr(ATEN, name).default
    for name in (
        *("tanh", "gelu", "silu", "_softmax", "_log_softmax", "exp", "log", "erf", "elu", "softplus", "mish"),
        *("native_layer_norm", "rsqrt", "sqrt", "sin", "cos"),
    )
)


class Levels:
    """All forms of one user's module, ready to be asked the same questions."""

    def __init__(
        self, plan: Plan, module: nn.Module, folder: Path, contract: Contract, steps: tuple[int, ...] = STEPS
    ) -> None:
        self.contract, self.steps = contract, steps
        self.curves: dict[str, npt.NDArray[np.float64]] = {}
        self._plan = plan
        self._exact = Streamed(plan, module)
        self._single = Streamed(plan, module, pytorch, torch.float32)
        self._whole = Whole(plan, module)
        self._terms = dict.fromkeys(self._compared(), _terms(module))
        self.open(folder)

    def open(self, folder: Path) -> None:
        """Compare the graphs in this folder from now on."""
        self._portable = Portable(folder / artifact.MODEL, self.contract)
        self._resident = Resident(folder / artifact.RESIDENT, self.contract, rows=1)

    def _compared(self) -> list[str]:
        """Floats are compared with the truth; integers (a choice, say) flip at a hair's breadth."""
        outputs = [spec.name for spec in self.contract.outputs if np.dtype(spec.dtype).kind == "f"]
        return outputs + [s.output for s in self.contract.states if np.dtype(s.dtype).kind == "f"]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Outputs and states that aren't compared with the truth."""
        names = [spec.name for spec in self.contract.outputs] + [state.output for state in self.contract.states]
        return tuple(name for name in names if name not in self._terms)

    @property
    def batches(self) -> int:
        """How many batches of records there will be, for a progress bar."""
        return 2 * len(self.steps)

    def records(self, seed: int = 0) -> Iterator[list[ParityRecord]]:
        """All comparisons with the truth."""
        for steps in self.steps:
            for initial in (INITIAL, NON_ZERO):
                yield self.against_truth(steps, initial, seed)

    def against_truth(self, steps: int, initial: str, seed: int = 0) -> list[ParityRecord]:
        """Every level against the truth; leaves the errors of the first output, step by step, in `curves`."""
        sample = wrap_parity.draw(self.contract, self._lanes(steps), steps, initial, seed)
        inputs = held(self._plan, sample.inputs)
        batch = len(next(iter(inputs.values())))
        levels: dict[str, Level] = {
            SINGLE: self._single.run,
            artifact.MODEL: self._run_portable,
            artifact.RESIDENT: self._run_resident,
            _SLACK: self._with_slack,
        }
        tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(lambda: Tally(batch)))
        carried: dict[str, Arrays] = dict.fromkeys(["", *levels], sample.states)
        curves: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
        truths: list[Arrays] = []
        for done in range(0, steps, SLICE):
            part = {name: value[:, done : done + SLICE] for name, value in inputs.items()}
            truth = self._exact.run(part, carried[""])
            truths.append(truth)
            last = done + SLICE >= steps
            for subject, level in [("", None), *levels.items()]:
                answer = truth if level is None else level(part, carried[subject])
                carried[subject] = {state.input: answer[state.output] for state in self.contract.states}
                for name in self._at(last=last):
                    errors = truth[name] if level is None else difference(answer[name], truth[name])
                    tallies[subject][name].add(errors)
                    if name == self.contract.outputs[0].name and subject not in ("", _SLACK):
                        curves[subject].append(np.square(errors).mean(axis=(0, *range(2, errors.ndim))))
        self.curves = {subject: np.sqrt(np.concatenate(found)) for subject, found in curves.items()}
        subjects = [SINGLE, artifact.MODEL, artifact.RESIDENT]
        yardstick = Yardstick(tallies[""], tallies[SINGLE], tallies[_SLACK], self._terms)
        records = []
        if initial == INITIAL:
            self._tally_whole(Sample(steps, initial, inputs, sample.states), truths, tallies[WHOLE])
            subjects.insert(0, WHOLE)
        for subject in subjects:
            records += compare(
                subject=subject,
                case=Case(steps, initial),
                answer=tallies[subject],
                yardstick=yardstick,
                double=subject == WHOLE,
            )
        return records

    def _at(self, *, last: bool) -> list[str]:
        """What counts after a slice: outputs always, states at the end."""
        states = {state.output for state in self.contract.states}
        return [name for name in self._terms if last or name not in states]

    def _tally_whole(self, sample: Sample, truths: list[Arrays], tallies: dict[str, Tally]) -> None:
        """The untouched module over the whole sequence; an output without time is that of the last step."""
        whole = self._whole.run(sample.inputs, sample.states, every=False)
        states = {state.output for state in self.contract.states}
        for name in self._terms:
            truth = truths[-1][name] if name in states else np.concatenate([one[name] for one in truths], axis=1)
            truth = truth if name in states else truth[:, -whole[name].shape[1] :]
            tallies[name].add(difference(whole[name], truth))

    def _lanes(self, steps: int) -> int:
        """As many streams as a fair ratio needs, and memory allows: whole sequences are held at once."""
        tensors = (*self.contract.inputs, *self.contract.outputs)
        widest = max([tensor.elements for tensor in tensors] + [state.elements for state in self.contract.states])
        return max(GROUPS, min(lanes(self.contract, steps), math.ceil(BUDGET / (widest * steps))))

    def _with_slack(self, inputs: Mapping[str, Any], states: Mapping[str, Any]) -> Arrays:
        with Slack():  # type: ignore[no-untyped-call]
            return self._exact.run(inputs, states)

    def _run_portable(self, inputs: Mapping[str, Any], states: Mapping[str, Any]) -> Arrays:
        """model.onnx, all lanes at once: as many steps a call as it takes."""
        steps = next(iter(inputs.values())).shape[1]
        timed = all(spec.time_axis is not None for spec in (*self.contract.inputs, *self.contract.outputs))
        size = steps if timed else 1
        pieces: list[Arrays] = []
        for done in range(0, steps, size):
            specs = self.contract.inputs
            given = {spec.name: model_axes(spec, inputs[spec.name][:, done : done + size]) for spec in specs}
            given |= {s.input: np.moveaxis(states[s.input], 0, s.batch_axis) for s in self.contract.states}
            answer = self._portable.run(given, {})
            piece = {spec.name: batch_and_time(spec, answer[spec.name]) for spec in self.contract.outputs}
            piece |= {s.output: np.moveaxis(answer[s.output], s.batch_axis, 0) for s in self.contract.states}
            states = {state.input: piece[state.output] for state in self.contract.states}
            pieces.append(piece)
        return self._joined(pieces)

    def _run_resident(self, inputs: Mapping[str, Any], states: Mapping[str, Any]) -> Arrays:
        """resident.onnx, all lanes in a batch: as many steps a run as it takes."""
        batch, steps = next(iter(inputs.values())).shape[:2]
        self._resident.reset(rows=2 * batch + 1)
        for lane in range(batch):
            self._resident.write_states(lane + 1, {name: value[lane] for name, value in states.items()})
        read, write = list(range(1, batch + 1)), list(range(batch + 1, 2 * batch + 1))
        size = steps if self.contract.ragged else 1
        pieces: list[Arrays] = []
        for done in range(0, steps, size):
            part = {name: value[:, done : done + size] for name, value in inputs.items()}
            pieces.append(self._resident.run(part, [size] * batch, read, write))
            read, write = write, read
        new = [self._resident.read_states(row) for row in read]
        pieces[-1] |= {name: np.stack([state[name] for state in new]) for name in new[0]}
        return self._joined(pieces)

    def _joined(self, pieces: list[Arrays]) -> Arrays:
        outputs = {s.name: np.concatenate([piece[s.name] for piece in pieces], 1) for s in self.contract.outputs}
        return outputs | {state.output: pieces[-1][state.output] for state in self.contract.states}


def _terms(module: nn.Module) -> int:
    """The most terms that a sum in it has."""
    weights: list[Tensor] = [value for value in module.state_dict().values() if value.ndim > 1]
    return max((value[0].numel() for value in weights), default=1)
