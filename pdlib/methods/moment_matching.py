"""Moment matching: E[x | z_s] of the student's samples is to be the teacher's. Distributions in the place of points.

Salimans et al. 2024, "Multistep Distillation of Diffusion Models via Moment Matching", algorithm 2 (alternating); here
t is on the student's grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from pdlib.denoiser import Denoiser, DenoiserLike, Wrapper
from pdlib.grids import Grid
from pdlib.methods import Method
from pdlib.objectives import Objective
from pdlib.sampling import ancestral_step
from pdlib.schedules import diffuse
from pdlib.weightings import Weighting

__all__ = ["Accompanied", "MomentMatching"]


class Accompanied(Wrapper):
    """A student and the auxiliary denoiser that learns E[x | z_s] of its samples, as one module to be trained."""

    def __init__(self, denoiser: Denoiser, auxiliary: Denoiser):
        super().__init__(denoiser)
        self.auxiliary = auxiliary

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """The student's x̂."""
        return self.denoiser(z, t)


@dataclass(frozen=True, kw_only=True)
class Moments(Objective):
    """In turn: the auxiliary denoiser learns what the student's samples are, and the student what they should be.

    Args:
        teacher: g_θ, of E[x | z_s] of the data.
        turns: of the auxiliary denoiser, for each of the student; the paper has 1.
        auxiliary_turn: whose turn it is, which :meth:`at_update` sets.
    """

    teacher: DenoiserLike
    turns: int = 1
    auxiliary_turn: bool = True

    def at_update(self, update: int, updates: int) -> Moments:
        return replace(self, auxiliary_turn=update % (self.turns + 1) < self.turns)

    def pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """t on the student's grid, and s anywhere in the step below it."""
        t = self.grid.draw(count, generator)
        below = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        return t, t - (1 - below) / self.grid.N

    def __call__(
        self,
        student: Accompanied,
        average: DenoiserLike,
        x: Tensor,
        generator: torch.Generator,
        share: slice = slice(None),
    ) -> Tensor:
        schedule = student.schedule
        t, s = self.pairs(len(x), generator)
        z, noise = diffuse(x, t, schedule, generator)
        noise = torch.randn(noise.shape, generator=generator, dtype=z.dtype, device=z.device)
        z, t, s, noise = z[share], t[share], s[share].clamp(min=1e-6), noise[share]
        w = self.weights(schedule, t, s)
        with torch.set_grad_enabled(not self.auxiliary_turn):
            x_hat = student(z, t)
        with torch.no_grad():
            z_s = ancestral_step(z, x_hat, t, s, schedule, noise)  # ~ q(z_s | z_t, x̂)
            wanted = self.teacher(z_s, s)
        with torch.set_grad_enabled(self.auxiliary_turn):
            found = student.auxiliary(z_s, s)
        if self.auxiliary_turn:
            error = (found - x_hat).square() + (found - wanted).square()
        else:
            error = (x_hat - (x_hat + wanted - found).detach()).square()  # of gradient 2 (found − wanted), which is
            w = w.sqrt()  # of σ_s near the data, where w is 1/σ_s²: so that no s outweighs all others
        return (w.to(z) * error.flatten(1).mean(1)).mean()

    def weights(self, schedule, t: Tensor, s: Tensor) -> Tensor:
        """w at s, where the moments are compared."""
        return super().weights(schedule, s, None)


@dataclass(frozen=True)
class MomentMatching(Method):
    """Options of moment matching.

    Args:
        most: the largest number of steps that a student is trained for.
        turns: see :class:`Moments`.
    """

    sampler: ClassVar[str] = "ancestral"
    from_first: ClassVar[bool] = True
    needs_top: ClassVar[bool] = True
    cannot_heed: ClassVar[tuple[str, ...]] = ("clip_x",)
    most: int = 8
    turns: int = 1

    def grids(self, grid: Grid, end: int) -> list[Grid]:
        return [each for each in grid.down_to(end) if max(self.most, end) >= each.N]

    def objective(self, teacher: DenoiserLike, grid: Grid, weighting: str | Weighting = "truncated_snr") -> Objective:
        return Moments(teacher=teacher, turns=self.turns, grid=grid, weighting=weighting)

    def check(self, teacher: DenoiserLike) -> None:
        super().check(teacher)
        if getattr(teacher, "classes", None) is not None:
            raise ValueError("method: moment matching knows no classes: give a teacher without")

    def student(
        self, start: Denoiser, grid: Grid, prediction: str | None = None, seed: int = 0, teacher: Denoiser | None = None
    ) -> nn.Module:
        return Accompanied(super().student(start, grid, prediction, seed), (teacher or start).student())

    def finished(self, trained: nn.Module) -> Denoiser:
        return trained.denoiser
