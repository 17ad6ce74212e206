"""Progressive distillation: a student learns to do in one step what its teacher does in two.

Salimans & Ho 2022, section 3 and algorithm 2. A run halves the number of steps N again and again:
each stage's student becomes the next stage's teacher. What came after it is in :mod:`pdlib.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pdlib.denoiser import Denoiser, DenoiserLike
from pdlib.grids import Grid
from pdlib.objectives import Answer, Objective, TwoSteps, of_examples
from pdlib.training import Session, Trained, TrainingSettings, fit
from pdlib.weightings import Weighting

__all__ = ["Stage", "convert", "distillation", "fit_stage", "progressive_distillation"]


@dataclass(frozen=True)
class Stage:
    """One finished stage of :func:`progressive_distillation`."""

    grid: Grid
    """The times that the student was trained at, and samples through."""
    student: Denoiser
    """The student, which is also the next stage's teacher."""
    trained: Trained
    """Its losses, gradient norms and time."""

    @property
    def steps(self) -> int:
        """N, the student's number of steps."""
        return self.grid.N


def distillation(teacher: DenoiserLike, grid: Grid) -> Objective:
    """A stage's objective: w(λ_t) ‖x̃ − x̂_θ(z_t)‖² with x̃ of two teacher steps, truncated SNR weighting."""
    return Objective(TwoSteps(teacher, grid.N), grid)


def progressive_distillation(
    teacher: Denoiser,
    data: Tensor | TensorDataset,
    end: int,
    settings: TrainingSettings | Callable[[Grid], TrainingSettings],
    *,
    objective: Callable[[DenoiserLike, Grid], Objective] = distillation,
    prediction: str | None = None,
    session: Session = Session(),
) -> Iterator[Stage]:
    """Algorithm 2: halve the number of steps until ``end``, yielding each finished stage.

    A generator: stop after any stage, look at its student, go on. To go on later, or with other
    settings, call it again with that student as the teacher.

    Args:
        teacher: a network made for a grid (trained on it, or in continuous time); the chain starts there.
        data: clean data, shape (n, …); with labels, where the denoisers are class-conditional.
        end: the last student's number of steps; the teacher's is that times a power of two.
        settings: of each stage's training, or what gives them for a stage's grid. A stage draws from the seed plus N.
        objective: (teacher, the student's grid) -> the stage's objective; another method, weighting or a
            :class:`pdlib.denoiser.Confined` teacher goes in here.
        prediction: what the students predict; what the teacher does if ``None``. Where it differs, the first
            student starts from the teacher's weights all the same: see also :func:`convert`.
        session: what to show and to keep; a stage's label is ``student-N``.

    Raises:
        ValueError: where the teacher was made for no grid, or halving does not lead to ``end``.
        Exception: as in :func:`pdlib.training.fit`.
    """
    if teacher.grid is None:
        raise ValueError("the teacher was made for no grid: set teacher.grid = Grid(N), where the chain starts")
    for grid in teacher.grid.down_to(end):
        training = settings(grid) if callable(settings) else settings
        student = teacher.student(prediction, grid, training.seed)  # θ ← η
        own = replace(session, label=f"student-{grid.N}")
        trained = fit_stage(student, teacher, grid, data, training, objective, own)
        teacher = trained.ema  # η ← θ, N ← N/2
        yield Stage(grid, teacher, trained)


def fit_stage(
    student: nn.Module,
    teacher: DenoiserLike,
    grid: Grid,
    data: Tensor | TensorDataset,
    settings: TrainingSettings,
    objective: Callable[[DenoiserLike, Grid], Objective],
    session: Session = Session(),
) -> Trained:
    """One stage of any method: :func:`pdlib.training.fit`, drawing from the seed plus N."""
    settings = replace(settings, seed=settings.seed + grid.N)
    return fit(student, of_examples(data, teacher, partial(objective, grid=grid)), data, settings, session)


def convert(
    parent: DenoiserLike,
    prediction: str,
    data: Tensor | TensorDataset,
    settings: TrainingSettings,
    weighting: str | Weighting = "truncated_snr",
    session: Session = Session(),
) -> Trained:
    """A denoiser that predicts something else, learned from a parent at the same number of steps.

    It starts from the parent's weights, all but an output layer of another size (``"both"``).

    Args:
        parent: the trained denoiser, made for a grid; an ε parent :class:`pdlib.denoiser.Confined`, to 1 for images.
        prediction: of the new one.
        data: clean data, shape (n, …); with labels, where the denoisers are class-conditional.
        settings, session: as in :func:`pdlib.training.fit`.
        weighting: as in :class:`pdlib.objectives.Objective`.
    """
    objective = of_examples(data, parent, partial(_conversion, weighting=weighting))
    return fit(parent.student(prediction, seed=settings.seed), objective, data, settings, session)


def _conversion(parent: DenoiserLike, weighting: str | Weighting) -> Objective:
    return Objective(Answer(parent), parent.grid, weighting)
