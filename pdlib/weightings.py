"""Loss weightings: the weight w(t) on ‖x̂ − x‖², in the notation of Salimans & Ho 2022, section 4.

    "constant"         1
    "snr"              α²/σ²            = the plain ε loss, ‖ε̂ − ε‖²
    "truncated_snr"    max(α²/σ², 1)    = max(‖x̂ − x‖², ‖ε̂ − ε‖²)
    "snr_plus_one"     1 + α²/σ²        = the v loss, ‖v̂ − v‖²
    "log_snr_density"  −1/(dλ/dt)       the weight the plain ε loss gives each term of the
                                        variational bound; discretised over N steps it is
                                        SNR_i / (SNR_{i−1} − SNR_i) ≈ N times that

Every value is finite for t in (0, 1], α_1 = 0 included; at t = 0 the SNR is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdlib.schedules import Schedule, grid

__all__ = ["WEIGHTINGS", "Clipped", "clipped", "weight"]

WEIGHTINGS = ("constant", "snr", "truncated_snr", "snr_plus_one", "log_snr_density")


@dataclass(frozen=True)
class Clipped:
    """A weighting confined to [min, max]; made by :func:`clipped`."""

    weighting: str
    min: float | None = None
    max: float | None = None
    normalize: bool = False


def clipped(weighting: str, min: float | None = None, max: float | None = None, normalize: bool = False) -> Clipped:
    """A weighting clipped to [min, max], to be used wherever a weighting's name is.

    With ``normalize`` it is then divided by its mean over the grid of ``steps`` times, so that
    clipping does not change the size of the loss.

    Raises:
        ValueError: for an unknown weighting, or a minimum above the maximum.
    """
    _require_known(weighting)
    if min is not None and max is not None and min > max:
        raise ValueError(f"clip minimum {min} is above clip maximum {max}: lower the one or raise the other")
    return Clipped(weighting, min, max, normalize)


def weight(weighting: str | Clipped, schedule: Schedule, t: Tensor, steps: int | None = None) -> Tensor:
    """w(t), of t's shape, in float64.

    Args:
        weighting: one of :data:`WEIGHTINGS`, or what :func:`clipped` returned.
        schedule: gives α, σ and dλ/dt.
        t: times in [0, 1], any shape.
        steps: the number of steps N of a discrete grid, on which ``"log_snr_density"`` takes its
            discretised form. Ignored by the other weightings.

    Raises:
        ValueError: for an unknown weighting, or ``normalize`` without ``steps``.
    """
    if isinstance(weighting, Clipped):
        low, high = weighting.min, weighting.max
        value = weight(weighting.weighting, schedule, t, steps)
        value = value.clamp(0 if low is None else low, torch.inf if high is None else high)
        if not weighting.normalize:
            return value
        if steps is None:
            raise ValueError("a normalized weighting divides by its mean over a grid: give steps")
        whole = clipped(weighting.weighting, weighting.min, weighting.max)
        return value / weight(whole, schedule, grid(steps, t.device), steps).mean()
    _require_known(weighting)
    alpha, sigma = schedule.alpha_sigma(t)
    if weighting == "constant":
        return torch.ones_like(alpha)
    if weighting == "snr":
        return alpha**2 / sigma**2
    if weighting == "truncated_snr":
        return (alpha**2 / sigma**2).clamp(min=1)
    if weighting == "snr_plus_one":
        return 1 / sigma**2  # 1 + α²/σ², as α² + σ² = 1
    if steps is None:
        return -1 / schedule.dlog_snr(t)
    # SNR_t / (SNR_s − SNR_t) with s = t − 1/N, multiplied through by σ_s² σ_t² so that neither
    # α_t = 0 nor σ_s = 0 divides by 0; the difference of squares keeps its digits.
    alpha_s, sigma_s = schedule.alpha_sigma((t.double() - 1 / steps).clamp(min=0))
    difference = (alpha_s * sigma - alpha * sigma_s) * (alpha_s * sigma + alpha * sigma_s)
    return (alpha * sigma_s) ** 2 / difference


def _require_known(weighting: str) -> None:
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r} is unknown; it must be one of {', '.join(WEIGHTINGS)}")
