"""Ready-made answers of the size of real ones, found by the size of the message that they answer."""

from __future__ import annotations

import argparse
from typing import Any

from bench.load.shapes import MULTIPLEX, STREAM
from cellstream.v1 import stream_inference_pb2 as pb

# What a server in the middle of a run writes: step numbers of two bytes, times of a millisecond or so.
_STEP, _MICROS = 1000, 1500
_FLOAT = 4
_NUMBERS = 7  # bytes of a row's key and first_step, as the load generator writes them
_OPENED = pb.Opened(model="lstm", version=1, next_step=1, epoch=1, window_steps=2048, max_steps_per_message=2048)


class _Answers(dict[int, bytes]):
    """By the size of a message; made when the first of that size comes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """`inputs`, `outputs`: floats of one step."""
        super().__init__()
        self.inputs, self.outputs = inputs * _FLOAT, outputs * _FLOAT

    def __missing__(self, size: int) -> bytes:
        made = self[size] = self.make(size)
        return made

    def make(self, size: int) -> bytes:
        """The answer to a message of `size` bytes."""
        raise NotImplementedError


class StreamAnswers(_Answers):
    """Of the RPC Stream."""

    opened = pb.StreamResponse(opened=_OPENED).SerializeToString()

    def make(self, size: int) -> bytes:
        """As many steps of outputs as a message of that size has of inputs."""
        steps = size // self.inputs
        outputs = pb.Outputs(
            first_step=_STEP, steps=steps, outputs=[bytes(steps * self.outputs)], queue_us=_MICROS, compute_us=_MICROS
        )
        return pb.StreamResponse(outputs=outputs).SerializeToString()


class MultiplexAnswers(_Answers):
    """Of the RPC Multiplex, one step of each stream."""

    opened = pb.MultiplexResponse(opened=[pb.MultiplexOpened(opened=_OPENED)]).SerializeToString()

    def make(self, size: int) -> bytes:
        """As many rows of outputs as a message of that size has of inputs."""
        rows = round(size / (self.inputs + _NUMBERS))
        columns = pb.StepRows(keys=range(rows), first_steps=[_STEP] * rows, tensors=[bytes(rows * self.outputs)])
        return pb.MultiplexResponse(outputs=[columns]).SerializeToString()


def answers_by_method(options: argparse.Namespace) -> dict[str, StreamAnswers | MultiplexAnswers]:
    """For the options that `add_sizes` has added."""
    kinds: dict[str, Any] = {STREAM: StreamAnswers, MULTIPLEX: MultiplexAnswers}
    return {path: kind(options.inputs, options.outputs) for path, kind in kinds.items()}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The options that say how large the answers are."""
    parser.add_argument("--inputs", type=int, default=64, help="floats of one step of input (default: %(default)s)")
    parser.add_argument("--outputs", type=int, default=16, help="floats of one step of output (default: %(default)s)")
