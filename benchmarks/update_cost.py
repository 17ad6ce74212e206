"""What a distillation update costs beside its floor, and what the network's forward makes of the machine.

The floor of an update is what no implementation of algorithm 2 can leave out: two forwards of the
teacher and one training step (forward, backward, Adam) of the student. Ours is the whole loop:
batches, schedule, two DDIM steps, x̃, weighting, gradient clipping, EMA, bookkeeping. The two are
timed in turn, in one process, so that their ratio holds on a noisy machine. The schedule is to be
evaluated once for each of an update's three times.

    python benchmarks/update_cost.py

prints the figures and writes them to benchmarks/update_cost.json.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from pdlib.data import load_data
from pdlib.denoiser import Denoiser
from pdlib.distillation import progressive_distillation
from pdlib.grids import Grid
from pdlib.runs.chain import new_denoiser
from pdlib.runs.evaluation import machine
from pdlib.runs.settings import make_settings
from pdlib.training import Session, Trained, TrainingSettings

ROUNDS, UPDATES = 41, 8


def seconds(work: Callable[[], float | None]) -> float:
    """How long a piece of work takes: by its own account, where it gives one."""
    started = time.perf_counter()
    own = work()
    return time.perf_counter() - started if own is None else own


def distilled(teacher: Denoiser, x: torch.Tensor, settings: TrainingSettings) -> Trained:
    """The training of one stage, from 8 steps to 4."""
    teacher.grid = Grid(8)
    return next(progressive_distillation(teacher, x, 4, settings, session=Session(progress=False))).trained


def schedule_evaluations(teacher: Denoiser, x: torch.Tensor, settings: TrainingSettings) -> float:
    """How often an update computes α and σ."""
    schedule, counted = teacher.schedule, []
    compute = schedule._alpha_sigma
    schedule._alpha_sigma = lambda t: counted.append(t) or compute(t)
    distilled(teacher, x, settings)
    del schedule._alpha_sigma
    return len(counted) / settings.updates


def main() -> None:
    settings = make_settings()
    data = load_data(settings.data)
    teacher = new_denoiser(settings, data).eval().requires_grad_(False)
    training = replace(settings.stage_training(Grid(settings.steps).halved()), updates=UPDATES, warmup=100)
    z, time_input = data.x[: training.batch_size], torch.rand(training.batch_size)

    student = copy.deepcopy(teacher.network).train().requires_grad_(True)
    optimizer = torch.optim.Adam(student.parameters(), fused=True)

    def floor() -> None:
        for _ in range(UPDATES):
            with torch.no_grad():
                target = teacher.network(z, time_input)
                target = teacher.network(z, time_input)
            optimizer.zero_grad(set_to_none=True)
            (student(z, time_input) - target).square().mean().backward()
            optimizer.step()

    def ours() -> float:
        return distilled(teacher, data.x, training).seconds  # without copying the network once for the whole stage

    def forward() -> None:
        with torch.no_grad():
            for _ in range(UPDATES):
                teacher.network(z, time_input)

    matrix = torch.randn(1024, 1024)

    def product() -> None:
        for _ in range(UPDATES):
            matrix @ matrix

    works = {"floor": floor, "ours": ours, "forward": forward, "product": product}
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name].append(seconds(work) / UPDATES)
    ratios = [one / other for one, other in zip(times["ours"], times["floor"], strict=True)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher.network(z, time_input)
    result = {
        "update_over_floor": statistics.median(ratios),
        "update_over_floor_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "schedule_evaluations": schedule_evaluations(teacher, data.x, training),
        "update_ms": 1e3 * statistics.median(times["ours"]),
        "floor_ms": 1e3 * statistics.median(times["floor"]),
        "forward_gflops": counter.get_total_flops() / statistics.median(times["forward"]) / 1e9,
        "matrix_product_gflops": 2 * 1024**3 / statistics.median(times["product"]) / 1e9,
        "parameters": sum(value.numel() for value in teacher.network.parameters()),
        "batch_size": training.batch_size,
        "machine": machine(),
    }
    low, high = result["update_over_floor_quartiles"]
    print(
        f"one distillation update: {result['update_ms']:.1f} ms; two teacher forwards and one student step: "
        f"{result['floor_ms']:.1f} ms; ratio {result['update_over_floor']:.3f} (quartiles {low:.3f} to {high:.3f}); "
        f"schedule evaluations: {result['schedule_evaluations']:g}"
    )
    print(
        f"forward of the network ({result['parameters']:,} parameters, batch {result['batch_size']}): "
        f"{result['forward_gflops']:.0f} GFLOP/s; matrix product 1024³ in float32: "
        f"{result['matrix_product_gflops']:.0f} GFLOP/s"
    )
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
