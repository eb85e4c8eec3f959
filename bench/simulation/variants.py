"""Other settings of the policy, and other machines, by name.

Owns the table. Where a setting of serving's batcher says it, the batcher is serving's own; the two classes here change
where a stream stands in line, or how many lanes a batch may have, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from serving.batcher import Batch, Batcher, _Queue
from serving.config import Batching


class Unclassed(Batcher[int]):
    """No length classes: one line for all, so that a batch is the oldest streams whatever their lengths."""

    def _line_up(self, queue: _Queue[int], _steps: int) -> None:
        super()._line_up(queue, 1)


class PowersOfTwo(Batcher[int]):
    """Batches of 1, 2, 4, … lanes: as many of the oldest as make one."""

    def __init__(self, *, max_batch: int, **settings: Any) -> None:
        super().__init__(max_batch=max_batch, **settings)
        self._most = max_batch

    def take(self) -> Batch[int] | None:
        """The next batch."""
        line = self._oldest_line()
        if line is not None:
            oldest = line[0][1]
            steps = min(self.slice_steps, oldest.chunks[0].steps - oldest.offset)
            longest = min(self.slice_steps, (1 << steps.bit_length()) - 1)  # of its class
            room = max(1, min(self._most, len(line), self.max_run_steps // longest))
            self.max_batch = 1 << room.bit_length() - 1
        return super().take()


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy and where the engine runs. `in_flight` 0: on the loop's own thread; else beside it."""

    name: str
    batching: Batching = field(default_factory=Batching)
    in_flight: int = 0
    kind: type[Batcher[int]] = Batcher

    def batcher(self) -> Batcher[int]:
        """A fresh one."""
        settings = self.batching
        return self.kind(
            max_batch=settings.max_batch,
            slice_steps=settings.slice_steps,
            max_run_steps=settings.max_run_steps,
            shared_slice_steps=settings.shared_slice_steps,
        )


_AS_BUILT = Batching()
_SHORT = replace(_AS_BUILT, slice_steps=8, max_run_steps=128)
AS_BUILT = "as-built"
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(AS_BUILT),
        Variant("beside-1", in_flight=1),
        Variant("beside-2", in_flight=2),
        *(Variant(f"batch-{n}", replace(_AS_BUILT, max_batch=n)) for n in (16, 32, 64, 256, 512)),
        *(Variant(f"slice-{n}", replace(_AS_BUILT, slice_steps=n, shared_slice_steps=n)) for n in (4, 8, 16, 32, 64)),
        *(Variant(f"run-{n}", replace(_AS_BUILT, max_run_steps=n)) for n in (128, 256, 1024, 2048)),
        Variant("short", _SHORT),
        Variant("short-beside-1", _SHORT, in_flight=1),
        Variant("no-classes", kind=Unclassed),
        Variant("powers", kind=PowersOfTwo),
    )
}
