"""Several processes that share each batch out come to what one comes to."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs.tiny_run import TINIEST
from safetensors.torch import load_file
from tiny import tiny

from pdlib.data import load_data
from pdlib.objectives import Clean, Objective
from pdlib.processes import ProcessError, Processes, _joined, alone, processes
from pdlib.runs.run import Run, check, execute, load_run
from pdlib.runs.settings import SettingsError
from pdlib.training import TrainingSettings, fit

RING = {key: value for key, value in TINIEST.items() if key != "preset"} | {"data": "ring", "noise_seeds": 3}
EXECUTE = """
import json, sys
from pdlib.processes import processes
from pdlib.runs import execute
run = execute("smoke", sys.argv[1], progress=False, checkpoint_seconds=0, **json.loads(sys.argv[2]))
if processes().first:
    print("finished", run.finished)
"""


def started(tmp_path, folder, settings, count=2):
    """Several processes that make a run."""
    (tmp_path / "execute.py").write_text(EXECUTE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launch, tmp_path / "execute.py", folder, json.dumps(settings)], **pipes)


def same(first, second, parts):
    """The largest difference of any weight, and of any loss."""
    weights, losses = [], []
    for part in parts:
        one, other = (load_file(folder / part / "model.safetensors") for folder in (first, second))
        weights += [(one[name] - other[name]).abs().max().item() for name in one]
        one, other = (load_file(folder / part / "training.safetensors") for folder in (first, second))
        losses.append((one["losses"] - other["losses"]).abs().max().item())
    return max(weights), max(losses)


@given(st.integers(0, 1000), st.integers(1, 16))
def test_the_shares_are_all_of_a_batch_in_parts_that_differ_by_one_at_most(batch, count):
    shares = [Processes(rank, count).share(batch) for rank in range(count)]
    assert [i for share in shares for i in range(batch)[share]] == [*range(batch)]
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_one_process_takes_all_and_agrees_with_itself():
    here = processes()
    assert (here.rank, here.count, here.first) == (0, 1, True)
    assert here.agree(lambda: 7) == 7
    assert here.gather({1: 2}) == {1: 2}
    x = torch.ones(3)
    here.add_up([x])
    assert x.tolist() == [1, 1, 1]
    with alone():
        assert processes().count == 1
    assert processes() == here


@pytest.fixture(scope="module")
def one(tmp_path_factory, own_cache):
    return execute("smoke", tmp_path_factory.mktemp("one") / "run", progress=False, **RING)


def test_two_processes_give_the_same_losses_weights_and_figures(tmp_path, one):
    process = started(tmp_path, tmp_path / "run", RING)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    assert said == "finished True\n"
    run = load_run(tmp_path / "run")
    assert run.config == one.config
    weights, losses = same(one.folder, run.folder, one.parts)
    assert weights < 1e-5
    assert losses < 1e-5
    for name, curve in one.metrics["curves"].items():
        for steps, entry in curve.items():
            found = run.metrics["curves"][name][steps]["frechet_distance"]
            assert found == pytest.approx(entry["frechet_distance"], rel=1e-3)


def test_where_one_is_killed_the_others_stop_with_a_line_and_one_process_goes_on(tmp_path, one):
    longer = RING | {"teacher_updates": 400}
    process = started(tmp_path, tmp_path / "run", longer)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "teacher.checkpoint").is_file():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "execute.py" in " ".join(p.cmdline())]
    (second,) = [worker for worker in workers if worker.environ()["RANK"] == "1"]
    second.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not any(worker.is_running() for worker in workers)
    assert "rank      : 1" in errors
    assert "Signal 9 (SIGKILL)" in errors
    run = execute("smoke", tmp_path / "run", progress=False, **longer)
    whole = execute("smoke", tmp_path / "whole", progress=False, **longer)
    weights, losses = same(run.folder, whole.folder, run.parts)
    assert weights < 1e-4
    assert losses < 1e-4


def test_a_process_whose_other_has_gone_says_so(monkeypatch):
    def gone(*_):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:40553")

    monkeypatch.setattr("torch.distributed.all_reduce", gone)
    with pytest.raises(ProcessError, match=r"process 1 of 2 has stopped, because another one has.*goes on from the"):
        Processes(1, 2).add_up([torch.ones(2)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system that forks")
def test_processes_that_a_notebook_forks_join_each_other_though_it_was_alone_before():
    """As accelerate's notebook_launcher starts them from a kernel that has trained already."""
    program = """
import os, socket
from pdlib.processes import processes
assert processes().count == 1
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
for rank in range(2):
    if os.fork() == 0:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank}
        os.environ.update({name: str(value) for name, value in meeting.items()})
        here = processes()
        os.write(1, f"{here.gather({here.rank: here.count})}\\n".encode())  # whole, whoever writes beside it
        os._exit(0)
print([os.wait()[1] for _ in range(2)], processes().count)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.splitlines()) == ["[0, 0] 1", "{0: 2, 1: 2}", "{0: 2, 1: 2}"], done.stderr


def test_processes_part_before_they_end():
    """What is left of their group to the end of the process aborts it now and then."""
    program = """
import atexit
from torch import distributed
atexit.register(lambda: print(distributed.is_initialized()))
from pdlib.processes import processes
print(processes().count)
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    environments = [os.environ | meeting | {"RANK": rank} for rank in "01"]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", program], env=each, **pipes) for each in environments]
    assert [process.communicate(timeout=120)[0] for process in both] == ["2\nFalse\n"] * 2
    assert [process.returncode for process in both] == [0, 0]


@pytest.mark.parametrize(("device", "started"), [("cuda", "3"), ("cuda:0", "2")])
def test_processes_that_would_share_a_gpu_are_refused(device, started, one, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("pdlib.runs.run.processes", lambda: Processes(0, int(started)))
    run = Run(one.folder, one.settings.model_copy(update={"device": device}))
    with pytest.raises(SettingsError, match=f"{started} processes were started here, and 2 GPUs are there: each takes"):
        check(run)


def test_more_processes_than_examples_in_a_batch_are_refused(monkeypatch):
    monkeypatch.setattr("pdlib.training.processes", lambda: Processes(0, 32))
    with pytest.raises(ValueError, match="batch_size=16: 32 processes need an example each, or fewer"):
        fit(*small_training(batch_size=16))


def test_accelerates_launcher_that_starts_but_one_on_cpus_is_met_with_the_right_one(monkeypatch):
    # As accelerate launch --cpu --num_processes 2 leaves the environment.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ProcessError, match="on CPUs start them with torchrun --nproc-per-node 2 -m pdlib run"):
        _joined()


def small_training(**settings):
    training = TrainingSettings(**{"updates": 8, "batch_size": 30, "ema": 0.9, "warmup": 2} | settings)
    return tiny(), Objective(Clean()), load_data("ring").x, training


@pytest.mark.parametrize("parts", [2, 4, 30, 100])
def test_a_batch_in_parts_comes_to_the_same(parts):
    whole, divided = fit(*small_training()), fit(*small_training(accumulate=parts))
    assert (whole.losses - divided.losses).abs().max() < 1e-5
    assert (whole.gradient_norms - divided.gradient_norms).abs().max() < 1e-4
    for one, other in zip(whole.raw.parameters(), divided.raw.parameters(), strict=True):
        assert (one - other).abs().max() < 1e-4


def test_bfloat16_trains_float32_weights_nearly_as_well():
    exact, rough = fit(*small_training(updates=60)), fit(*small_training(updates=60, precision="bf16"))
    assert {p.dtype for p in rough.raw.parameters()} == {torch.float32}
    assert 1e-6 < (exact.losses - rough.losses).abs().max() < 0.05
    assert rough.losses[-10:].mean() == pytest.approx(exact.losses[-10:].mean().item(), rel=0.1)


def test_the_command_speaks_once_and_starts_from_many(tmp_path):
    """torchrun -m pdlib run, as the README has it: rehearsed, trained, reported on by the first alone."""
    shown = RING | {"curves": ",".join(RING["curves"])}
    settings = [word for key, value in shown.items() for word in ("--set", f"{key}={value}")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pdlib"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, "run", "--preset", "smoke", "--folder", tmp_path / "run", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{tmp_path / 'run' / 'report.html'}\n"
    assert done.stderr.count("this run takes about") == 1
    assert load_run(tmp_path / "run").finished


def test_a_process_whose_launcher_is_gone_before_they_meet_does_not_wait_for_it():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]  # where nobody listens any more
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    program = [sys.executable, "-c", "from pdlib.processes import processes; processes()"]
    environment = os.environ | meeting | {"WORLD_SIZE": "2", "RANK": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "process 1 of 2 cannot be joined to the others" in done.stderr.splitlines()[-1]
