"""What a machine has, and what is said where something is missing."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bench.gpu import __main__ as command
from bench.gpu import place
from bench.gpu.busy import Busy
from bench.gpu.plan import Who, Work, full
from bench.gpu.records import Skipped
from tests.waiting import wait_until

Smi = Callable[[str], None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Puts an nvidia-smi of our own before everything else."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    place._without.cache_clear()

    def write(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return write


@pytest.mark.usefixtures("smi")
def test_without_a_gpu_one_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], smi: Smi
) -> None:
    """It names what is missing and how to rehearse; nothing is measured."""
    smi("exit 9")
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    assert command.main() == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: no NVIDIA GPU answers here")
    assert "--device cpu --quick" in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_gpu_that_no_library_can_use(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, and what to install."""
    smi('echo "NVIDIA H100, 580.1"')
    assert place.gpu_name() == "NVIDIA H100, driver 580.1"
    monkeypatch.setattr(place, "_without", lambda name, _device: f"{name} can't")
    assert "NVIDIA H100, driver 580.1 is here, but neither onnxruntime nor torch" in str(place.missing("cuda:0"))
    assert place.missing("cpu") is None


def test_libraries_are_asked_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say last is the reason."""
    place._without.cache_clear()
    monkeypatch.setitem(place._CUDA_IN, "torch", "raise OSError('libcudart.so.13: no such file')")
    assert place.without_torch("cuda:0") == "torch can't use CUDA here (OSError: libcudart.so.13: no such file)"
    monkeypatch.setitem(place._CUDA_IN, "onnxruntime", "print(True)")
    assert place.without_onnxruntime("cuda:0") is None
    place._without.cache_clear()


def test_what_is_missing_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyTorch our own engine is still measured, and served; without ONNX Runtime PyTorch is."""
    monkeypatch.setattr(place, "_without", lambda name, _device: "torch isn't installed" if name == "torch" else None)
    jobs, skipped = command.possible(full(), "cuda:0")
    assert {job.work for job in jobs} == {Work.PARCELS, Work.COMPANY, Work.STEPS, Work.SERVED}
    assert all(set(job.without) == {Who.EAGER, Who.CELL} for job in jobs if job.work is Work.STEPS)
    assert Skipped("steps: the check of all answers against float64", "torch isn't installed") in skipped

    def no_cuda(name: str, device: str) -> str | None:
        return "no CUDA" if name == "onnxruntime" and device != "cpu" else None

    monkeypatch.setattr(place, "_without", no_cuda)
    jobs, skipped = command.possible(full(), "cuda:0")
    assert {job.work for job in jobs} == {Work.RATES, Work.COPIES, Work.STEPS, Work.SERVED}
    assert [job.device for job in jobs if job.work is Work.SERVED] == ["cpu"]
    ours = (Who.OURS, Who.PLAIN, Who.PARTS, Who.ENGINE)
    assert all(set(job.without) == set(ours) for job in jobs if job.work is Work.STEPS)
    assert Skipped(f"steps: {', '.join(ours)}", "no CUDA") in skipped


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "gpu"], "it must be cuda:N or cpu"),
        (["--budget", "0"], "it must be above 0"),
        (["--prepare"], "needs --models"),
    ],
)
def test_bad_options_are_named(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, as argparse has it."""
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *words])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert said in capsys.readouterr().err


def test_a_file_that_is_none_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback."""
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--from", str(tmp_path / "none.json")])
    assert command.main() == 1
    assert "isn't a result of make bench-gpu" in capsys.readouterr().err


def test_busy_is_the_mean_of_what_nvidia_smi_says(smi: Smi, tmp_path: Path) -> None:
    """While the block runs; the GPU asked is the one that computes."""
    said = tmp_path / "said"
    smi(f'case "$*" in *--id=3*utilization.gpu*) printf "20\\n60\\n"; touch {said}; exec sleep 60;; esac')
    with Busy("cuda:3") as busy:
        wait_until(said.exists)
    assert busy.share == 40.0
    assert busy.unknown == ""


def test_busy_that_nobody_tells(smi: Smi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says why."""
    said = tmp_path / "said"
    smi(f'echo "[N/A]"; touch {said}; exec sleep 60')
    with Busy("cuda:0") as busy:
        wait_until(said.exists)
    assert busy.share is None
    assert busy.unknown == "nvidia-smi doesn't tell it here ([N/A])"
    monkeypatch.setenv("PATH", "/nowhere")
    with Busy("cuda:0") as busy:
        pass
    assert busy.unknown == "there is no nvidia-smi to ask"


def test_asking_about_the_gpu_counts_into_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries may take half a minute to say what they can do, and eight minutes are eight minutes."""
    asked: list[float] = []
    deadlines: list[float] = []
    monkeypatch.setattr(place, "missing", lambda _device: asked.append(time.monotonic()))
    monkeypatch.setattr(command, "measure", lambda *_jobs, deadline, **_about: deadlines.append(deadline))
    options = command._parser().parse_args(["--device", "cpu", "--quick", "--budget", "50", "--results", str(tmp_path)])
    assert command.run(options, Console(file=io.StringIO())) == 0
    assert deadlines[0] - 50 <= asked[0]
