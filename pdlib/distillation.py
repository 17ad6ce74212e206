"""Progressive distillation: a student learns to do in one step what its teacher does in two.

Salimans & Ho 2022, section 3 and algorithm 2. A run halves the number of steps N again and again:
each stage's student becomes the next stage's teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pdlib.denoiser import Denoiser, DenoiserLike
from pdlib.predictions import output_channels
from pdlib.sampling import ddim_step
from pdlib.schedules import expand
from pdlib.training import Trained, TrainingSettings, diffuse, fit, random_grid_times, weighted_loss
from pdlib.unet import network_from_config
from pdlib.weightings import Clipped

__all__ = [
    "Stage",
    "conversion_loss",
    "convert",
    "distillation_loss",
    "distillation_target",
    "progressive_distillation",
    "stage_steps",
]


@torch.no_grad()
def distillation_target(teacher: DenoiserLike, z: Tensor, t: Tensor, steps: int, clip: float | None = None) -> Tensor:
    """x̃: what a student must predict at z_t for one step of 1/N to land where two teacher steps do.

    Algorithm 2 of Salimans & Ho 2022; appendix G derives its last line.

    Args:
        teacher: a denoiser made for 2N steps.
        z: z_t, shape (batch, …).
        t: shape (batch,), on the student's grid i/N, i = 1 … N.
        steps: N, the student's number of steps.
        clip: confine the teacher's x̂ to [−clip, clip]; ``None`` for no clipping.

    Returns:
        x̃, of z's shape. At t = 1/N, where t'' = 0, it is the teacher's x̂(z_{t'}).
    """
    schedule = teacher.schedule
    t_mid, t_end = t - 0.5 / steps, t - 1 / steps  # t' and t''

    def x_hat(z: Tensor, t: Tensor) -> Tensor:
        return teacher(z, t) if clip is None else teacher(z, t).clamp(-clip, clip)

    # Two DDIM steps of the teacher: t → t' → t''.
    z_mid = ddim_step(z, x_hat(z, t), t, t_mid, schedule)
    z_end = ddim_step(z_mid, x_hat(z_mid, t_mid), t_mid, t_end, schedule)
    # One step of the student, α'' x̃ + (σ''/σ)(z − α x̃), must equal z_end: solve for x̃.
    (alpha, sigma), (alpha_end, sigma_end) = schedule.alpha_sigma(t), schedule.alpha_sigma(t_end)
    ratio = sigma_end / sigma
    return (z_end - expand(ratio, z) * z) / expand(alpha_end - ratio * alpha, z)


def distillation_loss(
    student: Denoiser,
    teacher: DenoiserLike,
    x: Tensor,
    steps: int,
    generator: torch.Generator,
    weighting: str | Clipped = "truncated_snr",
    clip: float | None = None,
) -> Tensor:
    """w(λ_t) ‖x̃ − x̂_student(z_t)‖² at random t = i/N. The body of algorithm 2's loop.

    Args:
        student: the network in training.
        teacher: a denoiser made for 2N steps.
        x: clean data, shape (batch, …).
        steps: N, the student's number of steps.
        generator: source of t and of the noise.
        weighting: as in :func:`pdlib.weightings.weight`.
        clip: as in :func:`distillation_target`.
    """
    t = random_grid_times(len(x), steps, generator)  # t = i/N, i ~ Cat[1, …, N]
    z, _ = diffuse(x, t, student, generator)  # z_t = α_t x + σ_t ε
    target = distillation_target(teacher, z, t, steps, clip)  # x̃
    return weighted_loss(student(z, t), target, student, t, weighting, steps)


def conversion_loss(
    student: Denoiser,
    parent: DenoiserLike,
    x: Tensor,
    steps: int,
    generator: torch.Generator,
    weighting: str | Clipped = "truncated_snr",
    clip: float | None = 1.0,
) -> Tensor:
    """w(λ_t) ‖x̂_parent(z_t) − x̂_student(z_t)‖²: the same N, another prediction.

    The parent's x̂ is clipped, by default to images' [−1, 1]: an ε parent's x̂ = (z − σ ε̂)/α carries
    its error magnified by σ/α, which has no bound as α → 0.
    """
    t = random_grid_times(len(x), steps, generator)
    z, _ = diffuse(x, t, student, generator)
    with torch.no_grad():
        target = parent(z, t)
    if clip is not None:
        target = target.clamp(-clip, clip)
    return weighted_loss(student(z, t), target, student, t, weighting, steps)


def convert(
    parent: Denoiser,
    prediction: str,
    data: Tensor,
    steps: int,
    settings: TrainingSettings,
    *,
    seed: int,
    weighting: str | Clipped = "truncated_snr",
    clip: float | None = 1.0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Trained:
    """A denoiser that predicts something else, learned from a parent at the same number of steps.

    It starts from the parent's weights, all but an output layer of another size (``"both"``).

    Args:
        parent: the trained denoiser.
        prediction: of the new one.
        data: clean data, shape (n, …).
        steps: N; the times are i/N.
        settings, seed, checkpoint, progress: as in :func:`pdlib.training.fit`.
        weighting, clip: as in :func:`conversion_loss`.
    """
    channels = output_channels(prediction, parent.network.config["channels"])
    if channels == parent.network.config["out_channels"]:
        network = copy.deepcopy(parent.network)
    else:
        network = network_from_config({**parent.network.config, "out_channels": channels}).to(data.device)
        fresh = network.state_dict()
        old = parent.network.state_dict()
        fitting = {name: value for name, value in old.items() if fresh[name].shape == value.shape}
        network.load_state_dict({**fresh, **fitting})
    student = Denoiser(network, prediction, parent.schedule)

    def loss(student: Denoiser, x: Tensor, generator: torch.Generator) -> Tensor:
        return conversion_loss(student, parent, x, steps, generator, weighting, clip)

    label = f"convert to {prediction}"
    return fit(student, loss, data, settings, seed=seed, label=label, checkpoint=checkpoint, progress=progress)


def stage_steps(start: int, end: int) -> list[int]:
    """The students' numbers of steps, start/2, start/4, … end.

    Raises:
        ValueError: unless ``start`` is ``end`` times a power of two.
    """
    ratio = start // end if end > 0 else 0
    if end < 1 or start != end * ratio or ratio < 1 or ratio & (ratio - 1):
        raise ValueError(
            f"steps={start} cannot be halved down to end_steps={end}: "
            "steps must be end_steps times a power of two (1, 2, 4, …)"
        )
    return [start >> k for k in range(1, ratio.bit_length())]


@dataclass(frozen=True)
class Stage:
    """One finished stage of :func:`progressive_distillation`."""

    steps: int
    """N, the student's number of steps."""
    student: Denoiser
    """The student, which is also the next stage's teacher."""
    trained: Trained
    """Its losses, gradient norms and time."""


def progressive_distillation(
    teacher: Denoiser,
    data: Tensor,
    start: int,
    end: int,
    settings: TrainingSettings,
    *,
    seed: int,
    updates: dict[int, int] | None = None,
    weighting: str | Clipped = "truncated_snr",
    clip: float | None = None,
    weights: str = "ema",
    folder: Path | None = None,
    checkpoint_seconds: float = 20.0,
    progress: bool = True,
) -> Iterator[Stage]:
    """Algorithm 2: halve the number of steps until ``end``, yielding each finished stage.

    A generator: stop after any stage, look at its student, go on. To go on later, or with other
    settings, call it again with that student as the teacher and its steps as the start.

    Args:
        teacher: a network trained for ``start`` steps (or more, or in continuous time).
        data: clean data, shape (n, …).
        start, end: numbers of steps; start is end times a power of two.
        settings: of each stage's training.
        seed: each stage draws from a generator seeded with this and its N.
        updates: overrides ``settings.updates`` for some stages, by N.
        weighting: w(λ_t), see :func:`pdlib.weightings.weight`.
        clip: of the teacher's x̂ in the target, see :func:`distillation_target`.
        weights: hand on the student's ``"ema"`` or its ``"raw"`` weights.
        folder: keep checkpoints here, as ``student-N.checkpoint``; ``None`` for none.
        checkpoint_seconds, progress: as in :func:`pdlib.training.fit`.

    Raises:
        ValueError: where halving does not lead from start to end, or ``weights`` is unknown.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights={weights!r} is unknown; it must be one of ema, raw")
    for steps in stage_steps(start, end):
        # θ ← η: the student starts as a copy of its teacher.
        student = Denoiser(copy.deepcopy(teacher.network), teacher.prediction, teacher.schedule)

        def loss(
            student: Denoiser,
            x: Tensor,
            generator: torch.Generator,
            teacher: DenoiserLike = teacher,
            steps: int = steps,
        ) -> Tensor:
            return distillation_loss(student, teacher, x, steps, generator, weighting, clip)

        trained = fit(
            student,
            loss,
            data,
            replace(settings, updates=(updates or {}).get(steps, settings.updates)),
            seed=seed + steps,
            label=f"student-{steps}",
            checkpoint=None if folder is None else Path(folder) / f"student-{steps}.checkpoint",
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
        )
        teacher = trained.ema if weights == "ema" else trained.raw  # η ← θ, N ← N/2
        yield Stage(steps, teacher, trained)
