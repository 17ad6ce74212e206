"""Many runs side by side, whatever happens to the processes that compute them."""

import contextlib
import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from distributed import LocalCluster
from tiny_run import TINIEST, contents, same_networks

from pdlib.runs import cli
from pdlib.runs.compare import Compared, compare
from pdlib.runs.report import chains_table
from pdlib.runs.run import execute
from pdlib.runs.settings import SettingsError
from pdlib.runs.sweep import _finish, _opened, cells, mean_by_steps, read_grid, sweep

RING = {key: value for key, value in TINIEST.items() if key != "preset"} | {"data": "ring"}
NETWORKS = ["teacher/model.safetensors", "student-1/model.safetensors"]
SEEDS = {f"seed-{seed}": {"seed": seed} for seed in (0, 1, 2)}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, own_cache):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(SEEDS, folder, "smoke", workers=2, progress=False, **RING)


def test_it_finishes_every_run_and_repeats_none(swept):
    folder, runs = swept
    assert list(runs) == list(SEEDS)
    assert [run.settings.seed for run in runs.values()] == [0, 1, 2]
    before = contents(folder)
    assert sweep(SEEDS, folder, "smoke", progress=False, **RING) == runs
    assert contents(folder) == before


def test_a_run_is_the_same_in_a_sweep_and_by_itself(swept, tmp_path):
    _, runs = swept
    alone = execute("smoke", tmp_path / "alone", progress=False, seed=1, **RING)
    assert same_networks(alone.folder, runs["seed-1"].folder, NETWORKS)


def test_means_and_their_errors_are_over_the_runs(swept):
    _, runs = swept
    values = [run.metrics["curves"]["distilled"]["1"]["frechet_distance"][0] for run in runs.values()]
    assert mean_by_steps(runs.values())[1] == pytest.approx((np.mean(values), np.std(values, ddof=1) / 3**0.5))
    ratios = mean_by_steps(runs.values(), "ratio")
    assert ratios[2] == (1, 0)
    heading, _, row = chains_table({"all": ratios}).splitlines()
    assert heading == "| chain | 2 steps | one step |"
    assert row.startswith("| all | 1 ± 0 |")
    one = mean_by_steps([runs["seed-0"]])
    assert np.isnan(one[1][1])
    assert "±" not in chains_table({"one run has no error": one})


def test_a_bad_run_starts_none(tmp_path):
    with pytest.raises(SettingsError, match="weighting='sn' is unknown"):
        sweep({"good": {}, "bad": {"weighting": "sn"}}, tmp_path / "sweep", "smoke")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="is not empty and holds no run"):
        sweep({"good": {}, "other": {}}, tmp_path, "smoke")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_run_that_fails_is_named_and_the_finished_are_kept(tmp_path):
    np.save(tmp_path / "x.npy", np.full((20, 2), np.nan))
    jobs = {"good": {}, "bad": {"data": str(tmp_path / "x.npy")}}
    with pytest.raises(ValueError, match=r"x.npy' has NaN or infinite values"):
        sweep(jobs, tmp_path / "sweep", "smoke", workers=1, progress=False, **RING)
    assert sweep({"good": {}}, tmp_path / "sweep", "smoke", workers=1, progress=False, **RING)["good"].finished


def killed(folder, times):
    """A sweep whose workers are killed, as often as ``times`` goes on, when one is at work; its runs, or its error."""
    with ThreadPoolExecutor() as pool:
        result = pool.submit(sweep, {"a": {}, "b": {"seed": 1}}, folder, "smoke", workers=2, progress=False, **RING)
        for _ in times:
            while not (workers := at_work(folder)) and not result.done():
                time.sleep(0.01)
            if result.done():
                break
            for worker in workers:
                worker.kill()
            psutil.wait_procs(workers)
        return result.result(timeout=120)


def at_work(folder):
    """The processes below this one that hold a run's lock."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in file.path and file.path.endswith(".lock") for file in process.open_files()):
                found.append(process)
    return found


def test_a_worker_that_is_killed_is_replaced(swept, tmp_path):
    runs = killed(tmp_path, range(1))
    assert all(run.finished for run in runs.values())
    assert same_networks(runs["b"].folder, swept[1]["seed-1"].folder, NETWORKS)


def test_workers_that_are_killed_again_and_again_end_it_with_one_line(tmp_path):
    with pytest.raises(MemoryError, match=r"killed at it again and again.*fewer than workers=2") as caught:
        killed(tmp_path, itertools.count())
    assert "\n" not in str(caught.value)
    left = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert [command for command in left if "resource_tracker" not in command] == []


SWEEP = """
import json, sys
from pdlib.runs.sweep import sweep
if __name__ == "__main__":
    sweep({"a": {}, "b": {"seed": 1}}, sys.argv[1], "smoke", workers=2, progress=False, **json.loads(sys.argv[2]))
"""


def test_its_workers_end_with_it_and_it_can_be_started_again(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    longer = RING | {"teacher_updates": 10**6}
    process = subprocess.Popen([sys.executable, tmp_path / "sweep.py", tmp_path / "runs", json.dumps(longer)])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/*/config.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_a_scheduler_that_is_not_there_is_a_line(tmp_path):
    with pytest.raises(ConnectionError, match=r"scheduler=tcp://127.0.0.1:9: there is none that answers") as caught:
        sweep(SEEDS, tmp_path, "smoke", scheduler="tcp://127.0.0.1:9", progress=False, **RING)
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_goes_away_in_the_middle_is_a_line(tmp_path):
    longer = RING | {"teacher_updates": 10**6}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        ThreadPoolExecutor() as pool,
    ):
        where = cluster.scheduler_address
        result = pool.submit(sweep, {"a": {}}, tmp_path, "smoke", scheduler=where, progress=False, **longer)
        while not (tmp_path / "a" / "config.json").is_file() and not result.done():
            time.sleep(0.01)
        cluster.close()
        with pytest.raises(ConnectionError, match=r"went away; what is finished is kept: start it again") as caught:
            result.result(timeout=60)
    assert "\n" not in str(caught.value)


def test_the_device_is_the_workers_where_they_are_elsewhere(tmp_path):
    """A cluster has the GPUs that the machine which starts the sweep has not: it asks for none."""
    (tmp_path / "grid.yaml").write_text("{settings: {device: nonsense}, grid: {seed: [0]}}")
    assert read_grid(tmp_path / "grid.yaml")["settings"] == {"device": "nonsense"}
    runs = _opened(SEEDS, tmp_path, "smoke", RING | {"device": "nonsense"}, elsewhere=True)
    assert {run.settings.device for run in runs.values()} == {"nonsense"}
    with pytest.raises(SettingsError, match="device='nonsense' does not work here"):
        _finish(runs["seed-0"])
    with pytest.raises(SettingsError, match="device='nonsense' does not work here"):
        sweep(SEEDS, tmp_path / "runs", "smoke", **RING, device="nonsense")


# A grid, from a file, as the command runs it.


@pytest.fixture(scope="module")
def grid(tmp_path_factory, own_cache):
    """A grid with two cells that fail, swept by the command; the folder, the file, and what it printed."""
    folder = tmp_path_factory.mktemp("grid")
    np.save(folder / "bad.npy", np.full((20, 2), np.nan))
    few = {key: value for key, value in RING.items() if key != "data"} | {"noise_seeds": 2, "curves": ["distilled"]}
    about = {"preset": "smoke", "settings": few, "grid": {"data": ["ring", str(folder / "bad.npy")], "seed": [0, 1]}}
    (folder / "grid.yaml").write_text(json.dumps(about))  # which is YAML too
    command = [sys.executable, "-m", "pdlib", "sweep", folder / "grid.yaml", "--folder", folder / "runs"]
    return folder, command, subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_where_cells_fail_the_others_go_on_and_a_notebook_holds_the_error(grid):
    folder, _, done = grid
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("pdlib: ")]
    assert len(lines) == 2
    assert all("has NaN or infinite values in 20 of 20 examples" in line for line in lines)
    assert done.stdout.strip() == str(folder / "runs" / "compare.html")
    failed = [path for path in (folder / "runs").iterdir() if "bad.npy" in path.name]
    assert len(failed) == 2
    for path in failed:
        assert [file.name for file in path.iterdir() if file.name != ".lock"] == ["report.ipynb"]
        assert "DataError" in (path / "report.ipynb").read_text()
    assert (folder / "runs" / "data=ring,seed=1" / "report.html").is_file()


def test_the_page_compares_what_is_finished_and_names_what_is_not(grid):
    folder, *_ = grid
    found = compare(folder / "runs")
    assert found.varied == ["data"]
    assert list(found.runs) == ["data=ring,seed=0", "data=ring,seed=1"]
    assert "2 of 4 runs are finished" in found.describe()
    assert found.describe().count("is missing: DataError: data=") == 2
    (row,) = found.rows.items()
    assert row[0] == "data = ring"
    assert len(row[1]) == 2
    page = (folder / "runs" / "compare.html").read_text()
    assert "data%3Dring%2Cseed%3D1/report.html" in page
    assert "<img" in page


def test_started_again_it_does_only_what_is_missing(grid):
    folder, command, _ = grid
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*ring*/*")}
    np.save(folder / "bad.npy", np.random.default_rng(0).uniform(-1, 1, (200, 2)))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*ring*/*")} == before
    found = compare(folder / "runs")
    assert len(found.runs) == 4
    assert found.missing == {}
    ranked, paired = found.ranked().splitlines(), found.paired().splitlines()
    assert len(ranked) == 4
    assert paired[2].startswith("| data: ")
    assert "instead of ring | 2 | × " in paired[2]
    distances = [
        [run.metrics["curves"]["distilled"]["1"]["frechet_distance"][0] for run in runs] for runs in found.rows.values()
    ]
    assert np.mean(distances[0]) < np.mean(distances[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {seed: [0", "cannot be read as YAML"),
        ("preset: smoke", "holds no grid: write it as preset: smoke"),
        ("grid: {}", "holds no grid"),
        ("{grid: {seed: [0]}, sead: 1}", "has an entry 'sead', which means nothing"),
        ("{settings: {seed: 1}, grid: {seed: [0]}}", "says 'seed' where it cannot, or twice"),
        ("{settings: [a], grid: {seed: [0]}}", "is no grid: write it as"),
        ("{grid: {1: [0]}}", "is no grid"),
        ("{preset: [a], grid: {seed: [0]}}", "is no grid"),
        ("grid: {seed: []}", "seed has no values: give some, or leave it out"),
        ("grid: {data: [a/b.npy, a_b.npy]}", "has two cells of one name"),
        ("grid: {seed: [1, 1]}", "has two cells of one name"),
        ("grid: {sead: [0]}", "sead=0: there is no setting 'sead'; did you mean 'seed'?"),
        ("grid: {weighting: [snr, sn]}", "weighting='sn' is unknown"),
        ("{preset: smok, grid: {seed: 1}}", "preset='smok' is unknown"),
    ],
)
def test_a_grid_that_cannot_be_is_a_line_and_starts_nothing(tmp_path, capsys, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--folder", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_a_sweep_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no sweep: there is no grid.json in it; make"):
        compare(tmp_path)


def test_cells_that_differ_in_their_network_or_their_steps_are_compared_all_the_same(tmp_path):
    grid = {"multipliers": [[1], [1, 2]], "end_steps": [1, 2]}
    shared = {key: value for key, value in RING.items() if key != "steps"} | {"steps": 4}
    runs = sweep(cells(grid), tmp_path, "smoke", progress=False, **shared)
    assert [*runs][::3] == ["multipliers=1,end_steps=1", "multipliers=1+2,end_steps=2"]
    found = Compared(grid, runs, {})
    assert found.ranked().count("multipliers = ") == 4
    assert "| multipliers: [1, 2] instead of [1] | 2 | × 1 ± " in found.paired()  # points have no such network
    assert "one step" not in found.paired()


def test_two_cells_in_one_worker_do_not_share_torchs_seeds(tmp_path, swept):
    """As a Dask worker with several threads has them, the default of ``dask worker``."""
    from distributed import LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster:
        runs = sweep(SEEDS, tmp_path, "smoke", scheduler=cluster.scheduler_address, progress=False, **RING)
    for name, run in runs.items():
        assert same_networks(run.folder, swept[1][name].folder, NETWORKS)
