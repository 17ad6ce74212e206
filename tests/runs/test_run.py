import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TINIEST, TINY, contents, copied, refused, same_networks, without_times

from pdlib.data import DATASETS, DataError
from pdlib.denoiser import Denoiser
from pdlib.files import DamagedFileError, lock_folder, read_json, read_tensors, write_json
from pdlib.predictions import PREDICTIONS
from pdlib.runs import run as runs
from pdlib.runs.report import describe_run, from_notebook
from pdlib.runs.run import Run, default_folder, diagnose_run, execute, finish, load_run
from pdlib.runs.settings import SettingsError, make_settings
from pdlib.sampling import sample
from pdlib.schedules import CosineSchedule
from pdlib.training import NotFiniteError
from pdlib.weightings import WEIGHTINGS

# What a run leaves.


def test_a_run_leaves_the_layout_of_the_hub(smoke):
    names = {path.name for path in smoke.folder.iterdir() if not path.name.startswith(".")}
    students = {f"student-{n}" for n in (4, 2, 1)}
    files = {"config.json", "metrics.json", "report.ipynb", "report.html", "report.png"}
    assert names == {"teacher", *students, *files}
    for part in ("teacher", *students):
        assert {"config.json", "model.safetensors"} <= {path.name for path in (smoke.folder / part).iterdir()}


def test_a_network_alone_says_what_it_is_made_for(whole):
    for part, steps in (("teacher", 4), ("student-2", 2), ("student-1", 1)):
        denoiser = Denoiser.load(whole.folder / part)
        assert (denoiser.grid.N, denoiser.shape) == (steps, (1, 8, 8))


def test_the_same_noise_goes_through_every_network(smoke):
    rows, noise = smoke.same_noise(3)
    assert list(rows) == ["8 steps (teacher)", "4 steps", "2 steps", "one step"]
    *_, expected = sample(Denoiser.load(smoke.folder / "student-2"), 2, z=noise)
    assert torch.equal(rows["2 steps"], expected)


def test_opening_a_run_gives_its_settings(whole, tmp_path):
    settings = {key: value for key, value in TINY.items() if key != "preset"}
    assert load_run(whole.folder) == Run(whole.folder, make_settings("smoke", **settings))
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)


def test_runs_are_kept_in_one_place_also_from_a_folder_below(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "side_roads").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "side_roads")
    assert str(default_folder("smoke", seed=1)) == "runs/smoke-seed=1"
    (tmp_path / "runs").mkdir()
    assert str(default_folder("smoke", seed=1)) == "../../runs/smoke-seed=1"
    monkeypatch.chdir(tmp_path / "notebooks")
    assert str(default_folder("smoke", seed=1)) == "../runs/smoke-seed=1"
    (tmp_path / "notebooks" / "runs").mkdir()
    assert str(default_folder("smoke", seed=1, device="cuda")) == "runs/smoke-seed=1"


# Stop and resume.

DRIVER = """
import json, sys, torch
from pdlib.runs.run import execute
torch.set_num_threads(1)
execute(folder=sys.argv[1], progress=False, checkpoint_seconds=0.0, **json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "moment", ["teacher.checkpoint", "student-2.checkpoint", "student-1.checkpoint", "student-1", "metrics.json"]
)
def test_a_killed_run_goes_on_to_the_same_bits(moment, whole, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), json.dumps(TINY)])
    deadline = time.monotonic() + 120
    while not (folder / moment).exists():
        assert process.poll() is None, f"the run ended before there was {moment}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not load_run(folder).finished
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*/model.safetensors")}
    left = {path.stem: read_tensors(path)[1]["update"] for path in folder.glob("*.checkpoint")}
    if moment.endswith(".checkpoint"):
        assert left[moment.removesuffix(".checkpoint")] > 0

    run = execute(folder=folder, progress=False, **TINY)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # what was finished is not made again
    assert same_networks(folder, whole.folder)
    assert without_times(run.metrics) == without_times(whole.metrics)
    assert list(folder.glob("*.checkpoint")) + list(folder.rglob("*.part")) == []


def test_a_run_that_was_killed_in_its_first_moment_goes_on(points, tmp_path):
    (tmp_path / "run").mkdir()
    for leftover in (".lock", "config.json.4711.part"):
        (tmp_path / "run" / leftover).touch()
    run = execute(folder=tmp_path / "run", progress=False, data=points.settings.data, **TINIEST)
    assert contents(run.folder).keys() == contents(points.folder).keys()


def test_a_finished_run_is_opened_and_nothing_else(whole):
    before = contents(whole.folder)
    times = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    assert execute(folder=whole.folder, progress=False, **TINY).metrics == whole.metrics
    assert contents(whole.folder) == before
    assert {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")} == times


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    with lock_folder(folder), pytest.raises(BlockingIOError, match="is in use by another run"):
        execute(folder=folder, progress=False, **TINY)
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == []


def test_a_folder_that_another_run_took_in_the_meantime_is_refused(points, tmp_path):
    other = runs.new_run(tmp_path / "run", make_settings(data=points.settings.data, **TINIEST | {"seed": 1}))
    folder = copied(points, tmp_path)
    before = contents(folder)
    with pytest.raises(SettingsError, match=r"other settings .seed=0 there and 1 here"):
        runs.finish(other, progress=False)
    assert contents(folder) == before


# Other beginnings.


def test_a_given_teacher_is_distilled_and_kept_with_the_run(whole, tmp_path, monkeypatch):
    """Also by a relative path, into a folder behind a link; and it is copied, so that its source may go."""
    shutil.copytree(whole.folder / "teacher", tmp_path / "given")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "down")
    settings = {key: value for key, value in TINY.items() if key != "width"} | {"curves": ("distilled",)}
    monkeypatch.chdir(tmp_path)
    run = execute(folder="linked/run", progress=False, teacher="given", **settings)
    assert same_networks(run.folder, whole.folder)  # the same teacher and the same seed: the same students
    assert set(run.metrics["curves"]) == {"distilled"}
    assert run.metrics["training"]["teacher"]["updates"] == 30
    assert "width" not in describe_run(run)
    shutil.move("given", "moved")
    assert load_run("linked/run").history("teacher")[1]["updates"] == 30
    assert execute(folder="linked/run", progress=False, teacher="given", **settings).finished
    assert execute(folder="linked/run", progress=False, teacher="moved", **settings).finished


def test_a_given_teacher_is_used_with_the_runs_schedule(points, tmp_path):
    source = points.folder / "teacher"
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((source / name).read_bytes())
    settings = {key: value for key, value in TINIEST.items() if key != "mlp_width"} | {"data": points.settings.data}
    run = execute(folder=tmp_path / "run", progress=False, teacher=tmp_path / "bare", log_snr_min=-6, **settings)
    for network in (run.teacher, run.denoiser(1)):
        assert network.schedule == CosineSchedule(log_snr_min=-6)
    assert run.metrics["training"]["teacher"] == {"seconds": 0, "updates": 0, "final_loss": None}
    assert "log_snr_min = -6.0" in describe_run(run)


def test_another_teacher_under_the_same_path_is_refused(points, tmp_path):
    given = shutil.copytree(points.folder / "teacher", tmp_path / "given")
    settings = {key: value for key, value in TINIEST.items() if key != "mlp_width"}
    settings |= {"teacher": given, "data": points.settings.data}
    run = execute(folder=tmp_path / "run", progress=False, **settings)
    other = Denoiser.load(given)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    other.save(given)
    refused(SettingsError, "given' has changed.*choose another folder; nothing was written", run.folder, **settings)
    shutil.rmtree(run.folder / "student-1")
    refused(SettingsError, "given' has changed", run.folder, **settings)
    with pytest.raises(SettingsError, match=f"teacher='{tmp_path}.* there and None here"):
        execute(folder=run.folder, progress=False, data=points.settings.data, **TINIEST)


def test_a_converted_teacher_starts_the_chain(tmp_path):
    settings = TINY | {"prediction": "eps", "schedule": "cosine_clipped", "student_prediction": "v"}
    run = execute(folder=tmp_path / "run", progress=False, convert_updates=15, **settings)
    assert run.parts == ["teacher", "converted", "student-2", "student-1"]
    assert [Denoiser.load(run.folder / part).prediction for part in run.parts] == ["eps", "v", "v", "v"]
    assert run.metrics["training"]["converted"]["updates"] == 15
    curves = run.metrics["curves"]
    assert curves["ddim"]["4"]["ratio"] == 1  # everything is measured against the teacher itself
    assert curves["distilled"]["4"]["ratio"] != 1
    assert next(iter(run.same_noise(2)[0])) == "4 steps (converted)"


def test_students_may_predict_something_else_without_a_conversion(points, tmp_path):
    settings = TINIEST | {"student_prediction": "both", "data": points.settings.data}
    run = execute(folder=tmp_path / "run", progress=False, **settings)
    assert [Denoiser.load(run.folder / part).prediction for part in run.parts] == ["v", "both"]


@pytest.mark.parametrize("discrete", [True, False])
def test_the_off_by_one_grid_is_sampled_from_where_it_was_trained(discrete, points, tmp_path):
    settings = TINIEST | {"steps": 4, "end_steps": 2, "missing": 1, "discrete_teacher": discrete}
    run = execute(folder=tmp_path / "run", progress=False, data=points.settings.data, **settings)
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert len(list(run.sample(2, noise))) == 2  # z and one step, from t = 1/2 to 0
    rows, same = run.same_noise(3)
    *_, expected = sample(run.denoiser(2), z=same)
    assert torch.equal(rows["2 steps"], expected)
    found = {part: [finding.culprit for finding in part_found] for part, part_found in diagnose_run(run).items()}
    # A teacher that was trained in continuous time has seen t = 1.
    assert found == {"teacher": ["wrong top time"] * discrete, "student-2": ["wrong top time"]}


# A run is what it computes from.


def half_done(run, folder):
    """A copy of a finished run as it was before its last student."""
    folder = copied(run, folder)
    shutil.rmtree(folder / "student-1")
    (folder / "metrics.json").unlink()
    return folder


@pytest.fixture
def own_points(points, tmp_path):
    """Settings, whose data may be changed, of a copy of the points' run."""
    return TINIEST | {"data": shutil.copy(points.settings.data, tmp_path / "x.npz")}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("changed", ["x", "y"])
def test_other_data_under_the_same_path_are_refused(changed, finished, own_points, points, tmp_path):
    folder = (copied if finished else half_done)(points, tmp_path)
    assert execute(folder=copied(points, tmp_path / "here"), progress=False, **own_points).finished
    data = dict(np.load(own_points["data"]))
    data[changed] = data[changed][::-1]
    np.savez(own_points["data"], **data)
    line = refused(DataError, "x.npz' has changed: .*made with 200 others.*nothing was written", folder, **own_points)
    assert str(folder) in line


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_data_elsewhere_are_gone_on_with(finished, own_points, points, tmp_path):
    folder = (copied if finished else half_done)(points, tmp_path)
    settings = own_points | {"data": shutil.move(own_points["data"], tmp_path / "moved.npz")}
    run = execute(folder=folder, progress=False, **settings)
    assert same_networks(folder, points.folder, ["teacher/model.safetensors", "student-1/model.safetensors"])
    assert without_times(run.metrics)["curves"] == without_times(points.metrics)["curves"]
    assert from_notebook({"folder": str(folder)}).settings.data == str(tmp_path / "moved.npz")


def test_data_named_as_seen_from_here_are_found_from_elsewhere(points, tmp_path, monkeypatch):
    shutil.copy(points.settings.data, tmp_path / "x.npz")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # a data set's name is no path
    run = execute(folder=tmp_path / "run", progress=False, **TINIEST | {"data": "x.npz"})
    assert runs.new_run(tmp_path / "new", make_settings()).settings.data == "digits"
    monkeypatch.chdir("/")
    assert load_run(run.folder).data.digest == points.data.digest
    (tmp_path / "x.npz").unlink()
    assert list(load_run(run.folder).sample(1, torch.zeros(3, 2)))  # it needs no data


def test_a_run_of_another_device_opens_on_this_one(as_then, tmp_path):
    _, run = as_then
    assert "device" not in read_json(run.folder / "config.json")["settings"]
    folder = first_edition(run, tmp_path)
    assert load_run(folder).settings.device == "cpu"  # its config.json says cuda
    assert next(load_run(folder).teacher.parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    ("registry", "setting"), [(WEIGHTINGS, "weighting"), (PREDICTIONS, "prediction"), (DATASETS, "data")]
)
def test_a_run_of_what_is_registered_no_more_gets_one_line(registry, setting, points, tmp_path):
    registry["mine"] = registry[{"weighting": "snr", "prediction": "v", "data": "ring"}[setting]]
    settings = TINIEST | {"data": points.settings.data, setting: "mine"}
    try:
        run = execute(folder=tmp_path / "run", progress=False, **settings)
    finally:
        del registry["mine"]
    with pytest.raises((DamagedFileError, DataError), match=f"{setting}='mine' is unknown") as caught:
        from_notebook({"folder": str(run.folder)})
    assert "\n" not in str(caught.value)


# Folders of the first edition.


def first_edition(run, folder):
    """A copy of a run as the first edition wrote it."""
    folder = copied(run, folder)
    settings = read_json(folder / "config.json")["settings"]
    for name in ("missing", "method", "warmup", "stage_warmup", "heads", "dropout", "mlp_width"):
        settings.pop(name, None)
    few = int(settings["stage_updates"])
    old = {"stage_updates": few, "few_step_updates": few, "skip_top": False, "weights": "ema", "device": "cuda"}
    files = {"config.json": settings | old}
    for part in run.parts:
        config = read_json(folder / part / "config.json")
        files[f"{part}/config.json"] = {key: config[key] for key in ("network", "prediction", "schedule")}
    metrics = read_json(folder / "metrics.json")
    del metrics["run"]
    for name, content in (files | {"metrics.json": metrics}).items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def as_then(tmp_path_factory):
    """A run with what the first edition could not be told otherwise: warm-up, and an MLP of four times the width."""
    settings = TINIEST | {"data": "ring", "width": 4, "mlp_width": 16}
    return settings, execute(folder=tmp_path_factory.mktemp("then") / "run", progress=False, **settings)


def test_a_finished_folder_of_the_first_edition_is_a_run(as_then, tmp_path):
    settings, run = as_then
    folder = first_edition(run, tmp_path)
    before = contents(folder)
    again = execute(folder=folder, progress=False, **settings)
    assert again.finished
    assert without_times(again.metrics) == without_times(run.metrics)
    assert torch.equal(again.same_noise(3)[0]["one step"], run.same_noise(3)[0]["one step"])
    assert {part: denoiser.grid.N for part in run.parts for denoiser in [again.open(part)]} == {
        "teacher": 2,
        "student-1": 1,
    }
    assert diagnose_run(again) == {"teacher": [], "student-1": []}
    assert contents(folder) == before
    refused(SettingsError, "seed=0 there and 1 here", folder, **settings | {"seed": 1})


def test_a_folder_of_the_first_edition_is_gone_on_with(as_then, tmp_path):
    settings, run = as_then
    folder = first_edition(run, tmp_path)
    shutil.rmtree(folder / "student-1")
    (folder / "metrics.json").unlink()
    again = execute(folder=folder, progress=False, **settings)
    assert without_times(again.metrics)["curves"] == without_times(run.metrics)["curves"]
    assert same_networks(folder, run.folder, ["student-1/model.safetensors"])
    (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | {"unheard_of": 1}))
    refused(DamagedFileError, "there is no setting 'unheard_of'", folder, **settings)


# Damage.


def damaged(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    else:
        content[-9] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "changed"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "training.safetensors"])
@pytest.mark.parametrize("part", ["teacher", "student-2"])
def test_a_damaged_file_of_a_network_is_named_and_once_deleted_computed_again(part, name, how, whole, tmp_path):
    folder = copied(whole, tmp_path)
    path = folder / part / name
    damaged(path, how)
    refused(DamagedFileError, f"{path} (is damaged|was changed).* Delete it to compute it again", folder, **TINY)
    others = {other: other.stat().st_mtime_ns for other in folder.rglob("*") if part not in str(other)}
    path.unlink()
    run = execute(folder=folder, progress=False, **TINY)
    assert same_networks(folder, whole.folder)
    assert run.metrics == whole.metrics
    assert {other: other.stat().st_mtime_ns for other in others if other.is_file()} == {
        other: when for other, when in others.items() if other.is_file()
    }


@pytest.mark.parametrize("part", ["teacher", "student-2"])
def test_a_network_whose_folder_is_gone_is_computed_again(part, whole, tmp_path):
    folder = copied(whole, tmp_path)
    shutil.rmtree(folder / part)
    assert not load_run(folder).finished
    assert execute(folder=folder, progress=False, **TINY).finished
    assert same_networks(folder, whole.folder)


@pytest.mark.parametrize("how", ["truncated", "changed"])
def test_damaged_figures_are_named_and_once_deleted_measured_again(how, points, tmp_path):
    folder, settings = copied(points, tmp_path), TINIEST | {"data": points.settings.data}
    damaged(folder / "metrics.json", how)
    refused(DamagedFileError, "metrics.json (is damaged|was changed).* Delete it", folder, **settings)
    (folder / "metrics.json").unlink()
    assert without_times(execute(folder=folder, progress=False, **settings).metrics) == without_times(points.metrics)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "teacher/config.json", "student-1/config.json"])
@pytest.mark.parametrize("content", ["[]", "null", "{}", '"x"', "7", "", '{"data": "dig', '{"curves": null}'])
def test_json_of_the_wrong_structure_is_named(content, name, points, tmp_path):
    folder = copied(points, tmp_path)
    (folder / name).write_text(content)
    named = str(folder / name).removesuffix("/config.json")
    refused(DamagedFileError, named, folder, **TINIEST, data=points.settings.data)


@pytest.mark.parametrize("settings", [None, [], {}, {"steps": None}, {"data": None}, {"schedule": {}}])
def test_a_config_without_settings_is_named(settings, points, tmp_path):
    folder = copied(points, tmp_path)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"settings": settings})
    with pytest.raises((DamagedFileError, SettingsError), match=str(folder)) as caught:
        execute(folder=folder, progress=False, data=points.settings.data, **TINIEST)
    assert "\n" not in str(caught.value)


def test_what_was_edited_is_named(points, tmp_path):
    settings = TINIEST | {"data": points.settings.data}
    for name, before, after in (
        ("config.json", '"seed": 0', '"seed": 1'),
        ("metrics.json", '"complete": true', '"complete": "no"'),
        ("teacher/config.json", '"prediction": "v"', '"prediction": "x"'),
        ("student-1/config.json", '"name": "cosine"', '"name": "linear"'),
    ):
        (tmp_path / name.replace("/", "-")).mkdir()
        folder = copied(points, tmp_path / name.replace("/", "-"))
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after))
        refused(DamagedFileError, f"{folder / name} was changed since it was written", folder, **settings)


def swap(folder, one, other):
    shutil.move(folder / one, folder / "between")
    shutil.move(folder / other, folder / one)
    shutil.move(folder / "between", folder / other)


@pytest.mark.parametrize("name", ["", "/model.safetensors", "/training.safetensors", "/config.json"])
def test_networks_that_were_swapped_are_named(name, whole, tmp_path):
    folder = copied(whole, tmp_path)
    swap(folder, f"teacher{name}", f"student-2{name}")
    message = f"{folder}/(teacher|student-2).*(belongs to another network|of another place)"
    refused(DamagedFileError, message, folder, **TINY)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run that differs from the whole one in its seed alone, stopped at its last student."""
    folder = tmp_path_factory.mktemp("other") / "run"
    interrupted(folder, 60, **TINY | {"seed": 1})
    return Run(folder, make_settings(**TINY | {"seed": 1}))


def interrupted(folder, at, **settings):
    """Start a run, and stop it in that update, counted over all trainings."""
    updates, step = [], torch.optim.Adam.step

    def interrupt(*args):
        updates.append(1)
        if len(updates) > at:
            raise KeyboardInterrupt
        return step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(folder=folder, progress=False, checkpoint_seconds=0.0, **settings)


@pytest.mark.parametrize("name", ["teacher", "student-2", "metrics.json", "student-1.checkpoint"])
def test_what_is_another_runs_is_named(name, whole, other, tmp_path):
    folder = copied(whole, tmp_path)
    if name == "metrics.json":
        write_json(folder / name, whole.metrics | {"run": other.config["run"]})
    elif name.endswith("checkpoint"):
        shutil.rmtree(folder / "student-1")
        shutil.copy(other.folder / name, folder)
    else:
        shutil.rmtree(folder / name)
        shutil.copytree(other.folder / name, folder / name)
    refused(DamagedFileError, f"{folder / name} .*(another|of another place).*delete", folder, **TINY)


# Bad input: before any training, and nothing written.


@pytest.mark.parametrize(
    ("shape", "match"),
    [((20, 7, 7), "height and width divisible by 2"), ((20, 5), r"has shape \(20, 5\)"), ((20, 4, 8, 8), "1 or 3")],
)
def test_data_of_the_wrong_shape_are_refused(shape, match, tmp_path):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).random(shape, np.float32))
    refused((DataError, SettingsError), match, tmp_path / "run", **TINY, data=tmp_path / "data.npy")


def test_data_with_nan_are_refused(tmp_path):
    x = np.zeros((20, 8, 8), np.float32)
    x[3, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    message = "NaN or infinite values in 1 of 20 examples.*index 3"
    refused(DataError, message, tmp_path / "run", **TINY, data=tmp_path / "x.npy")


def test_a_folder_of_another_run_is_refused_and_untouched(whole):
    refused(SettingsError, "other settings .seed=0 there and 5 here", whole.folder, **TINY, seed=5)


def test_how_it_is_measured_may_change_until_it_is_finished(points, tmp_path):
    """As where measuring so many images takes more memory than there is: what was trained is not lost."""
    folder, fewer = copied(points, tmp_path), TINIEST | {"data": points.settings.data, "images_per_seed": 70}
    refused(SettingsError, "other settings .images_per_seed=65 there and 70 here", folder, **fewer)
    metrics = points.metrics | {"complete": False}
    write_json(folder / "metrics.json", metrics)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    run = execute(folder=folder, progress=False, **fewer)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == before
    assert load_run(folder).settings.images_per_seed == 70
    afresh = execute(folder=tmp_path / "afresh", progress=False, **fewer)
    assert without_times(run.metrics) == without_times(afresh.metrics)


def test_a_teacher_of_another_kind_is_refused(whole, tmp_path):
    settings = {key: value for key, value in TINY.items() if key != "width"} | {"teacher": whole.folder / "teacher"}
    message = "prediction='x', but the teacher in .* predicts 'v': use prediction=v"
    refused(SettingsError, message, tmp_path / "run", **settings | {"prediction": "x"})
    message = "takes examples of 1 channels, and data='ring' has 2"
    refused(SettingsError, message, tmp_path / "run", **settings | {"data": "ring"})
    nowhere = settings | {"teacher": tmp_path / "nowhere"}
    refused(FileNotFoundError, "nowhere holds no saved denoiser", tmp_path / "run", **nowhere)


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(SettingsError, "is not empty and holds no run", tmp_path, **TINY)
    with pytest.raises(SettingsError, match=r"thesis.tex is not empty and holds no run"):
        execute(folder=tmp_path / "thesis.tex", progress=False, **TINY)


def test_a_full_disk_is_refused_at_the_start(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    refused(OSError, "the disk has 1 MB free and the run needs .* MB", tmp_path / "run", **TINY)


def test_a_disk_that_fills_up_loses_nothing(whole, tmp_path, monkeypatch):
    calls, fsync = [], os.fsync

    def full(file):
        calls.append(file)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*what was saved before is kept"):
            execute(folder=tmp_path / "run", progress=False, checkpoint_seconds=0.0, **TINY)
    execute(folder=tmp_path / "run", progress=False, **TINY)
    assert same_networks(tmp_path / "run", whole.folder)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in the middle of its first stage."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    interrupted(folder, 40, **TINY)
    return Run(folder, make_settings(**TINY))


@pytest.mark.parametrize("how", ["truncated", "changed"])
def test_a_damaged_checkpoint_is_named_and_once_deleted_the_stage_begins_anew(how, stopped, whole, tmp_path):
    path = copied(stopped, tmp_path) / "student-2.checkpoint"
    damaged(path, how)
    refused(DamagedFileError, f"{path} (is damaged|was changed).* Delete it", path.parent, **TINY)
    path.unlink()
    execute(folder=path.parent, progress=False, **TINY)
    assert same_networks(path.parent, whole.folder)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(stopped, whole, tmp_path, monkeypatch):
    folder = copied(stopped, tmp_path)
    checkpoint = (folder / "student-2.checkpoint").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
        message = r"student-2: at update 10 the loss is .* norm nan; .*checkpoint is kept"
        with pytest.raises(NotFiniteError, match=message):
            execute(folder=folder, progress=False, **TINY)
    assert (folder / "student-2.checkpoint").read_bytes() == checkpoint
    execute(folder=folder, progress=False, **TINY)
    assert same_networks(folder, whole.folder)


# The diagnosis of a run.


def test_only_what_is_whole_is_called_healthy(whole, stopped, tmp_path):
    assert diagnose_run(whole) == {"teacher": [], "student-2": [], "student-1": []}
    assert list(diagnose_run(stopped)) == ["teacher"]
    for name in ("student-2/config.json", "student-2/model.safetensors", "student-2", "teacher"):
        folder = copied(whole, tmp_path)
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        with pytest.raises((FileNotFoundError, DamagedFileError), match=f"{folder / name.split('/')[0]} holds"):
            diagnose_run(load_run(folder))
        shutil.rmtree(folder)


def test_a_given_teachers_history_that_is_gone_is_named(points, tmp_path):
    settings = {key: value for key, value in TINIEST.items() if key != "mlp_width"}
    settings |= {"teacher": points.folder / "teacher", "data": points.settings.data}
    run = execute(folder=tmp_path / "run", progress=False, **settings)
    assert len(run.history("teacher")[0]["losses"]) == TINIEST["teacher_updates"]
    (run.folder / "teacher" / "training.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"teacher/training\.safetensors does not exist"):
        run.history("teacher")


def test_an_older_run_of_a_folder_goes_on_as_it_was(tmp_path, monkeypatch):
    """It knew no test part: the same command opens it, and measures to what it has measured to."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for index in range(70):
            path = tmp_path / "images" / part / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    settings = {**TINIEST, "data": str(tmp_path / "images"), "width": 8}
    old = execute(folder=tmp_path / "run", progress=False, **settings, test="none")
    again = execute(folder=tmp_path / "run", progress=False, **settings)
    assert again.settings.test == "none"
    assert again.config == old.config
    new = execute(folder=tmp_path / "new", progress=False, **settings)
    assert (old.metrics["held_back"], new.metrics["held_back"]) == (False, True)


BF16 = {"precision": "bf16", "data": "ring"}


def test_bfloat16_is_refused_where_there_is_something_to_train_on_a_cpu(tmp_path):
    refused(SettingsError, "precision='bf16': it is slower than float32 on a CPU", tmp_path / "run", **TINIEST | BF16)
    run = Run(tmp_path / "run", make_settings(**TINIEST | BF16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pdlib.runs.run.check", lambda run: None)  # as if it had been made on a GPU
        finish(run, progress=False)
    assert load_run(tmp_path / "run").finished
    assert finish(load_run(tmp_path / "run"), progress=False).settings.precision == "bf16"
