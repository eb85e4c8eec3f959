"""The demo's clients: many streams at once over real text, and the same streams one at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import cellstream
from model.corpus import held_out_files, read_tokens

Tokens = npt.NDArray[np.int64]  # [T]
Logits = npt.NDArray[np.float32]  # [T, 256]
Progress = Callable[[int], None]  # told how many more steps are answered

SHORTEST, LONGEST = 200, 2000  # steps of a stream
LARGEST_CHUNK = 64  # steps in one message
ARRIVALS_SECONDS = 1.5  # within which all streams begin


@dataclass(frozen=True, slots=True)
class Plan:
    """One client: what it sends, when it begins, and how it cuts its text."""

    text: Tokens
    begins: float  # seconds after the first could
    chunks: tuple[int, ...]


def make_plans(streams: int, seed: int) -> list[Plan]:
    """Clients with real text that the model has never seen, no two alike."""
    dice = random.Random(seed)
    files = held_out_files(min_bytes=2 * LONGEST)
    plans = []
    for index in range(streams):
        steps = dice.randint(SHORTEST, LONGEST)
        text = read_tokens(files[index % len(files)])
        start = dice.randrange(len(text) - steps)
        chunks, left = [], steps
        while left:
            chunks.append(min(left, dice.choice((1, dice.randint(1, 8), dice.randint(1, LARGEST_CHUNK)))))
            left -= chunks[-1]
        plans.append(Plan(text[start : start + steps], dice.uniform(0, ARRIVALS_SECONDS), tuple(chunks)))
    return plans


@dataclass(frozen=True, slots=True)
class Served:
    """What all streams were answered, how many were open at once, and how long it took."""

    logits: list[Logits]
    open_at_once: int
    seconds: float


def serve_together(address: str, model: str, plans: Sequence[Plan], progress: Progress) -> Served:
    """Run all plans at once; no stream closes before every one is open."""
    return asyncio.run(_serve_together(address, model, plans, progress))


async def _serve_together(address: str, model: str, plans: Sequence[Plan], progress: Progress) -> Served:
    open_now = most = 0
    all_open = asyncio.Event()

    async def one(client: Any, plan: Plan) -> Logits:
        nonlocal open_now, most
        await asyncio.sleep(plan.begins)
        async with client.stream(model) as stream:
            open_now += 1
            most = max(most, open_now)
            if open_now == len(plans):
                all_open.set()
            answers = []
            async for answer in stream.run(_chunks(plan)):
                answers.append(answer)
                progress(len(answer))
            await all_open.wait()
            open_now -= 1
        return np.concatenate(answers)

    began = time.perf_counter()
    async with cellstream.aio.connect(address) as client:
        logits = await asyncio.gather(*(one(client, plan) for plan in plans))
    return Served(list(logits), most, time.perf_counter() - began)


async def _chunks(plan: Plan) -> AsyncIterator[Tokens]:
    start = 0
    for size in plan.chunks:
        yield plan.text[start : start + size]
        start += size


def serve_alone(address: str, model: str, plans: Sequence[Plan], progress: Progress) -> list[Logits]:
    """Run the plans one after another, each text in one piece, nobody else on the server."""
    logits = []
    with cellstream.connect(address) as client:
        for plan in plans:
            with client.stream(model) as stream:
                logits.append(np.asarray(stream.step(plan.text)))
            progress(len(plan.text))
    return logits
