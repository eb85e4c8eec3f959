"""The comparison of workers, small, with real servers and a real load."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.workers import Load, compare, table_of


def test_rounds_count_steps_cpu_time_and_streams(artifacts: Path) -> None:
    """Every round has its steps, time on the servers' processes, and all streams on some worker."""
    load = Load(model="vectors", processes=1, connections=3, streams=2, steps=8, seconds=0.3)
    results = compare(artifacts, [1, 2], rounds=1, load=load)
    for workers, (measured,) in results.items():
        assert measured.steps >= 6 * load.steps
        assert measured.steps % load.steps == 0
        assert 0 < measured.cpu_seconds < 2 * workers * measured.seconds
        assert sum(measured.spread) == 6
        assert len(measured.spread) == workers
        assert all(streams % 2 == 0 for streams in measured.spread)  # a connection's streams are together
    console = Console(width=160, record=True)
    console.print(table_of(results, load))
    assert f"{results[2][0].rate:,.0f}" in console.export_text()
