"""TRACT: one student step does what a whole group of teacher steps does, in two phases rather than six stages.

Berthelot et al. 2023, "TRACT: Denoising Diffusion Models with Transitive Closure Time-Distillation", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pdlib.denoiser import DenoiserLike
from pdlib.grids import Grid
from pdlib.methods import Method
from pdlib.objectives import Objective, Update
from pdlib.sampling import ddim_step, x_of_step
from pdlib.schedules import expand
from pdlib.weightings import Weighting

__all__ = ["Tract", "TransitiveClosure"]


@dataclass(frozen=True, kw_only=True)
class TransitiveClosure(Objective):
    """x̃ of a teacher's step from t to t', and from there the student's own jump to the end s of t's group.

    Args:
        teacher: made for the fine grid, which is also ``grid``.
        groups: S, the student's number of steps: the times are cut into so many groups.
        own: whose jump it is: the ``"average"`` of the student, as in the paper, or the ``"student"`` of the moment.
    """

    teacher: DenoiserLike
    groups: int
    own: str = "average"

    def pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """t on the fine grid; s, the largest of 0, 1/S, 2/S, … below it."""
        t = self.grid.draw(count, generator)
        return t, ((t * self.groups).ceil() - 1) / self.groups

    def x_tilde(self, update: Update) -> Tensor:
        z, t, s, schedule = update.z, update.t, update.s, self.teacher.schedule
        t_mid = (t - 1 / self.grid.N).clamp(min=0)
        z_mid = ddim_step(z, self.teacher(z, t), t, t_mid, schedule)
        jumped = ddim_step(z_mid, getattr(update, self.own)(z_mid, t_mid), t_mid, s, schedule)
        z_end = torch.where(expand(t_mid > s, z) > 0, jumped, z_mid)  # there already
        return x_of_step(z, z_end, t, s, schedule)


@dataclass(frozen=True)
class Tract(Method):
    """Options of TRACT.

    Args:
        phases: in how many phases, each with its own teacher, the last student is reached, at most.
        target: ``own`` of :class:`TransitiveClosure`.
    """

    defaults: ClassVar[dict[str, str]] = {"stage_learning_rate": "0.001"}
    needs_top: ClassVar[bool] = True
    phases: int = 2
    target: str = "average"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"target": ("average", "student")}

    def __post_init__(self):
        if self.phases < 1:
            raise ValueError(f"method=tract: phases={self.phases}: must be 1 or more")

    def grids(self, grid: Grid, end: int) -> list[Grid]:
        halvings = len(grid.down_to(end))
        phases = min(self.phases, halvings)
        return [Grid(grid.N >> halvings * (k + 1) // phases) for k in range(phases)]

    def objective(self, teacher: DenoiserLike, grid: Grid, weighting: str | Weighting = "truncated_snr") -> Objective:
        return TransitiveClosure(
            teacher=teacher, groups=grid.N, own=self.target, grid=teacher.grid, weighting=weighting
        )
