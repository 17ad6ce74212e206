"""Many runs side by side, whatever happens to the processes that compute them."""

import itertools
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from tiny_run import TINIEST, contents, same_networks

from pdlib.runs.report import chains_table
from pdlib.runs.run import execute
from pdlib.runs.settings import SettingsError
from pdlib.runs.sweep import mean_by_steps, sweep

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
    """A sweep whose workers are killed, as often as ``times`` goes on, when one has begun; its runs, or its error."""
    before = set(multiprocessing.active_children())
    with ThreadPoolExecutor() as pool:
        result = pool.submit(sweep, {"a": {}, "b": {"seed": 1}}, folder, "smoke", workers=2, progress=False, **RING)
        for _ in times:
            while not (workers := set(multiprocessing.active_children()) - before) and not result.done():
                time.sleep(0.01)
            if result.done():
                break
            for worker in workers:
                worker.kill()
            while any(worker.is_alive() for worker in workers):
                time.sleep(0.01)
        return result.result(timeout=120)


def test_a_worker_that_is_killed_is_replaced(swept, tmp_path):
    runs = killed(tmp_path, range(1))
    assert all(run.finished for run in runs.values())
    assert same_networks(runs["b"].folder, swept[1]["seed-1"].folder, NETWORKS)


def test_workers_that_are_killed_again_and_again_end_it_with_one_line(tmp_path):
    with pytest.raises(MemoryError, match=r"was killed 3 times.*start it again with fewer than workers=2") as caught:
        killed(tmp_path, itertools.count())  # a kill may meet half a pool, and then the other half: as many as it takes
    assert "\n" not in str(caught.value)
    assert not [thread for thread in threading.enumerate() if "Executor" in thread.name]


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
