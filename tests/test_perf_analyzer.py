"""Triton's load generator, where its binary can be: it starts, and does what it is for over gRPC alone."""

from __future__ import annotations

import subprocess

from tests.triton import perf_analyzer


def test_it_runs_here() -> None:
    """The mended binary finds its libraries, and reaches for its server."""
    run = [str(perf_analyzer()), "-m", "none", "-i", "grpc", "-u", "127.0.0.1:1"]
    found = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert "failed to get model metadata: failed to connect" in found.stderr + found.stdout
