"""One run of `make bench` as a whole: what is written to bench/results/, and read again to draw it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import targets
from bench.cases import Peer
from bench.samples import Round, Sample, from_plain, sample_from_plain
from bench.studies import Fairness, Held, Memory, StartUp, Sustained
from bench.targets import Target

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What was measured, where and when."""

    date: str
    commit: str
    machine: str
    versions: Mapping[str, str]
    seconds: float  # that it took
    load: float  # the machine's load average before it began: what else was running
    rounds: tuple[Round, ...]
    curves: tuple[Sample, ...] = ()
    fairness: tuple[Fairness, ...] = ()
    sustained: tuple[Sustained, ...] = ()
    memory: Memory | None = None
    held: Held | None = None
    start_up: StartUp | None = None

    def targets(self) -> list[Target]:
        """Every target that there are figures for."""
        found = targets.of_rounds(self.rounds) + targets.of_fairness(self.fairness)
        found += [targets.of_memory(self.memory)] if self.memory else []
        found += [targets.of_held(self.held)] if self.held else []
        found += [targets.of_start_up(self.start_up)] if self.start_up else []
        return found

    def save(self, path: Path) -> None:
        """As JSON; the targets are written too, for whoever reads it without this code."""
        plain = {"schema": SCHEMA, "targets": [{**asdict(item), "met": item.met} for item in self.targets()]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**asdict(self), **plain}, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Document:
    """Back from JSON. Raises ValueError for a file that can't be read or has another schema."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} isn't a result of make bench: {error}") from error
    if plain.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {plain.get('schema')!r}; this code reads {SCHEMA}")
    return Document(
        **{name: plain[name] for name in ("date", "commit", "machine", "versions", "seconds", "load")},
        rounds=tuple(from_plain(plain["rounds"])),
        curves=tuple(sample_from_plain(item) for item in plain["curves"]),
        fairness=tuple(Fairness(**item) for item in plain["fairness"]),
        sustained=tuple(_sustained(item) for item in plain["sustained"]),
        memory=Memory(**plain["memory"]) if plain["memory"] else None,
        held=_held(plain["held"]) if plain["held"] else None,
        start_up=StartUp(*map(tuple, plain["start_up"].values())) if plain["start_up"] else None,
    )


def _held(plain: dict[str, Any]) -> Held:
    return Held(plain["idle_streams"], tuple(plain["alone"]), tuple(plain["beside"]))


def _sustained(plain: dict[str, Any]) -> Sustained:
    tried = tuple((int(streams), float(p99)) for streams, p99 in plain["tried"])
    return Sustained(Peer(plain["peer"]), plain["streams"], plain["p99"], tried)
