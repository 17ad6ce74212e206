"""The diagnosis: names the known mistakes that ruin few-step samplers, each with the number that gives it away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdlib.denoiser import DenoiserLike
from pdlib.grids import Grid
from pdlib.weightings import Weighting, on_grid

__all__ = ["CULPRITS", "Finding", "diagnose"]

CULPRITS = ("wrong top time", "terminal SNR", "dead steps", "unbounded targets")
"""The known mistakes, by the names that :func:`diagnose` gives them."""


@dataclass(frozen=True)
class Finding:
    """One mistake that :func:`diagnose` found."""

    culprit: str
    """One of :data:`CULPRITS`."""
    figure: float
    """The number that gives it away."""
    explanation: str
    """What the number is, what it does, and what to do about it."""

    def __str__(self) -> str:
        return f"{self.culprit}: {self.explanation}"


def diagnose(
    denoiser: DenoiserLike, grid: Grid | None = None, weighting: str | Weighting = "truncated_snr"
) -> list[Finding]:
    """Name the mistakes that ruin few-step samplers and leave many-step samplers almost unharmed.

    - *wrong top time*: training stops below t = 1, where sampling starts. The figure is α at the highest time.
    - *terminal SNR*: the schedule's last α is not 0 (nor below 0.001), so that no z_1 in training was pure noise.
      The figure is α_1. Lin et al. 2023.
    - *dead steps*: times whose weight is below 1 % of their fair share, 1/N of the whole, both as a weight on
      ‖x̂ − x‖² and as one on ‖v̂ − v‖². The figure is the lowest share of the two, in units of the fair one.
    - *unbounded targets*: an ε network's error reaches x̂ magnified by σ/α, by more than 100. The figure is σ/α.

    Args:
        denoiser: a student or a teacher; its schedule and its prediction are read.
        grid: the times that it is trained at and samples through, where it does not carry its own.
        weighting: what it was trained with; a denoiser does not know.

    Returns:
        The findings, in the order of :data:`CULPRITS`; none for a healthy denoiser.

    Raises:
        ValueError: where neither gives a grid.
    """
    grid, schedule = grid or getattr(denoiser, "grid", None), denoiser.schedule
    if grid is None:
        raise ValueError("grid: this denoiser was made for no number of steps; say for which Grid(N) to diagnose it")
    steps, times = grid.N, grid.times
    top = times.max() if len(times) else torch.zeros((), dtype=torch.float64)
    ends = torch.stack([top, torch.ones_like(top)])
    alpha_top, alpha_last = schedule.alpha_sigma(ends)[0].tolist()
    alpha, sigma = schedule.alpha_sigma(times)
    on_x = on_grid(weighting, steps)(schedule, times)
    share = torch.maximum(_share(on_x), _share(on_x * sigma**2))
    dead = times[share < 0.01]
    shown = ", ".join(f"{t:.4g}" for t in dead[-4:].flip(0)) + (", …" if len(dead) > 4 else "")
    amplification = (sigma / alpha).max().item() if len(times) else 0.0
    is_eps = getattr(denoiser, "prediction", None) == "eps"
    known = (
        (
            top < 1,
            "wrong top time",
            alpha_top,
            f"the highest time in training is t = {top:.4g}, where α = {alpha_top:.2g}, but sampling starts from noise "
            f"alone, where α = 0. Take the times i/{steps} with i = 1 … {steps}, not i = 0 … {steps - 1}.",
        ),
        (
            alpha_last > 1e-3,
            "terminal SNR",
            alpha_last,
            f"the schedule ends at α_1 = {alpha_last:.2g}: training never shows pure noise, and sampling starts from "
            "it. Use a schedule with α_1 = 0, such as pdlib.schedules.zero_terminal_snr makes.",
        ),
        (
            len(dead) > 0,
            "dead steps",
            share.min().item() if len(share) else 0.0,
            f"of {steps} steps {len(dead)} {'gets' if len(dead) == 1 else 'get'} less than 1 % of the fair share of "
            f"the loss: t = {shown}. There a student stays as its teacher left it. Use truncated_snr, snr_plus_one or "
            "constant, or clip the weights.",
        ),
        (
            is_eps and amplification > 100,
            "unbounded targets",
            amplification,
            f"the network predicts ε, and its error reaches x̂ magnified by σ/α = {amplification:.3g} at t = {top:.4g}. "
            "Convert it to v, x or both first: pdlib.distillation.convert.",
        ),
    )
    return [Finding(*finding) for applies, *finding in known if applies]


def _share(weights: Tensor) -> Tensor:
    """Each weight over their mean; 0 where all are 0."""
    return weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)
