"""An attack on runs: kills, damaged files, bad input. Each must end in the right result, or in one line.

- A run is killed at random moments, and started again each time, until it is finished: it must come to the same bits
  as one that was left alone. A signal that can be answered must be answered with one line.
- A run of two processes, and a sweep, of which any process is killed, the one that started the others too: none may
  be left hanging, and what is started again must come to the same, the two processes to float tolerance.
- A file of a finished run is truncated, changed, emptied, deleted, or swapped with another network's or run's. Every
  command must then print what it prints of a whole run, or one line that names the file or its folder; and once what
  is named is deleted, the same run must be whole again, to the same bits.
- A command is given what it cannot do: it must say so in one line, and write nothing.

    python benchmarks/attack.py [--kills 100] [--pairs 100] [--sweeps 100] [--corruptions 100] [--invocations 400]

prints a table, and every case that went wrong; an hour and a half on two cores. ``--kills 0`` leaves an attack out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from tqdm import tqdm

SETTINGS = (
    "steps=4 width=8 mlp_width=8 batch_size=16 teacher_updates=300 stage_updates=60 images_per_seed=65 noise_seeds=2"
)
PRELOADED = ["torch", "pdlib.runs.cli", "pdlib.runs.report", "pdlib.diagnosis", "sklearn.datasets", "papermill"]


class Outcome(NamedTuple):
    """What a command came to."""

    code: int | None
    out: str
    err: str

    @property
    def is_one_line(self) -> bool:
        """Whether it was refused as it should be."""
        return self.code == 2 and self.out == "" and bool(re.fullmatch(r"pdlib: [^\n]+\n", self.err))


def command(
    arguments: list[str], place: Path, timeout: float = 300.0, kill: tuple[float, int] | None = None
) -> Outcome:
    """Run the command in a process of its own, in a folder; ``kill``: after so many seconds, with a signal."""
    with tempfile.TemporaryDirectory() as said:
        process = CONTEXT.Process(target=_command, args=(arguments, str(place), said))
        process.start()
        process.join(kill[0] if kill else timeout)
        if process.is_alive():
            os.kill(process.pid, kill[1] if kill else signal.SIGKILL)
            process.join(60)
            if process.is_alive():
                process.kill()
        out, err = ((Path(said) / name).read_text(errors="replace") for name in ("out", "err"))
        return Outcome(process.exitcode, out, err)


def _command(arguments: list[str], place: str, said: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(place)
    import torch

    from pdlib import __main__ as entry

    torch.set_num_threads(1)
    sys.argv = ["pdlib", *arguments]
    sys.exit(entry.main())


# What a run must come to.


def run_arguments(folder: Path | str, **changed: str) -> list[str]:
    """The command that makes the attacked run."""
    settings = dict(setting.split("=") for setting in SETTINGS.split()) | changed
    return ["run", "--preset", "smoke", "--folder", str(folder), *(f"--set={k}={v}" for k, v in settings.items())]


def result(folder: Path) -> dict:
    """What must be the same after every attack: the bits of the networks, and the figures without times."""
    from pdlib.files import read_json

    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/model.safetensors")}
    metrics = read_json(folder / "metrics.json")
    for entry in (entry for curve in metrics["curves"].values() for entry in curve.values()):
        del entry["seconds_per_image"]
    return found | {key: metrics[key] for key in ("complete", "curves", "floor", "settings", "run")}


def is_result(folder: Path, wanted: dict) -> bool:
    """Whether a folder holds that result, with its report."""
    try:
        return result(folder) == wanted and (folder / "report.html").is_file()
    except (OSError, ValueError, KeyError):
        return False


# Kills.


def attack_by_kills(count: int, reference: Path, place: Path, chance: random.Random) -> Counter:
    """Kill runs, five times each on average, and let them finish."""
    wanted, verdicts = result(reference), Counter()
    started = time.monotonic()
    command(run_arguments(place / "timed"), place)
    whole, number, done = time.monotonic() - started, 0, 0
    bar = tqdm(total=count, desc="kills", unit="kill")
    while done < count:
        folder, number = place / f"killed-{number}", number + 1
        while done < count and chance.random() < 0.85:
            how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            after = whole * chance.random() * 0.9
            outcome = command(run_arguments(folder), place, kill=(after, how))
            lines = [line for line in outcome.err.splitlines() if line and "%|" not in line]
            lines = [line for line in lines if not re.match(r"this run takes|trying it once|[\d.e+]+ .?FLOP", line)]
            is_answered = outcome.code in (0, -how) if how == signal.SIGKILL else outcome.code in (0, 130)
            is_right = is_answered and (outcome.code == 0 or len(lines) <= 1)  # 0: it had ended before
            verdicts["right" if is_right else "wrong"] += 1
            done += 1
            bar.update()
            if not is_right:
                report("kill", f"{how.name} after {after:.2f} s", outcome)
        outcome = command(run_arguments(folder), place)
        if not is_result(folder, wanted):
            verdicts["other bits"] += 1
            report("run after kills", folder, outcome)
        verdicts["runs finished"] += 1
        shutil.rmtree(folder, ignore_errors=True)
    return verdicts


def attack_on_pairs(count: int, reference: Path, place: Path, chance: random.Random) -> Counter:
    """Kill one process of a run of two, or what started them. What it computes must be what one process's run does.

    Its weights need not: a bias ahead of a normalisation has no gradient but rounding, which Adam makes steps of.
    """
    import torch

    from pdlib.runs.run import load_run

    def is_whole(folder: Path) -> bool:
        one, other = load_run(reference), load_run(folder)
        z = torch.randn(64, *one.data.shape, generator=torch.Generator().manual_seed(0))
        t = torch.linspace(0.02, 1, 64, dtype=torch.float64)
        found = [(run.open(part)(z, t), run.history(part)[0]["losses"]) for part in one.parts for run in (one, other)]
        pairs = zip(found[::2], found[1::2], strict=True)
        apart = max((a - b).abs().max().item() for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
        return apart < 1e-3 and (folder / "report.html").is_file()

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pdlib"]
    return attack_on_several(lambda folder: [*launch, *run_arguments(folder)], is_whole, count, place, chance)


def attack_on_sweeps(count: int, reference: Path, place: Path, chance: random.Random) -> Counter:
    """Kill a worker of a sweep of two cells, or what started them."""
    wanted, settings = result(reference), dict(setting.split("=") for setting in SETTINGS.split())
    grid = {"preset": "smoke", "settings": settings, "grid": {"seed": [0, 1]}}
    (place / "grid.yaml").write_text(json.dumps(grid))
    start = [sys.executable, "-m", "pdlib", "sweep", str(place / "grid.yaml"), "--folder"]

    def is_whole(folder: Path) -> bool:
        return is_result(folder / "seed=0", wanted) and (folder / "seed=1" / "report.html").is_file()

    return attack_on_several(lambda folder: [*start, str(folder)], is_whole, count, place, chance)


def _told(process: psutil.Process) -> str:
    """Its command line; that of one which has ended is a tracker's, which nobody kills."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "tracker"


def attack_on_several(
    start: Callable[[Path], list[str]],
    is_whole: Callable[[Path], bool],
    count: int,
    place: Path,
    chance: random.Random,
) -> Counter:
    """Kill any process of several, five times to a run, and let the run finish."""

    def started(folder: Path) -> psutil.Popen:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return psutil.Popen(start(folder), cwd=place, **quiet)

    verdicts, began = Counter(), time.monotonic()
    started(place / "timed").wait()
    whole, number, done = time.monotonic() - began, 0, 0
    bar = tqdm(total=count, desc=place.name, unit="kill")
    while done < count:
        folder, number = place / f"killed-{number}", number + 1
        while done < count and chance.random() < 0.85:
            process = started(folder)
            time.sleep(whole * chance.random() * 0.9)
            all_of_them = [process, *process.children(recursive=True)] if process.is_running() else []
            victims = [one for one in all_of_them if "tracker" not in _told(one)]
            if victims:
                chance.choice(victims).kill()
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(timeout=300)  # a worker is replaced, and the others go on
            left = psutil.wait_procs(all_of_them, timeout=30)[1]
            for one in left:
                one.kill()
            verdicts["left hanging" if left else "right"] += 1
            done += 1
            bar.update()
        last = subprocess.run(start(folder), cwd=place, capture_output=True, text=True)
        if last.returncode != 0 or not is_whole(folder):
            verdicts["other bits"] += 1
            report(f"{place.name}: not whole", folder.name, Outcome(last.returncode, last.stdout, last.stderr))
        verdicts["runs finished"] += 1
        shutil.rmtree(folder, ignore_errors=True)
    return verdicts


# Damaged files.


def damage(path: Path, folder: Path, other: Path, chance: random.Random) -> str:
    """Damage a file of a run; returns how."""
    content = bytearray(path.read_bytes())
    ways = ["truncated", "changed", "emptied", "deleted", "of another run", "of another network", "noise"]
    ways += ["value", "entry", "kind"] * (path.suffix == ".json")
    way = chance.choice(ways)
    parts = [part for part in folder.glob(f"*/{path.name}") if part != path]
    if way == "truncated":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif way == "changed":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif way == "emptied":
        path.write_bytes(b"")
    elif way == "deleted":
        path.unlink()
    elif way == "of another run":
        shutil.copy(other / path.relative_to(folder), path)
    elif way == "of another network" and parts:
        shutil.copy(chance.choice(parts), path)
    elif way in ("value", "entry", "kind"):
        value = json.loads(content)
        key = chance.choice(sorted(value))
        if way == "entry":
            del value[key]
        elif way == "value":
            value[key] = chance.choice([None, [], {}, "x", -1, 0.5, True, {"x": 1}, 10**30])
        else:
            value = chance.choice([[], None, "x", 7, {}, [value], {"checksum": "x"}])
        path.write_text(json.dumps(value))
        way = f"{way} {key}"
    else:
        path.write_bytes(chance.randbytes(len(content)))
    return way


def attack_by_damage(count: int, reference: Path, place: Path, chance: random.Random) -> Counter:
    """Damage one file of a whole run, give one command, and follow its advice."""
    other, verdicts, wanted = place / "other", Counter(), result(reference)
    command(run_arguments(other, seed="1"), place)
    folder = place / "run"
    commands = {
        "run": run_arguments(folder),
        "evaluate": ["evaluate", str(folder)],
        "diagnose": ["diagnose", str(folder)],
        "sample": ["sample", str(folder), "--count", "2", "--output", "x.png"],
    }
    shutil.copytree(reference, folder)
    whole = {name: command(arguments, place).out for name, arguments in commands.items()}
    picture = (place / "x.png").read_bytes()
    for _ in tqdm(range(count), desc="damage", unit="file"):
        shutil.rmtree(folder)
        shutil.copytree(reference, folder)
        (place / "x.png").unlink(missing_ok=True)
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
        path, name = chance.choice(files), chance.choice(["run", "run", *commands])
        case = f"{path.relative_to(folder)} {damage(path, folder, other, chance)}: pdlib {name}"
        outcome = command(commands[name], place)
        if outcome.is_one_line and str(folder) in outcome.err:
            is_right, how = True, "one line"
        elif name == "run":
            is_right, how = outcome.code == 0 and is_result(folder, wanted), "right result"
        else:
            is_same_picture = name != "sample" or (place / "x.png").read_bytes() == picture
            is_right, how = outcome.code == 0 and outcome.out == whole[name] and is_same_picture, "right result"
        verdicts[how if is_right else "wrong"] += 1
        if not is_right:
            report("damage", case, outcome)
        for _ in range(4):  # the advice of each line followed, the run is whole again
            outcome = command(commands["run"], place)
            if outcome.code == 0:
                break
            delete_what_is_named(outcome.err, folder)
        if not is_result(folder, wanted):
            verdicts["not mended"] += 1
            report("mending", case, outcome)
    return verdicts


def delete_what_is_named(line: str, folder: Path) -> None:
    """Do what a line of the command advises: delete the file that it names, or the folder."""
    path = Path(re.search(rf"{re.escape(str(folder))}[\w./-]*", line)[0].rstrip("."))
    if path.is_dir():
        shutil.rmtree(path)
    elif path.parent == folder and path.name == "config.json":
        shutil.rmtree(folder)
    else:
        path.unlink(missing_ok=True)


# Bad input.


def listed(text: str, separator: str | None = None) -> list[str]:
    """The entries of a list that is written as text."""
    return [" ".join(entry.split()) for entry in text.split(separator)]


INTEGERS = listed("""
steps end_steps teacher_updates batch_size width blocks heads mlp_width noise_seeds images_per_seed seed warmup
stage_warmup convert_updates missing
""")
NUMBERS = listed("""
clip_min clip_max log_snr_max learning_rate stage_learning_rate ema stage_ema max_gradient_norm clip_x dropout
sampler_variance
""")
NAMES = listed("""
prediction student_prediction method weighting schedule anneal device curves preset data
""")
TOGETHER = listed(
    """
steps=48; steps=3 end_steps=2; end_steps=0; end_steps=128; steps=0; width=7; width=11 heads=3; heads=5;
missing=1; missing=2; prediction=eps; student_prediction=eps; convert_updates=5; log_snr_min=5;
log_snr_min=-1e300; schedule=linear log_snr_min=-5; schedule=cosine_clipped log_snr_max=9; clip_min=3
clip_max=1; clip_max=0; multipliers=1,,2; multipliers=0; multipliers=; multipliers=17; attention=2;
attention=-1; attention=x; blocks=0; blocks=1e13; curves=ddim; curves=distilled,distilled;
curves=; noise_seeds=1; images_per_seed=64; ema=1; stage_ema=1.0; dropout=1; teacher=; teacher=nowhere;
teacher=empty; teacher=x.npy; stage_updates=0; stage_updates=450,4; stage_updates=450,4:0;
stage_updates=450,x:3; stage_updates=1.5; few_step_updates=600; skip_top=true; weights=raw;
discrete_teacher=maybe; stage_updates=; device=meta; device=; device=cuda:99; sampler_variance=2;
seed=18446744073709551616; data=.; data=..; data=/; data=empty; data=x.txt
""",
    ";",
)
COMMANDS = listed(
    """
ruin; run x; run --preset; run --set; run --set x; run --sett seed=1; run --folder file; run --folder full; run
--data; sample; sample nowhere; sample empty; sample file; sample RUN --steps 3; sample RUN --steps 0; sample
RUN --steps -1; sample RUN --steps x; sample RUN --steps 1000000; sample RUN --count 0; sample RUN --count -3;
sample RUN --count x; sample RUN --count 1000000000; sample RUN --seed -1; sample RUN --seed
18446744073709551616; sample RUN --seed x; sample RUN --output o.xyz; sample RUN --output o; sample RUN --output
nowhere/o.png; sample RUN --output folder.png; sample RUN/student-9; sample RUN/config.json; evaluate; evaluate
nowhere; evaluate empty; evaluate RUN/teacher; evaluate file; evaluate RUN RUN; diagnose; diagnose nowhere;
diagnose empty; diagnose file; diagnose RUN/student-9; settings nothing; settings steps end_steps; --versions;
run --preset smoke --preset fast; sample RUN --fast
""",
    ";",
)
ASIDE = listed("seed=3 width=16 batch_size=32 noise_seeds=3 weighting=snr_plus_one schedule=cosine ema=0.9")


def bad_invocations(reference: Path, place: Path, chance: random.Random) -> list[list[str]]:
    """Every one of a list of mistakes, in a folder with the files that they speak of."""
    (place / "empty").mkdir(parents=True)
    (place / "folder.png").mkdir()
    (place / "file").write_text("text")
    (place / "x.txt").write_text("text")
    (place / "full").mkdir()
    (place / "full" / "thesis.tex").write_text("years of work")
    integers = [
        [f"{name}={value}"]
        for name, value in product(INTEGERS, ("", "x", "-1", "1.5", "nan", "1e13", str(10**20), "[1]", "0x10"))
    ]
    numbers = [
        [f"{name}={value}"] for name, value in product(NUMBERS, ("", "x", "-1", "nan", "inf", "-inf", "1e999", "1+1j"))
    ]
    names = [[f"{name}={value}"] for name, value in product(NAMES, ("sn", "SNR", " ", "v2", "cosine,linear"))]
    unknown = [[f"{name[:-1]}={1}"] for name in (*INTEGERS[1:], *NUMBERS)]
    settings = [*integers, *numbers, *names, *unknown, *(mistake.split() for mistake in TOGETHER)]
    found = [["run", *(f"--set={setting}" for setting in mistake)] for mistake in settings]
    found += [mistake.replace("RUN", str(reference)).split() for mistake in COMMANDS]
    found += [["run", "--data", name] for name in bad_data(place)]
    with_others = [["run", f"--set={chance.choice(ASIDE)}", *rest] for first, *rest in found if first == "run"]
    return found + with_others


def bad_data(place: Path) -> list[str]:
    """Files that hold nothing to learn from, or not as it must be."""
    images = np.random.default_rng(0).random((20, 8, 8)).astype(np.float32) * 2 - 1
    wrong = {
        "nan": np.where(images > 0.9, np.nan, images),
        "infinite": np.where(images > 0.9, np.inf, images),
        "constant": np.zeros_like(images),
        "one": images[:1],
        "none": images[:0],
        "flat": images.reshape(20, 64),
        "two_channels": np.stack([images, images], 1),
        "odd": images[:, :7, :7],
        "dark_integers": (images * 8 + 8).astype(int),
        "large": images * 100,
        "words": np.array(["a", "b"]),
        "complex": images * 1j,
        "scalar": np.float32(1),
        "integer_points": np.arange(40).reshape(20, 2),
    }
    for name, x in wrong.items():
        np.save(place / f"{name}.npy", x)
    np.save(place / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    (place / "header.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'shape': (")
    (place / "text.npy").write_text("text")
    (place / "cut.npz").write_bytes(b"PK\x03\x04")
    (place / "folder.npy").mkdir()
    labels = {"fewer": np.arange(19), "negative": np.arange(20) - 1, "many": np.arange(20) * 10**9}
    labels |= {"unsigned": np.full(20, 2**64 - 1, np.uint64), "fractions": np.arange(20) / 3}
    for name, y in labels.items():
        np.savez(place / f"{name}.npz", x=images, y=y)
    np.savez(place / "unnamed.npz", images)
    return [*sorted(path.name for path in place.glob("*.np[yz]")), "nowhere.npy", "a/b/c"]


def attack_by_bad_input(count: int, reference: Path, place: Path, chance: random.Random) -> Counter:
    """Give the command what it cannot do."""
    verdicts, invocations = Counter(), bad_invocations(reference, place, chance)
    before = snapshot(place)
    for arguments in tqdm(chance.sample(invocations, count), desc="bad input", unit="command"):
        started = time.monotonic()
        outcome = command(arguments, place, timeout=60)
        is_right = outcome.is_one_line and snapshot(place) == before
        verdicts["one line" if is_right else "wrong"] += 1
        if not is_right:
            report("bad input", " ".join(arguments) + f" ({time.monotonic() - started:.0f} s)", outcome)
            for path in place.glob("runs"):
                shutil.rmtree(path)
    return verdicts


def snapshot(place: Path) -> dict[str, bytes | None]:
    """Every file and folder with its content."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


def report(what: str, case: object, outcome: Outcome) -> None:
    """Say what went wrong."""
    said = " / ".join([*outcome.out.splitlines()[:2], *outcome.err.splitlines()[-3:]])
    tqdm.write(f"WRONG {what}: {case}: exit {outcome.code}, {len(outcome.err.splitlines())} lines: {said[:400]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    attacks = {"kills": attack_by_kills, "pairs": attack_on_pairs, "sweeps": attack_on_sweeps}
    attacks |= {"corruptions": attack_by_damage, "invocations": attack_by_bad_input}
    for name, count in zip(attacks, (100, 100, 100, 100, 400), strict=True):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attack-") as place, contextlib.chdir(place):
        os.environ["PDLIB_CACHE"], os.environ["OMP_NUM_THREADS"] = f"{place}/cache", "1"
        CONTEXT.set_forkserver_preload(PRELOADED)
        reference = Path(place) / "reference"
        first = command(run_arguments(reference), Path(place))
        if first.code != 0:
            raise SystemExit(f"the run that is to be attacked does not end well: {first.err[-400:]}")
        table = {}
        for name, attack in attacks.items():
            (Path(place) / name).mkdir()
            if count := vars(chosen)[name]:
                table[name] = attack(count, reference, Path(place) / name, random.Random(chosen.seed))
    print(f"\n{'attack':<14}{'tried':>6}   outcome")
    for name, verdicts in table.items():
        shown = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        print(f"{name:<14}{vars(chosen)[name]:>6}   {shown}")
    bad = ("wrong", "other bits", "not mended", "left hanging")
    return 1 if any(verdicts[kind] for verdicts in table.values() for kind in bad) else 0


CONTEXT = multiprocessing.get_context("forkserver")

if __name__ == "__main__":
    sys.exit(main())
