"""What a session does with CUDA graphs, played on the CPU: it captures, replays, and can be told to go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serving.device import open_session
from serving.device_runs import Parcel
from serving.errors import ConfigError

RUNS_AT_CAPTURE = 3  # what ONNX Runtime is read to do: two ordinary runs, then the captured one


class GraphSession:
    """A CPU session that treats graph ids as the CUDA provider does."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.captured: list[int] = []
        self.replayed: list[int] = []
        self.plain = 0
        self.fail: Callable[[int | None], bool] = lambda _graph: False  # whether a run raises, by its graph
        self.on_replay: Callable[[int], None] = lambda _graph: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        graph = None if options is None else int(options.get_run_config_entry("gpu_graph_id"))
        if self.fail(graph):
            raise RuntimeError("CUDA error 900: told to")
        if graph is None or graph == -1:
            self.plain += 1
            self._session.run_with_iobinding(binding)
        elif graph in self.captured:
            self.replayed.append(graph)
            self.on_replay(graph)
            self._session.run_with_iobinding(binding)
        else:
            self.captured.append(graph)
            for _ in range(RUNS_AT_CAPTURE):
                self._session.run_with_iobinding(binding)


class GraphSessions:
    """The sessions that engines open while a test runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[GraphSession] = []
        self.refuse = ""  # why a session that may capture can't be opened
        self.prepare: Callable[[GraphSession], None] = lambda _session: None
        monkeypatch.setattr("serving.engine.open_session", self._opening)

    def _opening(self, path: Any, device: Any, *, graphs: bool = False, **options: Any) -> Any:
        if graphs and self.refuse:
            raise ConfigError(self.refuse)
        session = GraphSession(open_session(path, device, graphs=graphs, **options))
        if graphs:
            self.prepare(session)
        self.opened.append(session)
        return session


def bake(session: GraphSession, monkeypatch: pytest.MonkeyPatch, *, tensor: int) -> None:
    """Have replays see one tensor of what went to the device as it was at capture: what a wrong capture would do."""
    kept: dict[int, Any] = {}
    send, run = Parcel.send, session.run_with_iobinding
    sent: list[Any] = []

    def remembering(parcel: Parcel) -> None:
        send(parcel)
        _, place = parcel._places[tensor]
        begin = place.ctypes.data - parcel._here.ctypes.data
        sent[:] = [parcel._there.numpy()[begin : begin + place.size]]  # on the CPU this is the memory itself, no copy

    def baked(binding: Any, options: Any = None) -> None:
        graph = int(options.get_run_config_entry("gpu_graph_id"))
        if graph != -1:
            kept.setdefault(graph, sent[0].copy())
            sent[0][:] = kept[graph]
        run(binding, options)

    monkeypatch.setattr(Parcel, "send", remembering)
    monkeypatch.setattr(session, "run_with_iobinding", baked)
