"""What a run will cost on this machine, from a second of trying, and what it did cost beside its floor."""

from __future__ import annotations

import copy
import ctypes
import gc
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pdlib.denoiser import Denoiser, DenoiserLike
from pdlib.objectives import Clean, Objective, of_examples
from pdlib.runs.chain import examples, new_denoiser, stage_objective
from pdlib.training import Session, TrainingSettings, fit

if TYPE_CHECKING:
    from pdlib.runs.run import Run

__all__ = ["Cost", "disk_bytes", "expected_cost", "flops", "matrix_rate", "peak_memory_mb", "release_memory"]

PARTS = ("teacher", "students", "evaluation")


@dataclass(frozen=True)
class Cost:
    """What a run takes."""

    seconds: dict[str, float]
    """By part: teacher, students, evaluation."""
    flops: dict[str, float]
    """Floating-point operations, by the same parts."""
    memory_mb: float | None
    """The most memory that trying its parts has taken: the process's, on a GPU the GPU's."""
    disk_bytes: int
    """Room for its networks and checkpoints."""


def expected_cost(run: Run, given: Denoiser | None, processes: int = 1) -> Cost:
    """What the parts of a run will cost here, from a second of one process's trying: an update of each kind, a step."""
    s, denoiser = run.settings, given or new_denoiser(run.settings, run.data)
    x, teacher = examples(run, denoiser.classes), run.guided("teacher", denoiser)
    sampled = run.as_sampled("teacher", denoiser)

    def update(objective: Callable[[DenoiserLike], Objective], training: TrainingSettings, part: str) -> float:
        few, objective = replace(training, updates=3), of_examples(x, teacher, objective)
        tried = [fit(_learner(run, denoiser, part), objective, x, few, Session(progress=False)) for _ in range(2)]
        return tried[-1].seconds / few.updates  # the first is slower than all that follow

    updates, images = _counts(run, given)
    kinds = _kinds(run)
    one = {part: update(objective, training, part) for part, (objective, training) in kinds.items()}
    seconds = {part: one.get(part, 0.0) * updates[part] for part in PARTS[:2]}
    seconds["students"] += one["teacher"] * s.convert_updates
    z, t = torch.ones(256, *run.data.shape, device=s.device), torch.ones(256, device=s.device)
    with torch.no_grad():
        for _ in range(2):
            started = time.monotonic()
            sampled(z, t).cpu()
            step = (time.monotonic() - started) / len(z)
    seconds["evaluation"] = step * images
    seconds = {part: value / processes for part, value in seconds.items()}
    return Cost(seconds, flops(run, given), peak_memory_mb(s.device), disk_bytes(run, denoiser))


def flops(run: Run, given: Denoiser | None) -> dict[str, float]:
    """Floating-point operations of a run's matrix products and convolutions, by part, counted on two examples."""
    denoiser = given or new_denoiser(run.settings, run.data)
    denoiser, x = copy.deepcopy(denoiser).requires_grad_(True), examples(run, denoiser.classes)
    teacher, generator = run.guided("teacher", denoiser), torch.Generator(run.settings.device).manual_seed(0)
    updates, images = _counts(run, given)
    found = dict.fromkeys(PARTS, 0.0)
    for part, (objective, training) in _kinds(run).items():
        with FlopCounterMode(display=False) as counter:
            learner = _learner(run, denoiser, part).requires_grad_(True)
            of_examples(x, teacher, objective)(learner, learner, x[torch.arange(2)], generator).backward()
        each = counter.get_total_flops() / 2 * training.batch_size
        found[part] += each * updates[part]
        if part == "teacher":  # a conversion asks its parent besides
            found["students"] += each * 4 / 3 * run.settings.convert_updates
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        z = torch.ones(2, *run.data.shape, device=run.settings.device)
        run.as_sampled("teacher", denoiser)(z, torch.ones(2, device=z.device))
    return found | {"evaluation": counter.get_total_flops() / 2 * images}


def _kinds(run: Run) -> dict[str, tuple[Callable[[DenoiserLike], Objective], TrainingSettings]]:
    """What is trained, and how: a teacher's objective, and a student's where there is one."""
    s = run.settings
    kinds = {"teacher": (lambda _: Objective(Clean(), None, s.loss_weighting), s.teacher_training)}
    if grids := s.student_grids:
        kinds["students"] = (partial(stage_objective(s), grid=grids[0]), s.stage_training(grids[0]))
    return kinds


def _learner(run: Run, denoiser: Denoiser, part: str) -> nn.Module:
    """What is trained in a part of the run, as it starts."""
    s = run.settings
    return copy.deepcopy(denoiser) if part == "teacher" else s.student_method.student(denoiser, s.student_grids[0])


def _counts(run: Run, given: Denoiser | None) -> tuple[dict[str, int], int]:
    """Updates of each kind, and how often an image is taken through a network to be measured."""
    s = run.settings
    students = sum(s.stage_training(grid).updates for grid in s.student_grids)
    updates = {"teacher": s.teacher_updates if given is None else 0, "students": students}
    walks = sum(s.evaluated_steps) * len(s.curves) - s.steps * ("ddim" in s.curves and not s.convert_updates)
    return updates, walks * s.noise_seeds * s.images_per_seed


def disk_bytes(run: Run, denoiser: Denoiser) -> int:
    """Per parameter 4 bytes for each finished network, and 4 × 4 for each of two checkpoints; and the report."""
    kinds = [denoiser, *(_learner(run, denoiser, "students") for _ in run.settings.student_grids[:1])]
    sizes = [sum(value.numel() for value in kind.parameters()) for kind in kinds]
    return 4 * (sizes[0] * len(run.parts) + 8 * max(sizes)) + 20_000_000


def matrix_rate(device: str = "cpu", seconds: float = 0.3, size: int = 1024) -> float:
    """Floating-point operations a second of a plain float32 matrix product here, on the threads that torch has."""
    a, b = (torch.ones(size, size, device=device) for _ in range(2))
    (a @ b).sum().item()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        (a @ b)[0, 0].item()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - started)


def peak_memory_mb(device: str = "cpu") -> float | None:
    """The most memory held so far, in MB: by this process, or on the GPU; None where the system does not tell."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")  # Linux; what getrusage says there may be what started this process
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def release_memory() -> None:
    """Give what is free back to the system: what waits in cycles, and what glibc holds on to, a tenth of a run's."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
