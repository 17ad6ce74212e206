"""Loss weightings: the weight w(t) on ‖x̂ − x‖², in the notation of Salimans & Ho 2022, section 4::

    "constant"         1
    "snr"              α²/σ²            = the plain ε loss, ‖ε̂ − ε‖²
    "truncated_snr"    max(α²/σ², 1)    = max(‖x̂ − x‖², ‖ε̂ − ε‖²)
    "snr_plus_one"     1 + α²/σ²        = the v loss, ‖v̂ − v‖²
    "log_snr_density"  −1/(dλ/dt)       the weight the plain ε loss gives each term of the
                                        variational bound, see :class:`Density`

A weighting is one of these names, or any callable (schedule, t) -> w(t), of t's shape and in float64.
Every value is finite for t in (0, 1], α_1 = 0 included; at t = 0 the SNR is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pdlib.files import named
from pdlib.grids import Grid
from pdlib.schedules import Schedule

__all__ = ["WEIGHTINGS", "Clipped", "Density", "Weighting", "on_grid", "weight"]

Weighting = Callable[[Schedule, Tensor], Tensor]


def _snr(schedule: Schedule, t: Tensor) -> Tensor:
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha**2 / sigma**2


@dataclass(frozen=True)
class Density:
    """The log-SNR density −1/(dλ/dt); over a grid of N steps, SNR_i / (SNR_{i−1} − SNR_i) ≈ N times that.

    Args:
        steps: N; ``None`` for the density itself.
    """

    steps: int | None = None

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        if self.steps is None:
            return -1 / schedule.dlog_snr(t)
        # SNR_t / (SNR_s − SNR_t) with s = t − 1/N, multiplied through by σ_s² σ_t² so that neither
        # α_t = 0 nor σ_s = 0 divides by 0; the difference of squares keeps its digits.
        alpha, sigma = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma((t.double() - 1 / self.steps).clamp(min=0))
        difference = (alpha_s * sigma - alpha * sigma_s) * (alpha_s * sigma + alpha * sigma_s)
        return (alpha * sigma_s) ** 2 / difference


@dataclass(frozen=True)
class Clipped:
    """A weighting clipped to [min, max].

    Args:
        weighting: what is clipped.
        min, max: the limits; ``None`` for none.
        normalize: N, to divide by the mean over the grid i/N, i = 1 … N, so that clipping does not change the size of
            the loss.

    Raises:
        ValueError: for an unknown weighting, or limits that leave no weight or turn it negative.
    """

    weighting: str | Weighting
    min: float | None = None
    max: float | None = None
    normalize: int | None = None

    def __post_init__(self):
        _named(self.weighting)
        low, high = 0.0 if self.min is None else self.min, math.inf if self.max is None else self.max
        if not 0 <= low < math.inf:
            raise ValueError(f"clip_min={self.min}: a weight is a finite number of 0 or more")
        if not high > 0:
            raise ValueError(f"clip_max={self.max}: must be above 0, or no weight is left")
        if low > high:
            raise ValueError(f"clip_min={self.min} is above clip_max={self.max}: lower the one or raise the other")

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        value = weight(self.weighting, schedule, t)
        value = value.clamp(0 if self.min is None else self.min, torch.inf if self.max is None else self.max)
        if self.normalize is None:
            return value
        return value / replace(self, normalize=None)(schedule, Grid(self.normalize).times.to(t.device)).mean()


WEIGHTINGS: dict[str, Weighting] = {
    "constant": lambda schedule, t: torch.ones_like(t, dtype=torch.float64),
    "snr": _snr,
    "truncated_snr": lambda schedule, t: _snr(schedule, t).clamp(min=1),
    "snr_plus_one": lambda schedule, t: 1 / schedule.alpha_sigma(t)[1] ** 2,  # 1 + α²/σ², as α² + σ² = 1
    "log_snr_density": Density(),
}
"""Every weighting by name. A new one is one entry."""


def weight(weighting: str | Weighting, schedule: Schedule, t: Tensor) -> Tensor:
    """w(t), of t's shape, in float64.

    Args:
        weighting: one of :data:`WEIGHTINGS`, or a callable.
        schedule: gives α, σ and dλ/dt.
        t: times in [0, 1], any shape.

    Raises:
        ValueError: for an unknown weighting.
    """
    return _named(weighting)(schedule, t)


def on_grid(weighting: str | Weighting, N: int | None) -> Weighting:
    """The weighting as it is on a grid of N steps, if any: a :class:`Density` without steps takes those."""
    weighting = _named(weighting)
    if isinstance(weighting, Density):
        return weighting if weighting.steps else Density(N)
    if isinstance(weighting, Clipped):
        return replace(weighting, weighting=on_grid(weighting.weighting, N))
    return weighting


def _named(weighting: str | Weighting) -> Weighting:
    return named("weighting", weighting, WEIGHTINGS) if isinstance(weighting, str) else weighting
