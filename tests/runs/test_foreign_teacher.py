"""Runs that start from a model of diffusers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline
from interop.small_models import their_samples, unet, write
from tiny_run import refused

from pdlib.data import load_data
from pdlib.denoiser import Guided, OfClasses
from pdlib.grids import Grid
from pdlib.interop import InteropError
from pdlib.interop.diffusers import load
from pdlib.runs import cli
from pdlib.runs.run import Run, execute, finish, load_run
from pdlib.runs.settings import SettingsError, make_settings
from pdlib.sampling import sample

TINY = {"steps": 4, "batch_size": 16, "stage_updates": 6, "images_per_seed": 65, "curves": ("distilled", "ddim")}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("theirs") / "digits")


@pytest.fixture(scope="module")
def run(theirs, tmp_path_factory):
    return execute("smoke", tmp_path_factory.mktemp("runs") / "run", progress=False, teacher=str(theirs), **TINY)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    teacher = write(folder / "theirs", network=unet(num_class_embeds=11))
    return execute("smoke", folder / "run", progress=False, teacher=str(teacher), guidance=3.0, **TINY)


def test_what_is_not_said_is_taken_from_the_folder(theirs, tmp_path):
    chosen = make_settings(teacher=str(theirs))
    assert (chosen.prediction, chosen.schedule, chosen.log_snr_min) == ("eps", "teacher", -6)
    assert (chosen.student_prediction, chosen.steps) == ("v", 64)
    training = [chosen.stage_training(Grid(n)) for n in (32, 16)]
    assert [(stage.updates, stage.learning_rate) for stage in training] == [(2400, 0.002), (1200, 0.0002)]
    sixteen = make_settings(teacher=str(theirs), steps=16)
    training = [sixteen.stage_training(Grid(n)) for n in (8, 4)]
    assert [(stage.updates, stage.learning_rate) for stage in training] == [(6600, 0.002), (3200, 0.0004)]
    assert make_settings(teacher=str(theirs), stage_updates=7).stage_updates == "7"
    said = {"schedule": "cosine", "log_snr_min": -4, "student_prediction": "x"}
    assert make_settings(teacher=str(theirs), **said).model_dump().items() >= said.items()
    of_v = make_settings(teacher=str(write(tmp_path / "v", "v_prediction")))
    assert (of_v.prediction, of_v.schedule, of_v.log_snr_min, of_v.student_prediction) == ("v", "teacher", None, None)


def test_it_is_distilled_on_its_own_timesteps(run, theirs):
    own = load(theirs)
    assert run.finished
    assert run.teacher.schedule == own.schedule.for_steps(4, -6.0)
    assert {run.open(part).prediction for part in run.parts[1:]} == {"v"}
    t = torch.arange(1, 5, dtype=torch.float64) / 4
    timesteps = run.teacher.network.timestep(run.teacher.schedule.angle(t) * 2 / torch.pi)
    torch.testing.assert_close(timesteps, torch.round(timesteps), rtol=0, atol=1e-6)
    z = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    of_theirs = load(theirs)
    of_theirs.schedule = run.teacher.schedule
    torch.testing.assert_close(run.teacher(z, t), of_theirs(z, t))


def test_it_is_gone_on_with_and_opened_where_its_teacher_is_gone(run, theirs, tmp_path):
    again = execute("smoke", run.folder, progress=False, teacher=str(theirs), **TINY)
    assert again.settings == run.settings
    moved = theirs.rename(theirs.with_name("moved"))
    try:
        assert load_run(run.folder).finished
        assert load_run(run.folder).denoiser(1).grid == Grid(1)
    finally:
        moved.rename(theirs)


def test_its_report_is_written(theirs, tmp_path, capsys):
    settings = {**TINY, "stage_updates": 2, "end_steps": 2, "curves": "distilled"}
    texts = [f"--set={name}={value}" for name, value in {**settings, "teacher": theirs}.items()]
    assert cli.main(["run", "--preset", "smoke", "--folder", str(tmp_path / "run"), *texts]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_its_student_is_exported_and_drawn_by_diffusers_alone(run, tmp_path, capsys):
    assert cli.main(["export", str(run.folder / "student-2"), str(tmp_path / "out")]) == 0
    z = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    *_, found = sample(run.denoiser(2), z=z)
    wanted = their_samples(DDIMPipeline.from_pretrained(tmp_path / "out"), 2, z)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from `digits`, sampled by DDIM in 4 steps" in card
    assert "| Fréchet distance |" in card
    assert str(tmp_path) not in card
    assert cli.main(["export", str(run.folder), str(tmp_path / "last")]) == 0
    assert "in **one step**" in (tmp_path / "last" / "README.md").read_text()


def test_a_network_of_diffusers_is_trained_from_the_start(tmp_path):
    settings = {**TINY, "network": "unet2d", "width": 8, "teacher_updates": 6, "end_steps": 2}
    run = execute("smoke", tmp_path / "run", progress=False, **settings)
    assert cli.main(["export", str(run.folder / "student-2"), str(tmp_path / "out")]) == 0
    z = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = their_samples(DDIMPipeline.from_pretrained(tmp_path / "out"), 2, z)
    torch.testing.assert_close([*sample(run.denoiser(2), z=z)][-1], wanted, rtol=1e-5, atol=1e-5)


# Classes and guidance.


def test_the_guided_teacher_is_what_is_distilled_and_evaluated(classes):
    teacher, labels = classes.as_sampled("teacher", classes.teacher), load_data("digits").labels
    assert isinstance(teacher.denoiser, Guided)
    assert (teacher.denoiser.weight, teacher.denoiser.no_class) == (3.0, 10)
    student = classes.as_sampled("student-2", classes.denoiser(2))
    assert isinstance(student, OfClasses)
    assert not isinstance(student.denoiser, Guided)
    counts = torch.bincount(student.labels, minlength=10) / len(student.labels)
    torch.testing.assert_close(counts, torch.bincount(labels) / len(labels), rtol=0, atol=1 / 256)


def test_a_student_learns_each_examples_class(classes):
    """More of the students' training brings each class nearer to the guided teacher's."""
    z, t = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(64, dtype=torch.float64)
    student = classes.denoiser(2)
    with torch.no_grad():
        answers = [OfClasses(student, label)(z, t) for label in range(10)]
    assert min((one - other).abs().max() for one in answers for other in answers if one is not other) > 1e-4


def test_samples_of_a_class_are_drawn_by_the_command(classes, tmp_path, capsys):
    drawn = {}
    for label in (None, "3", "7"):
        more = [] if label is None else ["--label", label]
        output = tmp_path / f"{label}.png"
        assert cli.main(["sample", str(classes.folder), "--count", "10", "--output", str(output), *more]) == 0
        drawn[label] = output.read_bytes()
    assert len({*drawn.values()}) == 3
    assert cli.main(["sample", str(classes.folder), "--label", "10", "--output", str(tmp_path / "no.png")]) == 2
    assert "--label 10: the classes are 0 … 9" in capsys.readouterr().err


def test_a_class_conditional_student_goes_out_whole_or_of_one_class(classes, tmp_path, capsys):
    folder = str(classes.folder / "student-2")
    assert cli.main(["export", folder, str(tmp_path / "all")]) == 0
    assert cli.main(["export", folder, str(tmp_path / "threes"), "--label", "3"]) == 0
    assert "class_labels=classes" in (tmp_path / "all" / "README.md").read_text()
    assert "with guidance of weight 3, which is in this model now" in (tmp_path / "threes" / "README.md").read_text()
    z = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    *_, found = sample(OfClasses(classes.denoiser(2), 3), z=z)
    wanted = their_samples(DDIMPipeline.from_pretrained(tmp_path / "threes"), 2, z)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


# The command on a folder of diffusers.


def test_a_folder_is_sampled_as_its_own_scheduler_says(theirs, tmp_path, capsys):
    for steps in ([], ["--steps", "4"]):
        output = tmp_path / f"{len(steps)}.png"
        assert cli.main(["sample", str(theirs), "--count", "4", "--output", str(output), *steps]) == 0
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "2.png").read_bytes()


def test_a_class_conditional_folder_is_sampled_of_all_classes_or_one(tmp_path, capsys):
    theirs = write(tmp_path / "theirs", network=unet(num_class_embeds=3), clip_sample=True)
    for label in ([], ["--label", "2"]):
        output = tmp_path / f"{len(label)}.png"
        assert cli.main(["sample", str(theirs), "--count", "4", "--output", str(output), "--steps", "2", *label]) == 0
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "2.png").read_bytes()
    assert cli.main(["sample", str(theirs), "--output", str(tmp_path / "no.png"), "--label", "3"]) == 2
    assert "--label 3: the classes are 0 … 2" in capsys.readouterr().err


def test_a_folder_is_diagnosed_and_measured(theirs, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    measured = ["--data", "digits", "--picture", str(picture)]
    assert cli.main(["diagnose", str(theirs)]) == 1
    alone = capsys.readouterr().out
    assert [line.split(": ")[1] for line in alone.splitlines()][:2] == ["wrong top time", "terminal SNR"]
    assert cli.main(["diagnose", str(theirs), *measured]) == 1
    said = capsys.readouterr().out
    assert "mean square error of x̂, and of answers that need no network" in said
    assert "digits: untrained" in said or "digits: prediction type" in said
    assert picture.is_file()


def test_a_student_is_measured_beside_its_teachers(run, tmp_path, capsys):
    student, before, first = (str(run.folder / part) for part in ("student-1", "student-2", "teacher"))
    code = cli.main(["diagnose", student, "--data", "digits", "--teacher", before, "--teacher", first])
    said = capsys.readouterr().out
    assert said.count("left to learn of two steps of") == 2
    assert code == 1
    assert cli.main(["diagnose", student, "--teacher", before]) == 2
    assert "give --data" in capsys.readouterr().err


# What is refused, before anything is written.


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"prediction": "v"}, SettingsError, "the teacher in .* predicts 'eps': use prediction=eps"),
        ({"guidance": 2}, SettingsError, "guidance=2.0: the teacher in .* knows no classes: leave it out"),
        ({"data": "moons"}, SettingsError, "data='moons'"),
        ({"steps": 2048}, ValueError, "has 1000 values, .* with λ ≥ -6.0: take fewer steps"),
        ({"width": 16}, SettingsError, "the given teacher brings its own network: leave width out"),
        ({"log_snr_max": 20}, SettingsError, "log_snr_max=20.0"),
    ],
)
def test_what_does_not_fit_the_teacher_gets_one_line(settings, error, match, theirs, tmp_path):
    refused(error, match, tmp_path / "run", **{**TINY, "teacher": str(theirs), **settings})


def test_images_of_another_size_get_one_line(theirs, tmp_path):
    np.save(tmp_path / "large.npy", np.random.default_rng(0).uniform(-1, 1, (20, 16, 16)).astype(np.float32))
    np.save(tmp_path / "colour.npy", np.random.default_rng(0).uniform(-1, 1, (20, 3, 8, 8)).astype(np.float32))
    given = {**TINY, "teacher": str(theirs)}
    message = r"makes images of \(1, 8, 8\); data=.* has \(1, 16, 16\): give data of its size"
    refused(SettingsError, message, tmp_path / "run", **given, data=tmp_path / "large.npy")
    refused(SettingsError, "takes examples of 1 channels", tmp_path / "run", **given, data=tmp_path / "colour.npy")


def test_labels_that_do_not_fit_get_one_line(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "none.npz", x=random.uniform(-1, 1, (20, 8, 8)))
    given = {**TINY, "teacher": str(write(tmp_path / "theirs", network=unet(num_class_embeds=10)))}
    refused(SettingsError, "has no labels: give some", tmp_path / "run", **given, data=tmp_path / "none.npz")
    refused(
        SettingsError, "knows 10 classes; data='digits' has 10 and guidance needs one more", tmp_path / "run", **given,
        guidance=2,
    )  # fmt: skip
    few = {**TINY, "teacher": str(write(tmp_path / "few", network=unet(num_class_embeds=4)))}
    refused(SettingsError, "knows 4 classes; data='digits' has 10", tmp_path / "run", **few)


def test_eps_where_alpha_is_0_gets_one_line(tmp_path):
    given = {**TINY, "teacher": str(write(tmp_path / "theirs", rescale_betas_zero_snr=True)), "log_snr_min": None}
    refused(SettingsError, "α_1 = 0 on the teacher's schedule", tmp_path / "run", **given)


def test_a_teachers_schedule_or_guidance_needs_a_teacher(tmp_path):
    refused(SettingsError, "schedule=teacher: give the teacher that has it", tmp_path / "run", schedule="teacher")
    refused(SettingsError, "guidance=2.0: give the teacher that has it", tmp_path / "run", guidance=2)


def test_a_folder_that_cannot_be_read_is_a_line_and_exit_code_2(theirs, tmp_path, capsys, monkeypatch):
    write(tmp_path / "theirs")
    (tmp_path / "theirs" / "scheduler" / "scheduler_config.json").unlink()
    monkeypatch.chdir(tmp_path)
    for command in (["diagnose", "theirs"], ["sample", "theirs"], ["run", "--set", "teacher=theirs"]):
        assert cli.main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert "holds a UNet2DModel without a scheduler" in line
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    with pytest.raises(InteropError):
        execute("smoke", tmp_path / "run", teacher="theirs")


def test_our_own_networks_cannot_go_out_and_say_how(whole, tmp_path, capsys):
    assert cli.main(["export", str(whole.folder / "student-1"), str(tmp_path / "out")]) == 2
    assert "a UNet has no counterpart in diffusers: train with network=unet2d" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_whose_teacher_is_gone_goes_on_and_is_opened_by_the_same_command(theirs, tmp_path):
    given = {**TINY, "teacher": str(tmp_path / "theirs"), "end_steps": 2}
    shutil.copytree(theirs, tmp_path / "theirs")
    run = execute("smoke", tmp_path / "run", progress=False, **given)
    shutil.rmtree(tmp_path / "theirs")
    (run.folder / "metrics.json").unlink()
    again = execute("smoke", run.folder, progress=False, **given)
    assert again.finished
    assert again.settings == run.settings
    assert finish(load_run(run.folder), progress=False).finished  # as its report's kernel opens it
    with pytest.raises(SettingsError, match=r"log_snr_min=-6\.0 there and -5\.0 here"):
        execute("smoke", run.folder, progress=False, **given, log_snr_min=-5)


def test_any_chain_that_halves_is_accepted(theirs):
    for steps, end in ((12, 3), (1, 1), (4, 4), (16, 1)):
        chosen = make_settings(teacher=str(theirs), steps=steps, end_steps=end)
        usual = make_settings(steps=steps, end_steps=end).stage_updates
        assert (chosen.stage_updates == usual) == (steps == end)


def test_its_students_are_not_blamed_for_where_they_were_made_to_start(run, tmp_path, capsys):
    assert cli.main(["export", str(run.folder / "student-2"), str(tmp_path / "out")]) == 0
    assert cli.main(["diagnose", str(tmp_path / "out")]) == 0
    assert {finding.culprit for part in run.parts[1:] for finding in run.diagnose(part)} == set()


def test_the_cards_of_a_teacher_and_of_data_in_a_folder_say_what_is_so(classes):
    about = classes.about("teacher")
    assert {"teacher", "guidance"} & about.keys() == set()
    assert classes.about("student-2")["guidance"] == 3.0
    elsewhere = Run(classes.folder, classes.settings.model_copy(update={"data": str(Path("/a/place/x.npz"))}))
    assert elsewhere.about("student-2")["data"] == "x.npz"


@pytest.mark.parametrize("data", ["moons", "colour.npy", "large.npy"])
def test_data_that_do_not_fit_are_a_line_before_anything_is_measured(data, theirs, tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    np.save(tmp_path / "colour.npy", random.uniform(-1, 1, (20, 3, 8, 8)))
    np.save(tmp_path / "large.npy", random.uniform(-1, 1, (20, 16, 16)))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["diagnose", str(theirs), "--data", data]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "its examples are" in captured.err
    assert "did not expect" not in captured.err
