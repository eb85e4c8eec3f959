"""A second reference for connected states: the given file itself, run over whole sequences from their start.

It has no state to carry, so it can't share a mistake about one. Owns how that is run and how close answers must be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export import artifact
from export.samples import Sample
from export.theirs import WrapError, one_line
from export.wrap_parity import CHUNK, INITIAL, batch_and_time, draw, in_changing_batches, model_axes, session
from model.contract import Contract, ParityRecord, TensorSpec

STREAMS, STEPS = 3, 96
PREFIXES = (1, 2, 3, 7, 24, STEPS)  # after how many steps an output without time is compared
# Of the truth's rms: a sequence at once and in steps round differently, and a lost state is far beyond.
RMS_BAR, MAX_BAR = 1e-4, 1e-3
COARSE = 100.0  # times that in float16
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Whole:
    """The given file as it is called with whole sequences: names and sizes of its own where they aren't ours."""

    path: Path
    streams: int = 1  # of a batch that it fixes
    theirs: Mapping[str, str] = field(default_factory=dict)  # our name -> their name, where they differ
    lengths: tuple[str, ...] = ()


def records(folder: Path, whole: Whole, contract: Contract) -> list[ParityRecord]:
    """The resident graph's streams against the given file's whole runs; raises WrapError where they differ."""
    sample = _steady(draw(contract, STREAMS, STEPS, INITIAL, seed=2), contract)
    try:
        truth = _truth(whole, contract, sample)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise WrapError(
            f"the states of its recurrent nodes can be connected, but {whole.path.name} doesn't run over {STEPS} steps"
            f" at once to prove that by: {one_line(error)}"
        ) from error
    answer = in_changing_batches(folder / artifact.RESIDENT, contract, sample, CHUNK if contract.ragged else 1, seed=2)
    made = [record for spec in contract.outputs for record in _compared(spec, answer[spec.name], truth, whole)]
    failed = [record for record in made if not record.passed]
    if failed:
        worst = max(failed, key=lambda record: record.max_ratio)
        raise WrapError(
            f"with the states of its recurrent nodes connected, a stream's {worst.tensor!r} is {worst.max_error:.2g}"
            f" off from {whole.path.name} run over {worst.steps} steps at once: the nodes don't go along the stream's"
            " time, or something else sees more than one step"
        )
    return made


def _steady(sample: Sample, contract: Contract) -> Sample:
    """The sample with inputs that have no time the same at each step."""
    for spec in contract.inputs:
        if spec.time_axis is None:
            sample.inputs[spec.name][:] = sample.inputs[spec.name][:, :1]
    return sample


def _truth(whole: Whole, contract: Contract, sample: Sample) -> dict[int, Arrays]:
    """By number of steps, outputs of all streams: [S, T, *shape], without time [S, 1, *shape]."""
    runner = session(whole.path)
    timed = all(spec.time_axis is not None for spec in contract.outputs)
    found: dict[int, Arrays] = {}
    for steps in (STEPS,) if timed else PREFIXES:
        streams = [_one(whole, runner, contract, _stream(sample, contract, stream, steps)) for stream in range(STREAMS)]
        found[steps] = {name: np.stack([one[name] for one in streams]) for name in streams[0]}
    return found


def _stream(sample: Sample, contract: Contract, stream: int, steps: int) -> Arrays:
    """One stream's first steps, [1, T, *shape]."""
    longest = {spec.name: steps if spec.time_axis is not None else 1 for spec in contract.inputs}
    return {name: value[stream : stream + 1, : longest[name]] for name, value in sample.inputs.items()}


def _one(whole: Whole, runner: Any, contract: Contract, inputs: Arrays) -> Arrays:
    """What the file gives for inputs [1, T, *shape] at once."""
    steps = max(value.shape[1] for value in inputs.values())
    feeds = {}
    for spec in contract.inputs:
        value = np.repeat(model_axes(spec, inputs[spec.name]), whole.streams, spec.batch_axis)
        feeds[whole.theirs.get(spec.name, spec.name)] = value
    taken = {value.name for value in runner.get_inputs()}
    for state in contract.states:
        name = whole.theirs.get(state.input, state.input)
        if name in taken:
            first = np.expand_dims(state.initial_value().reshape(state.shape), state.batch_axis)
            feeds[name] = np.repeat(first, whole.streams, state.batch_axis)
    for constant in contract.constants:
        value = np.frombuffer(constant.value, constant.dtype).reshape(constant.shape)
        feeds[whole.theirs.get(constant.name, constant.name)] = value
    for name in whole.lengths:
        feeds[name] = np.full(whole.streams, steps, np.int32)
    names = [whole.theirs.get(spec.name, spec.name) for spec in contract.outputs]
    values = runner.run(names, feeds)
    return {spec.name: batch_and_time(spec, value)[0] for spec, value in zip(contract.outputs, values, strict=True)}


def _compared(
    spec: TensorSpec, answer: npt.NDArray[Any], truth: Mapping[int, Arrays], whole: Whole
) -> Iterator[ParityRecord]:
    """Records of one output: over all steps where it has time, else after each number of steps."""
    coarse = COARSE if spec.dtype == "float16" else 1.0
    exact_only = np.dtype(spec.dtype).kind != "f"
    for steps, outputs in truth.items():
        if spec.time_axis is not None and steps != STEPS:
            continue
        exact = outputs[spec.name].astype(np.float64)
        mine = answer if spec.time_axis is not None else answer[:, steps - 1 : steps]
        error = np.nan_to_num(np.abs(mine.astype(np.float64) - exact), nan=np.inf)
        size = max(float(np.sqrt(np.mean(np.square(exact)))), float(np.finfo(np.float32).tiny))
        rms_error, max_error = float(np.sqrt(np.mean(np.square(error)))), float(np.max(error))
        rms_bar, max_bar = (0.0, 0.0) if exact_only else (coarse * RMS_BAR, coarse * MAX_BAR)
        yield ParityRecord(
            subject=f"{artifact.RESIDENT}, from the start, in batches that change",
            truth=f"{whole.path.name} as given, over {steps} steps at once, with no state carried",
            tensor=spec.name,
            steps=steps,
            initial=INITIAL,
            rms_error=rms_error,
            max_error=max_error,
            rms_ratio=rms_error / size,
            max_ratio=max_error / size,
            rms_bar=rms_bar,
            max_bar=max_bar,
            passed=rms_error <= rms_bar * size and max_error <= max_bar * size,
        )
