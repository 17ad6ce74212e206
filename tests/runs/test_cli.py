import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from matplotlib.image import imread

import pdlib
from pdlib.files import lock_folder
from pdlib.grids import Grid
from pdlib.metrics import METRICS
from pdlib.networks import MLP
from pdlib.runs import cli, report
from pdlib.runs.cli import main
from pdlib.runs.run import execute
from pdlib.runs.settings import Settings

TINY = {"steps": 4, "width": 8, "batch_size": 16, "teacher_updates": 5, "stage_updates": 5, "images_per_seed": 65}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run that was converted, without a report."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return execute("smoke", folder, progress=False, student_prediction="both", convert_updates=5, **TINY)


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


def command(*arguments, **environment):
    """The command in a process of its own."""
    environment = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-m", "pdlib", *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


# Help.


def printed(capsys, *arguments):
    try:
        assert main(list(arguments)) == 0
    except SystemExit as exit:
        assert exit.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_alone_it_is_a_help_with_examples(capsys):
    said = printed(capsys)
    assert said == printed(capsys, "--help")
    examples = re.findall(r"^  (pdlib .*?)  ", said, re.MULTILINE)
    assert len(examples) == 4
    for name in ("run", "sample", "evaluate", "diagnose", "export", "settings"):
        assert f"    {name} " in said


def test_the_version(capsys):
    assert printed(capsys, "--version") == f"pdlib {pdlib.__version__}\n"


def test_the_help_of_run_lists_every_setting(capsys):
    said = printed(capsys, "run", "--help")
    for name, field in Settings.model_fields.items():
        assert re.search(rf"^  {name}=.* {re.escape(field.description)}; ", said, re.MULTILINE)


def test_the_settings_are_listed_with_default_meaning_and_range(capsys):
    lines = printed(capsys, "settings").splitlines()
    assert [line.split("=")[0].strip() for line in lines] == list(Settings.model_fields)
    (line,) = printed(capsys, "settings", "weighting").splitlines()
    assert re.fullmatch(r"  weighting=truncated_snr +loss weighting .*; one of constant, snr, .*", line)
    assert "multipliers=1,2 " in printed(capsys, "settings", "multipliers")
    assert "did you mean 'steps'" in refused(capsys, "settings", "step")


def test_no_help_imports_torch():
    code = "import sys; from pdlib.runs.cli import main\n"
    code += "try:\n main(sys.argv[1:])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    for arguments in ([], ["--version"], ["run", "--help"], ["sample", "--help"]):
        assert subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True).returncode == 0


def test_the_command_and_the_module_are_the_same():
    done = command("run", "--set", "steps=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pdlib: steps='x': must be a whole number from 1 to 65,536\n"


def test_a_terminal_without_greek_gets_what_it_can_show():
    done = command("run", "--help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "?_1 of a cosine schedule" in done.stdout
    done = command("run", "--set", "ε=1", PYTHONIOENCODING="ascii")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m pdlib run --help | true", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""


# pdlib run.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "fast"], ["preset='fast'", "default, smoke"]),
        (["--data", "digit"], ["data='digit'", "digits, moons"]),
        (["--data="], ["data=''"]),
        (["--set", "stage_update=5"], ["stage_update", "did you mean 'stage_updates'"]),
        (["--set", "stage_updates"], ["--set stage_updates", "key=value"]),
        (["--set", "stage_updates=few"], ["stage_updates='few'", "whole number"]),
        (["--set", "steps=48"], ["steps=48", "end_steps=1"]),
        (["--set", "prediction=eps"], ["prediction='eps'", "α_1 = 0", "use prediction x, v, both"]),
        (["--set", "weighting=sn"], ["weighting='sn'", "truncated_snr"]),
        (["--set", "device=gpu"], ["device='gpu'", "cpu"]),
        (["--set", "width=7"], ["width=7", "use width=8"]),
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


def test_a_folder_of_other_settings_gets_one_line(tiny, capsys):
    line = refused(capsys, "run", "--preset", "smoke", "--folder", tiny.folder, "--set", "seed=3")
    assert "4 there and 8 here" in line
    assert "nothing was written" in line


def assignments(tiny):
    """What the command is to be given for that run."""
    settings = {**TINY, "student_prediction": "both", "convert_updates": 5}
    return ["run", "--preset", "smoke", "--folder", str(tiny), *(f"--set={key}={settings[key]}" for key in settings)]


def test_a_second_run_gets_one_line(tiny, capsys, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    with lock_folder(tmp_path):
        assert "is in use by another run" in refused(capsys, *assignments(tmp_path))


def test_a_run_that_is_finished_says_where_its_page_is_once_more(smoke, capsys):
    before = {path: path.stat().st_mtime_ns for path in smoke.folder.glob("*/model.safetensors")}
    assert main(["run", "--preset", "smoke", "--folder", str(smoke.folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(smoke.folder / "report.html")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_data_and_settings_reach_the_run_as_what_they_are(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(report, "run", lambda *args, **kwargs: (args, kwargs))
    main(["run", "--data", "moons", "--set", "steps=8", "--set", "steps=16", "--set", "multipliers=1,2,2"])
    folder = pdlib.runs.default_folder(data="moons", steps=16, multipliers=(1, 2, 2))
    expected = (("default", folder), {"steps": 16, "multipliers": (1, 2, 2), "data": "moons"})
    assert capsys.readouterr().out.strip() == str(expected)
    main(["run", "--folder", "~/a"])
    assert str(tmp_path.home() / "a") in capsys.readouterr().out


# Whatever ends it, it is one line.


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([], "; nothing is kept yet"),
        (["teacher/model.safetensors"], "; the same command goes on from the last network"),
        (["teacher/model.safetensors", "student-4.checkpoint"], "; the same command goes on from the last checkpoint"),
    ],
)
def test_an_interrupted_run_says_from_where_it_goes_on(kept, said, monkeypatch, tmp_path):
    def interrupt(preset, folder):
        for name in kept:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(["run", "--folder", str(tmp_path / "run")])
    assert cli.kept() == said


LATE = """
import sys, time
import pdlib.__main__, pdlib.runs.cli

def work(chosen):
    pdlib.runs.cli._at_work[:] = [chosen.folder]
    print("at work", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("a traceback of", "many\\nlines", file=sys.stderr)
        raise ImportError("numpy could not be imported") from None

pdlib.runs.cli._run = work
pdlib.__main__.main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line_whatever_libraries_make_of_it(how, tmp_path):
    program = [sys.executable, "-c", LATE, "run", "--folder", str(tmp_path)]
    (tmp_path / "teacher.checkpoint").touch()
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "pdlib: stopped; the same command goes on from the last checkpoint\n")


def test_a_signal_while_torch_is_imported_ends_it_with_one_line(tmp_path):
    program = [sys.executable, "-X", "importtime", "-m", "pdlib", "settings", "schedule"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "torch" in line:
                break
        process.send_signal(signal.SIGINT)
        *_, last = process.communicate(timeout=60)[1].splitlines()
    assert (process.returncode, last) == (130, "pdlib: stopped")


def test_a_signal_while_the_report_is_written_ends_it_with_one_line(tmp_path):
    arguments = ["--preset", "smoke", "--data", "ring", "--folder", tmp_path / "run"]
    program = [sys.executable, "-m", "pdlib", "run", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("this run takes about 00:0")
        assert re.match(r"[\d.]+ .?FLOP, about \d+ MB of memory, \d+ MB of disk", process.stderr.readline())
        assert process.stderr.readline().startswith("trying it once, report included")
        while not any("ipykernel_launcher" in child.cmdline() for child in psutil.Process(process.pid).children()):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(1.5)  # it is in the midst of a cell
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, ("", "pdlib: stopped; nothing is kept yet\n"))
    assert not (tmp_path / "run").exists()


class LibraryError(Exception):
    """One that no base class of Python's tells."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory: ask for a smaller --count"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            "out of memory: .*8 bytes",
        ),
        (OSError(28, "No space left on device"), r"RUN: No space left on device"),
        (OSError(13, "Permission denied", "a/b"), "a/b: Permission denied"),
        (ValueError("two\nlines"), "two lines"),
        (report.ReportError("the run in x is finished and kept"), "the run in x is finished and kept"),
        (KeyError("x"), "KeyError: 'x'; pdlib did not expect this: PDLIB_DEBUG=1 shows where it comes from"),
        (LibraryError("a\nb"), "LibraryError: a b; pdlib did not expect this"),
        (RuntimeError("x" * 9999), "RuntimeError: x{600}; "),
    ],
)
def test_no_exception_is_a_traceback(error, said, monkeypatch, capsys):
    def fail(chosen):
        raise error

    monkeypatch.setattr(cli, "_evaluate", fail)
    assert re.match(f"pdlib: {said}", refused(capsys, "evaluate", "RUN"))
    monkeypatch.setenv("PDLIB_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["evaluate", "RUN"])


# pdlib sample.


@pytest.mark.parametrize(
    ("part", "steps"), [("", None), ("", 4), ("student-2", None), ("student-1", 3), ("teacher", None), ("converted", 3)]
)
def test_samples_are_drawn_from_a_run_or_a_network_of_it(part, steps, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr("pdlib.runs.run.load_data")  # the data need not be there
    output = tmp_path / "samples.png"
    more = [] if steps is None else ["--steps", str(steps)]
    assert main(["sample", str(tiny.folder / part), "--count", "10", "--output", str(output), *more]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert imread(output).shape[:2] == (8 * 17, 8 * 71)  # two rows of eight, with gaps of a pixel


def test_a_denoiser_of_its_own_is_sampled_on_its_own_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    denoiser = pdlib.Denoiser(MLP(2, width=8), "v", pdlib.CosineSchedule(), Grid(2), (2,))
    denoiser.save("mine")
    drawn = []
    monkeypatch.setattr("pdlib.plots.save_image_grid", lambda samples, path: drawn.append(samples))
    assert main(["sample", "mine", "--count", "5", "--seed", "3"]) == 0
    expected = pdlib.sample_batches(denoiser, 5, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn[0], expected)
    assert capsys.readouterr().out == "samples.png\n"
    pdlib.Denoiser(MLP(2, width=8), "v", pdlib.CosineSchedule()).save("bare")
    assert "bare does not say of what shape" in refused(capsys, "sample", "bare")


def test_the_seed_decides_the_samples(tiny, tmp_path):
    pictures = []
    for seed in (0, 0, 1):
        where = [str(tiny.folder / "teacher"), "--output", str(tmp_path / "s.png")]
        assert main(["sample", *where, "--count", "4", "--seed", str(seed)]) == 0
        pictures.append((tmp_path / "s.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    ("part", "arguments", "message"),
    [
        ("", ["--steps", "3"], r"--steps 3: .* has networks for \[4, 2, 1\] steps"),
        ("", ["--steps", "0"], "--steps 0: .* has networks for"),
        ("student-2", ["--steps", "0"], "--steps 0: must be a whole number from 1 to 65536"),
        ("student-2", ["--steps", "9999999999999"], "--steps 9999999999999: must be a whole number from 1"),
        ("", ["--count", "0"], "--count 0: must be a whole number from 1 to 16384"),
        ("", ["--count", "1000000000"], "--count 1000000000: must be a whole number from 1 to 16384"),
        ("", ["--count", "many"], "--count: invalid int value: 'many'"),
        ("", ["--seed", "-1"], "--seed -1: must be a whole number from 0"),
        ("", ["--seed", str(2**64)], "--seed .*: must be a whole number from 0"),
        ("nowhere", [], "nowhere"),
    ],
)
def test_what_cannot_be_sampled_gets_one_line(part, arguments, message, tiny, tmp_path, capsys):
    line = refused(capsys, "sample", tiny.folder / part, "--output", tmp_path / "s.png", *arguments)
    assert re.search(message, line)
    assert not (tmp_path / "s.png").exists()


@pytest.mark.parametrize("name", ["o.xyz", "o", "", "there/o.png", "folder.png"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_drawn(name, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(pdlib.runs.cli, "_opened")
    (tmp_path / "folder.png").mkdir()
    assert f"--output {tmp_path / name}" in refused(capsys, "sample", "x", "--output", f"{tmp_path}/{name}")


def test_a_full_disk_leaves_no_picture(tiny, tmp_path, capsys, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(capsys, "sample", tiny.folder, "--output", tmp_path / "s.png")
    assert f"{tmp_path / 's.png'}: could not write (No space left on device)" in line
    assert list(tmp_path.iterdir()) == []


# pdlib evaluate.


def test_the_figures_are_printed(tiny, capsys):
    assert main(["evaluate", str(tiny.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 * len(METRICS)
    for (name, metric), (head, *rows) in zip(METRICS.items(), zip(*[iter(lines)] * 4, strict=True), strict=True):
        assert "distilled" in head
        assert head.endswith(f"{metric.label} ± standard error, {metric.better} is better")
        assert [int(row.split()[0]) for row in rows] == [4, 2, 1]
        value, error = map(float, rows[-1].split()[1::2][:2])
        assert [value, error] == pytest.approx(tiny.metrics["curves"]["distilled"]["1"][name], rel=0.06, abs=1e-6)


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ((0.0123456, 0.00012), "0.01235 ± 0.00012"),
        ((12.3456, 0.2), "12.35 ± 0.20"),
        ((388415904.0, 29359088.0), "388415904 ± 29359088"),
        ((0.5, 0.0), "0.500000 ± 0.000000"),
        ((None, None), "none"),
    ],
)
def test_a_figure_has_the_digits_of_its_error(figure, text):
    assert cli._with_error(*figure) == text


def test_a_run_that_is_not_finished_gets_one_line(tiny, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    assert "is not finished" in refused(capsys, "evaluate", tmp_path)
    assert "holds no run" in refused(capsys, "evaluate", tmp_path / "nowhere")


# pdlib diagnose.


def test_a_healthy_run_is_called_so(tiny, capsys):
    assert tiny.parts == ["teacher", "converted", "student-2", "student-1"]
    assert main(["diagnose", str(tiny.folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{part}: healthy" for part in tiny.parts]


@pytest.mark.parametrize("part", ["teacher", "converted", "student-2"])
def test_a_network_is_diagnosed_alone(part, tiny, tmp_path, capsys):
    assert main(["diagnose", str(tiny.folder / part)]) == 0
    assert capsys.readouterr().out == f"{part}: healthy\n"
    tiny.open(part).save(tmp_path / "elsewhere")
    assert main(["diagnose", str(tmp_path / "elsewhere")]) == 0
    assert capsys.readouterr().out == "elsewhere: healthy\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"missing": 1}, "student-2: wrong top time: the highest time in training is t = 0.5, where α = 0.71"),
        ({"weighting": "snr"}, "student-2: dead steps: of 2 steps 1 gets less than 1 % of the fair share"),
    ],
)
def test_an_ill_student_is_named_with_the_figure_that_gives_it_away(settings, said, tmp_path, capsys):
    execute("smoke", tmp_path / "run", progress=False, end_steps=2, discrete_teacher=True, **TINY, **settings)
    assert main(["diagnose", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(said)
    assert main(["diagnose", str(tmp_path / "run" / "student-2")]) == 1
    assert capsys.readouterr().out.startswith(said)


def test_a_folder_without_networks_cannot_be_diagnosed(capsys, tmp_path):
    assert "holds no run" in refused(capsys, "diagnose", tmp_path)
    (tmp_path / "config.json").write_text('{"data": "digits"}')
    assert "holds no finished network yet" in refused(capsys, "diagnose", tmp_path)
