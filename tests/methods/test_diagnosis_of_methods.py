"""The known mistakes of methods that learn from themselves: each is named where it is, and none where it is not."""

from dataclasses import replace

import pytest
import torch
from tiny import COSINE

from pdlib.data import load_data
from pdlib.denoiser import Denoiser
from pdlib.diagnosis import Finding
from pdlib.grids import Grid
from pdlib.methods import METHODS, learn, make_method
from pdlib.methods.diagnosis import CULPRITS, diagnose_learned
from pdlib.networks import MLP
from pdlib.objectives import Clean, Objective
from pdlib.runs.run import diagnose_run, execute
from pdlib.training import Session, TrainingSettings, fit

QUIET = Session(progress=False)
SETTINGS = TrainingSettings(250, learning_rate=2e-3, warmup=20, ema=0.97)
AFTER = [name for name in METHODS if name not in ("progressive_distillation", "jump_to_clean")]


@pytest.fixture(scope="module")
def moons():
    return load_data("moons").x


@pytest.fixture(scope="module")
def teacher(moons):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Denoiser(MLP(width=64), "v", COSINE, Grid(8), shape=(2,))
    return fit(made, Objective(Clean()), moons, TrainingSettings(800, ema=0.99), QUIET).ema


@pytest.fixture(scope="module")
def learned(teacher, moons):
    made = {}

    def of(text):
        if text not in made:
            short = (
                replace(SETTINGS, updates=100, ema=0.9) if text in ("mean_flow", "continuous_consistency") else SETTINGS
            )
            made[text] = learn(make_method(text), teacher, Grid(1), moons, short, session=QUIET).student
        return made[text]

    return of


def found(text, student, teacher, training=SETTINGS, distances=None):
    return [finding.culprit for finding in diagnose_learned(make_method(text), student, teacher, training, distances)]


@pytest.mark.parametrize("name", AFTER)
def test_nothing_is_found_where_all_is_well(name, learned, teacher):
    assert found(name, learned(name), teacher, distances={1: (0.2, 0.01), 4: (0.1, 0.01)}) == []


def test_pairs_that_never_draw_near_are_found(learned, teacher):
    for finest, gap in ((0, 0.5), (1, 0.5), (2, 0.25), (3, None), (6, None)):
        findings = diagnose_learned(
            make_method(f"easy_consistency:finest={finest}"), learned("easy_consistency"), teacher
        )
        assert [finding.figure for finding in findings] == ([] if gap is None else [gap])


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("consistency_distillation", None),  # 100 of 250 updates; by halves, 3 times that
        ("consistency_distillation:target=average", 8 * 100 / 250),
        ("tract", 8 * 100 / 250),
        ("tract:target=student", None),
        ("self_distillation", None),
        ("easy_consistency:target=average", None),
    ],
)
def test_an_average_lags_by_how_often_it_hands_on_what_it_remembers(text, figure, teacher):
    findings = diagnose_learned(make_method(text), teacher.student(grid=Grid(1)), teacher, replace(SETTINGS, ema=0.99))
    lags = [finding.figure for finding in findings if finding.culprit == "an average that lags"]
    assert lags == ([] if figure is None else [pytest.approx(figure)])


def test_an_average_that_holds_its_start_lags_whatever_the_target(learned, teacher):
    (finding,) = diagnose_learned(
        make_method("consistency_distillation"),
        learned("consistency_distillation"),
        teacher,
        replace(SETTINGS, ema=0.995),
    )
    assert (finding.culprit, finding.figure) == ("an average that lags", pytest.approx(0.8))
    assert "0.29 of it is still its start" in str(finding)


@pytest.mark.parametrize("name", ["mean_flow", "continuous_consistency"])
def test_a_wild_derivative_is_found_before_any_training_and_after(name, teacher, moons):
    method = make_method(f"{name}:octaves=9,normalize=0,warmup=0")
    short = replace(SETTINGS, updates=40, ema=0.9)
    for student in (
        method.student(teacher, Grid(1)),
        learn(method, teacher, Grid(1), moons, short, session=QUIET).student,
    ):
        findings = {finding.culprit: finding for finding in diagnose_learned(method, student, teacher)}
        assert findings["a wild derivative"].figure > 3


@pytest.mark.parametrize("name", ["easy_consistency", "self_distillation", "consistency_distillation:target=average"])
def test_a_student_that_is_still_its_teacher_has_ends_that_differ(name, teacher):
    method = make_method(name)
    (finding,) = diagnose_learned(method, method.student(teacher, Grid(1)), teacher)
    assert (finding.culprit, finding.figure) == ("a path with two ends", pytest.approx(1))


def test_worse_with_more_steps_is_found_beyond_the_errors_and_for_one_network_alone(learned, teacher):
    name = "easy_consistency"
    for distances, expected in (
        ({1: (1.0, 0.05), 4: (1.5, 0.05)}, ["worse with more steps"]),
        ({1: (1.0, 0.2), 4: (1.5, 0.2)}, []),
        ({1: (1.0, 0.001), 4: (1.05, 0.001)}, []),
        ({1: (1.0, 0.05), 2: (1.5, 0.05)}, []),
    ):
        assert found(name, learned(name), teacher, distances=distances) == expected
        assert found("tract", learned("tract"), teacher, distances=distances) == []
    student = learned(name).student(sampler="ddim")
    (finding,) = diagnose_learned(make_method(name), student, teacher, None, {1: (1.0, 0.05), 4: (1.5, 0.05)})
    assert "in 4 ddim steps its samples are 1.50 times" in str(finding)
    assert "sampler='renoising'" in str(finding)


def test_they_are_named_once_and_say_what_to_do(teacher):
    assert len({*CULPRITS}) == 5
    findings = diagnose_learned(
        make_method("tract"), teacher.student(grid=Grid(1)), teacher, replace(SETTINGS, ema=0.999)
    )
    assert [isinstance(finding, Finding) and finding.culprit in CULPRITS for finding in findings] == [True]
    assert "Lower stage_ema" in str(findings[0])


TINY = {"data": "moons", "steps": 8, "teacher_updates": 400, "stage_updates": 60, "stage_learning_rate": "0.002"}
TINY |= {"images_per_seed": 65, "curves": "distilled", "progress": False}


def test_a_run_is_diagnosed_with_its_own_settings_and_figures(tmp_path):
    well = execute("smoke", tmp_path / "well", method="easy_consistency", **TINY)
    assert diagnose_run(well) == {"teacher": [], "student": []}
    again = TINY | {"teacher": well.folder / "teacher"}
    ill = execute("smoke", tmp_path / "ill", method="tract", stage_ema=0.999, **again)
    assert {part: [finding.culprit for finding in all_] for part, all_ in diagnose_run(ill).items()} == {
        "teacher": [],
        "student-4": ["an average that lags"],
        "student-1": ["an average that lags"],
    }
    metrics = well.metrics
    entries = metrics["curves"]["distilled"]
    entries["4"]["frechet_distance"], entries["1"]["frechet_distance"] = [2.0, 0.1], [1.0, 0.1]
    told = type("Told", (type(well),), {"metrics": property(lambda self: metrics)})(well.folder, well.settings)
    assert [finding.culprit for finding in told.diagnose("student")] == ["worse with more steps"]
