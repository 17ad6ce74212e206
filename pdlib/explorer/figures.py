"""What the knobs come to: the figures of the five panels, and one sentence for each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pdlib.explorer.state import ExplorerState, problems
from pdlib.grids import Grid
from pdlib.weightings import Density, weight

__all__ = ["Figures", "compute", "say_amplification", "say_schedule", "say_sensitivity", "say_share", "say_weight"]


@dataclass(frozen=True)
class Figures:
    """What the panels draw. All tensors are float64."""

    state: ExplorerState
    t: Tensor
    """The fine grid i/T, shape (T,)."""
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    density: Tensor
    """p = −1/λ′, how densely evenly drawn times fall on the λ axis."""
    w: Tensor
    """w(t) as it is used."""
    plain: Tensor
    """w(t) without its clip."""
    step_t: Tensor
    """The sampler's grid i/N, shape (N,); so are all that follow."""
    step_alpha: Tensor
    step_sigma: Tensor
    step_log_snr: Tensor
    step_density: Tensor
    step_w: Tensor
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
    """The figures of all panels.

    Raises:
        ValueError: where :func:`problems` finds something, with its lines.
    """
    if wrong := problems(state):
        raise ValueError("; ".join(dict.fromkeys(wrong.values())))
    schedule, weighting = state.noise_schedule, state.loss_weighting

    def along(t: Tensor) -> dict[str, Tensor]:
        alpha, sigma = schedule.alpha_sigma(t)
        density, w = Density()(schedule, t), weight(weighting, schedule, t)
        return {"t": t, "alpha": alpha, "sigma": sigma, "log_snr": schedule.log_snr(t), "density": density, "w": w}

    fine, steps = along(Grid(state.T).times), along(Grid(state.N).times)
    t, alpha, sigma, w = (steps[name] for name in ("t", "alpha", "sigma", "w"))
    share = w / (w.sum() or 1)
    own = {"x": torch.ones_like(t), "eps": sigma / alpha, "v": sigma, "both": sigma}
    # x̃ = (z'' − (σ''/σ) z) / (α'' − (σ''/σ) α), notebook 03's last line, is linear in z''.
    alpha_end, sigma_end = schedule.alpha_sigma(t - 1 / state.N)
    return Figures(
        state,
        **fine,
        **{f"step_{name}": values for name, values in steps.items()},
        plain=weight(replace(state, clip_min=None, clip_max=None).loss_weighting, schedule, fine["t"]),
        share=share,
        dead=share < state.threshold / state.N,
        eps_amplification=own["eps"],
        own_amplification=own[state.prediction],
        sensitivity=1 / (alpha_end - sigma_end / sigma * alpha),
    )


def say_schedule(f: Figures) -> str:
    """What the schedule ends in."""
    last = f.step_alpha[-1].item()
    if last == 0:
        return "at t = 1, α = 0: training ends in pure noise, where sampling starts"
    return f"at t = 1, α = {last:.2g}: sampling starts from pure noise, which training never shows"


def say_weight(f: Figures) -> str:
    """How large the weight is at the N steps."""
    if f.state.N <= 4:
        return f"at the {f.state.N} steps, w = {', '.join(map(_number, f.step_w.tolist()))}"
    low, high = f.step_w.min().item(), f.step_w.max().item()
    return f"over the {f.state.N} steps, w goes from {_number(low)} to {_number(high)}"


def say_share(f: Figures) -> str:
    """Which steps are dead."""
    N, dead = f.state.N, int(f.dead.sum())
    if f.step_w.sum() == 0:
        return f"at N = {N}, the loss is always 0: no step gets any weight"
    if dead == 0:
        part, at = f.share.min().item(), _time(f, int(f.share.argmin()))
        size = f"{part * 100:.2f} % of the weight, {_number(part * N)} times the fair share"
        return f"at N = {N}, no step is dead: the smallest share is {size}, at t = {at}"
    times = [_time(f, i) for i in f.dead.nonzero().flatten().tolist()]
    shown = ", ".join(times if dead <= 4 else [*times[:2], "…", times[-1]])
    get, together = ("gets", "") if dead == 1 else ("get", " together")
    part = f"{f.share[f.dead].sum() * 100:.1f} %"
    return f"at N = {N}, {dead} of {N} steps {get} {part} of the weight{together}: t = {shown}"


def say_amplification(f: Figures) -> str:
    """How far an error of the network is magnified in x̂."""
    worst = int(f.eps_amplification.argmax())
    size = f.eps_amplification[worst].item()
    said = f"an ε error is magnified most at t = {_time(f, worst)}: {_number(size)} times"
    if math.isinf(size):
        said = f"an ε error is magnified without bound at t = {_time(f, worst)}, where α = 0"
    if f.state.prediction == "eps":
        return said
    name = {"x": "an error in x", "v": "an error in v", "both": "errors in x and ε of one size"}[f.state.prediction]
    return f"{said}; {name} at most {_number(f.own_amplification.max().item())} times"


def say_sensitivity(f: Figures) -> str:
    """How far an error in z at t″ is magnified in x̃."""
    worst = int(f.sensitivity.argmax())
    most = f"is magnified most at t = {_time(f, worst)}: {_number(f.sensitivity[worst].item())} times"
    return f"an error where the teacher's two steps end, at t″ = t − 1/N, {most}"


def _time(f: Figures, index: int) -> str:
    """A time i/N, with as many digits as tell it from the next."""
    return f"{f.step_t[index]:.{2 if f.state.N <= 64 else 4}f}"


def _number(value: float) -> str:
    """A figure as it is read: two decimals, or three digits where it is very large or small."""
    return f"{value:,.2f}" if value == 0 or 0.01 <= value < 1e4 else f"{value:.3g}"
