import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from pdlib import cli
from pdlib.cli import main
from pdlib.files import lock_folder
from pdlib.reports import execute


def refused(capsys, *arguments):
    """The one line of a command that is refused."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("pdlib: ")
    return line


# pdlib run.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "fast"], ["preset='fast'", "default, smoke"]),
        (["--data", "digit"], ["data='digit'", "digits, moons"]),
        (["--set", "stage_update=5"], ["stage_update", "did you mean 'stage_updates'"]),
        (["--set", "stage_updates"], ["--set stage_updates", "key=value"]),
        (["--set", "stage_updates=few"], ["stage_updates='few'", "whole number"]),
        (["--set", "steps=48"], ["steps=48", "end_steps=1"]),
        (["--set", "prediction=eps"], ["prediction='eps'", "α_1 = 0", "use prediction v, x or both"]),
        (["--set", "weighting=sn"], ["weighting='sn'", "truncated_snr"]),
        (["--set", "schedule=cosin"], ["schedule='cosin'", "linear"]),
        (["--sett", "seed=1"], ["unrecognized arguments: --sett", "--help"]),
    ],
)
def test_a_bad_argument_gets_one_line_and_writes_nothing(arguments, named, capsys, tmp_path):
    folder = tmp_path / "run"
    line = refused(capsys, "run", "--folder", folder, *arguments)
    for part in named:
        assert part in line
    assert not folder.exists()


def test_bad_data_get_one_line_and_write_nothing(capsys, tmp_path):
    x = np.zeros((20, 8, 8), np.float32)
    x[3] = np.inf
    np.save(tmp_path / "x.npy", x)
    line = refused(capsys, "run", "--folder", tmp_path / "run", "--data", tmp_path / "x.npy")
    assert "x.npy' has NaN or infinite values in 1 of 20 examples" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_settings_gets_one_line(smoke, capsys):
    line = refused(capsys, "run", "--preset", "smoke", "--folder", smoke.folder, "--set", "seed=3")
    assert "seed=0 there and 3 here" in line
    assert "nothing was written" in line


def test_a_second_run_gets_one_line(capsys, tmp_path):
    with lock_folder(tmp_path / "run"):
        line = refused(capsys, "run", "--preset", "smoke", "--folder", tmp_path / "run")
    assert "is in use by another run" in line


def test_the_command_and_the_module_are_the_same(tmp_path):
    command = ["run", "--set", "prediction=eps", "--folder", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "pdlib", *command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "prediction='eps'" in done.stderr


def test_a_run_that_is_finished_says_where_its_page_is_once_more(smoke, capsys):
    before = {path: path.stat().st_mtime_ns for path in smoke.folder.glob("*/model.safetensors")}
    assert main(["run", "--preset", "smoke", "--folder", str(smoke.folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(smoke.folder / "report.html")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_data_and_settings_reach_the_run(monkeypatch, capsys):
    from pdlib import reports

    monkeypatch.setattr(reports, "run", lambda *args, **kwargs: (args, kwargs))
    main(["run", "--data", "moons", "--set", "stage_updates=1200", "--set", "prediction=x", "--preset", "smoke"])
    expected = (("smoke", None), {"stage_updates": 1200, "prediction": "x", "data": "moons"})
    assert capsys.readouterr().out.strip() == str(expected)


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(chosen):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert main(["run"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


# pdlib sample.


@pytest.mark.parametrize(("part", "steps"), [("", None), ("", 4), ("student-2", None), ("teacher", 3)])
def test_samples_are_drawn_from_a_run_or_a_denoiser(part, steps, smoke, tmp_path, capsys):
    output = tmp_path / "samples.png"
    more = [] if steps is None else ["--steps", str(steps)]
    assert main(["sample", str(smoke.folder / part), "--count", "10", "--output", str(output), *more]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert imread(output).shape[:2] == (8 * 17, 8 * 71)  # two rows of eight, with gaps of a pixel


def test_the_seed_decides_the_samples(smoke, tmp_path):
    pictures = []
    for seed in (0, 0, 1):
        main(["sample", str(smoke.folder), "--count", "4", "--output", str(tmp_path / "s.png"), "--seed", str(seed)])
        pictures.append((tmp_path / "s.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    ("part", "arguments", "message"),
    [
        ("", ["--steps", "3"], r"--steps 3: .* has networks for \[8, 4, 2, 1\] steps"),
        ("", ["--count", "0"], "--count 0: must be at least 1"),
        ("teacher", [], "--steps: say with how many steps"),
        ("nowhere", [], "nowhere"),
    ],
)
def test_what_cannot_be_sampled_gets_one_line(part, arguments, message, smoke, tmp_path, capsys):
    line = refused(capsys, "sample", smoke.folder / part, "--output", tmp_path / "s.png", *arguments)
    assert re.search(message, line)
    assert not (tmp_path / "s.png").exists()


# pdlib evaluate.


def test_the_figures_are_printed(smoke, capsys):
    assert main(["evaluate", str(smoke.folder)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "distilled" in head
    assert [int(row.split()[0]) for row in rows] == [8, 4, 2, 1]
    value, error = smoke.metrics["curves"]["distilled"]["1"]["frechet_distance"]
    assert f"{value:.2f} ± {error:.2f}" in rows[-1]


def test_a_run_that_is_not_finished_gets_one_line(smoke, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((smoke.folder / "config.json").read_bytes())
    assert "is not finished" in refused(capsys, "evaluate", tmp_path)
    assert "holds no run" in refused(capsys, "evaluate", tmp_path / "nowhere")


# pdlib diagnose.


def test_a_healthy_run_is_called_so(smoke, capsys):
    assert main(["diagnose", str(smoke.folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{part}: healthy" for part in smoke.parts]
    assert main(["diagnose", str(smoke.folder / "student-2")]) == 0
    assert capsys.readouterr().out == "student-2: healthy\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"skip_top": True}, "student-2: wrong top time: the highest time in training is t = 0.5, where α = 0.71"),
        ({"weighting": "snr"}, "student-2: dead steps: of 2 steps 1 gets less than 1 % of the fair share"),
    ],
)
def test_an_ill_student_is_named_with_the_figure_that_gives_it_away(settings, said, tmp_path, capsys):
    few = {"steps": 4, "end_steps": 2, "width": 8, "batch_size": 16, "teacher_updates": 5, "stage_updates": 5}
    execute("smoke", tmp_path / "run", progress=False, few_step_updates=5, images_per_seed=65, **few, **settings)
    assert main(["diagnose", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(said)


def test_a_folder_without_networks_cannot_be_diagnosed(capsys, tmp_path):
    assert "holds no run" in refused(capsys, "diagnose", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "holds no finished network yet" in refused(capsys, "diagnose", tmp_path)
