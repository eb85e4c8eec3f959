"""Into how many parts a resident graph cuts the slab's rows: what an exporter is asked, and what it makes of it.

CUDA's ScatterND has one thread copy what one index names, so a wide row in K parts is copied by K threads. A CPU only
has more to do. Owns the choice of K; knows no graph.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Literal, TypeAlias

from export.precision import Precision
from model.contract import Contract

RowParts: TypeAlias = int | Literal["auto"]
AUTO: Literal["auto"] = "auto"
WHOLE_ROWS = 1
PART = 32  # elements that "auto" wants in a part
FOR_GPUS = frozenset({Precision.TF32, Precision.FP16})
HELP = (
    "K: the server's rows of state in K parts each, or the nearest number that divides them: more threads of a GPU"
    f" write them, and a CPU takes longer; auto: parts of about {PART} elements in tf32 and fp16, whole rows elsewhere"
    " (default: %(default)s)"
)


def row_parts(text: str) -> RowParts:
    """The option's value; raises ArgumentTypeError for one that isn't."""
    if text == AUTO:
        return AUTO
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number of parts, from 1, nor {AUTO!r}")


def with_parts(contract: Contract, wanted: RowParts) -> Contract:
    """The contract with the number of parts that comes nearest to what is wanted, for each slab."""
    if wanted == AUTO and contract.precision not in FOR_GPUS:
        wanted = WHOLE_ROWS
    found = {
        slab.dtype: nearest_divisor(slab.width, slab.width / PART if wanted == AUTO else wanted)
        for slab in contract.slabs()
    }
    return replace(contract, row_parts={dtype: parts for dtype, parts in found.items() if parts > 1})


def nearest_divisor(of: int, wanted: float) -> int:
    """The divisor whose ratio to what is wanted is nearest to 1."""
    divisors = (divisor for divisor in range(1, of + 1) if of % divisor == 0)
    return min(divisors, key=lambda divisor: abs(math.log(divisor / wanted)))


def describe(contract: Contract) -> tuple[str, ...]:
    """What was chosen, for people; nothing of whole rows."""
    return tuple(
        f"rows of {slab.dtype} are {slab.parts} parts of {slab.width // slab.parts} elements, for a GPU's threads"
        for slab in contract.slabs()
        if slab.parts > 1
    )
