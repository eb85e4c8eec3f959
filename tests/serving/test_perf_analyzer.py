"""Triton's load generator, unchanged, on a server of ours: it finds its way, sees no failure, and counts as we do."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serving.server import Server
from tests.serving.triton_client import F, connect, given
from tests.triton import perf_analyzer
from tests.waiting import wait_until

SHORT = ["--measurement-interval", "200", "--max-trials", "3", "--stability-percentage", "900"]


def measure(server: Server, report: Path, *options: str) -> tuple[list[dict[str, str]], str]:
    """Run it against the model "lstm": its table, a row per load, and what it said."""
    target = ["-m", "lstm", "-i", "grpc", "-u", server.address]
    command = [str(perf_analyzer()), *target, "-f", str(report), "--verbose-csv", *SHORT, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=report.parent)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    with report.open(newline="") as lines:
        return list(csv.DictReader(lines)), said


def write_sequences(path: Path) -> None:
    """Steps for sequences of three lengths, as --input-data takes them."""
    steps = [[{"x": {"content": given(length)[0].tolist(), "shape": [1, F]}}] * length for length in (1, 4, 9)]
    path.write_text(json.dumps({"data": steps}))


def figures(server: Server) -> Any:
    """What the server's statistics say of the model "lstm"."""
    with connect(server) as client:
        return client.get_inference_statistics("lstm").model_stats[0]


@pytest.mark.parametrize(
    ("options", "loads"),
    [
        (["--streaming", "--concurrency-range", "1:9:8", "--sequence-length", "7", "--shape", "x:1,5"], 2),
        (["--concurrency-range", "1:9:8", "--shape", "x:1,5", "--sequence-id-range", "100:200"], 2),
        (["--streaming", "--concurrency-range", "4", "--shape", "x:20,5", "--serial-sequences"], 1),
        (["--streaming", "--request-rate-range", "300", "--num-of-sequences", "5", "--shape", "x:1,5"], 1),
        (["--streaming", "--concurrency-range", "3", "--input-data", "steps.json"], 1),
        (["--sync", "--concurrency-range", "2", "--shape", "x:1,5"], 1),
        (["--request-rate-range", "200", "--num-of-sequences", "3", "--shape", "x:1,5", "-z"], 1),
    ],
    ids=["streaming", "unary", "chunks", "streaming at a rate", "data of ours", "blocking", "unary at a rate"],
)
def test_it_measures(triton: Server, tmp_path: Path, options: list[str], loads: int) -> None:
    """Each load is measured, nothing fails, and both sides count the same requests."""
    write_sequences(tmp_path / "steps.json")
    before = figures(triton)
    rows, said = measure(triton, tmp_path / "report.csv", *options)
    after = figures(triton)
    assert len(rows) == loads
    assert all(float(row["Inferences/Second"]) > 0 for row in rows), said
    assert "error" not in said.lower(), said
    old, new = before.inference_stats, after.inference_stats
    assert new.fail.count == old.fail.count, "requests were refused"
    answered = new.success.count - old.success.count
    assert new.queue.count - old.queue.count == answered
    counted = sum(_count(line) for line in said.splitlines() if "Request count:" in line)
    assert 0 < counted <= answered
    lane = triton.front.find("lstm", 0)
    wait_until(lambda: not len(lane.sequences))  # it ended every sequence that it started
    assert lane.sequences.restarted == 0
    assert lane.streams.rows.in_use == 0


def _count(line: str) -> int:
    return int(line.rpartition(":")[2].split()[0])
