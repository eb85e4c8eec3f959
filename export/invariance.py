"""What changes no bit of a stream's answers on this machine: found out by a fixed, quick set of runs.

Every circumstance is tried against the same stream run alone in one chunk. Owns the circumstances. Knows no torch.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.runtime import Resident
from export.samples import NON_ZERO, Arrays, Sample, draw
from model.contract import Contract

STEPS, QUICK_STEPS = 12, 4
STREAMS, QUICK_STREAMS = 3, 1
ROWS = 128
WILD = 1e30  # how large neighbours are
BATCHES = (1, 2, 3, 4, 5, 8, 16, 37)
CHUNKS = {STEPS: ([1] * STEPS, [5, 7], [2, 3, 1, 6], [STEPS - 1, 1]), QUICK_STEPS: ([1] * QUICK_STEPS, [1, 3], [2, 2])}
THREADS = (1, 2, 4)
SEED = 11


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How one stream is run: in a batch of `batch`, at `position`, in these chunks, from row to row."""

    batch: int = 1
    position: int = 0
    chunks: Sequence[int] = ()  # none: all steps in one
    first_row: int = 1
    wild: bool = False
    lengths: bool = False  # neighbours stop earlier


def answer_of(resident: Resident, contract: Contract, sample: Sample, lane: int, how: Circumstances) -> Arrays:
    """All outputs and the last states of one lane of the sample, run so."""
    resident.reset(rows=ROWS)
    random = np.random.default_rng(SEED)
    rows = [1 + (how.first_row - 1 + place) % (ROWS // 2 - 1) for place in range(how.batch)]
    others = draw(contract, sample.steps, NON_ZERO, how.batch, SEED + 1)
    if how.wild:
        others = replace(others, inputs=_wild(others.inputs), states=_wild(others.states))
    for place, row in enumerate(rows):
        ours = place == how.position
        states = sample.states if ours else others.states
        resident.write_states(row, {name: value[lane if ours else place] for name, value in states.items()})
    pieces: list[Arrays] = []
    done = 0
    for size in (how.chunks or [sample.steps]) if contract.ragged else [1] * sample.steps:
        inputs = {name: value[:, done : done + size].copy() for name, value in others.inputs.items()}
        for name, value in inputs.items():
            value[how.position] = sample.inputs[name][lane, done : done + size]
        lengths = [int(random.integers(1, size + 1)) if how.lengths else size for _ in rows]
        lengths[how.position] = size
        fresh = [(row + ROWS // 2) % ROWS for row in rows]  # the slab's other half, and back
        found = resident.run(inputs, lengths, rows, fresh)
        pieces.append({name: value[how.position] for name, value in found.items()})
        rows, done = fresh, done + size
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return joined | resident.read_states(rows[how.position])


def _wild(values: Arrays) -> Arrays:
    """Values of enormous size, where there is any size: tokens stay tokens."""
    with np.errstate(over="ignore"):  # half precision has no 1e30, and infinity is wild too
        return {
            name: value if np.issubdtype(value.dtype, np.integer) else (value * WILD).astype(value.dtype)
            for name, value in values.items()
        }


def same_bytes(first: Arrays, second: Arrays) -> bool:
    """True where both have the same tensors with the same bytes."""
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


def invariances(path: Path, contract: Contract, *, quick: bool = False) -> dict[str, bool]:
    """What makes no difference here, by name, and what does. `quick`: by fewer and shorter streams."""
    streams, steps = (QUICK_STREAMS, QUICK_STEPS) if quick else (STREAMS, STEPS)
    sample = draw(contract, steps, NON_ZERO, streams, SEED)
    alone = Resident(path, contract, rows=ROWS)
    plain = [answer_of(alone, contract, sample, lane, Circumstances()) for lane in range(streams)]

    def holds(resident: Resident, ways: Sequence[Circumstances]) -> bool:
        return all(
            same_bytes(answer_of(resident, contract, sample, lane, how), plain[lane])
            for how in ways
            for lane in range(streams)
        )

    in_five = [Circumstances(batch=5, position=2, wild=wild, lengths=True) for wild in (False, True)]
    found = {
        "batch size": holds(alone, [Circumstances(batch=batch, position=batch // 2) for batch in BATCHES]),
        "position in the batch": holds(alone, [Circumstances(batch=8, position=place) for place in range(8)]),
        "chunking": holds(alone, [Circumstances(chunks=chunks) for chunks in CHUNKS[steps]]),
        "row placement": holds(alone, [Circumstances(batch=2, first_row=row) for row in (1, 17, ROWS // 2 - 1)]),
        "neighbours' lengths": holds(alone, in_five[:1]),
        "neighbours of 1e30": holds(alone, in_five[1:]),
    }
    del alone  # a large model's weights are in memory once
    found["number of threads"] = all(
        holds(Resident(path, contract, rows=ROWS, threads=count), [Circumstances(), Circumstances(batch=8)])
        for count in THREADS
    )
    found["process"] = _elsewhere(path) == fingerprint(path, contract)
    return found


def fingerprint(path: Path, contract: Contract) -> str:
    """A digest of what this process's ONNX Runtime answers to a fixed sample."""
    sample = draw(contract, STEPS, NON_ZERO, 1, SEED)
    answer = answer_of(Resident(path, contract, rows=ROWS), contract, sample, 0, Circumstances())
    return hashlib.sha256(b"".join(answer[name].tobytes() for name in sorted(answer))).hexdigest()


def _elsewhere(path: Path) -> str:
    """The same digest, by another process."""
    command = [sys.executable, "-m", "export.elsewhere", str(path.resolve())]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)  # noqa: S603  our own module
    return done.stdout.strip()
