"""A user's module run in PyTorch: untouched over whole sequences, and step by step with its state outside.

Owns both ways, and the check that they agree, which is what proves that the states were found rightly and that the
module streams at all. Knows no ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from export import wrap_parity
from export.layouts import BATCH, TIME
from export.module_calls import ModuleError
from export.module_copies import copied
from export.module_errors import told
from export.module_graph import Streaming
from export.module_plan import Plan, State, Tensor
from export.run_lengths import TRAFFIC
from model.contract import Contract
from model.recurrent import Core, Kernel, RecurrentError, core_of, formula, recurrent_layers, whole_states

Arrays = dict[str, npt.NDArray[Any]]
CHECKED = 12  # steps, each compared
LONG = 640  # steps of one stream: beyond any lag or window of the past that a run of the server's has
LANES = 3
_EXACT = 1e-12  # likewise: before a step that needs more of the past, none is off by more
_APART = 1e-9  # of the largest value: what float64 leaves of a module that streams is about 1e-15


class Widened(TorchFunctionMode):
    """Where a user's code says float32 (`x.float()`, as bytes need), it gets float64: the truth has no other floats."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it with the wider dtype."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        given = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return func(*args, **given)


@contextmanager
def arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Floats that a user's code makes by itself (torch.zeros, …) are of this dtype, for the block; on one thread."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(dtype)
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), Widened() if dtype is torch.float64 else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)
        torch.set_num_threads(threads)


def _tensor(value: npt.NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class Streamed:
    """The module with its states outside, in one arithmetic and by one kernel."""

    def __init__(
        self,
        plan: Plan,
        module: nn.Module,
        make: Callable[[nn.Module, Core], Kernel] = formula,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self._plan, self._dtype = plan, dtype
        self._specs = plan.contract()
        self._function = Streaming(plan, copied(module, dtype), make)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], states: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Inputs [B, T, *shape] and states [B, *shape] by input name; outputs and new states by output name."""
        steps = next(iter(inputs.values())).shape[1]
        if not self._plan.stepwise:
            return self._call(inputs, states)
        found: list[Arrays] = []
        for step in range(steps):
            answer = self._call({name: value[:, step : step + 1] for name, value in inputs.items()}, states)
            states = {state.name: answer[state.successor] for state in self._plan.states}
            found.append(answer)
        outputs = {t.name: np.concatenate([one[t.name] for one in found], axis=1) for t in self._plan.outputs}
        return outputs | {state.successor: found[-1][state.successor] for state in self._plan.states}

    def one_by_one(self, inputs: Mapping[str, npt.NDArray[Any]], states: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """The same, one step a call."""
        pieces = []
        for step in range(next(iter(inputs.values())).shape[1]):
            pieces.append(self.run({name: value[:, step : step + 1] for name, value in inputs.items()}, states))
            states = {state.name: pieces[-1][state.successor] for state in self._plan.states}
        outputs = {t.name: np.concatenate([one[t.name] for one in pieces], axis=1) for t in self._plan.outputs}
        return outputs | {state.successor: pieces[-1][state.successor] for state in self._plan.states}

    def _call(self, inputs: Mapping[str, npt.NDArray[Any]], states: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        specs, plan = self._specs, self._plan
        tensors = [_tensor(wrap_parity.model_axes(spec, inputs[spec.name]), self._dtype) for spec in specs.inputs]
        tensors += [
            _tensor(np.moveaxis(states[state.name], 0, state.layout.index(BATCH)), self._dtype) for state in plan.states
        ]
        with arithmetic(self._dtype):
            values = [value.numpy() for value in self._function(*tensors)]
        outputs, new = values[: len(plan.outputs)], values[len(plan.outputs) :]
        found = {s.name: wrap_parity.batch_and_time(s, v) for s, v in zip(specs.outputs, outputs, strict=True)}
        pairs = zip(plan.states, new, strict=True)
        return found | {state.successor: np.moveaxis(v, state.layout.index(BATCH), 0) for state, v in pairs}


class Whole:
    """The module as its maker runs it: untouched, in float64, over whole sequences, from its own beginning."""

    def __init__(self, plan: Plan, module: nn.Module) -> None:
        self._plan = plan
        self._module = copied(module, torch.float64)
        self._last: dict[str, list[tuple[torch.Tensor, ...]]] = {}
        carrying = {state.slot.partition("#")[0] for state in plan.states if state.slot is not None}
        for name, layer in recurrent_layers(self._module):
            if name in carrying:
                layer.register_forward_hook(self._keeper(name, core_of(layer, name)))

    def _keeper(self, name: str, core: Core) -> Callable[..., None]:
        def keep(_layer: nn.Module, _given: Any, answer: Any) -> None:
            self._last.setdefault(name, []).append(whole_states(core, answer))

        return keep

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], states: Arrays, *, every: bool) -> Arrays:
        """Outputs [B, T, *shape] and last states; `every` asks outputs without time for each prefix, not the last only.

        `states`: the first ones [B, *shape], for a forward that doesn't begin by itself.
        """
        steps = next(iter(inputs.values())).shape[1]
        with arithmetic(torch.float64):
            if self._plan.bare:
                return self._by_hand(inputs, states, steps)
            found = self._prefix(inputs, states, steps)
            late = [tensor for tensor in self._plan.outputs if not tensor.timed]
            if every and late:
                prefixes = [self._prefix(inputs, states, count) for count in range(1, steps + 1)]
                found |= {t.name: np.concatenate([one[t.name] for one in prefixes], axis=1) for t in late}
            return found

    def _prefix(self, inputs: Mapping[str, npt.NDArray[Any]], states: Arrays, steps: int) -> Arrays:
        plan = self._plan
        given = {t.name: _on_axes(t, inputs[t.name][:, :steps]) for t in plan.inputs}
        explicit = None if plan.begins else [self._first(s, states) for s in plan.states if s.slot is None]
        self._last = {}
        answer = plan.convention.call(self._module, given, explicit)
        outputs = plan.convention.outputs(answer)
        found = {t.name: _batch_and_time(t, outputs[t.name].numpy()) for t in plan.outputs}
        new = plan.convention.state(answer)
        for state in plan.states:
            if state.slot is None:
                found[state.successor] = np.moveaxis(new[state.place].numpy(), state.layout.index(BATCH), 0)
            else:
                found[state.successor] = state.new_of(self._slot(state.slot)).numpy()
        return found

    def _slot(self, slot: str) -> tuple[torch.Tensor, ...]:
        """The last states of a slot: a layer's n-th call of the last step is its n-th from the end of all its calls."""
        name, _, number = slot.partition("#")
        calls = sum(1 for s in {s.slot for s in self._plan.states} if s is not None and s.partition("#")[0] == name)
        return self._last[name][-calls + int(number or 1) - 1]

    def _by_hand(self, inputs: Mapping[str, npt.NDArray[Any]], states: Arrays, steps: int) -> Arrays:
        """A forward of one step, in a loop as its maker would write it."""
        plan = self._plan
        carried = None if plan.begins else [self._first(state, states) for state in plan.states]
        pieces = []
        for step in range(steps):
            given = {t.name: _on_axes(t, inputs[t.name][:, step : step + 1]) for t in plan.inputs}
            answer = plan.convention.call(self._module, given, carried)
            carried = list(plan.convention.state(answer))
            pieces.append({name: value.numpy() for name, value in plan.convention.outputs(answer).items()})
        found = {t.name: np.concatenate([_batch_and_time(t, one[t.name]) for one in pieces], 1) for t in plan.outputs}
        assert carried is not None
        return found | {
            s.successor: np.moveaxis(carried[s.place].numpy(), s.layout.index(BATCH), 0) for s in plan.states
        }

    @staticmethod
    def _first(state: State, states: Arrays) -> torch.Tensor:
        return _tensor(np.moveaxis(states[state.name], 0, state.layout.index(BATCH)), torch.float64)


def _on_axes(tensor: Tensor, value: npt.NDArray[Any]) -> torch.Tensor:
    """[B, T, *shape] on forward's own axes; an input without time is that of the first step."""
    if not tensor.timed:
        return _tensor(np.moveaxis(value[:, 0], 0, tensor.layout.index(BATCH)), torch.float64)
    places = (tensor.layout.index(BATCH), tensor.layout.index(TIME))
    return _tensor(np.moveaxis(value, (0, 1), places), torch.float64)


def _batch_and_time(tensor: Tensor, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse; an output without time is one step's, [B, 1, *shape]."""
    if not tensor.timed:
        return np.moveaxis(value, tensor.layout.index(BATCH), 0)[:, None]
    return np.moveaxis(value, (tensor.layout.index(BATCH), tensor.layout.index(TIME)), (0, 1))


def held(plan: Plan, inputs: Arrays) -> Arrays:
    """Inputs without a time axis (a speaker's number, say) keep their first value beside others that have time."""
    if plan.bare:
        return inputs
    constant = {tensor.name for tensor in plan.inputs if not tensor.timed}
    return {
        name: np.repeat(value[:, :1], value.shape[1], 1) if name in constant else value
        for name, value in inputs.items()
    }


def check_streams(plan: Plan, module: nn.Module) -> None:
    """Raise ModuleError, naming the first step that differs, where whole sequences and single steps disagree."""
    contract = plan.contract()
    sample = wrap_parity.draw(contract, LANES, CHECKED, wrap_parity.INITIAL, seed=3)
    inputs = held(plan, sample.inputs)
    try:
        whole = Whole(plan, module).run(inputs, sample.states, every=True)
        steps = Streamed(plan, module).one_by_one(inputs, sample.states)
    except RecurrentError as error:
        raise ModuleError(str(error)) from error
    except Exception as error:  # whatever a user's code raises
        raise ModuleError(
            f"it can't be computed in float64, by which the truth is made: {told(error)}; make tensors in the input's"
            " dtype"
        ) from error
    for tensor in plan.outputs:
        shapes = [list(found[tensor.name].shape) for found in (whole, steps)]
        if shapes[0] != shapes[1]:
            raise ModuleError(
                f"output {tensor.name!r} of {LANES} streams and {CHECKED} steps is {shapes[0]} for whole sequences and"
                f" {shapes[1]} step by step: are the axes of the inputs right ({_axes_of(plan)})?"
            )
        step = first_apart(whole[tensor.name], steps[tensor.name])
        if step is not None:
            raise ModuleError(_why(tensor.name, step))
    for state in plan.states:
        if first_apart(whole[state.successor][:, None], steps[state.successor][:, None]) is not None:
            raise ModuleError(
                f"it doesn't stream: after {CHECKED} steps one by one, {state.origin} isn't what the whole sequence"
                " leaves (is it fed from later steps?)"
            )
    _check_apart(plan, module, contract)
    _check_long(plan, module, contract)


def _check_long(plan: Plan, module: nn.Module, contract: Contract) -> None:
    """Raise ModuleError where a step needs more of the past than the short check has: a lag, window or table.

    An error that has grown out of roundings, as in a chaotic net, is none: the steps before it are a little off, too.
    """
    weights = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    count = min(LONG, max(CHECKED, TRAFFIC // max(1, weights)))
    sample = wrap_parity.draw(contract, 1, count, wrap_parity.INITIAL, seed=8)
    inputs = held(plan, sample.inputs)
    try:
        whole = Whole(plan, module).run(inputs, sample.states, every=False)
    except Exception:  # noqa: BLE001  a user's code that takes no sequence so long: parity says so
        return
    steps = Streamed(plan, module).one_by_one(inputs, sample.states)
    for tensor in plan.outputs:
        one, other = whole[tensor.name], steps[tensor.name]
        step = first_apart(one, other) if one.shape == other.shape else None
        if step is None:
            continue
        before = np.abs(one[:, : step - 1].astype(np.float64) - other[:, : step - 1])
        size = float(np.nanmax(np.abs(one[:, : step - 1]), initial=0))
        if one.dtype.kind != "f" or float(np.nanmax(before, initial=0)) <= _EXACT * size:
            raise ModuleError(_why(tensor.name, step))


def _axes_of(plan: Plan) -> str:
    return ", ".join(f"--input {t.name}={t.dtype}[{','.join(map(str, t.layout))}]" for t in plan.inputs)


def first_apart(whole: npt.NDArray[Any], steps: npt.NDArray[Any]) -> int | None:
    """The first step, from 1, at which two answers [B, T, …] differ by more than roundings; None where none does."""
    if whole.dtype.kind != "f":
        differ = whole != steps
    else:
        error = np.abs(whole - steps)
        differ = ~(error <= _APART * max(float(np.nanmax(np.abs(whole), initial=0)), 1e-30))
    places = np.flatnonzero(differ.any(axis=tuple(axis for axis in range(differ.ndim) if axis != 1)))
    return int(places[0]) + 1 if len(places) else None


def _why(name: str, step: int) -> str:
    if step == 1:
        reason = (
            "step 1 needs later ones: something looks ahead or over the whole sequence (a flip, a mean, a norm or an"
            " attention over time, a centred convolution)"
        )
    else:
        reason = (
            f"step {step} needs more of the past than the states that were found (a convolution over time, an"
            " attention, a sum over steps, a state kept in an attribute; or it branches on values): let forward take"
            " and give it as a state"
        )
    return f"it doesn't stream: {name!r} of a whole sequence and of its steps differ first at step {step}; {reason}"


def _check_apart(plan: Plan, module: nn.Module, contract: Contract) -> None:
    """Raise ModuleError where a stream's answers depend on the others in its batch."""
    sample = wrap_parity.draw(contract, LANES, CHECKED, wrap_parity.INITIAL, seed=4)
    streamed = Streamed(plan, module)
    together = streamed.run(sample.inputs, sample.states)
    alone = streamed.run(*({name: v[:1] for name, v in part.items()} for part in (sample.inputs, sample.states)))
    for tensor in plan.outputs:
        if first_apart(alone[tensor.name], together[tensor.name][:1]) is not None:
            raise ModuleError(
                f"{tensor.name!r} of one stream depends on the others in its batch (a norm or a mean over the batch, or"
                f" other axes than {_axes_of(plan)}?)"
            )
