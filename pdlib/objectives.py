"""Objectives: what one update minimises, w(λ_t) ‖x̃ − x̂_θ(z_t)‖².

Three independent choices make one: the times, the target x̃, and the weighting. Algorithm 1 of Salimans & Ho 2022
(a teacher's training), algorithm 2 (distillation) and conversion differ in the target alone. What came after, see
:mod:`pdlib.methods`, overrides ``pairs``, ``x_tilde`` or ``weights``: one choice each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pdlib.denoiser import DenoiserLike, OfClasses, jump
from pdlib.grids import Grid
from pdlib.sampling import ddim_step, x_of_step
from pdlib.schedules import Schedule, diffuse
from pdlib.weightings import Weighting, on_grid, weight

__all__ = [
    "Answer",
    "Clean",
    "Objective",
    "PerClass",
    "Target",
    "TwoSteps",
    "Update",
    "distillation_target",
    "of_examples",
]

Target = Callable[[Tensor, Tensor, Tensor, DenoiserLike], Tensor]
"""(x, z_t, t, the student's average) -> x̃, of x's shape: what the student is to say at z_t. It gets no gradient."""


@dataclass(frozen=True)
class Update:
    """What a target may look at; nothing in it gets a gradient."""

    x: Tensor
    """Clean data, shape (batch, …)."""
    z: Tensor
    """z_t, of the same shape."""
    noise: Tensor
    """The ε in it."""
    t: Tensor
    """Shape (batch,)."""
    s: Tensor | None
    """The second time of each pair, s ≤ t, where the objective draws pairs."""
    student: DenoiserLike
    """The denoiser in training, with its weights of this moment."""
    average: DenoiserLike
    """The same with averaged weights."""


@dataclass(frozen=True)
class Objective:
    """w(λ_t) ‖x̃ − x̂_θ(z_t)‖², ‖·‖² being the mean over an example's entries.

    Args:
        target: what x̃ is, see :data:`Target`; ``None`` where a subclass says it.
        grid: t is drawn from it; ``None`` for continuous t in (0, 1].
        weighting: w, by name or as a callable, see :mod:`pdlib.weightings`; on a grid, as it is on that grid.
        huber: c of the pseudo-Huber loss √(‖·‖² + c²) − c in the place of ‖·‖², Song & Dhariwal 2023; 0 for ‖·‖².

    Raises:
        ValueError: for an unknown weighting.
    """

    target: Target | None = None
    grid: Grid | None = None
    weighting: str | Weighting = "truncated_snr"
    huber: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "weighting", on_grid(self.weighting, self.grid and self.grid.N))

    def __call__(
        self,
        student: DenoiserLike,
        average: DenoiserLike,
        x: Tensor,
        generator: torch.Generator,
        share: slice = slice(None),
    ) -> Tensor:
        """The loss of one update: its mean over a batch, a scalar.

        Args:
            student: the denoiser in training.
            average: the same with averaged weights, for targets that ask it.
            x: clean data, shape (batch, …).
            generator: source of t and then of the noise, on x's device.
            share: the part of the batch over which the mean is taken. What is drawn is drawn for all of it.
        """
        schedule = student.schedule
        t, s = self.pairs(len(x), generator)  # t = i/N, i ~ Cat[1, …, N]
        z, noise = diffuse(x, t, schedule, generator)  # z_t = α_t x + σ_t ε
        if share != slice(None):
            x, z, noise, t, s = x[share], z[share], noise[share], t[share], None if s is None else s[share]
        with torch.no_grad():
            target = self.x_tilde(Update(x, z, noise, t, s, student, average))  # x̃
        w = self.weights(schedule, t, s)  # w(λ_t)
        missed = (target - jump(student, z, t, s)).square().flatten(1).mean(1)
        if self.huber:
            missed = (missed + self.huber**2).sqrt() - self.huber
        return (w.to(z) * missed).mean()

    def at_update(self, update: int, updates: int) -> Objective:
        """What it is at one of so many updates, counted from 0: the same, unless it changes as training goes on."""
        return self

    def pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The first choice, which times: t and, where it takes two, s < t, each of shape (count,), in float64."""
        if self.grid is not None:
            return self.grid.draw(count, generator), None
        return 1 - torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64), None

    def x_tilde(self, update: Update) -> Tensor:
        """The second, what stands for the target: x̃, of x's shape."""
        return self.target(update.x, update.z, update.t, update.average)

    def weights(self, schedule: Schedule, t: Tensor, s: Tensor | None) -> Tensor:
        """The third, how it is weighed: w, of t's shape."""
        return weight(self.weighting, schedule, t)


@dataclass(frozen=True)
class PerClass:
    """An objective of class-conditional denoisers: in each update all are bound to the labels of its batch.

    Its data are pairs: a ``torch.utils.data.TensorDataset`` of examples and labels.

    Args:
        teacher: (z, t, labels) -> x̂, or ``None`` where the target needs none.
        objective: the teacher, bound to the batch's labels -> the objective.
    """

    teacher: DenoiserLike | None
    objective: Callable[[DenoiserLike | None], Objective]

    def __call__(
        self,
        student: DenoiserLike,
        average: DenoiserLike,
        batch: tuple[Tensor, Tensor],
        generator: torch.Generator,
        share: slice = slice(None),
    ) -> Tensor:
        x, labels = batch[0], batch[1][share]
        teacher = None if self.teacher is None else OfClasses(self.teacher, labels)
        return self.objective(teacher)(OfClasses(student, labels), OfClasses(average, labels), x, generator, share)

    def at_update(self, update: int, updates: int) -> PerClass:
        """As :meth:`Objective.at_update`."""
        return PerClass(self.teacher, lambda teacher: self.objective(teacher).at_update(update, updates))


def of_examples(
    data: Tensor | TensorDataset, teacher: DenoiserLike, objective: Callable[[DenoiserLike], Objective]
) -> Objective | PerClass:
    """The objective of learning from a teacher on data: on examples with labels, :class:`PerClass`."""
    return PerClass(teacher, objective) if isinstance(data, TensorDataset) else objective(teacher)


@dataclass(frozen=True)
class Clean:
    """x itself: how a teacher learns to denoise. Algorithm 1."""

    def __call__(self, x: Tensor, z: Tensor, t: Tensor, average: DenoiserLike) -> Tensor:
        return x


@dataclass(frozen=True)
class Answer:
    """A parent's x̂(z_t): conversion, the same N and another prediction.

    An ε parent is to be :class:`pdlib.denoiser.Confined`: its x̂ = (z − σ ε̂)/α carries its error magnified by σ/α,
    which has no bound as α → 0.
    """

    parent: DenoiserLike

    def __call__(self, x: Tensor, z: Tensor, t: Tensor, average: DenoiserLike) -> Tensor:
        return self.parent(z, t)


@dataclass(frozen=True)
class TwoSteps:
    """What two DDIM steps of a teacher come to: algorithm 2, see :func:`distillation_target`."""

    teacher: DenoiserLike
    steps: int
    """N, the student's number of steps."""

    def __call__(self, x: Tensor, z: Tensor, t: Tensor, average: DenoiserLike) -> Tensor:
        return distillation_target(self.teacher, z, t, self.steps)


@torch.no_grad()
def distillation_target(teacher: DenoiserLike, z: Tensor, t: Tensor, steps: int) -> Tensor:
    """x̃: what a student must predict at z_t for one step of 1/N to land where two teacher steps do.

    Algorithm 2 of Salimans & Ho 2022; appendix G derives its last line.

    Args:
        teacher: a denoiser made for 2N steps.
        z: z_t, shape (batch, …).
        t: shape (batch,), on the student's grid i/N, i = 1 … N.
        steps: N, the student's number of steps.

    Returns:
        x̃, of z's shape. At t = 1/N, where t'' = 0, it is the teacher's x̂(z_{t'}).
    """
    schedule = teacher.schedule
    t_mid, t_end = t - 0.5 / steps, t - 1 / steps  # t' and t''
    # Two DDIM steps of the teacher: t → t' → t''.
    z_mid = ddim_step(z, teacher(z, t), t, t_mid, schedule)
    z_end = ddim_step(z_mid, teacher(z_mid, t_mid), t_mid, t_end, schedule)
    return x_of_step(z, z_end, t, t_end, schedule)  # so that one step of the student lands there
