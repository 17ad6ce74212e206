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
from pdlib.schedules import expand, grid
from pdlib.training import Trained, TrainingSettings, diffuse, fit, random_grid_times, weighted_loss
from pdlib.unet import network_from_config
from pdlib.weightings import Clipped, weight

__all__ = [
    "CULPRITS",
    "Finding",
    "Stage",
    "conversion_loss",
    "convert",
    "diagnose",
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
    skip_top: bool = False,
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
        skip_top: leave t = 1 out, see :func:`pdlib.training.random_grid_times`.
    """
    t = random_grid_times(len(x), steps, generator, skip_top)  # t = i/N, i ~ Cat[1, …, N]
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
    skip_top: bool = False,
) -> Tensor:
    """w(λ_t) ‖x̂_parent(z_t) − x̂_student(z_t)‖²: the same N, another prediction.

    The parent's x̂ is clipped, by default to images' [−1, 1]: an ε parent's x̂ = (z − σ ε̂)/α carries
    its error magnified by σ/α, which has no bound as α → 0.
    """
    t = random_grid_times(len(x), steps, generator, skip_top)
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
    skip_top: bool = False,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 20.0,
    progress: bool = True,
) -> Trained:
    """A denoiser that predicts something else, learned from a parent at the same number of steps.

    It starts from the parent's weights, all but an output layer of another size (``"both"``).

    Args:
        parent: the trained denoiser.
        prediction: of the new one.
        data: clean data, shape (n, …).
        steps: N; the times are i/N.
        settings, seed, checkpoint, checkpoint_seconds, progress: as in :func:`pdlib.training.fit`.
        weighting, clip, skip_top: as in :func:`conversion_loss`.
    """

    def loss(student: Denoiser, x: Tensor, generator: torch.Generator) -> Tensor:
        return conversion_loss(student, parent, x, steps, generator, weighting, clip, skip_top)

    return fit(
        _started_from(parent, prediction, seed),
        loss,
        data,
        settings,
        seed=seed,
        label=f"convert to {prediction}",
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
    )


def _started_from(parent: Denoiser, prediction: str, seed: int) -> Denoiser:
    """A copy of the parent whose output means something else; the last layer is new where its size changes."""
    channels = output_channels(prediction, parent.network.config["channels"])
    network = copy.deepcopy(parent.network)
    if channels != parent.network.config["out_channels"]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = network_from_config({**parent.network.config, "out_channels": channels})
        last = fresh.last.to(network.last.weight.device)
        network.last, network.config = last, fresh.config
    return Denoiser(network, prediction, parent.schedule)


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
    prediction: str | None = None,
    skip_top: bool = False,
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
        prediction: what the students predict; what the teacher does if ``None``. Where it differs, the first
            student starts from the teacher's weights all the same: see also :func:`convert`.
        skip_top: leave t = 1 out, see :func:`pdlib.training.random_grid_times`.
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
        student = _started_from(teacher, prediction or teacher.prediction, seed)

        def loss(
            student: Denoiser,
            x: Tensor,
            generator: torch.Generator,
            teacher: DenoiserLike = teacher,
            steps: int = steps,
        ) -> Tensor:
            return distillation_loss(student, teacher, x, steps, generator, weighting, clip, skip_top)

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


CULPRITS = ("wrong top time", "terminal SNR", "dead steps", "unbounded targets")
"""The known mistakes, by the names that :func:`diagnose` gives them."""


@dataclass(frozen=True)
class Finding:
    """One mistake that :func:`diagnose` found."""

    culprit: str
    """One of :data:`CULPRITS`."""
    figure: float
    """The number that gives it away."""
    explanation: str
    """What the number is, what it does, and what to do about it."""

    def __str__(self) -> str:
        return f"{self.culprit}: {self.explanation}"


def diagnose(
    denoiser: DenoiserLike, steps: int, weighting: str | Clipped = "truncated_snr", times: Tensor | None = None
) -> list[Finding]:
    """Name the mistakes that ruin few-step samplers and leave many-step samplers almost unharmed.

    - *wrong top time*: training stops below t = 1, where sampling starts. The figure is α at the highest time.
    - *terminal SNR*: the schedule's last α is not 0 (nor below 0.001), so that no z_1 in training was pure noise.
      The figure is α_1. Lin et al. 2023.
    - *dead steps*: times whose weight is below 1 % of their fair share, 1/N of the whole, both as a weight on
      ‖x̂ − x‖² and as one on ‖v̂ − v‖². The figure is the lowest share of the two, in units of the fair one.
    - *unbounded targets*: an ε network's error reaches x̂ magnified by σ/α, by more than 100. The figure is σ/α.

    Args:
        denoiser: a student, or the teacher of ``steps`` steps; its schedule and its prediction are read.
        steps: N, the number of steps that it samples with.
        weighting: what it was trained with; a denoiser does not know.
        times: those it was trained at, shape (n,); by default the grid i/N, i = 1 … N.

    Returns:
        The findings, in the order of :data:`CULPRITS`; none for a healthy denoiser.
    """
    schedule = denoiser.schedule
    times = grid(steps) if times is None else times.double()
    top = times.max() if len(times) else torch.zeros((), dtype=torch.float64)
    ends = torch.stack([top, torch.ones_like(top)])
    alpha_top, alpha_last = schedule.alpha_sigma(ends)[0].tolist()
    findings = []
    if top < 1:
        findings.append(
            Finding(
                "wrong top time",
                alpha_top,
                f"the highest time in training is t = {top:.4g}, where α = {alpha_top:.2g}, but sampling starts from "
                f"noise alone, where α = 0. Take the times i/{steps} with i = 1 … {steps}, not i = 0 … {steps - 1}.",
            )
        )
    if alpha_last > 1e-3:
        findings.append(
            Finding(
                "terminal SNR",
                alpha_last,
                f"the schedule ends at α_1 = {alpha_last:.2g}: training never shows pure noise, and sampling starts "
                "from it. Use a schedule with α_1 = 0, such as pdlib.schedules.zero_terminal_snr makes.",
            )
        )
    times = times[times > 0]  # at t = 0 there is nothing to learn, and the SNR has no value
    alpha, sigma = schedule.alpha_sigma(times)
    on_x = weight(weighting, schedule, times, steps)
    share = torch.maximum(_share(on_x), _share(on_x * sigma**2))
    dead = times[share < 0.01]
    if len(dead) > 0:
        shown = ", ".join(f"{t:.4g}" for t in dead[-4:].flip(0)) + (", …" if len(dead) > 4 else "")
        findings.append(
            Finding(
                "dead steps",
                share.min().item(),
                f"of {steps} steps {len(dead)} {'gets' if len(dead) == 1 else 'get'} less than 1 % of the fair share "
                f"of the loss: t = {shown}. There a student stays as its teacher left it. Use truncated_snr, "
                "snr_plus_one or constant, or clip the weights.",
            )
        )
    amplification = (sigma / alpha).max().item() if len(times) else 0.0
    if getattr(denoiser, "prediction", None) == "eps" and amplification > 100:
        findings.append(
            Finding(
                "unbounded targets",
                amplification,
                f"the network predicts ε, and its error reaches x̂ magnified by σ/α = {amplification:.3g} at "
                f"t = {top:.4g}. Convert it to v, x or both first: pdlib.distillation.convert.",
            )
        )
    return findings


def _share(weights: Tensor) -> Tensor:
    """Each weight over their mean; 0 where all are 0."""
    return weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)
