"""Many streams' inputs as one request, and a request's bytes.

Knows neither the streams' figures nor what is under way. Axis letters: K streams of one request, T time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellstream._streams import Ints
from cellstream._tensors import Request, Signature
from cellstream.errors import InvalidInput
from cellstream.v1 import stream_inference_pb2 as pb

_STEPS, _TENSOR = b"\x12", b"\x22"  # tags: MultiplexRequest.steps (2) and StepRows.tensors (4), both with a length


def join(signature: Signature, inputs: Mapping[int, Any]) -> tuple[list[int], list[int], dict[int, bool], Request]:
    """A dict of inputs by key as one request: keys, steps of each, which are single, and the joined values.

    Raises InvalidInput, naming the key.
    """
    keys, requests = list(inputs), []
    for key, values in inputs.items():
        try:
            requests.append(signature.encode(values))
        except InvalidInput as error:
            raise InvalidInput(f"key {key}: {error}") from None
    if not requests:
        raise InvalidInput("no keys; a multiplexed step has at least one stream")
    columns = tuple(np.concatenate(parts) for parts in zip(*(request.columns for request in requests), strict=True))
    counts = [request.steps for request in requests]
    single = {key: not request.chunk for key, request in zip(keys, requests, strict=True)}
    return keys, counts, single, Request(signature, sum(counts), chunk=True, columns=columns)


def row_counts(keys: int, request: Request) -> tuple[Ints, tuple[int, ...]]:
    """The steps of each of K equal rows, and the rows' leading axes: (K,) for single steps, (K, T) for chunks."""
    steps = request.steps // keys
    return np.full(keys, steps), (keys, steps) if request.chunk else (keys,)


def step_rows_message(head: pb.StepRows, columns: Sequence[memoryview]) -> bytes:
    """A MultiplexRequest with one StepRows of `head`'s fields and these tensors, which are copied this once."""
    parts: list[bytes | memoryview] = [head.SerializeToString()]
    for column in columns:
        parts += [_TENSOR, _varint(column.nbytes), column]
    size = sum(memoryview(part).nbytes for part in parts)
    return b"".join([_STEPS, _varint(size), *parts])


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)
