"""Sampling: from noise at t = 1 to data at t = 0, by DDIM or ancestral steps.

Salimans & Ho 2022, section 2, equations 5 to 8. Everything is written in α and σ, so that α_1 = 0
is an ordinary starting point.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pdlib.denoiser import DenoiserLike, jump
from pdlib.grids import Grid
from pdlib.schedules import Schedule, expand

__all__ = ["SAMPLERS", "ancestral_step", "ddim_step", "renoising_step", "sample", "sample_batches", "x_of_step"]


def ddim_step(z: Tensor, x_hat: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """One deterministic step from time t down to s < t, given x̂(z_t). Equation 8.

    z_s = α_s x̂ + (σ_s/σ_t)(z_t − α_t x̂): the same x̂ and the same ε̂, mixed anew.

    Args:
        z: z_t, shape (batch, …).
        x_hat: x̂(z_t), of z's shape.
        t, s: times, shape (batch,), with s ≤ t and t > 0.
        schedule: gives α and σ.

    Returns:
        z_s, of z's shape.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return expand(alpha_s, z) * x_hat + expand(sigma_s / sigma_t, z) * (z - expand(alpha_t, z) * x_hat)


def x_of_step(z: Tensor, z_s: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """x̃: the x̂ with which :func:`ddim_step` goes from z_t to z_s. Appendix G solves for it.

    Args:
        z, t, s, schedule: as there, with s < t.
        z_s: where the step is to land, of z's shape.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    ratio = sigma_s / sigma_t  # α_s x̃ + (σ_s/σ_t)(z − α_t x̃) = z_s
    return (z_s - expand(ratio, z) * z) / expand(alpha_s - ratio * alpha_t, z)


def ancestral_step(
    z: Tensor, x_hat: Tensor, t: Tensor, s: Tensor, schedule: Schedule, noise: Tensor, variance: float = 0.0
) -> Tensor:
    """One stochastic step from time t down to s < t, given x̂(z_t). Equations 5 to 7.

    Draws from q(z_s | z_t, x = x̂), whose mean is r (α_s/α_t) z_t + (1 − r) α_s x̂ with
    r = SNR_t/SNR_s, and whose variance is set by ``variance``. At s = 0 the mean, x̂, is returned.

    Args:
        z, x_hat, t, s, schedule: as in :func:`ddim_step`.
        noise: standard normal, of z's shape.
        variance: 0 for the "small" variance (1 − r) σ_s², that of q itself; 1 for the "large"
            (1 − r) σ_t²; between them, the interpolation of their logarithms.

    Returns:
        z_s, of z's shape.

    Raises:
        ValueError: for a ``variance`` outside [0, 1].
    """
    if not 0 <= variance <= 1:
        raise ValueError(f"variance={variance}: must lie between 0 (small) and 1 (large)")
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    keep = 1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2  # 1 − r
    from_z = alpha_t * sigma_s**2 / (alpha_s * sigma_t**2)  # r α_s/α_t, finite at α_t = 0
    mean = expand(from_z, z) * z + expand(keep * alpha_s, z) * x_hat
    deviation = keep.clamp(min=0).sqrt() * sigma_s ** (1 - variance) * sigma_t**variance
    deviation = torch.where(s > 0, deviation, 0)
    return mean + expand(deviation, z) * noise


def renoising_step(z: Tensor, x_hat: Tensor, t: Tensor, s: Tensor, schedule: Schedule, noise: Tensor) -> Tensor:
    """One step of a consistency model, whose x̂ is where the flow ends: z_s = α_s x̂ + σ_s ε, with new ε.

    Song et al. 2023, algorithm 1. Arguments as in :func:`ancestral_step`.
    """
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    return expand(alpha_s, z) * x_hat + expand(sigma_s, z) * noise


SAMPLERS: dict[str, Callable[..., Tensor] | None] = {
    "ddim": None,
    "ancestral": ancestral_step,
    "renoising": renoising_step,
}
"""How a denoiser is sampled, by the name in its ``sampler``: by DDIM, or by a step that takes noise."""


def sample(
    denoiser: DenoiserLike,
    steps: int | Grid | None = None,
    *,
    z: Tensor,
    variance: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Walk from z_1 to z_0 along a grid, yielding every z on the way.

    A generator: stop, watch or plot at any step. The first item is ``z`` itself and the last is the
    sample: one item more than the grid has times.

    Args:
        denoiser: (z, t) -> x̂.
        steps: a grid; or N, for as many steps on a grid like the denoiser's own; or nothing, for that grid itself.
        z: at the grid's top time, t = 1: standard normal noise of shape (batch, …).
        variance: ``None`` for the steps that the denoiser was made for, as a rule DDIM's, see :data:`SAMPLERS`; a
            number for ancestral steps with that variance, see :func:`ancestral_step`.
        generator: source of the noise of steps that take some.

    Raises:
        ValueError: for fewer than one step, or none where the denoiser was made for no grid.
    """
    own = getattr(denoiser, "grid", None)
    if steps is None and own is None:
        raise ValueError("steps: this denoiser was made for no number of steps; say with how many to sample")
    if steps is not None and not isinstance(steps, Grid):
        steps = Grid(steps) if own is None else replace(own, N=steps)
    schedule, grid = denoiser.schedule, steps or own
    step = SAMPLERS[getattr(denoiser, "sampler", "ddim")]
    if variance is not None:
        step = partial(ancestral_step, variance=variance)
    yield z
    for t, s in grid.walk(len(z), z.device):
        x_hat = jump(denoiser, z, t, s)
        if step is None:
            z = ddim_step(z, x_hat, t, s, schedule)
        else:
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            z = step(z, x_hat, t, s, schedule, noise)
        yield z


@torch.no_grad()
def sample_batches(
    denoiser: DenoiserLike,
    count: int,
    steps: int | Grid | None = None,
    *,
    generator: torch.Generator,
    variance: float | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """The final samples alone, drawn in batches of 256: memory holds one batch at a time.

    Args:
        denoiser, steps, variance: as in :func:`sample`.
        count: how many samples.
        generator: source of all noise, on the device to sample on; the same seed gives the same samples.
        shape: of one sample, such as (1, 8, 8), where the denoiser does not say.

    Returns:
        The samples, shape ``(count, *shape)``, on the CPU.

    Raises:
        ValueError: where no shape is known; and as in :func:`sample`.
    """
    shape = shape or getattr(denoiser, "shape", None)
    if shape is None:
        raise ValueError("shape: this denoiser does not say what shape its samples have; give it")
    samples = torch.empty(count, *shape)
    for part in samples.split(256):
        z = torch.randn(part.shape, generator=generator, device=generator.device)
        part.copy_(deque(sample(denoiser, steps, z=z, variance=variance, generator=generator), maxlen=1).pop())
    return samples
