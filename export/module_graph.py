"""A user's module as a function of inputs and states, and as an ONNX graph with clean recurrent operators.

Owns the function that everything computes by (the graph, the truth, PyTorch's own), and the order of ONNX's gates.
"""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.layouts import BATCH, TIME, Layout, sized
from export.module_calls import ModuleError
from export.module_copies import copied
from export.module_errors import place
from export.module_plan import Plan
from export.module_weights import settle_weights
from export.portable import OPSET
from model.recurrent import Core, Kernel, RecurrentError, Tensors, layer_weights, pytorch, recurrent_layers
from model.recurrent_calls import Tape, intercepted

STREAMS, STEPS = 3, 5  # of the example that is traced: sizes that nothing else is likely to have
_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # i, f, g, o -> i, o, f, c and r, z, n -> z, r, h


class Streaming(nn.Module):
    """`forward(*inputs, *states) -> (*outputs, *new states)`: a user's module with its state outside.

    `make` gives the kernel of each recurrent layer. The module is changed: give a copy.
    """

    def __init__(self, plan: Plan, module: nn.Module, make: Callable[[nn.Module, Core], Kernel]) -> None:
        super().__init__()
        self.plan, self.tape = plan, Tape()
        self.module = intercepted(module, make, self.tape)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One call: several steps, or one where the plan goes step by step."""
        plan = self.plan
        inputs = {}
        for tensor, value in zip(plan.inputs, tensors, strict=False):
            within = plan.stepwise and tensor.timed
            inputs[tensor.name] = value.unsqueeze(tensor.layout.index(TIME)) if within else value
        states = tensors[len(plan.inputs) :]
        carried: dict[str, Tensors] = {}
        explicit = []
        for state, value in zip(plan.states, states, strict=True):
            if state.slot is None:
                explicit.append(value)
            else:
                carried[state.slot] = (*carried.get(state.slot, ()), state.lanes.folded(value))
        self.tape.begin(carried)
        answer = plan.convention.call(self.module, inputs, explicit if plan.convention.states else None)
        named, new = plan.convention.outputs(answer), plan.convention.state(answer)
        outputs = []
        for tensor in plan.outputs:
            within = plan.stepwise and tensor.timed
            value = named[tensor.name]
            outputs.append(value.squeeze(tensor.layout.index(TIME)) if within else value)
        given = self.tape.given()
        self.tape.begin({})  # nothing of this run stays
        return (*outputs, *(new[s.place] if s.slot is None else s.new_of(given[s.slot]) for s in plan.states))


class OnnxKernel(nn.Module):
    """A recurrent layer as ONNX's operators with weights in their order; for tracing only, its values mean nothing.

    The weights are those that the layer has now, as constants.
    """

    def __init__(self, original: nn.Module, core: Core) -> None:
        super().__init__()
        self.core = core
        weights = layer_weights(original)
        for number in range(core.layers):
            both = weights[number * core.directions : (number + 1) * core.directions]
            self.register_buffer(f"W{number}", torch.stack([self._rows(one.w_ih) for one in both]))
            self.register_buffer(f"R{number}", torch.stack([self._rows(one.w_hh) for one in both]))
            biases = [
                torch.cat((self._rows(one.b_ih), self._rows(one.b_hh)))
                for one in both
                if one.b_ih is not None and one.b_hh is not None
            ]
            self.register_buffer(f"B{number}", torch.stack(biases) if biases else None)

    def _rows(self, weight: torch.Tensor) -> torch.Tensor:
        order = _ORDER[self.core.kind]
        gates = weight.detach().chunk(len(order))
        return torch.cat([gates[gate] for gate in order]).contiguous()

    def forward(self, x: torch.Tensor, states: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Inputs x [T, B, F] and states [B, L*D, H] give y [T, B, D*H] and new states."""
        core = self.core
        steps, batch = x.shape[0], x.shape[1]
        layers = [self._layers(state, batch) for state in states]
        new: list[list[torch.Tensor]] = [[] for _ in states]
        last = (core.directions, batch, core.hidden_size)
        for number in range(core.layers):
            weights = [getattr(self, f"{kind}{number}") for kind in "WRB"]
            found = torch.onnx.ops.symbolic_multi_out(
                core.kind,
                (x, *weights, None, *(state[number] for state in layers)),
                attrs=self._attributes(),
                dtypes=(x.dtype,) * (1 + len(states)),
                shapes=((steps, core.directions, batch, core.hidden_size), *((last,) * len(states))),
                version=OPSET,
            )
            x = found[0].squeeze(1) if core.directions == 1 else found[0].transpose(1, 2).flatten(2)
            for into, value in zip(new, found[1:], strict=True):
                into.append(value)
        return x, tuple(self._joined(state, batch) for state in new)

    def _attributes(self) -> dict[str, Any]:
        core = self.core
        attributes: dict[str, Any] = {"hidden_size": core.hidden_size}
        if core.kind == "GRU":
            attributes["linear_before_reset"] = 1
        if core.kind == "RNN":
            attributes["activations"] = [core.nonlinearity.capitalize()] * core.directions
        if core.directions == 2:
            attributes["direction"] = "bidirectional"
        return attributes

    def _layers(self, state: torch.Tensor, batch: Any) -> list[torch.Tensor]:
        """[B, L*D, H] as each layer takes it, [D, B, H]."""
        core = self.core
        first = _transposed(state, (core.rows, batch, core.hidden_size))
        if core.layers == 1:
            return [first]
        return list(
            torch.onnx.ops.symbolic_multi_out(
                "Split",
                (first,),
                attrs={"axis": 0, "num_outputs": core.layers},
                dtypes=(state.dtype,) * core.layers,
                shapes=((core.directions, batch, core.hidden_size),) * core.layers,
                version=OPSET,
            )
        )

    def _joined(self, layers: list[torch.Tensor], batch: Any) -> torch.Tensor:
        """The inverse."""
        first = layers[0] if len(layers) == 1 else torch.cat(layers)
        return _transposed(first, (batch, self.core.rows, self.core.hidden_size))


def _transposed(value: torch.Tensor, shape: tuple[Any, ...]) -> torch.Tensor:
    """[B, L, H] <-> [L, B, H], as one operator that a resident graph can see through."""
    return torch.onnx.ops.symbolic(
        "Transpose", (value,), attrs={"perm": [1, 0, 2]}, dtype=value.dtype, shape=shape, version=OPSET
    )


def to_onnx(plan: Plan, module: nn.Module, path: Path) -> None:
    """Write the module, which is changed, as an ONNX file with free batch and, unless stepwise, free time.

    Raises ModuleError in one line where it can't be traced.
    """
    tensors = [(tensor.dtype, plan.layout(tensor)) for tensor in plan.inputs]
    tensors += [(state.dtype, state.layout) for state in plan.states]
    example = tuple(
        torch.zeros(sized(layout, STREAMS, STEPS), dtype=getattr(torch, dtype)) for dtype, layout in tensors
    )
    names = [*(tensor.name for tensor in plan.inputs), *(state.name for state in plan.states)]
    given = [*(tensor.name for tensor in plan.outputs), *(state.successor for state in plan.states)]
    with _quiet():
        try:
            traced = torch.export.export(
                _with_constant_weights(plan, module, example),
                example,
                dynamic_shapes=(tuple(_free(layout) for _, layout in tensors),),
                strict=False,
            )
            made = torch.onnx.export(
                traced, (), dynamo=True, input_names=names, output_names=given, opset_version=OPSET, verbose=False
            )
        except RecurrentError as error:
            raise ModuleError(str(error)) from error
        except Exception as error:  # torch's exporter raises many kinds, with texts of many lines
            raise ModuleError(f"PyTorch can't trace it: {_cause(error)}") from error
        assert made is not None
        made.save(path, external_data=True)


def _with_constant_weights(plan: Plan, module: nn.Module, example: tuple[torch.Tensor, ...]) -> Streaming:
    """The streaming module with its recurrent layers as operators, whose weights are those that a copy has run with."""
    ran = copied(module, share=True)
    with torch.no_grad():
        Streaming(plan, ran, pytorch)(*example)
        settle_weights(module)
        layers = zip(recurrent_layers(module), recurrent_layers(ran), strict=True)
        twins = {id(layer): twin for (_, layer), (_, twin) in layers}
        made = Streaming(plan, module, lambda layer, core: OnnxKernel(twins[id(layer)], core))
    return made.requires_grad_(requires_grad=False)


def _free(layout: Layout) -> dict[int, Any]:
    return {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(layout) if size in (BATCH, TIME)}


def _cause(error: BaseException) -> str:
    """The innermost cause that says something, in one line."""
    causes = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(inner)
    text = str(causes[-1]) or type(causes[-1]).__name__
    for sign in ("data-dependent", "data dependent", "Could not guard", "Could not extract specialized integer"):
        if any(sign in str(cause) for cause in causes):
            text = f"its control flow depends on values (if, while or int() of a tensor): {text}"
            break
    if any("specialized" in str(cause) or "Constraints violated" in str(cause) for cause in causes):
        return "its code takes a size as a number (a Python loop over time, or a view of fixed sizes)"
    places = (place(traceback.extract_tb(cause.__traceback__)) for cause in reversed(causes))
    where = next(filter(None, places), "")
    return " ".join(text.strip().splitlines()[0].split()) + f" ({where})" * bool(where)


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter without its warnings, log lines and graphs, which it prints where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
