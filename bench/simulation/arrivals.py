"""What arrives when: chunks as arrays, drawn from a scenario or read from a recording.

Owns arrivals and their file format, CSV lines of `seconds,stream,steps`. Knows no batcher and no cost.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
HEADER = ("seconds", "stream", "steps")


class RecordingError(ValueError):
    """The recording can't be read or written; the text names the file and the line."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Chunks in order of time: chunk i, of steps[i] steps of stream[i], arrives at seconds[i] >= 0.

    With `think_seconds` they are only every stream's first: an answered stream thinks for so long on average
    (exponentially distributed), then sends its next single step, until `until`.
    """

    seconds: Floats
    stream: Ints
    steps: Ints
    until: float  # when arrivals end
    think_seconds: float | None = None

    def __post_init__(self) -> None:
        assert len(self.seconds) == len(self.stream) == len(self.steps)
        assert bool((np.diff(self.seconds) >= 0).all()), "arrivals aren't in order of time"
        assert not len(self.steps) or (self.steps.min() >= 1 and self.seconds[0] >= 0)

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def streams(self) -> int:
        """How many streams send at all."""
        return len(np.unique(self.stream))

    def faster(self, times: float) -> Arrivals:
        """The same arrivals in less time."""
        return replace(self, seconds=self.seconds / times, until=self.until / times)

    def first_steps(self) -> Ints:
        """The number of each chunk's first step: streams number theirs from 1."""
        order = np.argsort(self.stream, kind="stable")
        steps, stream = self.steps[order], self.stream[order]
        before = np.cumsum(steps) - steps
        begins = np.flatnonzero(np.r_[True, stream[1:] != stream[:-1]]) if len(stream) else np.array([], np.int64)
        own = before - np.repeat(before[begins], np.diff(np.r_[begins, len(stream)]))
        first = np.empty(len(self), np.int64)
        first[order] = own + 1
        return first


def in_order(seconds: Floats, stream: Ints, steps: Ints, until: float, think_seconds: float | None = None) -> Arrivals:
    """Arrivals of chunks given in any order; of equal moments the first given comes first."""
    order = np.argsort(seconds, kind="stable")
    return Arrivals(seconds[order], stream[order], steps[order], until, think_seconds)


def read(path: Path) -> Arrivals:
    """A recording, its first arrival at 0. Raises RecordingError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            if tuple(next(lines, ())) != HEADER:
                raise RecordingError(f"{path}, line 1: the header must be {','.join(HEADER)}")
            rows = [_row(path, lines.line_num, line) for line in lines]
    except OSError as error:
        raise RecordingError(f"{path}: can't be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(f"{path}: isn't CSV ({error})") from error
    if not rows:
        raise RecordingError(f"{path}: holds no arrival; record for longer, or while clients send")
    numbers: dict[str, int] = {}
    stream = np.array([numbers.setdefault(name, len(numbers)) for _, name, _ in rows])
    seconds = np.array([row[0] for row in rows])
    seconds -= seconds.min()
    return in_order(seconds, stream, np.array([row[2] for row in rows]), float(seconds.max()))


def write(path: Path, rows: Iterable[tuple[float, Any, int]]) -> int:
    """Write chunks as (seconds, stream, steps); how many there were. Raises RecordingError."""
    count = 0
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(HEADER)
            for seconds, stream, steps in rows:
                lines.writerow((f"{seconds:.6f}", stream, steps))
                count += 1
    except OSError as error:
        raise RecordingError(f"{path}: can't be written ({error.strerror})") from error
    return count


def _row(path: Path, number: int, line: list[str]) -> tuple[float, str, int]:
    try:
        seconds, stream, steps = line
        row = float(seconds), stream, int(steps)
    except ValueError:
        raise RecordingError(f"{path}, line {number}: {','.join(line)!r} isn't seconds,stream,steps") from None
    if not 0 <= row[0] < 1e9 or not 1 <= row[2] < 2**31:
        raise RecordingError(f"{path}, line {number}: seconds must be from 0 to 1e9, steps from 1 to {2**31 - 1}")
    return row
