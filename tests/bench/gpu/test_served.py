"""End to end, without the ends: what a server's answers and its load processes' results are made into."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cellstream
from bench.gpu import served
from bench.gpu.busy import Busy
from bench.gpu.desk import Desk
from bench.gpu.models import artifact_of, name_of
from bench.gpu.plan import Job, Work
from bench.server_process import RunningServer
from export.artifact import MODEL, read_graph
from export.runtime import Portable

JOB = Job(work=Work.SERVED, limit=10, workers=2, streams=8, generators=3, steps_per_message=4, seconds=2.0)
RUNNING: Any = RunningServer("127.0.0.1:1", None)  # type: ignore[arg-type]


def _desk(folder: Path) -> Desk:
    return Desk("cuda:1", folder, time.monotonic() + 60, lambda _text, _who: None)


class Stream:
    """Answers as the model does, but for what `spoil` adds from the second message on."""

    def __init__(self, folder: Path, spoil: float) -> None:
        _, contract = read_graph(folder / MODEL, weights=False)
        self._model, self._spoil = Portable(folder / MODEL, contract), spoil
        self._states = {state.input: np.zeros((1, *state.shape), state.dtype) for state in contract.states}
        self._messages = 0

    def step(self, x: Any) -> Any:
        """Some steps."""
        answer = self._model.run({"x": x[None]}, self._states)
        self._states = {"h": answer["h_out"], "c": answer["c_out"]}
        self._messages += 1
        return answer["y"][0] + self._spoil * (self._messages > 1)


@pytest.mark.parametrize("spoil", [0.0, 0.01, float("nan")])
def test_wrong_answers_are_no_figures(spoil: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are those that aren't numbers."""
    artifact = artifact_of(JOB, tmp_path)

    class Client:
        @contextmanager
        def stream(self, _name: str) -> Iterator[Stream]:
            yield Stream(artifact, spoil)

    @contextmanager
    def connect(_address: str) -> Iterator[Client]:
        yield Client()

    monkeypatch.setattr(cellstream, "connect", connect)
    if spoil == 0.0:
        assert served._checked(JOB, RUNNING, artifact) < 1e-6
    else:
        with pytest.raises(served.WrongAnswersError, match=r"allowed 0\.0001"):
            served._checked(JOB, RUNNING, artifact)


def test_steps_add_up_and_the_worst_latency_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all load processes; the server is told of device, workers and large batches."""
    asked: list[tuple[Path, list[str]]] = []

    @contextmanager
    def server(repository: Path, options: list[str]) -> Iterator[RunningServer]:
        asked.append((repository, options))
        yield RUNNING

    results = [
        {"steps_per_second": 100.0, "latency_us": {"p50": 1.0, "p99": 9.0, "p999": 10.0}},
        {"steps_per_second": 50.0, "latency_us": {"p50": 2.0, "p99": 5.0, "p999": 30.0}},
    ]
    busy = Busy("cpu")
    busy.share = 60.0
    monkeypatch.setattr(served, "server", server)
    monkeypatch.setattr(served, "_checked", lambda *_: 1e-5)
    monkeypatch.setattr(served, "_under_load", lambda *_: (results, 1.5, busy))
    (found,) = served.served(JOB, _desk(tmp_path))
    assert (found.steps_per_second, found.p50, found.p99, found.p999) == (150.0, 2.0, 9.0, 30.0)
    assert (found.busy, found.server_cores, found.device, found.error) == (60.0, 1.5, "cuda:1", 1e-5)
    ((repository, options),) = asked
    assert [path.name for path in repository.iterdir()] == [name_of(JOB)]  # and nothing else to load
    words = " ".join(options)
    assert "--workers 2" in words
    assert "--device cuda:1" in words
    assert f"--max-batch {served.MOST_LANES}" in words


def test_every_stream_is_some_load_processes() -> None:
    """8 streams over 3 of them, which begin at the same moment."""
    commands = [served._load(JOB, RUNNING, number, 12.5) for number in range(JOB.generators)]
    streams = [int(command[command.index("--streams") + 1]) for command in commands]
    assert streams == [3, 3, 2]
    assert all(command[command.index("--measure-at") + 1] == "12.5" for command in commands)
