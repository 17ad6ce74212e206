"""One of each, added from outside the package, as someone would who uses it."""

from dataclasses import dataclass
from itertools import pairwise

import torch

from pdlib.data import DATASETS
from pdlib.denoiser import DenoiserLike
from pdlib.exercises import EXERCISES, Exercise
from pdlib.methods import METHODS, Method
from pdlib.metrics import METRICS, Metric
from pdlib.objectives import Objective
from pdlib.predictions import PREDICTIONS, Prediction
from pdlib.sampling import ddim_step
from pdlib.schedules import SCHEDULES, CosineSchedule, expand
from pdlib.weightings import WEIGHTINGS


@dataclass(frozen=True)
class JumpToClean:
    """A toy method: the student is to say at every t where its teacher's whole walk from there ends, at t = 0."""

    teacher: DenoiserLike
    steps: int

    def __call__(self, x, z, t, average):
        landed = z.clone()
        for i in t.unique():
            there = t == i
            walk = round(i.item() * self.steps * 2)
            grid = torch.arange(walk, -1, -1, dtype=torch.float64) / (2 * self.steps)
            landed[there] = walked_down(self.teacher, z[there], grid)
        return landed


class JumpsToClean(Method):
    """Its targets, stage by stage."""

    def objective(self, teacher, grid, weighting="truncated_snr"):
        return Objective(JumpToClean(teacher, grid.N), grid, weighting)


def walked_down(teacher, z, times):
    for t, s in pairwise(times):
        t, s = t.expand(len(z)), s.expand(len(z))
        z = ddim_step(z, teacher(z, t), t, s, teacher.schedule)
    return z


def half_v(z, output, alpha, sigma):
    """x̂ of a network that says v/2."""
    return expand(alpha, z) * z - 2 * expand(sigma, z) * output


def stripes():
    """Forty images of 8×8: light and dark stripes, of two kinds."""
    x = torch.zeros(40, 8, 8)
    x[::2, ::2], x[1::2, :, ::2] = 1.0, 1.0
    shade = torch.linspace(0.5, 1, 40)[:, None, None]
    return (2 * x - 1).mul(shade).numpy(), (torch.arange(40) % 2).numpy()


def add_one_of_each():
    WEIGHTINGS["sigma"] = lambda schedule, t: schedule.alpha_sigma(t)[1]
    PREDICTIONS["half_v"] = Prediction(half_v)
    METRICS["mean_gap"] = Metric(lambda real, fake: (real.mean() - fake.mean()).abs().item(), False, "gap of the means")
    DATASETS["stripes"] = stripes
    METHODS["jump_to_clean"] = JumpsToClean
    SCHEDULES["late_cosine"] = lambda T=1000: CosineSchedule(offset=0.1)
    EXERCISES["99_double"] = Exercise(
        cases=lambda generator: {"x": torch.rand(3, generator=generator)}, reference=lambda x: x + x
    )


def remove_them():
    added = {
        "sigma": WEIGHTINGS,
        "half_v": PREDICTIONS,
        "mean_gap": METRICS,
        "stripes": DATASETS,
        "jump_to_clean": METHODS,
        "late_cosine": SCHEDULES,
        "99_double": EXERCISES,
    }
    for name, registry in added.items():
        registry.pop(name, None)
