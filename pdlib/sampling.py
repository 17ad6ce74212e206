"""Sampling: from noise at t = 1 to data at t = 0, by DDIM or ancestral steps.

Salimans & Ho 2022, section 2, equations 5 to 8. Everything is written in α and σ, so that α_1 = 0
is an ordinary starting point.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pdlib.denoiser import DenoiserLike
from pdlib.schedules import Schedule, expand, grid

__all__ = ["SAMPLERS", "ancestral_step", "ddim_step", "sample", "sample_batches"]

SAMPLERS = ("ddim", "ancestral")


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


def ancestral_step(
    z: Tensor,
    x_hat: Tensor,
    t: Tensor,
    s: Tensor,
    schedule: Schedule,
    noise: Tensor,
    variance: float = 0.0,
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


def sample(
    denoiser: DenoiserLike,
    steps: int,
    z: Tensor,
    *,
    sampler: str = "ddim",
    generator: torch.Generator | None = None,
    clip: float | None = None,
    variance: float = 0.0,
    schedule: Schedule | None = None,
    skip_top: bool = False,
) -> Iterator[Tensor]:
    """Walk from z_1 to z_0 in so many equal steps, yielding every z on the way.

    A generator: stop, watch or plot at any step. The first item is ``z`` itself and the last is the
    sample: ``steps + 1`` items in all.

    Args:
        denoiser: (z, t) -> x̂.
        steps: N; the times are i/N.
        z: z_1, standard normal noise of shape (batch, …).
        sampler: ``"ddim"`` (deterministic) or ``"ancestral"`` (draws fresh noise each step).
        generator: source of the ancestral noise.
        clip: confine every x̂ to [−clip, clip] (images lie in [−1, 1]); ``None`` for no clipping.
        variance: of the ancestral steps, see :func:`ancestral_step`.
        schedule: α and σ; by default the denoiser's own.
        skip_top: take ``z`` for z_{1 − 1/N} and start there, one step fewer: what a network that was trained
            without t = 1 asks for, see :func:`pdlib.training.random_grid_times`.

    Raises:
        ValueError: for an unknown sampler, or fewer than one step.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is unknown; it must be one of {', '.join(SAMPLERS)}")
    schedule = schedule or denoiser.schedule
    times = torch.cat([torch.zeros(1, dtype=torch.float64), grid(steps)]).to(z.device)
    yield z
    for i in range(steps - skip_top, 0, -1):
        t, s = times[i].expand(len(z)), times[i - 1].expand(len(z))
        x_hat = denoiser(z, t)
        if clip is not None:
            x_hat = x_hat.clamp(-clip, clip)
        if sampler == "ddim":
            z = ddim_step(z, x_hat, t, s, schedule)
        else:
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            z = ancestral_step(z, x_hat, t, s, schedule, noise, variance)
        yield z


@torch.no_grad()
def sample_batches(
    denoiser: DenoiserLike,
    steps: int,
    count: int,
    shape: tuple[int, ...],
    *,
    generator: torch.Generator,
    batch_size: int = 256,
    progress: str | None = None,
    **options,
) -> Tensor:
    """The final samples alone, drawn batch by batch: memory holds one batch at a time.

    Args:
        denoiser, steps: as in :func:`sample`.
        count: how many samples.
        shape: of one sample, such as (1, 8, 8).
        generator: source of all noise, on the device to sample on; the same seed gives the same samples.
        batch_size: samples drawn at once.
        progress: a label, to show a progress bar.
        **options: passed on to :func:`sample`.

    Returns:
        The samples, shape (count, *shape), on the CPU.
    """
    samples = torch.empty(count, *shape)
    with tqdm(total=count, desc=progress, unit="image", leave=False, disable=progress is None) as bar:
        for start in range(0, count, batch_size):
            size = min(batch_size, count - start)
            z = torch.randn(size, *shape, generator=generator, device=generator.device)
            walk = sample(denoiser, steps, z, generator=generator, **options)
            samples[start : start + size] = deque(walk, maxlen=1).pop()
            bar.update(size)
    return samples
