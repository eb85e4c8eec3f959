"""No dependency reports to its maker: ONNX Runtime's telemetry is off wherever one of our packages is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TURNS_IT_OFF = ("bench", "export", "serving", "tests")
_VARIABLE = "ORT_DISABLE_TELEMETRY"
_IMPORT = re.compile(r"^\s*(?:import|from) onnxruntime\b", re.MULTILINE)


def run(code: str, home: Path, **more: str) -> str:
    """What `code` prints in a process of its own with an empty home, in no CI that ONNX Runtime knows."""
    unset = {_VARIABLE, "XDG_CACHE_HOME", "CI", "GITHUB_ACTIONS", "CIRCLECI", "TF_BUILD"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"HOME": str(home)} | more, cwd=ROOT,
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    return ended.stdout.strip()


@pytest.mark.parametrize("module", ["serving.device", "export.runtime", "bench.ceilings"])
def test_a_session_leaves_nothing_in_the_home(module: str, tmp_path: Path, artifacts: Path) -> None:
    """A session made by way of our modules writes no device id and no queue of events."""
    graph = artifacts / "tokens" / "1" / "model.onnx"
    code = f"import {module}, onnxruntime; onnxruntime.InferenceSession({str(graph)!r})"
    run(code, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("said", "holds"), [("0", "0"), ("1", "1"), ("", "1")])
def test_the_operator_has_the_last_word(said: str, holds: str, tmp_path: Path) -> None:
    """What the environment says already is left alone; an empty value says nothing."""
    code = f"import os, serving, export, bench; print(os.environ[{_VARIABLE!r}])"
    assert run(code, tmp_path, **{_VARIABLE: said}) == holds


@pytest.mark.parametrize("package", TURNS_IT_OFF)
def test_it_is_off_before_onnx_runtime_is_there(package: str, tmp_path: Path) -> None:
    """A package alone turns it off, and doesn't import ONNX Runtime to do so."""
    code = f"import os, sys, {package}; print(os.environ[{_VARIABLE!r}], 'onnxruntime' in sys.modules)"
    assert run(code, tmp_path) == "1 False"


def test_nobody_else_imports_onnx_runtime() -> None:
    """Every import of ONNX Runtime stands in a package that turns its telemetry off."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    importing = {
        package.name
        for package in packages
        for path in package.rglob("*.py")
        if _IMPORT.search(path.read_text(encoding="utf-8"))
    }
    assert importing == set(TURNS_IT_OFF)
