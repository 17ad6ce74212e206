"""What the knobs come to, from the library's own functions: what the browser's formulas are tested against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdlib.explorer.state import ExplorerState
from pdlib.grids import Grid
from pdlib.weightings import Density, weight

__all__ = ["Curves", "Figures", "compute"]


@dataclass(frozen=True)
class Curves:
    """Values along a grid, float64: w(t) as it is used, and plain, without its clip; density is p = −1/λ′."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    density: Tensor
    w: Tensor
    plain: Tensor


@dataclass(frozen=True)
class Figures:
    """What the panels draw: along the grid i/T, and along the sampler's, i/N, as all that follows."""

    fine: Curves
    steps: Curves
    share: Tensor
    """Of the N steps in the weight; all 0 where the loss is always 0."""
    dead: Tensor
    """Whether the share is below the threshold."""
    eps_amplification: Tensor
    """σ/α: by how much an ε error is magnified in x̂; infinite at α = 0."""
    own_amplification: Tensor
    """The same for what the network predicts: 1 for x, σ/α for ε, σ for v, and σ for both if its errors are alike."""
    sensitivity: Tensor
    """∂x̃/∂z_{t''}: by how much an error of the teacher's result is magnified in the student's target."""


def compute(state: ExplorerState) -> Figures:
    """The figures of all panels."""
    fine, steps = _along(state, Grid(state.T).times), _along(state, Grid(state.N).times)
    t, alpha, sigma = steps.t, steps.alpha, steps.sigma
    share = steps.w / (steps.w.sum() or 1)
    dead = share < state.threshold / state.N
    own = {"x": torch.ones_like(t), "eps": sigma / alpha, "v": sigma, "both": sigma}
    # x̃ = (z'' − (σ''/σ) z) / (α'' − (σ''/σ) α), notebook 03's last line, is linear in z''.
    alpha_end, sigma_end = state.noise_schedule.alpha_sigma(t - 1 / state.N)
    sensitivity = 1 / (alpha_end - sigma_end / sigma * alpha)
    return Figures(fine, steps, share, dead, own["eps"], own[state.prediction], sensitivity)


def _along(state: ExplorerState, t: Tensor) -> Curves:
    schedule = state.noise_schedule
    weights = (weight(weighting, schedule, t) for weighting in (state.loss_weighting, state.plain_weighting))
    return Curves(t, *schedule.alpha_sigma(t), schedule.log_snr(t), Density()(schedule, t), *weights)
