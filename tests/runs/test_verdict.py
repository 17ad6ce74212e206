"""The top of the report: what is said first is what a reader must know first."""

import shlex

import pytest
import torch
from tiny_run import TINIEST

from pdlib.diagnosis import Finding
from pdlib.runs import report
from pdlib.runs.run import Run, execute
from pdlib.runs.settings import make_settings, settings_to_json
from pdlib.runs.verdict import command, headline, three_numbers, verdict

RING = TINIEST | {"data": "ring", "steps": 4}


@pytest.fixture(scope="module")
def ring(tmp_path_factory, own_cache):
    return execute(folder=tmp_path_factory.mktemp("ring") / "run", progress=False, **RING)


class Told(Run):
    """A run that says of itself what it is told to."""

    def __init__(self, run, metrics, findings=()):
        super().__init__(run.folder, run.settings)
        vars(self).update(told=metrics, findings=list(findings))

    metrics = property(lambda self: self.told)

    def diagnose(self, part):
        return self.findings if part == self.parts[-1] else []


def told(ring, distances=(1.0, 1.05, 1.1), floor=0.8, updates=5000, **options):
    metrics = dict(ring.metrics)
    curve = {
        steps: entry | {"frechet_distance": [value, 0.1], "ratio": value / distances[0]}
        for (steps, entry), value in zip(metrics["curves"]["distilled"].items(), distances, strict=True)
    }
    metrics["curves"] = {"distilled": curve}
    metrics["floor"] = metrics["floor"] | {"frechet_distance": [floor, 0.1]}
    metrics["training"] = {part: about | {"updates": updates} for part, about in metrics["training"].items()}
    return Told(ring, metrics, **options)


def test_where_nothing_stands_out_it_says_so(ring):
    assert verdict(told(ring)) == [
        "Nothing stands out: a teacher near real data, no stage that lost much, and no known mistake in the settings."
    ]


def test_a_teacher_far_from_real_data_is_said_first(ring):
    first, *_ = verdict(told(ring, floor=1 / 60, updates=300))
    assert first.startswith("**The teacher is far from real data**: at 60 times the distance of real data")
    assert "more teacher_updates" in first
    first, *_ = verdict(told(ring, floor=1 / 5))
    assert first.startswith("**The teacher is some way from real data**: at 5 times")


def test_a_run_of_few_updates_only_tests_the_machinery(ring):
    (only,) = verdict(told(ring, updates=300))
    assert only.startswith("**This only tests the machinery**: the teacher has had 300 updates.")


def test_known_mistakes_are_named(ring):
    (only,) = verdict(told(ring, findings=[Finding("dead steps", 0.0, "because")]))
    assert only.startswith("**student-1: dead steps**: because")


def test_the_stage_that_lost_most_is_named_with_what_to_do(ring):
    (only,) = verdict(told(ring, distances=(1.0, 1.0, 2.0)))
    assert only.startswith(
        "**Most was lost in the last stage from 2 steps to 1**: × 2.00, 100% of what the chain lost."
    )
    assert "`--set stage_updates=5,1:10`" in only
    (only,) = verdict(told(ring, distances=(1.0, 1.5, 1.6)))
    assert only.startswith("**Most was lost in the stage from 4 steps to 2**: × 1.50, 86%")


def test_the_numbers_are_what_was_kept_gained_and_to_be_had(ring):
    found = told(ring, distances=(1.0, 1.1, 1.25), floor=0.5)
    (kept, what), (faster, _), (teacher, _) = three_numbers(found)
    assert (kept, teacher) == ("1.25 ×", "2 ×")
    assert what == "the distance to real data in one step, over the teacher's in 4"
    times = [found.metrics["curves"]["distilled"][steps]["seconds_per_image"] for steps in ("4", "1")]
    assert faster == f"{times[0] / times[1]:.0f} ×"


def test_the_command_makes_the_same_run_again(ring):
    words = shlex.split(command(ring))
    assert words[:2] == ["pdlib", "run"]
    options = dict(zip(words[2::2], words[3::2], strict=True)) | {"--set": None}
    texts = dict(word.split("=", 1) for flag, word in zip(words[2::2], words[3::2], strict=True) if flag == "--set")
    again = make_settings(options.get("--preset", "default"), data=options["--data"], **texts)
    assert settings_to_json(again) == settings_to_json(ring.settings)
    assert options["--preset"] == "smoke"


def test_the_command_asks_for_the_device_where_the_presets_is_another(ring):
    on_cpu = {"device": "cpu", "precision": "float32"}
    tried = Run(ring.folder, make_settings("cifar10-gpu", **on_cpu))
    assert dict(word.split("=") for word in shlex.split(command(tried)) if "=" in word) == on_cpu
    as_meant = Run(ring.folder, make_settings("cifar10-gpu", device="cpu"))  # opened on a CPU, made on a GPU
    assert command(as_meant) == "pdlib run --preset cifar10-gpu"


def test_the_title_says_what_of_what_and_when(ring):
    lines = headline(ring).splitlines()
    assert lines[0] == "## ring: from 4 steps to 1"
    assert ring.metrics["date"] in lines[2]
    assert "8,192 points · distances to 8,192, which the networks were trained on" in lines[2]
    assert lines[-1].startswith("    pdlib run --preset smoke --data ring")


def test_a_run_is_measured_to_what_was_held_back(tmp_path):
    run = execute(folder=tmp_path / "run", progress=False, **RING | {"data": "digits", "test": 0.2, "width": 8})
    assert (run.metrics["real_images"], run.metrics["held_back"]) == (359, True)
    assert "1,438 images · distances to 359, held back from all training" in headline(run)
    assert "359 real: those held back" in report.describe_run(run)


def test_points_are_not_spoken_of_as_images(ring):
    assert "points per second" in report.describe_speed(ring.metrics, "points")
    assert "ms per point" in report.figures_table(ring.metrics, "points")
    assert "the last is of real points" in report.how_to_read(ring)


def test_what_it_cost_stands_beside_its_floor(ring):
    flops = ring.metrics["flops"]
    weights = sum(value.numel() for value in ring.teacher.parameters() if value.ndim == 2)
    examples = 16 * 5
    # Two for each weight forward, and as many for its gradient and, but for the first layers, for its input's.
    assert 4 * weights * examples <= flops["teacher"] <= 6 * weights * examples
    assert flops["students"] == pytest.approx(flops["teacher"] / 3 * 5 * 2, rel=0.2)  # two teacher forwards more
    assert torch.tensor(list(flops.values())).min() > 0
    assert "of the pace of plain float32 matrix products here" in report.describe_run(ring)
