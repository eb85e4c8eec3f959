"""`python -m bench.gpu` from beginning to end, on the CPU and in tiny sizes: the same code that a GPU will run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from bench.gpu import page, pictures, records
from bench.gpu.plan import Who, Work, quick
from bench.gpu.records import OURS, TORCH, Company, Copy, Launches, MatrixRate, Memory, Parity, Served, Skipped, Step
from bench.gpu.steps import TOLERANCE, sizes
from tests.waiting import wait_until


def test_every_section_is_rehearsed(tmp_path: Path) -> None:
    """Only page-locked copies are left out, all compute the same, and table, file, page and pictures are made."""
    (tmp_path / "gpu.md").write_text(f"# By hand\n{page.BEGIN}\nold\n{page.END}\nalso by hand\n")
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick", "--publish"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path), "--docs", str(tmp_path), "--models", str(tmp_path / "models")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Targets, at the worst size" in done.stdout

    found = records.load(tmp_path / "gpu-quick.json")
    assert found.of(Skipped) == [Skipped("our copies, page-locked", "on the CPU there is nobody to lock pages for")]
    assert found.finished
    _check_figures(found)
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("# By hand\n")
    assert text.endswith("also by hand\n")
    assert "old" not in text
    for name in (pictures.steps_of("tf32"), pictures.steps_of("fp16"), pictures.SERVED):
        assert f"({name})" in text
        assert ET.fromstring((tmp_path / name).read_text()).tag.endswith("svg")
    assert sorted(path.name for path in (tmp_path / "models").iterdir())  # asked for, so they stay
    assert not list((tmp_path / "models").glob(".making-*"))
    assert len(list((tmp_path / "models").glob("*/1/resident-parts.onnx"))) == 2  # each race had its own


def test_a_run_that_is_cut_off_leaves_what_it_found(tmp_path: Path) -> None:
    """SIGTERM ends it and the process that measures; the file is whole."""
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        wait_until((tmp_path / "gpu-quick.json").exists, seconds=60)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert children
        running.terminate()
        assert running.wait(30) == 130
        assert running.stderr is not None
        assert "what was found is in the JSON file" in running.stderr.read()
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    found = records.load(tmp_path / "gpu-quick.json")
    assert found.records
    assert not found.finished


def _check_figures(found: records.Document) -> None:
    """All that the quick plan asks for is there, and plausible."""
    assert {one.precision for one in found.of(MatrixRate)} == {"fp32", "tf32", "fp16"}
    assert all(one.rate > 0 for one in found.of(MatrixRate))
    assert found.of(Memory)[0].bandwidth > 0
    assert found.of(Launches)[0].replay_us > 0
    assert {(one.by, one.pinned) for one in found.of(Copy)} == {(TORCH, True), (TORCH, False), (OURS, False)}
    assert all(min(one.to_device_us, one.from_device_us) > 0 for one in found.of(Copy))
    assert {one.precision for one in found.of(Parity)} == {"fp32", "tf32", "fp16"}
    assert all(one.passed for one in found.of(Parity))
    (company,) = found.of(Company)
    assert company.within
    assert (company.answers, company.share) == (1, 0.0)
    steps = found.of(Step)
    asked = {
        (job.precision, *size, str(who))
        for job in quick()
        if job.work is Work.STEPS
        for size in sizes(job)
        for who in job.contestants(size)
    }
    locked = sum(job.figures // 2 for job in quick() if job.work is Work.PARCELS)  # which a CPU hasn't
    given = sum(not isinstance(record, Skipped) for record in found.records)
    assert given == sum(job.figures for job in quick()) - locked
    assert {(one.precision, one.steps, one.batch, str(one.contestant)) for one in steps} == asked
    for one in steps:
        assert one.error is not None
        assert one.error <= TOLERANCE[one.precision]
        assert (one.device is not None) == (one.contestant != Who.ENGINE)
        assert (one.host is not None) == (one.contestant in (Who.ENGINE, Who.EAGER))
        assert min(*one.device_us, *one.host_us, 1.0) > 0
    (served,) = found.of(Served)
    assert served.steps_per_second > 0
    assert 0 < served.p50 <= served.p99
    assert served.error < 1e-4
    assert served.busy_unknown == "the server computed on the CPU"
