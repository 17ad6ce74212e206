"""What training and sampling cost, each beside what it cannot be below, and how that grows.

- An update of distillation over its floor: two forwards of the teacher and one training step (forward, backward, Adam)
  of the student, which no implementation of algorithm 2 can leave out. Ours is the whole loop: batches, schedule, two
  DDIM steps, x̃, weighting, gradient clipping, average, bookkeeping.
- The network's forward over a plain matrix product of the same machine, type and threads.
- A sampler's step over the bare forward; images a second at 1 … 64 steps; what measuring them takes beside that.
- Two processes with a thread each over one process with two.
- A peer: the update of github.com/Hramchenko/diffusion_distiller, which needs a GPU as it is written, computed
  plainly: z and schedule in float64, two forwards of the teacher, each x̂ clipped to [−1, 1]; the target is the second
  answer x̂(z_{t'}) (and not x̃, see notebook 03), as v, with weight (1 + α/σ)^0.6; AdamW, and an average parameter
  by parameter. The same network and batch as ours.

What is compared is timed in turn, in one process, so that the ratios hold on a noisy machine.

    python benchmarks/speed.py [--rounds 15]

prints the figures and writes benchmarks/results/speed.json and speed.png.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pdlib import plots
from pdlib.data import load_data
from pdlib.denoiser import Denoiser
from pdlib.distillation import progressive_distillation
from pdlib.grids import Grid
from pdlib.metrics import feature_network, measure
from pdlib.networks import UNet
from pdlib.runs.cost import matrix_rate, peak_memory_mb
from pdlib.runs.evaluation import machine
from pdlib.sampling import sample_batches
from pdlib.schedules import CosineSchedule
from pdlib.training import Session, TrainingSettings

UPDATES = 4  # to a measurement
BASE = {"batch": 32, "width": 32, "size": 8}
GROWTH = {"batch": (8, 32, 128, 512), "width": (16, 32, 64, 96), "size": (8, 16, 32)}
RESULTS = Path(__file__).with_name("results")


def network(width: int) -> Denoiser:
    """The default run's network at a width, not trained: a forward takes as long."""
    denoiser = Denoiser(UNet(1, 1, width, (1, 2), 1, (), 4), "v", CosineSchedule(), Grid(8), (1, 8, 8))
    return denoiser.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def in_turn(works: dict[str, Callable[[], float | None]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each piece of work takes, by its own account where it gives one, again and again in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            own = work()
            if turn:  # the first is slower than all that follow
                times[name].append(time.perf_counter() - started if own is None else own)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """The median over rounds of one time over another, and its quartiles."""
    found = [a / b for a, b in zip(times[one], times[other], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4)
    return {"ratio": middle, "quartiles": [low, high]}


def ours(teacher: Denoiser, x: torch.Tensor, batch: int) -> float:
    """Seconds of a few updates from 8 steps to 4."""
    settings = TrainingSettings(UPDATES, batch, 1e-4, warmup=100, ema=0.99)
    return next(progressive_distillation(teacher, x, 4, settings, session=Session(progress=False))).trained.seconds


def bare(teacher: Denoiser, x: torch.Tensor, batch: int) -> Callable[[], None]:
    """The floor of as many updates."""
    student = copy.deepcopy(teacher.network).train().requires_grad_(True)
    optimizer, z, t = torch.optim.Adam(student.parameters(), lr=1e-4, fused=True), x[:batch], torch.rand(batch)

    def work() -> None:
        for _ in range(UPDATES):
            with torch.no_grad():
                teacher.network(z, t)
                target = teacher.network(z, t)
            optimizer.zero_grad(set_to_none=True)
            (student(z, t) - target).square().mean().backward()
            optimizer.step()

    return work


def peer(teacher: Denoiser, x: torch.Tensor, batch: int, steps: int = 8) -> Callable[[], None]:
    """The peer's update, as many times; its timesteps count from 0, and one of the student is two of the teacher."""
    student = copy.deepcopy(teacher.network).train().requires_grad_(True)
    average, optimizer = copy.deepcopy(student), torch.optim.AdamW(student.parameters(), lr=1e-4)
    alphas, sigmas = CosineSchedule().alpha_sigma(torch.arange(1, steps + 1, dtype=torch.float64) / (steps + 1))

    def at(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return table[index].view(-1, 1, 1, 1)

    def told(index: torch.Tensor) -> torch.Tensor:
        return index.float() / steps

    def work() -> None:
        for _ in range(UPDATES):
            clean, t = x[torch.randint(len(x), (batch,))], 2 * torch.randint(0, steps // 2, (batch,))
            with torch.no_grad():
                (a, s), (a1, s1) = ((at(alphas, i), at(sigmas, i)) for i in (t + 1, t))
                z = a * clean + s * torch.randn_like(clean)
                first = (a * z - s * teacher.network(z.float(), told(t + 1)).double()).clip(-1, 1)
                z1 = a1 * first + s1 / s * (z - a1 * first)
                second = (a1 * z1 - s1 * teacher.network(z1.float(), told(t)).double()).clip(-1, 1)
                v, w = a * (z - a * second) / s - s * second, (1 + a / s) ** 0.3
            optimizer.zero_grad()
            said = student(z.float(), told(t // 2))
            loss = F.mse_loss((w * said).float(), (w * v).float())
            loss.item()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for parameter, mean in zip(student.parameters(), average.parameters(), strict=True):
                    mean.copy_(torch.lerp(parameter, mean, 0.999))

    return work


def update(batch: int, width: int, size: int, rounds: int) -> dict[str, Any]:
    """An update and its floor, a forward and a matrix product, and the memory that they took."""
    teacher, x = network(width), torch.rand(max(512, batch), 1, size, size) * 2 - 1
    z, t = x[:batch], torch.rand(batch)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(UPDATES):
            teacher.network(z, t)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher.network(z, t)
    works = {"ours": lambda: ours(teacher, x, batch), "floor": bare(teacher, x, batch), "forward": forward}
    times = in_turn(works, rounds)
    pace = counter.get_total_flops() * UPDATES / statistics.median(times["forward"])
    return {
        "update_ms": 1e3 * statistics.median(times["ours"]) / UPDATES,
        "update_over_floor": ratio(times, "ours", "floor"),
        "forward_over_matrix_product": pace / matrix_rate(),
        "peak_memory_mb": peak_memory_mb(),
        "parameters": sum(value.numel() for value in teacher.network.parameters()),
    }


def grown(rounds: int) -> dict[str, Any]:
    """Updates as batch, width and image size grow, each in a process of its own; the order of each growth."""
    found: dict[str, Any] = {}
    for name, values in GROWTH.items():
        found[name] = {}
        for value in values:
            arguments = json.dumps({**BASE, name: value, "rounds": rounds})
            command = [sys.executable, __file__, "--update", arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name][value] = json.loads(done.stdout)
            told = found[name][value]
            print(
                f"{name} {value}: update {told['update_ms']:.1f} ms, {told['update_over_floor']['ratio']:.3f} × floor"
            )
        largest = list(values)[-2:]  # where what is the same for every size counts least
        times = [found[name][value]["update_ms"] for value in largest]
        found[name]["order"] = math.log(times[1] / times[0]) / math.log(largest[1] / largest[0])
    return found


def sampling(rounds: int) -> dict[str, Any]:
    """A sampler's step over the bare forward, images a second, and what measuring takes beside that."""
    denoiser, data = network(BASE["width"]), load_data("digits")
    z, t, generator = torch.randn(256, *data.shape), torch.rand(256), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(16):
            denoiser.network(z, t)

    def sampler() -> None:
        sample_batches(denoiser, 256, 16, generator=generator)

    times = in_turn({"sampler": sampler, "forwards": forwards}, rounds)
    rates = {}
    for steps in (1, 2, 4, 8, 16, 32, 64):
        started = time.perf_counter()
        sample_batches(denoiser, 1024, steps, generator=generator)
        rates[steps] = 1024 / (time.perf_counter() - started)
    groups = [sample_batches(denoiser, 512, 8, generator=generator) for _ in range(10)]
    features = feature_network(data, progress=False)
    started = time.perf_counter()
    measure(features, data.x, groups)
    measuring = time.perf_counter() - started
    return {
        "step_over_forward": ratio(times, "sampler", "forwards"),
        "images_per_second": rates,
        "measuring_over_64_steps": measuring / (5120 / rates[64]),
        "measuring_over_1_step": measuring / (5120 / rates[1]),
    }


def processes(rounds: int) -> dict[str, float]:
    """Throughput of two processes with a thread each over that of one with two, at the default's batch."""
    command = ["--processes", "64"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    found: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(max(3, rounds // 5)):
        for name, start in (("one", [sys.executable, __file__]), ("two", launch)):
            done = subprocess.run([*start, *command], capture_output=True, text=True, check=True)
            found[name].append(float(done.stdout.split()[-1]))
    return {"throughput": statistics.median(found["one"]) / statistics.median(found["two"])}


def of_processes(updates: int) -> None:
    """Prints the seconds of some updates, in each of the processes that share them."""
    from pdlib.processes import processes as joined

    here = joined()
    torch.set_num_threads(2 // here.count)
    teacher, x = network(BASE["width"]), load_data("digits").x
    settings = TrainingSettings(updates, 128, 1e-4, warmup=100)
    for _ in range(2):
        stage = next(progressive_distillation(teacher, x, 4, settings, session=Session(progress=False)))
    if here.first:
        print(stage.trained.seconds)


def picture(found: dict[str, Any]) -> None:
    """How an update grows, with its floor, and images a second."""
    import matplotlib

    with matplotlib.rc_context(plots.STYLE):
        figure = plots.canvas(14, 4)
        for k, name in enumerate(GROWTH):
            axes = figure.add_axes((0.05 + 0.24 * k, 0.16, 0.19, 0.7))
            values = list(GROWTH[name])
            told = [found["growth"][name][value] for value in values]
            times = np.array([one["update_ms"] for one in told])
            floors = times / np.array([one["update_over_floor"]["ratio"] for one in told])
            axes.loglog(values, times, "o-", color=plots.BLUE, label="update")
            axes.loglog(values, floors, "--", color=plots.GREY, label="its floor")
            axes.set_xticks(values, values)
            axes.minorticks_off()
            what = {"batch": "examples in a batch", "width": "width of the network", "size": "pixels a side"}[name]
            axes.set(xlabel=what, title=f"time ∝ {name}$^{{{found['growth'][name]['order']:.1f}}}$")
            if k == 0:
                axes.set_ylabel("an update (ms)")
                axes.legend()
        axes, rates = figure.add_axes((0.8, 0.16, 0.19, 0.7)), found["sampling"]["images_per_second"]
        axes.loglog(list(rates), list(rates.values()), "o-", color=plots.BLUE)
        axes.set_xticks(list(rates), list(rates))
        axes.minorticks_off()
        axes.set(xlabel="sampling steps", title="images a second")
        (RESULTS / "speed.png").write_bytes(plots.png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="of each comparison")
    parser.add_argument("--update", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.update:
        print(json.dumps(update(**chosen.update)))
        return
    if chosen.processes:
        of_processes(chosen.processes)
        return
    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "growth": grown(chosen.rounds)}
    teacher, x = network(BASE["width"]), load_data("digits").x
    works = {"peer": peer(teacher, x, BASE["batch"]), "ours": lambda: ours(teacher, x, BASE["batch"])}
    found["ours_over_peer"] = ratio(in_turn(works, chosen.rounds), "ours", "peer")
    found["sampling"] = sampling(chosen.rounds)
    found["two_processes_over_one"] = processes(chosen.rounds)
    base = found["growth"]["batch"][BASE["batch"]]
    found |= {name: base[name] for name in ("update_over_floor", "forward_over_matrix_product")}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(found)
    for name in ("update_over_floor", "forward_over_matrix_product", "ours_over_peer", "two_processes_over_one"):
        print(name, found[name])
    print("sampling", found["sampling"])


if __name__ == "__main__":
    main()
