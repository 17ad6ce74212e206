"""The diagnosis: names the known mistakes that ruin few-step samplers, each with the number that gives it away.

What settings cannot tell is measured on images: x̂'s error beside trivial answers, and a student's beside its teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdlib.denoiser import Denoiser, DenoiserLike, OfClasses
from pdlib.grids import Grid
from pdlib.objectives import distillation_target
from pdlib.predictions import PREDICTIONS
from pdlib.schedules import DiscreteSchedule, diffuse, expand
from pdlib.weightings import Weighting, on_grid

__all__ = [
    "CULPRITS",
    "Finding",
    "diagnose",
    "diagnose_student",
    "labelled",
    "measured_times",
    "residuals",
    "x_errors",
]

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
    line: str = ""
    """The line of a config that mends it, where one does."""

    def __str__(self) -> str:
        return f"{self.culprit}: {self.explanation}{self.line and f' In its config: {self.line}'}"


def diagnose(
    denoiser: DenoiserLike, grid: Grid | None = None, weighting: str | Weighting = "truncated_snr"
) -> list[Finding]:
    """Name the mistakes that ruin few-step samplers and leave many-step samplers almost unharmed.

    - *wrong top time*: training stops below t = 1, where sampling starts. The figure is α at the highest time.
    - *terminal SNR*: the schedule's last α is not 0 (nor below 0.001), so that no z_1 in training was pure noise.
      The figure is α_1. Lin et al. 2023.
    - *dead steps*: times whose weight is below 1 % of their fair share, 1/N of the whole, both as a weight on
      ‖x̂ − x‖² and as one on ‖v̂ − v‖². The figure is the lowest share of the two, in units of the fair one.
    - *unbounded targets*: an ε network's error reaches x̂ magnified by σ/α, by more than 100. The figure is σ/α.

    Args:
        denoiser: a student or a teacher; its schedule and its prediction are read.
        grid: the times that it is trained at and samples through, where it does not carry its own.
        weighting: what it was trained with; a denoiser does not know.

    Returns:
        The findings, in the order of :data:`CULPRITS`; none for a healthy denoiser.

    Raises:
        ValueError: where neither gives a grid.
    """
    grid, schedule = grid or getattr(denoiser, "grid", None), denoiser.schedule
    if grid is None:
        raise ValueError("grid: this denoiser was made for no number of steps; say for which Grid(N) to diagnose it")
    steps, times = grid.N, grid.times
    top = times.max() if len(times) else torch.zeros((), dtype=torch.float64)
    ends = torch.stack([top, torch.ones_like(top)])
    alpha_top, alpha_last = schedule.alpha_sigma(ends)[0].tolist()
    alpha, sigma = schedule.alpha_sigma(times)
    on_x = on_grid(weighting, steps)(schedule, times)
    share = torch.maximum(_share(on_x), _share(on_x * sigma**2))
    dead = times[share < 0.01]
    shown = ", ".join(f"{t:.4g}" for t in dead[-4:].flip(0)) + (", …" if len(dead) > 4 else "")
    amplification = (sigma / alpha).max().item() if len(times) else 0.0
    is_eps = getattr(denoiser, "prediction", None) == "eps"
    known = (
        (
            top < 1,
            "wrong top time",
            alpha_top,
            f"the highest time in training is t = {top:.4g}, where α = {alpha_top:.2g}, but sampling starts from noise "
            f"alone, where α = 0. Take the times i/{steps} with i = 1 … {steps}, not i = 0 … {steps - 1}.",
        ),
        (
            alpha_last > 1e-3,
            "terminal SNR",
            alpha_last,
            f"the schedule ends at α_1 = {alpha_last:.2g}: training never shows pure noise, and sampling starts from "
            "it. Use a schedule with α_1 = 0, such as pdlib.schedules.zero_terminal_snr makes.",
        ),
        (
            len(dead) > 0,
            "dead steps",
            share.min().item() if len(share) else 0.0,
            f"of {steps} steps {len(dead)} {'gets' if len(dead) == 1 else 'get'} less than 1 % of the fair share of "
            f"the loss: t = {shown}. There a student stays as its teacher left it. Use truncated_snr, snr_plus_one or "
            "constant, or clip the weights.",
        ),
        (
            is_eps and amplification > 100,
            "unbounded targets",
            amplification,
            f"the network predicts ε, and its error reaches x̂ magnified by σ/α = {amplification:.3g} at t = {top:.4g}. "
            "Convert it to v, x or both first: pdlib.distillation.convert.",
        ),
    )
    return [Finding(*finding) for applies, *finding in known if applies]


@torch.no_grad()
def x_errors(denoiser: DenoiserLike, x: Tensor, times: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The mean square error of x̂ at each of some times, beside that of answers that need no network.

    Args:
        denoiser: the denoiser.
        x: images, shape (n, …); a few hundred are enough.
        times: shape (k,), in (0, 1].
        seed: of the noise.

    Returns:
        By name, each of shape (k,) in float64: ``network``; ``zero``, x̂ = 0; ``mean``, x̂ = the images' mean;
        ``eps = z``, all of z is noise; ``eps = 0``, none of it is. The last two are infinite where α = 0.
    """
    generator, found = torch.Generator(x.device).manual_seed(seed), []
    for time in times:
        t = time.double().expand(len(x)).to(x.device)
        z, _ = diffuse(x, t, denoiser.schedule, generator)
        alpha, sigma = (expand(part, x) for part in denoiser.schedule.alpha_sigma(t))
        answers = {
            "network": denoiser(z, t),
            "zero": torch.zeros_like(x),
            "mean": x.mean(0, keepdim=True),
            "eps = z": (1 - sigma) * z / alpha,
            "eps = 0": z / alpha,
        }
        found.append({name: (answer - x).double().square().mean() for name, answer in answers.items()})
    # 0/0 at α = 0
    return {name: torch.stack([row[name].cpu() for row in found]).nan_to_num(torch.inf, torch.inf) for name in found[0]}


@torch.no_grad()
def residuals(student: DenoiserLike, teacher: DenoiserLike, x: Tensor, seed: int = 0) -> Tensor:
    """What a student has left to learn at each of its N times: ‖x̃ − x̂‖² over that of a mere copy of its teacher.

    0 for one that has learned all, 1 for one that is as its teacher left it: where a step is dead, or no update was
    made. Where a copy would do, because two steps say what one says, it is over a thousandth of the images' variance.
    x̃ is algorithm 2's, of the teacher's two steps.

    Args:
        student: made for a grid; on the teacher's schedule.
        teacher: what it learned from: made for twice as many steps, or for any.
        x: images, shape (n, …).
        seed: of the noise.

    Returns:
        Shape (N,), float64, at t = i/N, i = 1 … N.

    Raises:
        ValueError: where the student was made for no grid, or is on another schedule than its teacher.
    """
    if student.grid is None:
        raise ValueError("grid: this student was made for no number of steps: give student.grid = Grid(N)")
    times = Grid(student.grid.N).times
    ours, theirs = (torch.stack(one.schedule.alpha_sigma(times)) for one in (student, teacher))
    if (ours - theirs).abs().max() > 1e-4:
        raise ValueError(
            f"the student is on {student.schedule}, its teacher on {teacher.schedule}: give its own teacher"
        )
    generator, left = torch.Generator(x.device).manual_seed(seed), []
    little = 0.001 * (x - x.mean(0)).double().square().mean()
    for time in times:
        t = time.expand(len(x)).to(x.device)
        z, _ = diffuse(x, t, student.schedule, generator)
        target = distillation_target(teacher, z, t, student.grid.N)
        missed = [(target - one(z, t)).double().square().mean() for one in (student, teacher)]
        left.append((missed[0] / missed[1].clamp(min=little)).cpu())
    return torch.stack(left)


def diagnose_student(left: Tensor, of_first: Tensor | None = None) -> list[Finding]:
    """What a student's :func:`residuals` tell of its training; nothing where all is well.

    - *never trained*: at every time it is as its teacher left it. The figure is what is left, at least.
    - *never promoted*: it has learned what the chain's first teacher says, and not its own: students were not made the
      next teachers. The figure is what is left of its own teacher's, in the mean, over what is left of the first's.
    - *dead steps*: at some of its times more than 0.1 is left, and ten times as much as at the best, but no more than a
      copy leaves. There its weight is 0, or the grid that it was trained on lacks them.
    - *too few updates*: somewhere more than half is left; above 1 where what it predicts was changed and is not yet
      learned. The figure of both is what is left, at most.

    Args:
        left: its residuals from its own teacher.
        of_first: those from the chain's first teacher, where that is another.
    """
    least, most = left.min().item(), left.max().item()
    if least > 0.9:
        text = (
            f"{least:.2f} or more of what its teacher's two steps tell is left to learn at all its times: it was saved "
        )
        text += "before its training, or lost it" + (", or its one step has no weight." if len(left) == 1 else ".")
        return [Finding("never trained", least, text)]
    if of_first is not None and left.mean() > max(0.1, 2 * of_first.mean().item()):
        ratio = (left.mean() / of_first.mean().clamp(min=1e-6)).item()
        text = (
            f"{left.mean():.2f} of what its own teacher tells is left to learn, and {of_first.mean():.2f} of what the "
        )
        text += "chain's first teacher tells: it was trained from that one. Make each student the next one's teacher."
        return [Finding("never promoted", ratio, text)]
    dead = (left > 0.1) & (left > 10 * least)
    if dead.any() and most < 1.1:
        text = (
            f"at t = {_shown(dead)} {most:.2f} is left to learn, elsewhere as little as {least:.2g}. There its weight "
        )
        text += "is 0 or next to it, or the grid that it was trained on lacks that time."
        return [Finding("dead steps", most, text)]
    if most > 0.5:
        text = (
            f"{most:.2f} of what its teacher's two steps tell is left to learn at t = {_shown(left > 0.5)}: train it "
        )
        return [Finding("too few updates", most, text + "for longer.")]
    return []


def _shown(which: Tensor) -> str:
    """The times i/N at which something holds, the highest few."""
    found = which.nonzero().flatten().flip(0)
    return ", ".join(f"{(i + 1) / len(which):.3g}" for i in found[:4].tolist()) + ", …" * (len(found) > 4)


def labelled(denoiser: Denoiser, labels: Tensor | None) -> DenoiserLike:
    """A class-conditional denoiser bound to images' labels, or without any to its last, as a rule "of no class"."""
    if denoiser.classes is None:
        return denoiser
    return OfClasses(denoiser, denoiser.classes - 1 if labels is None else labels)


def measured_times(denoiser: Denoiser, count: int = 10) -> Tensor:
    """Evenly spaced times up to t = 1, or, where x̂ has no value at α = 0, to just below; shape (count,), float64.

    Of a :class:`pdlib.schedules.DiscreteSchedule`, times of its own.
    """
    schedule = denoiser.schedule
    T = schedule.T if isinstance(schedule, DiscreteSchedule) else 1000
    pure_noise = schedule.alpha_sigma(torch.ones(1))[0].item() == 0
    last = T - 1 if pure_noise and not PREDICTIONS[denoiser.prediction].bounded else T
    return torch.linspace(T / count, last, count).round().clamp(1).double() / T


def _share(weights: Tensor) -> Tensor:
    """Each weight over their mean; 0 where all are 0."""
    return weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)
