"""The last link of parity: what a real client is answered by a real server, against model.onnx run by hand.

Several streams at once, each cut into chunks of its own. Owns the asking over gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import cellstream
from export import artifact, bits
from export.runtime import Portable
from export.samples import ZERO, draw
from export.yardstick import compare_bits
from model.contract import Contract, ParityRecord

STREAMS = 5
STEPS = 60
CHUNKS = (1, 7, 16, STEPS)  # the longest of each stream's chunks, in turn: step by step, ragged, in one piece
SUBJECT = f"over gRPC, {STREAMS} streams at once"
Outputs = dict[str, npt.NDArray[Any]]


def served(address: str, model: str, folder: Path, contract: Contract, seed: int = 0) -> list[ParityRecord]:
    """Every output of every stream, from a new stream's state on, bit for bit."""
    sample = draw(contract, STEPS, ZERO, STREAMS, seed)
    alone = bits.alone(Portable(folder / artifact.MODEL, contract), contract, sample)
    expected = {tensor.name: alone[tensor.name] for tensor in contract.outputs}
    found = asyncio.run(_all(address, model, sample.inputs, contract, seed))
    answer = {name: np.stack([stream[name] for stream in found]) for name in expected}
    truth = f"{artifact.MODEL}, each stream alone, bit for bit"
    return compare_bits(subject=SUBJECT, sample=sample, answer=answer, truth_name=truth, truth=expected)


async def _all(address: str, model: str, inputs: Outputs, contract: Contract, seed: int) -> list[Outputs]:
    async with cellstream.aio.connect(address) as client:
        lanes = range(STREAMS)
        return list(await asyncio.gather(*(_one(client, model, inputs, contract, [seed, lane]) for lane in lanes)))


async def _one(client: Any, model: str, inputs: Outputs, contract: Contract, place: list[int]) -> Outputs:
    """One stream, in chunks: all of its outputs, [T, *shape] by name."""
    lane = place[1]
    names = [tensor.name for tensor in contract.outputs]
    async with client.stream(model) as stream:
        chunks = _chunks({name: value[lane] for name, value in inputs.items()}, place)
        answers = [answer if isinstance(answer, dict) else {names[0]: answer} async for answer in stream.run(chunks)]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in names}


async def _chunks(inputs: Outputs, place: list[int]) -> AsyncIterator[Any]:
    random = np.random.default_rng(place)
    longest = CHUNKS[place[1] % len(CHUNKS)]
    done = 0
    while done < STEPS:
        size = STEPS if longest == STEPS else int(random.integers(1, longest + 1))
        piece = {name: value[done : done + size] for name, value in inputs.items()}
        yield piece if len(piece) > 1 else next(iter(piece.values()))
        done += size
