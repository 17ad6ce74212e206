"""Progressive distillation: a student learns to do in one step what its teacher does in two.

Salimans & Ho 2022, section 3 and algorithm 2. A run halves the number of steps N again and again:
each stage's student becomes the next stage's teacher. It is the first :class:`Method`; those that came after are in
:mod:`pdlib.methods`.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pdlib.denoiser import Denoiser, DenoiserLike
from pdlib.files import named
from pdlib.grids import Grid
from pdlib.objectives import Answer, Objective, TwoSteps, of_examples
from pdlib.training import Session, Trained, TrainingSettings, fit
from pdlib.weightings import Weighting

__all__ = ["METHODS", "Method", "Stage", "convert", "distillation", "learn", "make_method", "progressive_distillation"]


class Method:
    """Progressive distillation; and what another method overrides of it.

    A method of your own is a subclass, a frozen dataclass whose fields are its options, and an entry in
    :data:`METHODS`.
    """

    sampler: ClassVar[str] = "ddim"
    """How its students are sampled, of :data:`pdlib.sampling.SAMPLERS`."""
    two_times: ClassVar[bool] = False
    """Whether its students are flow maps."""
    one_network: ClassVar[bool] = False
    """Whether its one student serves for every number of steps."""
    from_first: ClassVar[bool] = False
    """Whether every student learns from the teacher at the start of the chain, and not from the student before it."""
    evaluations: ClassVar[float] = 5.0
    """Network evaluations that an update takes for an example, a gradient counted as two: 2 + 3."""
    defaults: ClassVar[dict[str, str]] = {}
    """Settings of a run that it wants otherwise, where nothing else is said."""

    def check(self, teacher: DenoiserLike) -> None:
        """ValueError, in a line that says what to do, where it cannot learn from a teacher such as this."""

    def grids(self, grid: Grid, end: int) -> list[Grid]:
        """Its students' grids, in the order of their training; ValueError where they do not lead to ``end`` steps."""
        return grid.down_to(end)

    def objective(self, teacher: DenoiserLike, grid: Grid, weighting: str | Weighting = "truncated_snr") -> Objective:
        """What the student for a grid learns from a teacher."""
        return Objective(TwoSteps(teacher, grid.N), grid, weighting)

    def student(self, teacher: Denoiser, grid: Grid, prediction: str | None = None, seed: int = 0) -> nn.Module:
        """What is trained: a student that starts as its teacher, θ ← η."""
        return teacher.student(prediction, grid, seed, self.sampler, self.two_times)

    def finished(self, trained: nn.Module) -> Denoiser:
        """The student within what was trained."""
        return trained


METHODS: dict[str, Callable[..., Method] | str] = {
    "progressive_distillation": Method,
    "tract": "pdlib.methods.tract:Tract",
    "consistency_distillation": "pdlib.methods.consistency:ConsistencyDistillation",
    "easy_consistency": "pdlib.methods.consistency:EasyConsistency",
    "continuous_consistency": "pdlib.methods.consistency:ContinuousConsistency",
    "self_distillation": "pdlib.methods.flow_maps:SelfDistillation",
    "mean_flow": "pdlib.methods.flow_maps:MeanFlow",
    "moment_matching": "pdlib.methods.moment_matching:MomentMatching",
}
"""Every method by name: a subclass of :class:`Method`, or where it is imported from when it is asked for, as
"module:class". A new one is one entry."""


def make_method(text: str) -> Method:
    """The method of a text such as ``"tract"`` or ``"tract:phases=3,target=student"``: a name, and options.

    Raises:
        ValueError: for an unknown name or option, or a value that is none of its kind.
    """
    name, _, options = text.partition(":")
    build = named("method", name, METHODS)
    build = pkgutil.resolve_name(build) if isinstance(build, str) else build
    known = {field.name: field.default for field in fields(build)} if is_dataclass(build) else {}
    given = dict(option.partition("=")[::2] for option in options.split(",")) if options else {}
    for option, value in given.items():
        default, choices = named(f"method={name}: option", option, known), getattr(build, "choices", {}).get(option)
        try:
            given[option] = (json.loads if isinstance(default, bool) else type(default))(value)
            right = given[option] in choices if choices else isinstance(given[option], type(default))
        except ValueError:
            right = False
        if not right:
            kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default))
            raise ValueError(f"method={text}: {option} must be {kind or ' or '.join(choices)}")
    return build(**given)


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
        own = replace(session, label=f"student-{grid.N}")
        stage = learn(Method(), teacher, grid, data, settings, objective=objective, prediction=prediction, session=own)
        teacher = stage.student  # η ← θ, N ← N/2
        yield stage


def learn(
    method: Method,
    teacher: Denoiser,
    grid: Grid,
    data: Tensor | TensorDataset,
    settings: TrainingSettings | Callable[[Grid], TrainingSettings],
    *,
    objective: Callable[[DenoiserLike, Grid], Objective] | None = None,
    start: Denoiser | None = None,
    prediction: str | None = None,
    session: Session = Session(),
) -> Stage:
    """One stage of any method: a student for a grid learns from a teacher.

    Args:
        method: see :data:`METHODS`.
        teacher: a network made for a grid.
        grid: the student's.
        data, settings, prediction, session: as in :func:`progressive_distillation`.
        objective: (teacher, the student's grid) -> the stage's objective; the method's own if ``None``.
        start: whose weights the student starts from, if not the teacher's.

    Raises:
        ValueError: where the method cannot learn from such a teacher.
        Exception: as in :func:`pdlib.training.fit`.
    """
    method.check(teacher)
    training = settings(grid) if callable(settings) else settings
    student = method.student(start or teacher, grid, prediction, training.seed)  # θ ← η
    training = replace(training, seed=training.seed + grid.N)
    learned = of_examples(data, teacher, partial(objective or method.objective, grid=grid))
    trained = fit(student, learned, data, training, session)
    return Stage(grid, method.finished(trained.ema), trained)


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
