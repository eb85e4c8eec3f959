"""What is planned."""

from __future__ import annotations

from dataclasses import replace

from bench.gpu.__main__ import BUDGET
from bench.gpu.plan import Job, Who, Work, full, quick


def test_jobs_go_through_json() -> None:
    """To the measuring process and back."""
    for job in (*full(), *quick(), Job(work=Work.STEPS, limit=1, done=((1, 8), (16, 64)), without=("x",))):
        assert Job.from_json(job.to_json()) == job


def test_the_whole_grid_is_asked_for_once() -> None:
    """Hidden sizes, layers and precisions with each other, batches from 1 to 8,192, T of 1 and 16."""
    races = [job for job in full() if job.work is Work.STEPS]
    grid = [(job.hidden, job.layers, job.precision) for job in races]
    assert len(grid) == len(set(grid)) == 4 * 2 * 3
    assert all(job.steps == (1, 16) and job.features == job.hidden for job in races)
    assert all({1, 64, 1024, 8192} <= set(job.batches) for job in races)
    assert all((16, 8192) in job.sizes and (1, 4096) in job.sizes for job in races)
    for work in (Work.PARITY, Work.COMPANY):
        assert {job.precision for job in full() if job.work is work} == {"fp32", "tf32", "fp16"}


def test_the_progress_bar_knows_how_much_comes() -> None:
    """As many records as the rehearsal gives, and those of page-locked copies."""
    assert sum(job.figures for job in quick()) == 5 + 6 + 1 + 2 * (4 * (len(Who) - 1) + 1) + 2 * 4 + 1


def test_rows_in_parts_race_at_some_single_steps_only() -> None:
    """Where scattering is a good part of a step; and whoever is left out races nowhere."""
    (race, *_) = (job for job in full() if job.work is Work.STEPS)
    assert {size for size in race.sizes if Who.PARTS in race.contestants(size)} == {
        (1, 1),
        (1, 64),
        (1, 1024),
        (1, 8192),
    }
    assert set(race.contestants((16, 64))) == set(Who) - {Who.PARTS}
    assert Who.PARTS not in replace(race, without=(Who.PARTS,)).contestants((1, 64))


def test_every_section_begins_within_the_budget_whatever_goes_wrong() -> None:
    """The first of each kind, even if everything before it takes all of its time."""
    begins: dict[Work, float] = {}
    spent = 0.0
    for job in full():
        begins.setdefault(job.work, spent)
        spent += job.limit
    assert set(begins) == set(Work)
    assert max(begins.values()) < BUDGET
