"""What came after progressive distillation, one file for each method; and the seam that all of them fit.

A method makes the three choices of :class:`pdlib.objectives.Objective` anew: which pairs of times, what stands for the
target, how it is weighed. And it says which students there are, and how they are sampled.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pdlib.denoiser import Denoiser, DenoiserLike
from pdlib.distillation import Stage, fit_stage
from pdlib.files import named
from pdlib.grids import Grid
from pdlib.objectives import Objective, TwoSteps
from pdlib.training import Session, TrainingSettings
from pdlib.weightings import Weighting

__all__ = ["METHODS", "Method", "learn", "make_method"]


class Method:
    """Progressive distillation; and what another method overrides of it.

    A method of your own is a subclass, a frozen dataclass whose fields are its options, and an entry in
    :data:`METHODS`.
    """

    sampler: ClassVar[str] = "ddim"
    """How its students are sampled, of :data:`pdlib.sampling.SAMPLERS`."""
    network: ClassVar[dict[str, Any]] = {}
    """What a student's network has otherwise than its teacher's, see :meth:`pdlib.denoiser.Denoiser.student`."""
    one_network: ClassVar[bool] = False
    """Whether its one student serves for every number of steps."""
    from_first: ClassVar[bool] = False
    """Whether every student learns from the teacher at the start of the chain, and not from the student before it."""
    needs_top: ClassVar[bool] = False
    """Whether it needs a grid with its top, t = 1."""
    evaluations: ClassVar[float] = 5.0
    """Network evaluations that an update takes for an example, a gradient counted as two: 2 + 3."""
    defaults: ClassVar[dict[str, str]] = {}
    """Settings of a run that it wants otherwise, where nothing else is said."""
    cannot_heed: ClassVar[tuple[str, ...]] = ()
    """Settings of a run that would change nothing, or not what they say."""

    def check(self, teacher: DenoiserLike) -> None:
        """ValueError, in a line that says what to do, where it cannot learn from a teacher such as this."""
        if getattr(teacher, "two_times", False) and not self.network.get("two_times"):
            raise ValueError(
                f"method: {type(self).__name__} does not learn from a flow map: give a teacher of one time"
            )
        if self.needs_top and teacher.grid.missing:
            raise ValueError(f"method: {type(self).__name__} starts at t = 1: give a grid without missing=1")

    def grids(self, grid: Grid, end: int) -> list[Grid]:
        """Its students' grids, in the order of their training; ValueError where they do not lead to ``end`` steps."""
        made = grid.down_to(end)
        return [Grid(end)] if made and self.one_network else made

    def objective(self, teacher: DenoiserLike, grid: Grid, weighting: str | Weighting = "truncated_snr") -> Objective:
        """What the student for a grid learns from a teacher."""
        return Objective(TwoSteps(teacher, grid.N), grid, weighting)

    def student(
        self, start: Denoiser, grid: Grid, prediction: str | None = None, seed: int = 0, teacher: Denoiser | None = None
    ) -> nn.Module:
        """What is trained: a student that starts as its teacher, θ ← η, or as another network."""
        return start.student(prediction, grid, seed, self.sampler, **self.network)

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
        data, settings, prediction, session: as in :func:`pdlib.distillation.progressive_distillation`.
        objective: (teacher, the student's grid) -> the stage's objective; the method's own if ``None``.
        start: whose weights the student starts from, if not the teacher's.

    Raises:
        ValueError: where the method cannot learn from such a teacher.
        Exception: as in :func:`pdlib.training.fit`.
    """
    method.check(teacher.student(prediction))
    training = settings(grid) if callable(settings) else settings
    student = method.student(start or teacher, grid, prediction, training.seed, teacher)  # θ ← η
    trained = fit_stage(student, teacher, grid, data, training, objective or method.objective, session)
    return Stage(grid, method.finished(trained.ema), trained)
