"""What a GPU is asked for, as ratios of figures from one run, each found at the worst size. Owns the bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.gpu.plan import Who
from bench.gpu.records import Document, Parity, Rates, Step
from bench.gpu.roofline import Floor, Size, floor

SMALL = 64  # lanes, up to which launches should decide
LARGE, WIDE = 1024, 1024  # lanes and hidden size, from which matrix products should
OVER_FLOOR, OF_MATRIX, OVER_EAGER = 2.0, 0.5, 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """One line; `found` is None where there are no figures."""

    name: str
    bar: str
    found: float | None
    where: str  # the worst size, and of how many it is the worst
    met: bool | None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def size_of(step: Step) -> Size:
    """The size that a figure was taken at."""
    return Size(step.hidden, step.layers, step.precision, step.steps, step.batch)


def floor_of(step: Step, rates: Rates) -> Floor:
    """What that run takes at least."""
    return floor(size_of(step), rates)


def over_floor(step: Step, rates: Rates) -> float | None:
    """Times the floor, on the device; None if that wasn't measured."""
    return None if step.device is None else step.device * step.steps / floor_of(step, rates).us


def of_matrix_rate(step: Step, rates: Rates) -> float | None:
    """Share of the matrix rate in the precision chosen; None if either wasn't measured."""
    rate = rates.matrix.get(step.precision)
    if rate is None or step.device is None:
        return None
    return size_of(step).operations / (step.device * step.steps / 1e6) / rate


def by_size(steps: Iterable[Step]) -> dict[tuple[int, int, str, int, int], dict[str, Step]]:
    """All contestants of each size, in the order measured."""
    found: dict[tuple[int, int, str, int, int], dict[str, Step]] = {}
    for step in steps:
        found.setdefault(step.size, {})[step.contestant] = step
    return found


def words(step: Step) -> str:
    """A size for people."""
    return f"H {step.hidden}, L {step.layers}, {step.precision}, T {step.steps}, B {step.batch}"


def targets(found: Document) -> list[Target]:
    """Every target, also those that there are no figures for."""
    rates, sizes = found.rates, by_size(found.of(Step))
    made = [_parity(found.of(Parity))]

    def add(name: str, bar: float, values: list[tuple[float | None, Step]], *, at_most: bool) -> None:
        known = [(value, step) for value, step in values if value is not None]
        sign = "at most" if at_most else "at least"
        made.append(_worst(name, f"{sign} {bar:g}", known, at_most=at_most, meets=_meets(bar, at_most=at_most)))

    ours = [] if rates is None else [all_[Who.OURS] for all_ in sizes.values() if Who.OURS in all_]
    near = [(over_floor(step, rates), step) for step in ours if rates and step.batch <= SMALL and step.steps == 1]
    add(f"times the floor, B ≤ {SMALL}, T 1, graphs, on the device", OVER_FLOOR, near, at_most=True)
    large = [step for step in ours if step.batch >= LARGE and step.hidden == WIDE]
    add(
        f"of the matrix rate, B ≥ {LARGE}, H {WIDE}, on the device",
        OF_MATRIX,
        [(of_matrix_rate(step, rates), step) for step in large if rates],
        at_most=False,
    )
    for name, mine, read in (
        ("times as fast as torch.nn.LSTM, on the device", Who.OURS, _device),
        ("our engine to torch.nn.LSTM, from and to host memory", Who.ENGINE, _host),
    ):
        pairs = [(all_[Who.EAGER], all_[mine]) for all_ in sizes.values() if {mine, Who.EAGER} <= all_.keys()]
        add(name, OVER_EAGER, [(_times(read(theirs), read(own)), own) for theirs, own in pairs], at_most=False)
    return made


def _device(step: Step) -> float | None:
    return step.device


def _host(step: Step) -> float | None:
    return step.host


def _times(theirs: float | None, own: float | None) -> float | None:
    return None if theirs is None or own is None else theirs / own


def _meets(bar: float, *, at_most: bool) -> Callable[[float], bool]:
    return (lambda value: value <= bar) if at_most else (lambda value: value >= bar)


def _worst(
    name: str, bar: str, values: list[tuple[float, Step]], *, at_most: bool, meets: Callable[[float], bool]
) -> Target:
    if not values:
        return Target(name, bar, None, "no figures", None)
    value, step = (max if at_most else min)(values, key=lambda pair: pair[0])
    passing = sum(meets(each) for each, _ in values)
    return Target(name, bar, value, f"{words(step)}; met at {passing} of {len(values)} sizes", meets(value))


def _parity(records: list[Parity]) -> Target:
    """Of all precisions together."""
    name, bar = "parity: rms and max over their bars, the worst", "at most 1"
    if not records:
        return Target(name, bar, None, "no figures", None)
    worst = max(records, key=_over_bars)
    where = f"{worst.precision}, {worst.model}, T {worst.steps}; passed {sum(one.passed for one in records)}"
    met = all(record.passed for record in records)
    return Target(name, bar, _over_bars(worst), f"{where} of {len(records)}", met)


def _over_bars(record: Parity) -> float:
    return max(record.rms_ratio / record.rms_bar, record.max_ratio / record.max_bar)
