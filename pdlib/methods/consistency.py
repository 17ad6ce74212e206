"""Consistency models: from every point of one path the network points to the same end of it, at t = 0.

Song et al. 2023; Song & Dhariwal 2023 (iCT); Geng et al. 2024 (ECT); Lu & Song 2024 (sCM). That x̂(z_0) = z_0, the
boundary condition, holds of itself for v, ε and "both".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pdlib.denoiser import DenoiserLike
from pdlib.grids import Grid
from pdlib.methods import Method
from pdlib.methods.tangents import AlongTheFlow, require_tangents
from pdlib.objectives import Objective, Update
from pdlib.sampling import ddim_step
from pdlib.schedules import Schedule, expand
from pdlib.weightings import Weighting

__all__ = ["ConsistencyDistillation", "ContinuousConsistency", "EasyConsistency"]


@dataclass(frozen=True, kw_only=True)
class Consistent(Objective):
    """x̃ = x̂(z_r, r), with r < t on the same path, and without gradient.

    Args:
        teacher: whose DDIM step leads to z_r; ``None`` where z_r is made of the same x and ε.
        gap: (t − r)/t; ``None`` for r = t − 1/N on the grid.
        own: whose x̂ it is: the ``"student"`` of the moment, or its ``"average"``.
        near: whether a pair weighs 1/(t − r), in the place of w(λ_t).
        finest: the gap is 1/2 at first, 2^−finest at last; it halves at equal intervals.
    """

    teacher: DenoiserLike | None = None
    gap: float | None = None
    own: str = "student"
    near: bool = True
    finest: int = 0

    def at_update(self, update: int, updates: int) -> Consistent:
        return self if self.gap is None else replace(self, gap=0.5 ** (1 + self.finest * update // updates))

    def pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t, _ = super().pairs(count, generator)
        return t, (t - 1 / self.grid.N).clamp(min=0) if self.gap is None else t * (1 - self.gap)

    def x_tilde(self, update: Update) -> Tensor:
        z, t, r = update.z, update.t, update.s
        if self.teacher is None:
            alpha, sigma = update.student.schedule.alpha_sigma(r)
            z_r = expand(alpha, z) * update.x + expand(sigma, z) * update.noise
        else:
            z_r = ddim_step(z, self.teacher(z, t), t, r, self.teacher.schedule)
        return getattr(update, self.own)(z_r, r)

    def weights(self, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        return 1 / (t - s) if self.near else super().weights(schedule, t, s)


class _Consistency(Method):
    sampler = "renoising"
    one_network = True
    needs_top = True

    def check(self, teacher: DenoiserLike) -> None:
        super().check(teacher)
        if getattr(teacher, "prediction", "v") == "x":
            raise ValueError("method: consistency needs x̂(z_0) = z_0, which prediction='x' does not give: use v")
        if teacher.schedule.alpha_sigma(torch.zeros(1, dtype=torch.float64))[1].item() > 0:
            raise ValueError("method: consistency needs σ_0 = 0, to begin at the data: leave out log_snr_max")


@dataclass(frozen=True)
class ConsistencyDistillation(_Consistency):
    """Pairs (t, t − 1/N) with a step of the teacher between them. Song et al. 2023, algorithm 2.

    Args:
        target: ``own`` of :class:`Consistent`, as ``near``; the paper takes the average, Song & Dhariwal the student.
        huber: of the loss, see :class:`pdlib.objectives.Objective`; 0 for squares.
    """

    defaults: ClassVar[dict[str, str]] = {"stage_learning_rate": "0.001"}
    target: str = "student"
    near: bool = False
    huber: float = 0.0
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"target": ("average", "student")}

    def objective(self, teacher: DenoiserLike, grid: Grid, weighting: str | Weighting = "truncated_snr") -> Objective:
        own = {"own": self.target, "near": self.near, "weighting": weighting, "huber": self.huber}
        return Consistent(**self._pairs_of(teacher), **own)

    def _pairs_of(self, teacher: DenoiserLike) -> dict[str, Any]:
        return {"teacher": teacher, "grid": teacher.grid}


@dataclass(frozen=True)
class EasyConsistency(ConsistencyDistillation):
    """ECT: consistency training from the teacher's weights, without its answers; pairs draw nearer. Geng et al. 2024.

    Args:
        finest: the gap (t − r)/t is 1/2 at first, 2^−finest at last.
    """

    evaluations: ClassVar[float] = 4.0
    cannot_heed: ClassVar[tuple[str, ...]] = ("clip_x", "guidance")
    finest: int = 6

    def _pairs_of(self, teacher: DenoiserLike) -> dict[str, Any]:
        return {"gap": 0.5, "finest": self.finest}


@dataclass(frozen=True, kw_only=True)
class Continuous(AlongTheFlow):
    """The limit r → t: the derivative of x̂ along the teacher's flow is to be 0. Lu & Song 2024, algorithm 1."""

    def pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t, _ = super().pairs(count, generator)
        return t, torch.zeros_like(t)


@dataclass(frozen=True)
class ContinuousConsistency(_Consistency):
    """sCM: continuous time.

    Args:
        normalize, warmup: see :class:`pdlib.methods.tangents.AlongTheFlow`.
        octaves: of the time, see :class:`pdlib.networks.UNet`; 9 for all.
    """

    evaluations: ClassVar[float] = 6.0
    defaults: ClassVar[dict[str, str]] = {"stage_learning_rate": "0.001", "stage_ema": "0.995"}
    normalize: float = 0.1
    warmup: float = 0.2
    octaves: int = 3

    @property
    def network(self) -> dict[str, Any]:
        return {"octaves": self.octaves}

    def check(self, teacher: DenoiserLike) -> None:
        super().check(teacher)
        require_tangents(teacher, "easy_consistency")

    def objective(self, teacher: DenoiserLike, grid: Grid, weighting: str | Weighting = "truncated_snr") -> Objective:
        return Continuous(teacher=teacher, normalize=self.normalize, warmup=self.warmup, weighting=weighting)
