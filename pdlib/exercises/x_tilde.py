"""The exercises of notebook 03, the target x̃."""

from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from pdlib.denoiser import DenoiserLike
from pdlib.exact import MixtureDenoiser
from pdlib.exercises.common import columns, exercise, normal, rotated, uniform, whole
from pdlib.schedules import CosineSchedule


def _student_step(generator: Generator) -> dict[str, int]:
    steps = whole(generator, 2, 9)
    return {"i": whole(generator, 1, steps + 1), "steps": steps}


# The reference counts on the teacher's grid.
@exercise("03_times", _student_step, lambda i, n: tuple((2 * i - k) / (2 * n) for k in range(3)))
def _wrong_times(i, steps):
    counted = {
        "t' and t'' are swapped: t', half-way, comes first": (i, i - 1, i - 0.5),
        "those steps are the student's; the teacher makes 2N steps from 1 to 0, each half as long": (i, i - 1, i - 2),
        "i runs from 1 to N, and t = i/N: the first t is 1/N and the last is 1": (i - 1, i - 1.5, i - 2),
        "sampling goes from noise at t = 1 to data at t = 0: the times fall": (i, i + 0.5, i + 1),
    }
    return {hint: tuple(k / steps for k in numbers) for hint, numbers in counted.items()}


def _one_step(names: str, generator: Generator) -> dict[str, Tensor]:
    """Two tensors, and α and σ of a step's start and end: among the starts is α = 0, among the ends σ = 0."""
    pair = normal(generator, 2, 4, 3)
    start = torch.tensor([0.3, 0.8, 1.2, torch.pi / 2]) + uniform(generator, width=0.1)
    end = start * uniform(generator, 0.3, 0.5)
    start[3], end[0] = torch.pi / 2, 0.0
    return dict(zip(names.split(), (*pair, start.cos(), start.sin(), end.cos(), end.sin()), strict=True))


@columns
def ddim(z: Tensor, x_hat: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Tensor:
    """A DDIM step as a turn by φ_t − φ_s: cos(φ_t − φ_s) z − sin(φ_t − φ_s) v̂."""
    turn = torch.atan2(sigma_t, alpha_t) - torch.atan2(sigma_s, alpha_s)
    return turn.cos() * z - turn.sin() * (alpha_t * z - x_hat) / sigma_t


@exercise("03_ddim_step", partial(_one_step, "z x_hat alpha_t sigma_t alpha_s sigma_s"), ddim)
@columns
def _wrong_z_s(z, x, a, s, a_s, s_s):
    squares = a_s**2 * x + (s_s / s) ** 2 * (z - a**2 * x)
    return {
        "a sign: to get at the noise, the picture's part α_t x̂ is taken away from z_t": a_s * x + s_s / s * (z + a * x),
        "α and σ themselves multiply x and ε; their squares are variances": squares,
        "α_t and α_s are swapped: unmix z_t with α_t, then mix anew with α_s": a * x + s_s / s * (z - a_s * x),
        "z_t − α_t x̂ is σ_t ε̂, not yet ε̂: divide it by σ_t": a_s * x + s_s * (z - a * x),
        "z_t is not the noise, it holds a picture too: the noise is ε̂ = (z_t − α_t x̂)/σ_t": a_s * x + s_s * z,
    }


def _aimed(z: Tensor, z_end: Tensor, *angles: Tensor) -> Tensor:
    """Two trial shots, at x̂ = 0 and x̂ = 1; where a step lands is a straight line in x̂."""
    from_0, from_1 = (ddim(z, torch.full_like(z, x), *angles) for x in (0.0, 1.0))
    return (z_end - from_0) / (from_1 - from_0)


@exercise("03_x_tilde", partial(_one_step, "z z_end alpha sigma alpha_end sigma_end"), _aimed)
@columns
def _wrong_x_tilde(z, end, a, s, a_end, s_end):
    r = s_end / s
    plus = (end + r * z) / (a_end + r * a)
    return {
        "a sign: what is added on one side, (σ''/σ) z, is taken away on the other; −(σ''/σ) α x̃ keeps its minus": plus,
        "x̃ stands in two places; collect both before you divide": (end - r * z) / a_end,
        "the step has σ''/σ, not the ratio of the variances": (end - r**2 * z) / (a_end - r**2 * a),
        "the noise that x̃ leaves is (z − α x̃)/σ: the division by σ got lost": (end - s_end * z) / (a_end - s_end * a),
        "the noise shrinks on the way, from σ to σ'': the ratio σ''/σ got lost": (end - z) / (a_end - a),
    }


class RandomMixture(MixtureDenoiser):
    """The exact denoiser of a few random Gaussians in the plane."""

    def __init__(self, generator: Generator, components: int):
        means = normal(generator, components, 2)
        covariances = uniform(generator, 0.05, 0.2, (components, 1, 1)) * torch.eye(2, dtype=torch.float64)
        weights = torch.full((components,), 1 / components, dtype=torch.float64)
        super().__init__(weights, means, covariances, CosineSchedule())

    def __repr__(self) -> str:
        return f"the exact denoiser of {len(self.components)} Gaussians in the plane"


def _batch(generator: Generator) -> dict[str, Any]:
    """A batch for algorithm 2, t'' = 0 left out: some of the mistakes are not finite there."""
    student, teacher = RandomMixture(generator, 2), RandomMixture(generator, 3)
    (x, eps), steps = normal(generator, 2, 4, 2), whole(generator, 2, 7)
    i = torch.randint(2, steps + 1, (4,), generator=generator, dtype=torch.float64)
    i[0] = steps
    return {"student": student, "teacher": teacher, "x": x, "eps": eps, "t": i / steps, "steps": steps}


SLIPS = {
    "swapped": "t' and t'' are swapped: the teacher goes first to t' = t − 0.5/N, then on to t'' = t − 1/N",
    "t' for t''": "x̃ is solved with α and σ of t'; the student's step ends at t''",
    "no weight": "the weight is missing: max(α²/σ², 1), for each example of the batch",
    "snr": "that weight is the SNR alone: at t = 1 it is 0, and nothing is learned there",
    "x_mid": "the target is the teacher's second answer, x̂(z_t'); solve for x̃ with z_t''",
    "x": "the target is the clean x, as when a teacher is trained; distillation has x̃ in its place",
    "asked once": "ask the teacher anew at z_t', t': its two steps have two answers; with one, x̃ would be x̂(z_t)",
    "long steps": "the teacher's steps are half as long as the student's: 0.5/N",
    "clean input": "the teacher and the student see z_t, not the clean x",
    "sum": "‖·‖² is here the mean over an example's entries, as in the library, not their sum",
}


def two_steps(slip: str, teacher: DenoiserLike, z: Tensor, t: Tensor, steps: int) -> Tensor:
    """x̃, what two steps of the teacher come to, with one thing wrong if ``slip`` is one of those."""
    step = (1 if slip == "long steps" else 0.5) / steps
    t_mid, t_end = t - step, (t - 2 * step).clamp(min=0)
    if slip == "swapped":
        t_mid, t_end = t_end, t_mid
    start, middle, end = map(teacher.schedule.alpha_sigma, (t, t_mid, t_end))
    x_hat = teacher(z, t)
    z_mid = ddim(z, x_hat, *start, *middle)
    x_mid = x_hat if slip == "asked once" else teacher(z_mid, t_mid)
    z_end = ddim(z_mid, x_mid, *middle, *end)
    x_tilde = _aimed(z, z_end, *start, *(middle if slip == "t' for t''" else end))
    return x_mid if slip == "x_mid" else x_tilde


def weighted(slip: str, miss: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The mean over a batch of what each example's miss of its target costs, as above."""
    snr, cost = (alpha / sigma) ** 2, miss.square()
    w = {"no weight": 1, "snr": snr}.get(slip, snr.clamp(min=1))
    return (w * (cost.sum(1) if slip == "sum" else cost.mean(1))).mean()


def algorithm_2(slip, student, teacher, x, eps, t, steps):
    """The loss of a batch, as above."""
    alpha, sigma = student.schedule.alpha_sigma(t)
    z = x if slip == "clean input" else rotated(x, eps, alpha, sigma).real
    target = x if slip == "x" else two_steps(slip, teacher, z, t, steps)
    return weighted(slip, target - student(z, t), alpha, sigma)


@exercise("03_algorithm_2", _batch, partial(algorithm_2, ""))
def _wrong_loss(*batch):
    return {hint: partial(algorithm_2, slip, *batch) for slip, hint in SLIPS.items()}
