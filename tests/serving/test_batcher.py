"""The batcher: readable scenarios, and a state machine against a plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.batcher import CALM_RUNS, Batch, Batcher, Chunk

_SCENARIOS = (Path(__file__).parent / "scenarios" / "batcher.txt").read_text().split("\nscenario: ")[1:]


class Script:
    """Plays one scenario."""

    def __init__(self, settings: str) -> None:
        words = settings.replace(",", "").split()
        given = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        self.batcher: Batcher[str] = Batcher(**{"max_run_steps": 1000} | given)
        self.sent: dict[str, int] = {}
        self.batch: Batch[str] | None = None

    def play(self, line: str) -> str:
        """Carry out one line; what came of it, as text."""
        match line.split():
            case ["push", stream, steps]:
                first = self.sent.get(stream, 0) + 1
                self.sent[stream] = first + int(steps) - 1
                self.batcher.push(stream, Chunk(first, int(steps), (), 0.0))
            case ["take"]:
                taken = self.batcher.take()
                self.batch = taken or self.batch
                return (
                    "nothing"
                    if taken is None
                    else " ".join(f"{piece.stream}:{piece.steps}@{piece.first_step}" for piece in taken.slices)
                )
            case ["finish"]:
                assert self.batch is not None
                self.batcher.finish(self.batch)
                self.batch = None
            case ["waiting"]:
                return str(self.batcher.waiting_steps)
            case ["discard", stream]:
                self.batcher.discard(stream)
            case ["hold", stream]:
                self.batcher.hold(stream)
            case ["release", stream]:
                self.batcher.release(stream)
            case _:
                raise AssertionError(line)
        return ""


@pytest.mark.parametrize("scenario", _SCENARIOS, ids=lambda text: text.splitlines()[0])
def test_scenario(scenario: str) -> None:
    """Every line of a scenario gives what stands behind its arrow, and the books balance after each."""
    _title, settings, *lines = [line for line in scenario.splitlines() if line and not line.startswith("#")]
    script = Script(settings)
    for line in lines:
        action, _, expected = line.partition(" -> ")
        assert script.play(action) == expected, line
        script.batcher.check()


def test_slices_grow_again_when_nobody_sends_small_pieces() -> None:
    """A single step makes the slices of others short for CALM_RUNS batches, and not for ever."""
    batcher: Batcher[str] = Batcher(max_batch=4, slice_steps=32, max_run_steps=512, shared_slice_steps=8)
    batcher.push("long", Chunk(1, 1000, (), 0.0))
    batcher.push("single", Chunk(1, 1, (), 0.0))
    taken = []
    for _ in range(CALM_RUNS + 4):
        batch = batcher.take()
        assert batch is not None
        taken.append(batch.steps)
        batcher.finish(batch)
    assert taken == [32, 1, *[8] * CALM_RUNS, 32, 32]


class BatcherMachine(RuleBasedStateMachine):
    """Random histories: every step pushed and not discarded is taken once, in order, and nobody starves."""

    streams = st.sampled_from("abcdef")

    def __init__(self) -> None:
        super().__init__()
        self.batcher: Batcher[str] = Batcher(max_batch=3, slice_steps=4, max_run_steps=8, shared_slice_steps=2)
        self.accepted: dict[str, int] = {}  # steps pushed
        self.computed: dict[str, int] = {}  # steps finished
        self.held: set[str] = set()
        self.batch: Batch[str] | None = None
        self.gone: set[str] = set()  # discarded while the batch ran
        self.turns_waited: dict[str, int] = {}

    @rule(stream=streams, steps=st.integers(1, 11))
    def push(self, stream: str, steps: int) -> None:
        first = self.accepted.get(stream, 0) + 1
        self.accepted[stream] = first + steps - 1
        self.batcher.push(stream, Chunk(first, steps, (), 0.0))

    @precondition(lambda self: self.batch is None)
    @rule()
    def take(self) -> None:
        ready = {s for s, n in self.accepted.items() if n > self.computed.get(s, 0) and s not in self.held}
        assert self.batcher.ready == bool(ready)
        self.batch = self.batcher.take()
        assert (self.batch is None) == (not ready)
        self.gone = set()
        if self.batch is None:
            return
        taken = [piece.stream for piece in self.batch.slices]
        assert len(set(taken)) == len(taken) <= 3
        assert set(taken) <= ready
        for piece in self.batch.slices:
            assert 1 <= piece.steps <= 4
            assert piece.first_step == self.computed.get(piece.stream, 0) + 1
            assert 2 * piece.steps > self.batch.steps
        assert len(taken) * self.batch.steps <= 8
        for stream in ready:
            self.turns_waited[stream] = 0 if stream in taken else self.turns_waited.get(stream, 0) + 1
            assert self.turns_waited[stream] <= len("abcdef"), f"{stream} starves"

    @precondition(lambda self: self.batch is not None)
    @rule()
    def finish(self) -> None:
        assert self.batch is not None
        self.batcher.finish(self.batch)
        for piece in self.batch.slices:
            if piece.stream not in self.gone:
                self.computed[piece.stream] = self.computed.get(piece.stream, 0) + piece.steps
        self.batch = None

    @rule(stream=streams)
    def discard(self, stream: str) -> None:
        self.batcher.discard(stream)
        self.gone.add(stream)
        self.held.discard(stream)
        for record in (self.accepted, self.computed, self.turns_waited):
            record.pop(stream, None)

    @rule(stream=streams)
    def hold(self, stream: str) -> None:
        self.batcher.hold(stream)
        self.held.add(stream)
        self.turns_waited.pop(stream, None)

    @rule(stream=streams)
    def release(self, stream: str) -> None:
        self.batcher.release(stream)
        self.held.discard(stream)

    @invariant()
    def books_balance(self) -> None:
        self.batcher.check()
        for stream in "abcdef":
            expected = self.accepted.get(stream, 0) - self.computed.get(stream, 0)
            assert self.batcher.waiting(stream) == expected


TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
