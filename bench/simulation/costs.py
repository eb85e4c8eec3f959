"""What a run of B lanes of T steps costs, as a table measured once and read between its points.

Owns the table and its file. Knows neither how it was measured (calibration) nor what for.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEFAULT = Path(__file__).parent.parent / "results" / "run_costs.json"


class CostsError(ValueError):
    """The table can't be read or isn't one; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of a run: `micros[b][t]` for `lanes[b]` lanes of `steps[t]` steps, both ascending from 1."""

    about: str  # the model, the machine, the day
    lanes: tuple[int, ...]
    steps: tuple[int, ...]
    micros: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for name, axis in (("lanes", self.lanes), ("steps", self.steps)):
            if len(axis) < 2 or axis[0] != 1 or any(a >= b for a, b in itertools.pairwise(axis)):
                raise CostsError(f"{name} are {list(axis)}; they must ascend from 1, two at least")
        if len(self.micros) != len(self.lanes) or any(len(row) != len(self.steps) for row in self.micros):
            raise CostsError(f"micros must have {len(self.lanes)} rows of {len(self.steps)}")
        if not all(0 < value < float("inf") for row in self.micros for value in row):
            raise CostsError("micros must be positive numbers")

    def seconds(self, lanes: int, steps: int) -> float:
        """What a run costs: linear between the table's points, and beyond them as between the last two."""
        row, right = _place(self.lanes, lanes)
        column, down = _place(self.steps, steps)
        (a, b), (c, d) = (self.micros[place][column : column + 2] for place in (row, row + 1))
        return ((a * (1 - down) + b * down) * (1 - right) + (c * (1 - down) + d * down) * right) * 1e-6


class RunSeconds(dict[tuple[int, int], float]):
    """A table's answers by (lanes, steps), each worked out once: a simulation asks by the million."""

    def __init__(self, costs: Costs) -> None:
        super().__init__()
        self._costs = costs

    def __missing__(self, run: tuple[int, int]) -> float:
        """Work it out and keep it."""
        found = self[run] = self._costs.seconds(*run)
        return found


def read(path: Path) -> Costs:
    """The table in a file that `write` made. Raises CostsError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Costs(
            str(data["about"]),
            tuple(int(value) for value in data["lanes"]),
            tuple(int(value) for value in data["steps"]),
            tuple(tuple(float(value) for value in row) for row in data["micros"]),
        )
    except CostsError as error:
        raise CostsError(f"{path}: {error}") from error
    except OSError as error:
        raise CostsError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CostsError(f"{path}: isn't a table of run costs; make one with --calibrate") from error


def write(costs: Costs, path: Path) -> None:
    """Write a table, one line per number of lanes. Raises CostsError."""
    rows = ",\n  ".join(json.dumps([round(value, 2) for value in row]) for row in costs.micros)
    text = (
        f'{{"about": {json.dumps(costs.about)},\n "lanes": {json.dumps(costs.lanes)},\n'
        f' "steps": {json.dumps(costs.steps)},\n "micros": [\n  {rows}\n]}}\n'
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CostsError(f"{path}: can't be written ({error.strerror})") from error


def rising(micros: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    """The measurements without what only noise explains: more lanes or steps never cost less."""
    table = np.maximum.accumulate(np.maximum.accumulate(np.array(micros), axis=0), axis=1)
    return tuple(tuple(float(value) for value in row) for row in table)


def _place(axis: tuple[int, ...], value: int) -> tuple[int, float]:
    """The point below, and the share of the way to the next."""
    below = min(int(np.searchsorted(axis, value, side="right")) - 1, len(axis) - 2)
    return below, (value - axis[below]) / (axis[below + 1] - axis[below])
