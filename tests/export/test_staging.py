"""Hidden folders: those of killed exports go, those in use stay."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from export import staging

KILLED = """
import os, pathlib, signal, sys
from export import staging
with staging.hidden(pathlib.Path(sys.argv[1])) as folder:
    (folder / "model.onnx.data").write_bytes(b"weights")
    print(folder, flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def process(final: Path, how: str) -> subprocess.Popen[str]:
    """An export that has its folder, and is killed or goes on until its stdin ends."""
    command = [sys.executable, "-c", KILLED, str(final), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_export_is_cleaned_up_by_the_next_of_any_model(tmp_path: Path) -> None:
    """Its folder goes, and so does the model's own, which has nothing else in it."""
    with process(tmp_path / "killed" / "1", "killed") as killed:
        assert killed.wait() == -signal.SIGKILL
    assert [path.name[:3] for path in (tmp_path / "killed").iterdir()] == [".1-"]
    with staging.hidden(tmp_path / "other" / "1"):
        assert not (tmp_path / "killed").exists()


def test_an_export_that_runs_keeps_its_folder(tmp_path: Path) -> None:
    """Its folder is locked by a process that lives."""
    with process(tmp_path / "a" / "1", "runs") as running:
        assert running.stdout is not None
        folder = Path(running.stdout.readline().strip())
        with staging.hidden(tmp_path / "a" / "2") as mine:
            assert (folder / "model.onnx.data").read_bytes() == b"weights"
            staging.remove_left(tmp_path)
            assert mine.is_dir()
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait() == 0
    assert not (tmp_path / "a").exists()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Hidden folders of other names, files, links and what they point to, and versions."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    model = tmp_path / "repository" / "a"
    for name in (".11-x", ".git-abcdefgh", ".1-ABCDEFGH", "1", "1-abcdefgh"):
        (model / name).mkdir(parents=True)
    (model / ".2-abcdefgh").symlink_to(elsewhere)
    (model / ".3-abcdefgh").touch()
    before = sorted(model.iterdir())
    staging.remove_left(tmp_path / "repository")
    assert sorted(model.iterdir()) == before
    assert elsewhere.is_dir()
