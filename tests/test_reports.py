import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
import torch

import pdlib.distillation
from pdlib import reports
from pdlib.data import DataError
from pdlib.denoiser import Denoiser
from pdlib.files import DamagedFileError, lock_folder, read_json, read_tensors
from pdlib.metrics import METRICS, feature_network, measure
from pdlib.reports import Run, execute, load_run, write_report
from pdlib.sampling import sample, sample_batches
from pdlib.schedules import CosineSchedule
from pdlib.settings import CURVES, SettingsError, make_settings
from pdlib.training import NotFiniteError

TINY = {
    "preset": "smoke",
    "steps": 4,
    "width": 8,
    "batch_size": 16,
    "teacher_updates": 30,
    "stage_updates": 20,
    "few_step_updates": 20,
    "images_per_seed": 65,
}
WEIGHTS = ["teacher/model.safetensors", "student-2/model.safetensors", "student-1/model.safetensors"]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_times(metrics):
    """What a run measured, all but how long it took and what it held in memory."""
    metrics = {key: metrics[key] for key in ("complete", "curves", "floor", "images", "real_images", "settings")}
    for curve in metrics["curves"].values():
        for entry in curve.values():
            entry.pop("seconds", None)
            entry.pop("seconds_per_image")
    return metrics


# What a run leaves.


def test_a_run_leaves_the_layout_of_the_hub(smoke):
    names = {path.name for path in smoke.folder.iterdir() if not path.name.startswith(".")}
    students = {f"student-{n}" for n in (4, 2, 1)}
    files = {"config.json", "metrics.json", "report.ipynb", "report.html", "report.png"}
    assert names == {"teacher", *students, *files}
    for part in ("teacher", *students):
        assert {"config.json", "model.safetensors"} <= {path.name for path in (smoke.folder / part).iterdir()}


def test_every_documented_field_is_there(smoke):
    metrics = smoke.metrics
    documented = set(re.findall(r"^    ``(\w+)``", reports.evaluate.__doc__, re.MULTILINE))
    documented |= set(re.findall(r"^    (?:``\w+``, )+``(\w+)``$", reports.evaluate.__doc__, re.MULTILINE))
    documented |= {"settings", "versions", "images"}
    assert documented == metrics.keys()
    assert metrics["complete"] is True
    assert metrics["curves"].keys() == set(CURVES)
    for curve in metrics["curves"].values():
        assert list(curve) == ["8", "4", "2", "1"]
        for entry in curve.values():
            for name in METRICS:
                value, error = entry[name]
                assert np.isfinite(value)
                assert 0 < error < max(5, 5 * abs(value))
            assert len(entry["frechet_distance_left_out"]) == 2
            assert entry["seconds_per_image"] > 0
    assert metrics["images"] == 2 * 128
    assert metrics["real_images"] == 1797
    assert {name: metrics["training"][n]["updates"] for name, n in (("teacher", "teacher"), ("last", "student-1"))} == {
        "teacher": 300,
        "last": 60,
    }
    assert metrics["curves"]["ddim"]["8"]["ratio"] == 1
    assert 100 < metrics["peak_memory_mb"] < 2000
    assert metrics["versions"]["torch"] == torch.__version__


def test_the_figures_are_those_of_the_networks_in_the_folder(smoke):
    s = smoke.settings
    groups = []
    for k in range(s.noise_seeds):
        generator = torch.Generator().manual_seed(1_000_003 * (s.seed + 1) + k)
        groups.append(sample_batches(smoke.denoiser(2), 2, s.images_per_seed, (1, 8, 8), generator=generator))
    found = measure(feature_network(smoke.data, progress=False), smoke.data.x, groups)
    for name in METRICS:
        assert smoke.metrics["curves"]["distilled"]["2"][name] == pytest.approx(list(found[name][:2]), rel=1e-6)


def test_ratios_are_to_the_teachers_own_number_of_steps(smoke):
    curves = smoke.metrics["curves"]
    base = curves["distilled"]["8"]["frechet_distance"][0]
    for curve in curves.values():
        for entry in curve.values():
            assert entry["ratio"] == pytest.approx(entry["frechet_distance"][0] / base)


def test_distillation_helped_even_in_a_minute(smoke):
    one_step = {name: smoke.metrics["curves"][name]["1"]["frechet_distance"][0] for name in CURVES}
    assert one_step["distilled"] < 0.5 * one_step["ddim"]


def test_the_same_noise_goes_through_every_network(smoke):
    rows, noise = smoke.same_noise(3)
    assert list(rows) == ["8 steps (teacher)", "4 steps", "2 steps", "one step"]
    *_, expected = sample(Denoiser.load(smoke.folder / "student-2"), 2, noise)
    assert torch.equal(rows["2 steps"], expected)


# The report.


class Resources(HTMLParser):
    """What a browser would fetch for a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        name = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}.get(tag)
        if name in attributes:
            self.found.append(attributes[name])


def test_the_page_needs_nothing_but_itself(smoke):
    page = (smoke.folder / "report.html").read_text()
    resources = Resources()
    resources.feed(page)
    assert len(resources.found) >= 5  # the pictures
    assert {address.split(":")[0] for address in resources.found if address} == {"data"}
    assert re.findall(r"@import|url\(\s*['\"]?https?:", page) == []
    scripts = "".join(re.findall(r"<script.*?</script>", page, re.DOTALL))
    assert re.findall(r"import\(['\"][^'\"]|fetch\(|XMLHttpRequest|require\(", scripts) == []


def test_the_page_shows_every_figure(smoke):
    page = (smoke.folder / "report.html").read_text()
    for curve in smoke.metrics["curves"].values():
        for entry in curve.values():
            value, error = entry["frechet_distance"]
            assert f"{value:.3g} ± " in page
            assert float(re.search(rf"{re.escape(f'{value:.3g}')} ± ([\d.]+)", page)[1]) == float(f"{error:.1g}")
    for text in (torch.__version__, "truncated_snr", f"{smoke.metrics['peak_memory_mb']:.0f} MB", "real against real"):
        assert text in page
    assert str(smoke.folder.home()) not in page.replace(str(smoke.folder), "")


def test_the_report_is_an_executed_notebook_without_errors(smoke):
    notebook = nbformat.read(smoke.folder / "report.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert {output.output_type for cell in cells for output in cell.outputs} <= {"display_data", "execute_result"}


def test_the_words_follow_the_figures():
    entry = {"ratio": 2.0, "ratio_standard_error": 0.25, "seconds_per_image": 1e-3}
    teacher = {"ratio": 1.0, "ratio_standard_error": 0.0, "seconds_per_image": 0.05}
    metrics = {
        "curves": {"distilled": {"1": entry, "4": teacher}, "ddim": {"1": entry | {"ratio": 90.0}, "4": teacher}}
    }
    assert "**2.00 ± 0.25 times** the teacher's distance at 4 steps" in reports.describe_quality(metrics)
    assert "is at 90.0 times" in reports.describe_quality(metrics)
    assert "**50 times**" in reports.describe_speed(metrics)
    rows = {"teacher": torch.zeros(2, 1, 2, 2), "one step": torch.full((2, 1, 2, 2), 0.5)}
    assert "one step: 0.500" in reports.describe_same_noise(rows)


def test_points_in_the_plane_get_a_report_too(tmp_path):
    run = execute(folder=tmp_path / "run", data="ring", progress=False, **TINY)
    page = write_report(run, "smoke", {"data": "ring", **{k: v for k, v in TINY.items() if k != "preset"}}, False)
    assert page == tmp_path / "run" / "report.html"
    assert "ring" in page.read_text()
    assert run.denoiser(1)(torch.zeros(5, 2), torch.ones(5)).shape == (5, 2)


# Stop and resume.


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return execute(folder=tmp_path_factory.mktemp("runs") / "whole", progress=False, **TINY)


DRIVER = """
import json, sys, torch
from pdlib import reports
torch.set_num_threads(1)
reports.execute(folder=sys.argv[1], progress=False, checkpoint_seconds=0.0, **json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "moment", ["teacher.checkpoint", "student-2.checkpoint", "student-1.checkpoint", "student-1", "metrics.json"]
)
def test_a_killed_run_goes_on_to_the_same_bits(moment, uninterrupted, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), json.dumps(TINY)])
    deadline = time.monotonic() + 120
    while not (folder / moment).exists():
        assert process.poll() is None, f"the run ended before there was {moment}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists() or not read_json(folder / "metrics.json")["complete"]
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*/model.safetensors")}
    left = {path.stem: read_tensors(path)[1]["update"] for path in folder.glob("*.checkpoint")}
    if moment.endswith(".checkpoint"):
        assert left[moment.removesuffix(".checkpoint")] > 0

    steps_taken = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: (steps_taken.append(1), step(self, *args))[1])
    run = execute(folder=folder, progress=False, **TINY)

    # Only what was left is trained, and what was finished is not written again.
    kept = [part.parent.name for part in finished]
    left = {name: update for name, update in left.items() if name not in kept}
    all_updates = {"teacher": 30, "student-2": 20, "student-1": 20}
    needed = sum(all_updates[name] for name in all_updates if name not in kept) - sum(left.values())
    assert len(steps_taken) == needed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for name in WEIGHTS:
        assert (folder / name).read_bytes() == (uninterrupted.folder / name).read_bytes()
    assert without_times(run.metrics) == without_times(uninterrupted.metrics)
    assert list(folder.glob("*.checkpoint")) + list(folder.rglob("*.part")) == []


def test_a_finished_run_is_opened_and_nothing_else(uninterrupted, monkeypatch):
    before = contents(uninterrupted.folder)
    monkeypatch.setattr(reports, "load_data", lambda name: pytest.fail("the data were loaded"))
    assert execute(folder=uninterrupted.folder, progress=False, **TINY).metrics == uninterrupted.metrics
    assert contents(uninterrupted.folder) == before


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    with lock_folder(folder), pytest.raises(BlockingIOError, match="is in use by another run"):
        execute(folder=folder, progress=False, **TINY)
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == []


def test_opening_a_run_gives_its_settings(uninterrupted, tmp_path):
    settings = {key: value for key, value in TINY.items() if key != "preset"}
    assert load_run(uninterrupted.folder) == Run(uninterrupted.folder, make_settings("smoke", **settings))
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)


# Other beginnings, and many runs.

ONE_CURVE = {key: value for key, value in TINY.items() if key != "preset"} | {"curves": ("distilled",)}


def test_a_given_teacher_is_distilled_and_kept_with_the_run(uninterrupted, tmp_path):
    source = uninterrupted.folder / "teacher"
    settings = TINY | {"teacher": str(source), "curves": ("distilled",)}
    run = execute(folder=tmp_path / "run", progress=False, **settings)
    for name in WEIGHTS:  # the same teacher and the same seed: the same students
        assert (run.folder / name).read_bytes() == (uninterrupted.folder / name).read_bytes()
    assert set(run.metrics["curves"]) == {"distilled"}
    assert run.metrics["training"]["teacher"]["updates"] == 30


def test_a_given_teacher_is_used_with_the_runs_schedule(uninterrupted, tmp_path):
    source = uninterrupted.folder / "teacher"
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((source / name).read_bytes())
    settings = TINY | {"teacher": str(tmp_path / "bare"), "log_snr_min": -6.0, "curves": ("distilled",)}
    run = execute(folder=tmp_path / "run", progress=False, **settings)
    for network in (run.teacher, run.denoiser(1)):
        assert network.schedule == CosineSchedule(log_snr_min=-6)
    assert run.metrics["training"]["teacher"] == {"seconds": 0, "updates": 0, "final_loss": None}
    page = write_report(run, "smoke", {k: v for k, v in settings.items() if k != "preset"}, False)
    assert "log_snr_min = -6.0" in page.read_text()


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


def test_students_may_predict_something_else_without_a_conversion(tmp_path):
    settings = TINY | {"student_prediction": "both", "curves": ("distilled",)}
    run = execute(folder=tmp_path / "run", progress=False, **settings)
    assert [Denoiser.load(run.folder / part).prediction for part in run.parts] == ["v", "both", "both"]


def test_the_off_by_one_grid_is_sampled_from_where_it_was_trained(tmp_path):
    run = execute(folder=tmp_path / "run", progress=False, **(TINY | {"skip_top": True, "end_steps": 2}))
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert len(list(run.sample(2, noise))) == 2  # z and one step, from t = 1/2 to 0
    rows, same = run.same_noise(3)
    *_, expected = sample(run.denoiser(2), 2, same, skip_top=True)
    assert torch.equal(rows["2 steps"], expected)
    found = reports.diagnose_run(run)
    assert {part: [finding.culprit for finding in part_found] for part, part_found in found.items()} == {
        "teacher": ["wrong top time"],
        "student-2": ["wrong top time"],
    }


def test_a_folder_older_than_a_setting_still_opens(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted.folder, folder)
    config = read_json(folder / "config.json")
    del config["skip_top"]
    (folder / "config.json").write_text(json.dumps(config))
    assert execute(folder=folder, progress=False, **TINY).finished
    refused(SettingsError, "skip_top=False there and True here", folder, skip_top=True, end_steps=2)
    (folder / "config.json").write_text(json.dumps(config | {"unheard_of": 1}))
    refused(SettingsError, "unheard_of=1 there and None here", folder)


def test_a_sweep_finishes_every_run_and_repeats_none(tmp_path):
    jobs = {f"seed-{seed}": {"seed": seed} for seed in (0, 1, 2)}
    runs = reports.sweep(jobs, tmp_path, "smoke", workers=2, progress=False, **ONE_CURVE)
    assert list(runs) == list(jobs)
    assert [run.settings.seed for run in runs.values()] == [0, 1, 2]
    before = contents(tmp_path)
    again = reports.sweep(jobs, tmp_path, "smoke", progress=False, **ONE_CURVE)
    assert again == runs
    assert contents(tmp_path) == before
    alone = execute("smoke", tmp_path / "alone", progress=False, seed=1, **ONE_CURVE)
    for name in WEIGHTS:  # a run is the same in a sweep and by itself
        assert (alone.folder / name).read_bytes() == (runs["seed-1"].folder / name).read_bytes()

    means = reports.mean_by_steps(runs.values())
    values = [run.metrics["curves"]["distilled"]["2"]["frechet_distance"][0] for run in runs.values()]
    assert means[2] == pytest.approx((np.mean(values), np.std(values, ddof=1) / 3**0.5))
    ratios = reports.mean_by_steps(runs.values(), "ratio")
    assert ratios[4] == (1, 0)
    table = reports.chains_table({"all": ratios})
    assert table.splitlines()[0] == "| chain | 4 steps | 2 steps | one step |"
    assert "| all | 1 ± 0 |" in table


def test_a_sweep_with_a_bad_run_starts_none(tmp_path):
    with pytest.raises(SettingsError, match="weighting='sn' is unknown"):
        reports.sweep({"good": {}, "bad": {"weighting": "sn"}}, tmp_path / "sweep", "smoke")
    assert not (tmp_path / "sweep").exists()


def test_a_claim_that_fails_stops_only_where_it_is_required(capsys):
    reports.claim("one is less than two", 1 < 2)
    reports.claim("two is less than one", 2 < 1, required=False)
    assert capsys.readouterr().out == ("holds: one is less than two\ndoes not hold in this run: two is less than one\n")
    with pytest.raises(AssertionError, match="does not show that two is less than one"):
        reports.claim("two is less than one", 2 < 1)


def test_runs_are_kept_in_one_place_also_from_a_folder_below(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert str(reports.default_folder("smoke", seed=1)) == "runs/smoke-seed=1"
    (tmp_path / "runs").mkdir()
    assert str(reports.default_folder("smoke", seed=1)) == "../runs/smoke-seed=1"
    (tmp_path / "notebooks" / "runs").mkdir()
    assert str(reports.default_folder("smoke", seed=1)) == "runs/smoke-seed=1"


# Bad input: before any training, and nothing written.


def refused(error, match, folder, **overrides):
    before = contents(folder) if folder.exists() else None
    with pytest.raises(error, match=match):
        execute(folder=folder, progress=False, **(TINY | overrides))
    assert (contents(folder) if folder.exists() else None) == before


@pytest.mark.parametrize(
    ("shape", "match"),
    [((20, 7, 7), "height and width must divide by 2"), ((20, 5), r"has shape \(20, 5\)"), ((20, 4, 8, 8), "1 or 3")],
)
def test_data_of_the_wrong_shape_are_refused(shape, match, tmp_path):
    np.save(tmp_path / "data.npy", np.zeros(shape, np.float32))
    refused(DataError, match, tmp_path / "run", data=str(tmp_path / "data.npy"))


def test_data_with_nan_are_refused(tmp_path):
    x = np.zeros((20, 8, 8), np.float32)
    x[3, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    message = "NaN or infinite values in 1 of 20 examples.*index 3"
    refused(DataError, message, tmp_path / "run", data=str(tmp_path / "x.npy"))


def test_a_folder_of_another_run_is_refused_and_untouched(uninterrupted):
    refused(SettingsError, "other settings .seed=0 there and 5 here", uninterrupted.folder, seed=5)


def test_a_teacher_of_another_kind_is_refused(uninterrupted, tmp_path):
    teacher = str(uninterrupted.folder / "teacher")
    message = "prediction='x', but the teacher in .* predicts 'v': use prediction=v"
    refused(SettingsError, message, tmp_path / "run", teacher=teacher, prediction="x")
    refused(
        SettingsError,
        "takes examples of 1 channels, and data='ring' has 2",
        tmp_path / "run",
        teacher=teacher,
        data="ring",
    )
    refused(FileNotFoundError, "nowhere holds no saved denoiser", tmp_path / "run", teacher="nowhere")


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(SettingsError, "is not empty and holds no run", tmp_path)


def test_a_full_disk_is_refused_at_the_start(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(reports.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    refused(OSError, "the disk has 1 MB free and the run needs .* MB", tmp_path / "run")


def test_a_disk_that_fills_up_loses_nothing(uninterrupted, tmp_path, monkeypatch):
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
    for name in WEIGHTS:
        assert (tmp_path / "run" / name).read_bytes() == (uninterrupted.folder / name).read_bytes()


@pytest.fixture
def half_done(tmp_path, monkeypatch):
    """A run stopped in the middle of its first stage."""
    calls, loss = [], pdlib.distillation.distillation_loss

    def interrupt(*args):
        calls.append(1)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pdlib.distillation, "distillation_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(folder=tmp_path / "run", progress=False, checkpoint_seconds=0.0, **TINY)
    return tmp_path / "run"


@pytest.mark.parametrize("how", ["truncated", "tampered"])
@pytest.mark.parametrize("name", ["teacher/model.safetensors", "student-2.checkpoint"])
def test_a_damaged_file_of_a_run_is_named(half_done, name, how):
    path = half_done / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content if how == "tampered" else content[: len(content) // 2])
    refused(DamagedFileError, f"{path.name} (is damaged|was changed)", half_done)


def test_settings_that_are_no_json_are_named(half_done):
    (half_done / "config.json").write_text('{"data": "dig')
    refused(DamagedFileError, "config.json is damaged", half_done)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(half_done, uninterrupted, monkeypatch):
    checkpoint = (half_done / "student-2.checkpoint").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pdlib.distillation, "weighted_loss", lambda x_hat, *rest: x_hat.mean() * float("nan"))
        with pytest.raises(NotFiniteError, match=r"student-2: at update 10 the loss is nan.*checkpoint is kept"):
            execute(folder=half_done, progress=False, **TINY)
    assert (half_done / "student-2.checkpoint").read_bytes() == checkpoint
    execute(folder=half_done, progress=False, **TINY)
    for name in WEIGHTS:
        assert (half_done / name).read_bytes() == (uninterrupted.folder / name).read_bytes()
