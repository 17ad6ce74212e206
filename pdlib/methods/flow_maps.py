"""Flow maps: a student of two times, (z, t, s) -> where the flow from z_t is at s. One network for any number of steps.

Frans et al. 2024, "One Step Diffusion via Shortcut Models"; Boffi et al. 2025, "How to build a consistency model:
Learning flow maps via self-distillation"; Geng et al. 2025, "Mean Flows for One-step Generative Modeling".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pdlib.denoiser import DenoiserLike, jump
from pdlib.grids import Grid
from pdlib.methods import Method
from pdlib.methods.tangents import AlongTheFlow, require_tangents
from pdlib.objectives import Objective, Update
from pdlib.sampling import ddim_step, x_of_step
from pdlib.weightings import Weighting

__all__ = ["MeanFlow", "SelfDistillation"]


class _FlowMap(Method):
    network: ClassVar[dict[str, Any]] = {"two_times": True}
    one_network = True
    needs_top = True

    def check(self, teacher: DenoiserLike) -> None:
        super().check(teacher)
        network = getattr(teacher, "network", None)
        if getattr(network, "config", {"name": "unet"}).get("name") not in ("unet", "mlp"):
            raise ValueError("method: a flow map's network takes two times: use network=unet, or a teacher that has it")


@dataclass(frozen=True, kw_only=True)
class Halves(Objective):
    """Progressive distillation without stages: a jump of 1/n is two of the student's own average of 1/(2n).

    n is 1, 2, 4, … N/2, each as likely as the others, of the teacher's N steps; those of 1/N are the teacher's.
    """

    teacher: DenoiserLike
    own: str = "average"

    def pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """t = i/n and s = (i − 1)/n, i ~ Cat[1, …, n]."""
        drawn = torch.rand(2, count, generator=generator, device=generator.device, dtype=torch.float64)
        n = 2.0 ** (drawn[0] * (self.grid.N.bit_length() - 1)).floor()
        i = (drawn[1] * n).floor() + 1
        return i / n, (i - 1) / n

    def x_tilde(self, update: Update) -> Tensor:
        z, t, s, schedule = update.z, update.t, update.s, self.teacher.schedule
        finest, z_end = t - s < 1.5 / self.grid.N * 2, torch.empty_like(z)
        for rows, guide in ((finest, self.teacher), (~finest, getattr(update, self.own))):
            if rows.any():
                start, now, end = z[rows], t[rows], s[rows]
                mid = (now + end) / 2
                half = ddim_step(start, jump(guide, start, now, mid), now, mid, schedule)
                z_end[rows] = ddim_step(half, jump(guide, half, mid, end), mid, end, schedule)
        return x_of_step(z, z_end, t, s, schedule)


@dataclass(frozen=True)
class SelfDistillation(_FlowMap):
    """Progressive self-distillation: two halves of a jump agree with the whole.

    Args:
        target: whose halves: the ``"average"`` of the student, or the ``"student"`` of the moment.
    """

    defaults: ClassVar[dict[str, str]] = {"stage_learning_rate": "0.002", "stage_ema": "0.995"}
    target: str = "average"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"target": ("average", "student")}

    def check(self, teacher: DenoiserLike) -> None:
        super().check(teacher)
        if (N := teacher.grid.N) & (N - 1):
            raise ValueError(f"method=self_distillation halves jumps of 1 down to 1/N, and N = {N} is no power of two")

    def objective(self, teacher: DenoiserLike, grid: Grid, weighting: str | Weighting = "truncated_snr") -> Objective:
        return Halves(teacher=teacher, own=self.target, grid=teacher.grid, weighting=weighting)


@dataclass(frozen=True, kw_only=True)
class Eulerian(AlongTheFlow):
    """The end of a jump does not move as its start moves along the teacher's flow: MeanFlow's identity.

    Args:
        diagonal: the share of pairs with s = t, where it is plain distillation.
        whole: the share of pairs with s = 0.
    """

    diagonal: float = 0.25
    whole: float = 0.25

    def pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t, _ = super().pairs(count, generator)
        drawn = torch.rand(2, count, generator=generator, device=generator.device, dtype=torch.float64)
        s = torch.where(drawn[0] > 1 - self.whole, 0.0, drawn[1] * t)
        return t, torch.where(drawn[0] < self.diagonal, t, s)


@dataclass(frozen=True)
class MeanFlow(_FlowMap):
    """The derivative form.

    Args:
        normalize, warmup: see :class:`pdlib.methods.tangents.AlongTheFlow`.
        diagonal, whole: see :class:`Eulerian`.
        octaves: of both times, see :class:`pdlib.networks.UNet`; 9 for all.
    """

    evaluations: ClassVar[float] = 6.0
    defaults: ClassVar[dict[str, str]] = {"stage_learning_rate": "0.002", "stage_ema": "0.995"}
    normalize: float = 0.5
    diagonal: float = 0.25
    whole: float = 0.15
    warmup: float = 0.2
    octaves: int = 2

    @property
    def network(self) -> dict[str, Any]:
        return {"two_times": True, "octaves": self.octaves}

    def check(self, teacher: DenoiserLike) -> None:
        super().check(teacher)
        require_tangents(teacher, "self_distillation")

    def objective(self, teacher: DenoiserLike, grid: Grid, weighting: str | Weighting = "truncated_snr") -> Objective:
        own = {"normalize": self.normalize, "diagonal": self.diagonal, "whole": self.whole, "warmup": self.warmup}
        return Eulerian(teacher=teacher, weighting=weighting, **own)
