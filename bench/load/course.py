"""What all streams send and must be answered: a few inputs in a circle, and the model's outputs step by step.

Stream number v (modulo VARIANTS) begins the circle at input v, so that neighbours differ. The outputs are computed
beforehand by ONNX Runtime from model.onnx, with the states carried by hand, and kept in a file beside the artifact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bench.load.connection import LoadError
from model.contract import Contract

VARIANTS = 8
STEPS = 32_768  # after which a stream ends and a new one begins
_PIECE = 256  # steps in one run
_SEED = 20_261_125


@dataclass(frozen=True, slots=True)
class Course:
    """Bytes to send, and bytes to expect."""

    steps: int
    input_bytes: int  # of one step
    output_bytes: int
    circle: bytes  # the inputs in order, the first of them again behind the last
    by_stream: bytes  # outputs [V, steps]
    by_step: bytes  # outputs [steps, V]
    input_name: str = "x"
    output_name: str = "y"

    def inputs(self, variant: int, step: int, count: int) -> bytes:
        """`count` steps of input of a stream, from step (counted from 0) on."""
        size, begin = self.input_bytes, (variant + step) % VARIANTS
        if begin + count <= 2 * VARIANTS:
            return self.circle[begin * size : (begin + count) * size]
        turns = -(-(begin + count) // VARIANTS)
        return (self.circle[: VARIANTS * size] * turns)[begin * size : (begin + count) * size]


def unchecked(input_bytes: int, steps: int = STEPS) -> Course:
    """A course whose answers nobody knows."""
    return Course(steps, input_bytes, 0, _circle(input_bytes), b"", b"")


def course_of(artifact: Path, steps: int = STEPS) -> Course:
    """The course of an artifact's model: from its file, or computed (seconds). Raises LoadError."""
    session = _session(artifact / "model.onnx")
    contract = Contract.from_metadata(session.get_modelmeta().custom_metadata_map)
    if len(contract.inputs) != 1 or len(contract.outputs) != 1 or contract.inputs[0].dtype != "float32":
        raise LoadError(f"{artifact}: the load generator takes models with one float32 input and one output")
    width, size = contract.inputs[0].step_bytes, contract.outputs[0].step_bytes
    file = artifact / f"course-{contract.weights_digest[-12:]}-{VARIANTS}x{steps}.npy"
    if not file.exists():
        unfinished = file.with_suffix(".part.npy")
        np.save(unfinished, _outputs(session, contract, steps))
        unfinished.replace(file)
    outputs = np.load(file)  # [V, steps, O]
    return Course(
        steps,
        width,
        size,
        _circle(width),
        outputs.tobytes(),
        outputs.swapaxes(0, 1).tobytes(),
        contract.inputs[0].name,
        contract.outputs[0].name,
    )


def _circle(input_bytes: int) -> bytes:
    values = np.random.default_rng(_SEED).standard_normal((VARIANTS, input_bytes // 4)).astype(np.float32)
    return values.tobytes() * 2


def _session(path: Path) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise LoadError(f"{path}: ONNX Runtime can't load it: {error}") from error


def _outputs(session: ort.InferenceSession, contract: Contract, steps: int) -> npt.NDArray[np.float32]:
    """What the model answers: [V, steps, O]."""
    (source,), (target,) = contract.inputs, contract.outputs
    circle = np.frombuffer(_circle(source.step_bytes), np.float32).reshape(2 * VARIANTS, *source.shape)
    states = {
        state.input: np.stack([state.initial_value().reshape(state.shape)] * VARIANTS, state.batch_axis)
        for state in contract.states
    }
    constants = {item.name: np.frombuffer(item.value, item.dtype).reshape(item.shape) for item in contract.constants}
    piece = _PIECE if source.time_axis is not None else 1
    names = [target.name, *(state.output for state in contract.states)]
    answers = []
    for begin in range(0, steps, piece):
        chosen = (np.arange(begin, min(begin + piece, steps)) + np.arange(VARIANTS)[:, None]) % VARIANTS  # [V, T]
        x = np.ascontiguousarray(_laid_out(circle[chosen], source.batch_axis, source.time_axis))
        y, *after = session.run(names, {source.name: x, **states, **constants})
        states = dict(zip(states, after, strict=True))
        answers.append(_laid_back(y, target.batch_axis, target.time_axis))
    return np.concatenate(answers, axis=1)


def _laid_out(x: npt.NDArray[np.float32], batch: int, time: int | None) -> npt.NDArray[np.float32]:
    """[V, T, *shape] with its axes where the model wants them."""
    return np.moveaxis(x[:, 0], 0, batch) if time is None else np.moveaxis(x, (0, 1), (batch, time))


def _laid_back(y: npt.NDArray[np.float32], batch: int, time: int | None) -> npt.NDArray[np.float32]:
    """The reverse."""
    return np.moveaxis(y, batch, 0)[:, None] if time is None else np.moveaxis(y, (batch, time), (0, 1))
