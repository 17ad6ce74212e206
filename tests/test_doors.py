"""One door for each kind of addition: tests/outside.py adds one of each, and a run uses them all."""

import pytest
import torch
from outside import JumpToClean, add_one_of_each, remove_them, walked_down

from pdlib.exercises import check
from pdlib.runs import execute, load_run
from pdlib.runs.report import figures_table

CHOSEN = {
    "data": "stripes",
    "weighting": "sigma",
    "prediction": "half_v",
    "method": "jump_to_clean",
    "schedule": "late_cosine",
    "teacher_updates": 30,
    "stage_updates": 30,
    "width": 8,
    "images_per_seed": 65,
    "curves": "distilled",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, own_cache):
    add_one_of_each()
    try:
        yield execute("smoke", tmp_path_factory.mktemp("doors") / "run", progress=False, **CHOSEN)
    finally:
        remove_them()


def test_a_smoke_run_uses_all_that_was_added(run):
    assert run.finished
    assert (run.data.name, run.data.shape, run.metrics["real_images"]) == ("stripes", (1, 8, 8), 40)
    assert load_run(run.folder).teacher.prediction == "half_v"
    curve = run.metrics["curves"]["distilled"]
    assert all(value >= 0 and error > 0 for value, error in (entry["mean_gap"] for entry in curve.values()))
    assert "gap of the means" in figures_table(run.metrics)


def test_the_students_learned_what_the_new_method_asks(run):
    """At t = 1 the student of 4 steps says where its teacher's 8 steps end, better than its teacher's own x̂ does."""
    teacher, student = run.denoiser(8), run.denoiser(4)
    z = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.ones(64, dtype=torch.float64)
    target = JumpToClean(teacher, 4)(None, z, t, None)
    assert torch.equal(target, walked_down(teacher, z, torch.arange(8, -1, -1, dtype=torch.float64) / 8))
    missed = {name: (denoiser(z, t) - target).square().mean() for name, denoiser in (("s", student), ("t", teacher))}
    assert missed["s"] < missed["t"]


def test_an_exercise_from_outside_is_judged(run):
    assert check("99_double", lambda x: 2 * x).outcome == "right"
    assert check("99_double", lambda x: x).outcome == "not right"
