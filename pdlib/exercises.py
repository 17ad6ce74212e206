"""The notebooks' exercises, and the check that says at once whether an answer is right.

An answer is a function. It is compared, on random inputs, with a computation that does not share
its formula; the text of the answer is never looked at. Where it equals a mistake that people
make, the mistake's own hint is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdlib.denoiser import DenoiserLike
from pdlib.exact import MixtureDenoiser
from pdlib.sampling import ddim_step
from pdlib.schedules import CosineSchedule

__all__ = ["EXERCISES", "Exercise", "Verdict", "check"]


@dataclass(frozen=True)
class Exercise:
    """What an answer must compute.

    Args:
        cases: draws one random set of arguments, by the answer's argument names, from a generator.
        reference: the right value for them, computed another way than the learner is asked to.
        mistakes: plausible wrong answers, each with the hint that belongs to it.
        tolerance: largest difference, relative to the size of the right value, that counts as equal.
    """

    cases: Callable[[torch.Generator], dict[str, Any]]
    reference: Callable[..., Any]
    mistakes: tuple[tuple[Callable[..., Any], str], ...] = ()
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Verdict:
    """What :func:`check` found; a notebook shows it as one or a few lines of text."""

    outcome: str
    """``"not attempted yet"``, ``"not right"`` or ``"right"``."""
    detail: str = ""

    def __repr__(self) -> str:
        return self.outcome + (f": {self.detail}" if self.detail else "")


EXERCISES: dict[str, Exercise] = {}
"""Every exercise by the name that its check cell uses."""


def check(name: str, answer: Callable[..., Any], cases: int = 20, seed: int = 0) -> Verdict:
    """Compare an answer with what it should compute.

    Args:
        name: one of :data:`EXERCISES`.
        answer: the learner's function.
        cases: how many random inputs to try.
        seed: of the inputs.

    Raises:
        KeyError: for an unknown name.
    """
    if name not in EXERCISES:
        raise KeyError(f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    generator = torch.Generator().manual_seed(seed)
    inputs = [exercise.cases(generator) for _ in range(cases)]
    try:
        given = [answer(**_copied(case)) for case in inputs]
    except NotImplementedError:
        return Verdict("not attempted yet")
    except Exception as error:  # whatever the learner's code raises is part of the verdict
        return Verdict("not right", f"it raises {type(error).__name__}: {error}")
    if all(value is None or value is Ellipsis for value in given):
        return Verdict("not attempted yet")
    right = [exercise.reference(**_copied(case)) for case in inputs]
    wrong = [k for k in range(cases) if not _equal(given[k], right[k], exercise.tolerance)]
    if not wrong:
        return Verdict("right")
    detail = [f"here is a case where yours differs\n{_shown(inputs[wrong[0]], given[wrong[0]], right[wrong[0]])}"]
    for mistake, hint in exercise.mistakes:
        if all(_equal(given[k], _tried(mistake, inputs[k]), exercise.tolerance) for k in range(cases)):
            detail.append(f"hint: {hint}")
            break
    return Verdict("not right", "\n".join(detail))


def _copied(case: dict[str, Any]) -> dict[str, Any]:
    """So that an answer which changes its arguments in place changes nobody else's."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in case.items()}


def _tried(mistake: Callable[..., Any], case: dict[str, Any]) -> Any:
    try:
        return mistake(**_copied(case))
    except (ArithmeticError, ValueError):
        return None


def _equal(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, tuple) or isinstance(other, tuple):
        same_length = isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other)
        return same_length and all(_equal(a, b, tolerance) for a, b in zip(one, other, strict=True))
    try:
        one, other = torch.as_tensor(one).double(), torch.as_tensor(other).double()
    except (TypeError, ValueError, RuntimeError):
        return False
    if one.shape != other.shape:
        return False
    finite = other[other.isfinite()].abs()
    size = finite.max().clamp(min=1e-12) if finite.numel() else 1
    return bool(((one == other) | ((one - other).abs() <= tolerance * size)).all())


def _shown(case: dict[str, Any], given: Any, right: Any) -> str:
    lines = [f"  {key} = {_short(value)}" for key, value in case.items()]
    return "\n".join([*lines, f"  yours:    {_short(given)}", f"  expected: {_short(right)}"])


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if isinstance(value, Tensor):
        if value.numel() > 6:
            first = ", ".join(f"{number:.4g}" for number in value.flatten()[:4].tolist())
            return f"[{first}, …] of shape {tuple(value.shape)}"
        return str([float(f"{number:.6g}") for number in value.flatten().tolist()]) if value.ndim else f"{value:.6g}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _mixing_angles(generator: torch.Generator) -> dict[str, Any]:
    """α = cos φ and σ = sin φ, among them one of mostly signal and one of mostly noise."""
    angle = torch.tensor([0.1, 0.5, 1.0, 1.5]) + 0.07 * torch.rand(4, generator=generator, dtype=torch.float64)
    return {"alpha": angle.cos(), "sigma": angle.sin()}


# 01 The forward process


def _noising(generator: torch.Generator) -> dict[str, Any]:
    """Data, noise, and for each of four examples an α and a σ, from mostly signal to mostly noise."""
    x, eps = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    return {"x": x, "eps": eps, **_mixing_angles(generator)}


def _diffused(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z = α x + σ ε as a rotation: the real part of (α − iσ)(x + iε)."""
    return (torch.complex(alpha, -sigma)[:, None] * torch.complex(x, eps)).real


EXERCISES["01_diffuse"] = Exercise(
    cases=_noising,
    reference=_diffused,
    mistakes=(
        (
            lambda x, eps, alpha, sigma: (alpha**2)[:, None] * x + (sigma**2)[:, None] * eps,
            "these are the shares of the variance; x and ε themselves are multiplied by α and σ, not by their squares",
        ),
        (
            lambda x, eps, alpha, sigma: sigma[:, None] * x + alpha[:, None] * eps,
            "α and σ are swapped: α, which is 1 at t = 0, belongs to the clean x",
        ),
        (
            lambda x, eps, alpha, sigma: x + sigma[:, None] * eps,
            "the data must fade as the noise grows: x is multiplied by α",
        ),
        (
            lambda x, eps, alpha, sigma: alpha[:, None] * x - sigma[:, None] * eps,
            "the noise is added: α x + σ ε has a plus",
        ),
        (
            lambda x, eps, alpha, sigma: alpha[:, None] * x + (sigma**2)[:, None] * eps,
            "σ² is the variance of the noise; ε is multiplied by the standard deviation, σ",
        ),
    ),
)


def _solved_log_snr(alpha_bar: Tensor) -> Tensor:
    """The λ with 1/(1 + exp(−λ)) = ᾱ, found by halving an interval."""
    low, high = torch.full_like(alpha_bar, -40.0), torch.full_like(alpha_bar, 40.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = middle.sigmoid() < alpha_bar
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


EXERCISES["01_log_snr"] = Exercise(
    cases=lambda generator: {"alpha_bar": 0.01 + 0.98 * torch.rand(4, generator=generator, dtype=torch.float64)},
    reference=_solved_log_snr,
    mistakes=(
        (lambda alpha_bar: alpha_bar / (1 - alpha_bar), "that is the SNR; λ is its natural logarithm"),
        (
            lambda alpha_bar: 0.5 * (alpha_bar / (1 - alpha_bar)).log(),
            "that is log(α/σ); λ is the log of the ratio of the squares, twice as much",
        ),
        (lambda alpha_bar: ((1 - alpha_bar) / alpha_bar).log(), "the ratio is upside down: signal over noise"),
        (
            lambda alpha_bar: (alpha_bar**2 / (1 - alpha_bar**2)).log(),
            "ᾱ is α² already, the bar does not ask for another square; and σ² = 1 − ᾱ",
        ),
        (lambda alpha_bar: alpha_bar.log(), "that leaves out the noise: divide by σ² = 1 − ᾱ first"),
        (lambda alpha_bar: (alpha_bar / (1 - alpha_bar)).log10(), "λ is a natural logarithm, not one to base 10"),
    ),
)


def _gaussian_posterior(generator: torch.Generator) -> dict[str, Any]:
    mean, z = 2 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
    spread = 0.3 + torch.rand(4, generator=generator, dtype=torch.float64)
    return {"z": z, **_mixing_angles(generator), "mean": mean, "spread": spread}


def _integrated_mean(z: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """∫ x p(x) p(z | x) dx / ∫ p(x) p(z | x) dx, as sums over a fine line of x."""
    x = mean + spread * torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    log_joint = -((x - mean) ** 2) / (2 * spread**2) - (z - alpha * x) ** 2 / (2 * sigma**2)
    return (log_joint.softmax(0) * x).sum(0)


EXERCISES["01_gaussian_mean"] = Exercise(
    cases=_gaussian_posterior,
    reference=_integrated_mean,
    mistakes=(
        (
            lambda z, alpha, sigma, mean, spread: (
                mean + alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * (z - mean)
            ),
            "z is not centred on m: the data have been multiplied by α, their mean too",
        ),
        (
            lambda z, alpha, sigma, mean, spread: (
                mean + spread**2 / (alpha**2 * spread**2 + sigma**2) * (z - alpha * mean)
            ),
            "an α is missing in the gain: x and z vary together as α s²",
        ),
        (
            lambda z, alpha, sigma, mean, spread: (
                mean + alpha * spread / (alpha**2 * spread + sigma**2) * (z - alpha * mean)
            ),
            "s is a standard deviation; the formula has the variance s²",
        ),
        (
            lambda z, alpha, sigma, mean, spread: (
                mean + alpha * spread**2 / (alpha * spread**2 + sigma) * (z - alpha * mean)
            ),
            "variances add up, not deviations: the variance of z is α² s² + σ²",
        ),
        (
            lambda z, alpha, sigma, mean, spread: z / alpha,
            "that takes all of z for signal; the data's own mean and spread say how much to trust it",
        ),
    ),
)
EXERCISES["01_two_points"] = Exercise(
    cases=lambda generator: {
        "z": torch.randn(4, generator=generator, dtype=torch.float64),
        **_mixing_angles(generator),
    },
    reference=lambda z, alpha, sigma: torch.tanh(alpha * z / sigma**2),
    mistakes=(
        (
            lambda z, alpha, sigma: torch.sigmoid(2 * alpha * z / sigma**2),
            "that is the probability of +1; the mean also counts the −1",
        ),
        (
            lambda z, alpha, sigma: torch.tanh(alpha * z / sigma),
            "the exponent of a Gaussian is divided by 2σ², not by 2σ",
        ),
        (
            lambda z, alpha, sigma: torch.tanh(z / sigma**2),
            "the two bumps of z stand at +α and −α, not at +1 and −1",
        ),
        (
            lambda z, alpha, sigma: torch.tanh(2 * alpha * z / sigma**2),
            "the exponent of a Gaussian is divided by 2σ², not by σ²",
        ),
        (
            lambda z, alpha, sigma: z.sign(),
            "that is the likelier point; the mean weighs both points by how likely they are",
        ),
    ),
)


# 02 Parameterizations


def _solved_pair(known: Tensor, rows: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
    """The x and ε, (2, 4, 3), of which two mixtures are known, by solving two equations for each example."""
    mixing = torch.stack([torch.stack(row, -1) for row in rows], -2)  # (4, 2, 2)
    return torch.linalg.solve(mixing, known.transpose(0, 1)).transpose(0, 1)


def _x_behind(z: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    rows = (alpha, sigma), (torch.zeros_like(alpha), torch.ones_like(alpha))
    return _solved_pair(torch.stack([z, eps]), rows)[0]


def _eps_behind(z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return _solved_pair(torch.stack([z, v]), ((alpha, sigma), (-sigma, alpha)))[1]


def _slope_along_circle(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """dz/dφ of z = cos φ x + sin φ ε, by automatic differentiation."""
    angle = torch.atan2(sigma, alpha)[:, None].repeat(1, x.shape[1])
    return torch.func.jvp(lambda phi: phi.cos() * x + phi.sin() * eps, (angle,), (torch.ones_like(x),))[1]


def _nearest_pair(z: Tensor, x_head: Tensor, eps_head: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The x̂ of the pair with α x̂ + σ ε̂ = z nearest to the two heads, by the pseudo-inverse of that one equation."""
    equation = torch.stack([alpha, sigma], -1)[:, None]  # (4, 1, 2)
    missing = z - alpha[:, None] * x_head - sigma[:, None] * eps_head
    return x_head + (torch.linalg.pinv(equation) @ missing[:, None])[:, 0]


def _noised(generator: torch.Generator) -> dict[str, Any]:
    """As :func:`_noising`, with z in place of x."""
    case = _noising(generator)
    return {"z": _diffused(**case), **{name: case[name] for name in ("eps", "alpha", "sigma")}}


def _noised_with_v(generator: torch.Generator) -> dict[str, Any]:
    case = _noising(generator)
    v = _slope_along_circle(**case)
    return {"z": _diffused(**case), "v": v, "alpha": case["alpha"], "sigma": case["sigma"]}


def _two_heads(generator: torch.Generator) -> dict[str, Any]:
    """Heads that do not agree: their pair does not explain z."""
    case = _noising(generator)
    x_head, eps_head = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    angles = {name: case[name] for name in ("alpha", "sigma")}
    return {"z": _diffused(**case), "x_head": x_head, "eps_head": eps_head, **angles}


EXERCISES["02_x_from_eps"] = Exercise(
    cases=_noised,
    reference=_x_behind,
    mistakes=(
        (
            lambda z, eps, alpha, sigma: (z + sigma[:, None] * eps) / alpha[:, None],
            "the noise was added to make z, so it is subtracted to get back",
        ),
        (
            lambda z, eps, alpha, sigma: z - sigma[:, None] * eps,
            "that is α x, the faded data; divide it by α",
        ),
        (
            lambda z, eps, alpha, sigma: z / alpha[:, None] - sigma[:, None] * eps,
            "all of z − σ ε is divided by α, the noise too",
        ),
        (
            lambda z, eps, alpha, sigma: (z - (sigma**2)[:, None] * eps) / (alpha**2)[:, None],
            "z holds α x and σ ε, not their squares: no squares here",
        ),
        (
            lambda z, eps, alpha, sigma: (z - alpha[:, None] * eps) / sigma[:, None],
            "α and σ are swapped: ε came in with σ, and x with α",
        ),
    ),
)
EXERCISES["02_v"] = Exercise(
    cases=_noising,
    reference=_slope_along_circle,
    mistakes=(
        (
            lambda x, eps, alpha, sigma: alpha[:, None] * eps + sigma[:, None] * x,
            "the sign: with the plus of the slides, α z − σ v is (α² − σ²) x and not x",
        ),
        (
            lambda x, eps, alpha, sigma: sigma[:, None] * x - alpha[:, None] * eps,
            "that is −v: both signs are turned round. Put it into α z − σ v, and see that x does not come out",
        ),
        (
            lambda x, eps, alpha, sigma: alpha[:, None] * x - sigma[:, None] * eps,
            "x and ε are swapped: at α = 1, where z = x, v must be what z does not show, ε",
        ),
        (
            lambda x, eps, alpha, sigma: eps - x,
            "that is the direction of a straight line from x to ε; on the circle α and σ belong to it",
        ),
    ),
)
EXERCISES["02_eps_from_v"] = Exercise(
    cases=_noised_with_v,
    reference=_eps_behind,
    mistakes=(
        (
            lambda z, v, alpha, sigma: sigma[:, None] * z - alpha[:, None] * v,
            "the sign: v = α ε − σ x holds ε with a plus, so α v is added; then the x parts, σα x and −ασ x, cancel",
        ),
        (
            lambda z, v, alpha, sigma: alpha[:, None] * z - sigma[:, None] * v,
            "that is x̂; for ε̂ let the x parts cancel instead",
        ),
        (
            lambda z, v, alpha, sigma: alpha[:, None] * z + sigma[:, None] * v,
            "α and σ are swapped: z holds ε with σ, so multiply z by σ",
        ),
        (
            lambda z, v, alpha, sigma: v / alpha[:, None],
            "v = α ε − σ x also holds x; z is there to take it out",
        ),
        (
            lambda z, v, alpha, sigma: z / sigma[:, None],
            "that takes all of z for noise",
        ),
    ),
)
EXERCISES["02_both"] = Exercise(
    cases=_two_heads,
    reference=_nearest_pair,
    mistakes=(
        (
            lambda z, x_head, eps_head, alpha, sigma: (
                (alpha**2)[:, None] * x_head + (sigma**2 / alpha)[:, None] * (z - sigma[:, None] * eps_head)
            ),
            "the shares are swapped: where there is little noise, trust the ε head, whose x̂ has the share α²",
        ),
        (
            lambda z, x_head, eps_head, alpha, sigma: (
                (sigma**2)[:, None] * x_head + (alpha**2)[:, None] * (z - sigma[:, None] * eps_head)
            ),
            "the ε head's x̂ is (z − σ ε̃)/α: one α of its share α² is used up by that division",
        ),
        (
            lambda z, x_head, eps_head, alpha, sigma: (sigma**2)[:, None] * x_head + z - sigma[:, None] * eps_head,
            "an α is missing: z − σ ε̃ is α x̂, and its share is α², so α (z − σ ε̃)",
        ),
        (
            lambda z, x_head, eps_head, alpha, sigma: (
                sigma[:, None] * x_head + alpha[:, None] * (z - sigma[:, None] * eps_head)
            ),
            "the shares are σ² and α², which add up to 1; σ and α do not",
        ),
        (
            lambda z, x_head, eps_head, alpha, sigma: (x_head + (z - sigma[:, None] * eps_head) / alpha[:, None]) / 2,
            "an even average keeps half of (z − σ ε̃)/α, which blows up as α → 0; weigh the two by σ² and α²",
        ),
    ),
)


# 03 The target x̃


def _student_step(generator: torch.Generator) -> dict[str, Any]:
    """One of the student's steps: i of N."""
    steps = int(torch.randint(2, 9, (1,), generator=generator))
    return {"i": int(torch.randint(1, steps + 1, (1,), generator=generator)), "steps": steps}


EXERCISES["03_times"] = Exercise(
    cases=_student_step,
    reference=lambda i, steps: tuple((2 * i - k) / (2 * steps) for k in range(3)),  # counted on the teacher's grid
    mistakes=(
        (
            lambda i, steps: (i / steps, (i - 1) / steps, (i - 0.5) / steps),
            "t' and t'' are swapped: t', half-way, comes first",
        ),
        (
            lambda i, steps: (i / steps, (i - 1) / steps, (i - 2) / steps),
            "those steps are the student's; the teacher makes 2N steps from 1 to 0, each half as long",
        ),
        (
            lambda i, steps: ((i - 1) / steps, (i - 1.5) / steps, (i - 2) / steps),
            "i runs from 1 to N, and t = i/N: the first t is 1/N and the last is 1",
        ),
        (
            lambda i, steps: (i / steps, (i + 0.5) / steps, (i + 1) / steps),
            "sampling goes from noise at t = 1 to data at t = 0: the times fall",
        ),
    ),
)


def _step_angles(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """φ of a step's start and of its end; among the starts is α = 0, among the ends σ = 0."""
    start = torch.tensor([0.3, 0.8, 1.2, math.pi / 2]) + 0.1 * torch.rand(4, generator=generator, dtype=torch.float64)
    end = start * (0.3 + 0.5 * torch.rand(4, generator=generator, dtype=torch.float64))
    start[3], end[0] = math.pi / 2, 0.0
    return start, end


def _ddim_arguments(generator: torch.Generator) -> dict[str, Any]:
    z, x_hat = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    start, end = _step_angles(generator)
    angles = {"alpha_t": start.cos(), "sigma_t": start.sin(), "alpha_s": end.cos(), "sigma_s": end.sin()}
    return {"z": z, "x_hat": x_hat, **angles}


def _rotated(z: Tensor, x_hat: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Tensor:
    """A DDIM step as a turn by φ_t − φ_s: cos(φ_t − φ_s) z − sin(φ_t − φ_s) v̂."""
    turn = (torch.atan2(sigma_t, alpha_t) - torch.atan2(sigma_s, alpha_s))[:, None]
    v_hat = (alpha_t[:, None] * z - x_hat) / sigma_t[:, None]
    return turn.cos() * z - turn.sin() * v_hat


def _mixed_anew(z: Tensor, x_hat: Tensor, *scales: Tensor, sign: int = -1) -> Tensor:
    alpha_t, sigma_t, alpha_s, sigma_s = (scale[:, None] for scale in scales)
    return alpha_s * x_hat + sigma_s / sigma_t * (z + sign * alpha_t * x_hat)


EXERCISES["03_ddim_step"] = Exercise(
    cases=_ddim_arguments,
    reference=_rotated,
    mistakes=(
        (
            lambda z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s: _mixed_anew(
                z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, sign=1
            ),
            "a sign: to get at the noise, the picture's part α_t x̂ is taken away from z_t",
        ),
        (
            lambda z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s: _mixed_anew(
                z, x_hat, alpha_t**2, sigma_t**2, alpha_s**2, sigma_s**2
            ),
            "α and σ themselves multiply x and ε; their squares are variances",
        ),
        (
            lambda z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s: _mixed_anew(
                z, x_hat, alpha_s, sigma_t, alpha_t, sigma_s
            ),
            "α_t and α_s are swapped: unmix z_t with α_t, then mix anew with α_s",
        ),
        (
            lambda z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s: _mixed_anew(
                z, x_hat, alpha_t, torch.ones_like(sigma_t), alpha_s, sigma_s
            ),
            "z_t − α_t x̂ is σ_t ε̂, not yet ε̂: divide it by σ_t",
        ),
        (
            lambda z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s: alpha_s[:, None] * x_hat + sigma_s[:, None] * z,
            "z_t is not the noise, it holds a picture too: the noise is ε̂ = (z_t − α_t x̂)/σ_t",
        ),
    ),
)


def _landed(generator: torch.Generator) -> dict[str, Any]:
    z, z_end = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    start, end = _step_angles(generator)
    angles = {"alpha": start.cos(), "sigma": start.sin(), "alpha_end": end.cos(), "sigma_end": end.sin()}
    return {"z": z, "z_end": z_end, **angles}


def _aimed(z: Tensor, z_end: Tensor, alpha: Tensor, sigma: Tensor, alpha_end: Tensor, sigma_end: Tensor) -> Tensor:
    """Two trial shots, at x̂ = 0 and x̂ = 1; where a step lands is a straight line in x̂."""
    from_0, from_1 = (_rotated(z, torch.full_like(z, x), alpha, sigma, alpha_end, sigma_end) for x in (0.0, 1.0))
    return (z_end - from_0) / (from_1 - from_0)


def _solved(z: Tensor, z_end: Tensor, ratio: Tensor, alpha: Tensor, alpha_end: Tensor) -> Tensor:
    return (z_end - ratio[:, None] * z) / (alpha_end - ratio * alpha)[:, None]


EXERCISES["03_x_tilde"] = Exercise(
    cases=_landed,
    reference=_aimed,
    mistakes=(
        (
            lambda z, z_end, alpha, sigma, alpha_end, sigma_end: _solved(
                z, z_end, -sigma_end / sigma, alpha, alpha_end
            ),
            "a sign: what is added on one side, (σ''/σ) z, is taken away on the other; −(σ''/σ) α x̃ keeps its minus",
        ),
        (
            lambda z, z_end, alpha, sigma, alpha_end, sigma_end: _solved(
                z, z_end, sigma_end / sigma, 0 * alpha, alpha_end
            ),
            "x̃ stands in two places; collect both before you divide",
        ),
        (
            lambda z, z_end, alpha, sigma, alpha_end, sigma_end: _solved(
                z, z_end, (sigma_end / sigma) ** 2, alpha, alpha_end
            ),
            "the step has σ''/σ, not the ratio of the variances",
        ),
        (
            lambda z, z_end, alpha, sigma, alpha_end, sigma_end: _solved(z, z_end, sigma_end, alpha, alpha_end),
            "the noise that x̃ leaves is (z − α x̃)/σ: the division by σ got lost",
        ),
        (
            lambda z, z_end, alpha, sigma, alpha_end, sigma_end: _solved(
                z, z_end, torch.ones_like(sigma), alpha, alpha_end
            ),
            "the noise shrinks on the way, from σ to σ'': the ratio σ''/σ got lost",
        ),
    ),
)


class _RandomMixture(MixtureDenoiser):
    """The exact denoiser of a few random Gaussians in the plane."""

    def __init__(self, generator: torch.Generator, components: int):
        means = torch.randn(components, 2, generator=generator, dtype=torch.float64)
        sizes = 0.05 + 0.2 * torch.rand(components, 1, 1, generator=generator, dtype=torch.float64)
        weights = torch.full((components,), 1 / components, dtype=torch.float64)
        super().__init__(weights, means, sizes * torch.eye(2, dtype=torch.float64), CosineSchedule())

    def __repr__(self) -> str:
        return f"the exact denoiser of {len(self.components)} Gaussians in the plane"


def _distillation_batch(generator: torch.Generator) -> dict[str, Any]:
    """A batch for algorithm 2, t'' = 0 left out: some of the mistakes are not finite there."""
    student, teacher = _RandomMixture(generator, 2), _RandomMixture(generator, 3)
    x, eps = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    steps = int(torch.randint(2, 7, (1,), generator=generator))
    i = torch.randint(2, steps + 1, (4,), generator=generator, dtype=torch.float64)
    i[0] = steps
    return {"student": student, "teacher": teacher, "x": x, "eps": eps, "t": i / steps, "steps": steps}


def _algorithm_2_by_turns(
    student: DenoiserLike, teacher: DenoiserLike, x: Tensor, eps: Tensor, t: Tensor, steps: int
) -> Tensor:
    """All in angles; and the weight as the larger of the x loss and the ε loss."""
    first, second, third = (teacher.schedule.angle(t - k / (2 * steps))[:, None] for k in range(3))
    z = first.cos() * x + first.sin() * eps
    z_mid = _turned(teacher, z, t, first, second)
    z_end = _turned(teacher, z_mid, t - 1 / (2 * steps), second, third)
    v_tilde = ((first - third).cos() * z - z_end) / (first - third).sin()
    x_tilde = first.cos() * z - first.sin() * v_tilde
    miss = x_tilde - student(z, t)
    return torch.maximum(miss.square().mean(1), (miss / first.tan()).square().mean(1)).mean()


def _turned(denoiser: DenoiserLike, z: Tensor, t: Tensor, angle: Tensor, to: Tensor) -> Tensor:
    v_hat = (angle.cos() * z - denoiser(z, t)) / angle.sin()
    return (angle - to).cos() * z - (angle - to).sin() * v_hat


def _algorithm_2(mistake: str) -> Callable[..., Tensor]:
    """The loss as written in the paper, with one thing wrong."""

    def loss(student: DenoiserLike, teacher: DenoiserLike, x: Tensor, eps: Tensor, t: Tensor, steps: int) -> Tensor:
        schedule, half = teacher.schedule, 0.5 / steps
        t_mid, t_end = (t - 2 * half, t - half) if mistake == "swapped" else (t - half, t - 2 * half)
        if mistake == "long steps":
            t_mid, t_end = t - 1 / steps, (t - 2 / steps).clamp(min=0)
        alpha, sigma = schedule.alpha_sigma(t)
        z = x if mistake == "clean input" else alpha[:, None] * x + sigma[:, None] * eps
        z_mid = ddim_step(z, teacher(z, t), t, t_mid, schedule)
        x_mid = teacher(z, t) if mistake == "asked once" else teacher(z_mid, t_mid)
        z_end = ddim_step(z_mid, x_mid, t_mid, t_end, schedule)
        alpha_end, sigma_end = schedule.alpha_sigma(t_mid if mistake == "t' for t''" else t_end)
        target = _solved(z, z_end, sigma_end / sigma, alpha, alpha_end)
        if mistake in ("x", "x_mid"):
            target = x if mistake == "x" else x_mid
        miss = (target - student(z, t)).square()
        miss = miss.sum(1) if mistake == "sum" else miss.mean(1)
        if mistake == "no weight":
            return miss.mean()
        snr = (alpha / sigma) ** 2
        return ((snr if mistake == "snr" else snr.clamp(min=1)) * miss).mean()

    return loss


EXERCISES["03_algorithm_2"] = Exercise(
    cases=_distillation_batch,
    reference=_algorithm_2_by_turns,
    mistakes=(
        (
            _algorithm_2("swapped"),
            "t' and t'' are swapped: the teacher goes first to t' = t − 0.5/N, then on to t'' = t − 1/N",
        ),
        (_algorithm_2("t' for t''"), "x̃ is solved with α and σ of t'; the student's step ends at t''"),
        (_algorithm_2("no weight"), "the weight is missing: max(α²/σ², 1), for each example of the batch"),
        (_algorithm_2("snr"), "that weight is the SNR alone: at t = 1 it is 0, and nothing is learned there"),
        (_algorithm_2("x_mid"), "the target is the teacher's second answer, x̂(z_t'); solve for x̃ with z_t''"),
        (_algorithm_2("x"), "the target is the clean x, as when a teacher is trained; distillation has x̃ in its place"),
        (_algorithm_2("asked once"), "ask the teacher anew at z_t', t': its two steps have two answers"),
        (_algorithm_2("long steps"), "the teacher's steps are half as long as the student's: 0.5/N"),
        (_algorithm_2("clean input"), "the teacher and the student see z_t, not the clean x"),
        (_algorithm_2("sum"), "‖·‖² is here the mean over an example's entries, as in the library, not their sum"),
    ),
)


# 04 Weightings


def _measured_losses(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """‖x̂ − x‖², ‖ε̂ − ε‖² and ‖v̂ − v‖² of one wrong guess x̂, by solving for ε̂ and v̂."""
    x, eps, x_hat = torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = alpha * x + sigma * eps
    eps_hat = (z - alpha * x_hat) / sigma
    difference = (alpha * eps_hat - sigma * x_hat) - (alpha * eps - sigma * x)
    losses = ((x_hat - x) + 0 * alpha, eps_hat - eps, difference)
    return tuple(loss.square().sum(0) for loss in losses)


def _v_loss_ratio(alpha: Tensor, sigma: Tensor) -> Tensor:
    x_loss, _, v_loss = _measured_losses(alpha, sigma)
    return v_loss / x_loss


def _larger_loss_ratio(alpha: Tensor, sigma: Tensor) -> Tensor:
    x_loss, eps_loss, _ = _measured_losses(alpha, sigma)
    return torch.maximum(x_loss, eps_loss) / x_loss


EXERCISES["04_v_loss_weight"] = Exercise(
    cases=_mixing_angles,
    reference=_v_loss_ratio,
    mistakes=(
        (lambda alpha, sigma: 1 + alpha / sigma, "the loss is a square: α/σ comes out squared"),
        (lambda alpha, sigma: 1 / sigma, "1/σ is the factor of the error; the loss has its square"),
        (lambda alpha, sigma: 1 / alpha**2, "the ratio is upside down: ε̂ − ε is −(α/σ)(x̂ − x), not −(σ/α)(x̂ − x)"),
        (lambda alpha, sigma: alpha**2 / sigma**2, "that is the ε loss; v̂ − v has a part −σ (x̂ − x) as well"),
        (
            lambda alpha, sigma: (sigma**2 - alpha**2) ** 2 / sigma**2,
            "that is the loss of α ε + σ x; v = α ε − σ x has a minus, and the two parts of its error add up",
        ),
    ),
)
EXERCISES["04_truncated_snr"] = Exercise(
    cases=_mixing_angles,
    reference=_larger_loss_ratio,
    mistakes=(
        (
            lambda alpha, sigma: (alpha**2 / sigma**2).clamp(max=1),
            "this takes the smaller of the two losses; the larger of them has a weight of at least 1",
        ),
        (lambda alpha, sigma: (alpha / sigma).clamp(min=1), "the SNR is the square of α/σ"),
        (lambda alpha, sigma: (sigma**2 / alpha**2).clamp(min=1), "the ratio is upside down: SNR is α²/σ²"),
        (lambda alpha, sigma: alpha**2 / sigma**2, "that is the ε loss alone: near α = 0 the x loss is larger"),
        (lambda alpha, sigma: 1 + alpha**2 / sigma**2, "that is the sum of the two losses, not the larger of them"),
    ),
)


def _falling_snr(generator: torch.Generator) -> dict[str, Any]:
    falls = 0.3 + torch.rand(5, generator=generator, dtype=torch.float64)
    snr = (3 - falls.cumsum(0)).exp()
    if torch.rand(1, generator=generator) < 0.5:
        snr[-1] = 0
    return {"snr": snr}


EXERCISES["04_discretised_weight"] = Exercise(
    cases=_falling_snr,
    reference=lambda snr: 1 / torch.expm1(-snr.log().diff()),  # with λ = log SNR: 1/(exp(λ_{i−1} − λ_i) − 1)
    mistakes=(
        (
            lambda snr: snr[:-1] / (snr[:-1] - snr[1:]),
            "SNR_{i−1} stands in the numerator; it is SNR_i, the weight of the ε loss at step i",
        ),
        (lambda snr: snr[1:] / (snr[1:] - snr[:-1]), "the SNR falls as i grows: SNR_{i−1} − SNR_i is the positive one"),
        (
            lambda snr: snr[1:-1] / (snr[1:-1] - snr[2:]),
            "this compares step i with i + 1; the term of the bound compares it with i − 1, and there are N terms",
        ),
        (lambda snr: snr[:-1] - snr[1:], "that is the weight of the bound itself; how often does SNR_i hold it?"),
    ),
)


def _min_snr_shares(steps: int, gamma: float) -> Tensor:
    """By α² = (1 + cos πt)/2 and σ² = (1 − cos πt)/2, step by step."""
    cosines = [math.cos(math.pi * i / steps) for i in range(1, steps + 1)]
    weights = [min((1 + c) / (1 - c), gamma) for c in cosines]
    return torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)


def _min_snr(first: int, last: int, steps: int, gamma: float) -> Tensor:
    t = torch.arange(first, last + 1, dtype=torch.float64) / steps
    return (torch.cos(math.pi * t / 2) / torch.sin(math.pi * t / 2)).square().clamp(max=gamma)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum()


EXERCISES["04_shares"] = Exercise(
    cases=lambda generator: {
        "steps": int(torch.randint(2, 9, (1,), generator=generator)),
        "gamma": round(1 + 7 * torch.rand(1, generator=generator).item(), 2),
    },
    reference=_min_snr_shares,
    mistakes=(
        (
            lambda steps, gamma: _normalised(_min_snr(0, steps - 1, steps, gamma)),
            "this is the grid 0 … N − 1; the sampler calls the network at i/N with i = 1 … N, t = 1 included",
        ),
        (
            lambda steps, gamma: _normalised(_min_snr(0, steps, steps, gamma)),
            "these are N + 1 times; the network is never called at t = 0, where sampling ends",
        ),
        (lambda steps, gamma: _min_snr(1, steps, steps, gamma), "these are the weights; divide by their sum"),
        (
            lambda steps, gamma: _normalised(_min_snr(1, steps, steps, gamma)) * steps,
            "divided by the mean they average 1; shares add up to 1, so divide by the sum",
        ),
        (
            lambda steps, gamma: _normalised(_min_snr(1, steps, steps, math.inf).clamp(min=gamma)),
            "γ is the largest weight, not the smallest: min(SNR, γ)",
        ),
        (
            lambda steps, gamma: _normalised(_min_snr(1, steps, steps, gamma**2).sqrt()),
            "the SNR is α²/σ², the square of cot(πt/2)",
        ),
    ),
)


# 05 The failure at the top


def _highest_alpha(steps: int) -> float:
    times = torch.arange(steps, dtype=torch.float64) / steps
    return CosineSchedule().alpha_sigma(times)[0].min().item()


EXERCISES["05_top_alpha"] = Exercise(
    cases=lambda generator: {"steps": int(torch.randint(1, 65, (1,), generator=generator))},
    reference=_highest_alpha,
    mistakes=(
        (lambda steps: math.sin(math.pi / (2 * steps)) ** 2, "that is α², often written ᾱ"),
        (lambda steps: math.cos(math.pi / (2 * steps)), "that is σ at the highest time, or α at 1/N, the lowest"),
        (lambda steps: 0.0, "that is α at t = 1; the wrong grid stops at 1 − 1/N"),
        (lambda steps: math.sin(math.pi / steps), "α = cos(πt/2): the angle left to π/2 is π/(2N)"),
    ),
)


def _moments_by_small_steps(alpha: Tensor, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The probability flow dz/dφ = −(x̂ − α z)/σ of a Gaussian, from two probes, by the classical Runge–Kutta method."""
    top = torch.acos(alpha)

    def slope(phi: Tensor, z: Tensor) -> Tensor:
        a, s = phi.cos(), phi.sin()
        # v̂ = α ε̂ − σ x̂ with x̂ = E[x | z] and ε̂ = E[ε | z] of Gaussian data.
        gain = (z - a * m) / (a**2 * c + s**2)
        return a * s * gain - s * (m + a * c * gain)

    probes = []
    for z in (-torch.ones_like(alpha), torch.ones_like(alpha)):
        count = 80
        for k in range(count):
            phi, h = top * (1 - k / count), -top / count
            k1 = slope(phi, z)
            k2 = slope(phi + h / 2, z + h / 2 * k1)
            k3 = slope(phi + h / 2, z + h / 2 * k2)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(phi + h, z + h * k3))
        probes.append(z)
    low, high = probes
    return (low + high) / 2, ((high - low) / 2) ** 2


EXERCISES["05_sample_moments"] = Exercise(
    cases=lambda generator: {
        "alpha": 0.1 + 0.7 * torch.rand(4, generator=generator, dtype=torch.float64),
        "m": torch.randn(4, generator=generator, dtype=torch.float64),
        "c": 0.3 + 0.5 * torch.rand(4, generator=generator, dtype=torch.float64),
    },
    reference=_moments_by_small_steps,
    mistakes=(
        (
            lambda alpha, m, c: (m, c / (alpha**2 * c + 1 - alpha**2)),
            "z has the mean 0 where the flow expects α m: the difference is carried along",
        ),
        (
            lambda alpha, m, c: (m - (c / (alpha**2 * c + 1 - alpha**2)) ** 0.5 * alpha * m, c),
            "z has the variance 1 where the flow expects α² c + σ²",
        ),
        (
            lambda alpha, m, c: (
                m - (c / (alpha**2 * c + 1 - alpha**2)) ** 0.5 * alpha * m,
                (c / (alpha**2 * c + 1 - alpha**2)) ** 0.5,
            ),
            "the second is a standard deviation; the variance is its square",
        ),
        (
            lambda alpha, m, c: (
                m + (c / (alpha**2 * c + 1 - alpha**2)) ** 0.5 * alpha * m,
                c / (alpha**2 * c + 1 - alpha**2),
            ),
            "the sign: the flow carries z − α m, and z is 0 on average",
        ),
    ),
)


# 06 The teacher


def _mixed_pixels(alpha: Tensor, sigma: Tensor, power: Tensor) -> Tensor:
    """The mean of (z − ε)² over x = ±√power and ε = ±1, all four pairs alike."""
    pairs = [(x, eps) for x in (-power.sqrt(), power.sqrt()) for eps in (-1, 1)]
    return sum((alpha * x + sigma * eps - eps).square() for x, eps in pairs) / 4


EXERCISES["06_identity_loss"] = Exercise(
    cases=lambda generator: {
        **_mixing_angles(generator),
        "power": 0.2 + torch.rand((), generator=generator, dtype=torch.float64),
    },
    reference=_mixed_pixels,
    mistakes=(
        (
            lambda alpha, sigma, power: alpha**2 * power + sigma**2,
            "that is the mean of z²; ε is taken away first, and σ ε − ε = −(1 − σ) ε",
        ),
        (
            lambda alpha, sigma, power: alpha**2 * power + sigma**2 + 1,
            "z holds ε itself: z and ε are not independent, so that their squares do not add up",
        ),
        (
            lambda alpha, sigma, power: alpha**2 * power,
            "that is as if z held the whole ε; it holds σ ε, and (1 − σ) ε is missing",
        ),
        (
            lambda alpha, sigma, power: alpha**2 * power + 1 - sigma**2,
            "the noise that is missing is (1 − σ) ε; square 1 − σ, not σ alone",
        ),
        (lambda alpha, sigma, power: alpha * power + (1 - sigma), "the loss is a square: so are its factors"),
        (
            lambda alpha, sigma, power: alpha**2 * power**2 + (1 - sigma) ** 2,
            "power is the mean of x² already; it is not squared again",
        ),
    ),
)


def _norms_with_spikes(generator: torch.Generator) -> dict[str, Any]:
    """Norms that rise and fall, with clusters of spikes high enough to move a mean, and among them the ends."""
    norms = (2 * torch.rand(60, generator=generator, dtype=torch.float64)).exp()
    norms *= torch.linspace(1, 6, 60, dtype=torch.float64)
    places = torch.randperm(60, generator=generator)[:9]
    norms[places] *= 12 * (1 + 4 * torch.rand(9, generator=generator, dtype=torch.float64))
    norms[[3, -1]] = norms.max() * torch.tensor([2.0, 3.0], dtype=torch.float64)
    return {"norms": norms, "window": int(torch.randint(3, 7, (1,), generator=generator)) * 2 + 1, "factor": 5.0}


def _counted_spikes(norms: Tensor, window: int, factor: float) -> int:
    """One by one: the middle one of the sorted window, the window being odd."""
    values = norms.tolist()
    return sum(values[k] > factor * sorted(values[k - window : k])[window // 2] for k in range(window, len(values)))


def _miscounted(mistake: str) -> Callable[..., int]:
    def count(norms: Tensor, window: int, factor: float) -> int:
        windows = norms.unfold(0, window, 1)
        middle = windows.mean(1) if mistake == "mean" else windows.median(1).values
        if mistake == "whole":
            return int((norms > factor * norms.median()).sum())
        if mistake == "jump":
            return int((norms[1:] > factor * norms[:-1]).sum())
        if mistake == "itself":
            return int((norms[window - 1 :] > factor * middle).sum())
        if mistake == "share":
            return int((norms[window:] > factor * middle[:-1]).sum()) / (len(norms) - window)
        return int((norms[window:] > factor * middle[:-1]).sum())

    return count


EXERCISES["06_spikes"] = Exercise(
    cases=_norms_with_spikes,
    reference=_counted_spikes,
    mistakes=(
        (_miscounted("mean"), "a mean is dragged up by the spikes themselves; the median is not"),
        (_miscounted("whole"), "that compares with the median of the whole training; take the updates just before"),
        (_miscounted("jump"), "that compares with the one update before; take the median of the window before"),
        (_miscounted("itself"), "the window holds the update that it judges; it should end just before it"),
        (_miscounted("share"), "that is the share of the updates; return how many they are"),
    ),
)


def _first_time_below(s: Tensor) -> Tensor:
    """The t at which the falling SNR of the cosine schedule meets s, by halving: until then it is above."""
    low, high = torch.zeros_like(s), torch.ones_like(s)
    for _ in range(60):
        middle = (low + high) / 2
        alpha, sigma = CosineSchedule().alpha_sigma(middle)
        above = alpha**2 > s * sigma**2
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low


EXERCISES["06_heavy_tail"] = Exercise(
    cases=lambda generator: {"s": (8 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).exp()},
    reference=_first_time_below,
    mistakes=(
        (
            lambda s: 2 / math.pi * torch.atan(1 / s),
            "that is where α/σ meets s; the SNR is its square, so that α/σ meets √s",
        ),
        (lambda s: torch.atan(1 / s.sqrt()), "that is the angle πt/2; divide by π/2 to have t"),
        (
            lambda s: 2 / math.pi * torch.atan(s.sqrt()),
            "that is how often the SNR is below s: the two shares add up to 1",
        ),
        (
            lambda s: 1 / (1 + s),
            "that is σ² where the SNR is s; ask at which t that is: σ = sin(πt/2)",
        ),
        (lambda s: 1 / s, "that would be so if the SNR were 1/t; on the cosine schedule it is cot²(πt/2)"),
    ),
)


# 07 Distillation


def _passes_until_paid(steps: int, updates: int, batch_size: int) -> float:
    """Pass by pass: the stages one after the other, then what one image less costs."""
    cost, n = 0, steps
    while n > 1:
        n //= 2
        teacher, forward, backward = 2, 1, 2
        cost += sum((teacher + forward + backward) * batch_size for _ in range(updates))
    return cost / sum(1 for _ in range(1, steps))


def _chain_cost(steps: int, updates: int, batch_size: int, passes: int = 5, stages: int | None = None) -> float:
    return passes * batch_size * updates * (steps.bit_length() - 1 if stages is None else stages)


EXERCISES["07_break_even"] = Exercise(
    cases=lambda generator: {
        "steps": 2 ** int(torch.randint(2, 8, (1,), generator=generator)),
        "updates": int(torch.randint(10, 100, (1,), generator=generator)),
        "batch_size": int(torch.randint(2, 129, (1,), generator=generator)),
    },
    reference=_passes_until_paid,
    mistakes=(
        (
            lambda steps, updates, batch_size: _chain_cost(steps, updates, batch_size) / steps,
            "the one-step student takes a pass as well: an image saves N − 1 passes, not N",
        ),
        (
            lambda steps, updates, batch_size: _chain_cost(steps, updates, batch_size, stages=1) / (steps - 1),
            "that is one stage; N is halved log₂ N times before it is 1",
        ),
        (
            lambda steps, updates, batch_size: (
                _chain_cost(steps, updates, batch_size, stages=steps.bit_length()) / (steps - 1)
            ),
            "one stage too many: the teacher of N steps is there already, and 1 is reached after log₂ N halvings",
        ),
        (
            lambda steps, updates, batch_size: _chain_cost(steps, updates, batch_size, stages=steps - 1) / (steps - 1),
            "a stage is needed for each halving, not for each step",
        ),
        (
            lambda steps, updates, batch_size: _chain_cost(steps, updates, batch_size, passes=3) / (steps - 1),
            "the teacher's two passes are missing: every target takes two of its steps",
        ),
        (
            lambda steps, updates, batch_size: _chain_cost(steps, updates, 1) / (steps - 1),
            "an update passes a whole batch: count its B images",
        ),
        (
            lambda steps, updates, batch_size: _chain_cost(steps, updates, batch_size),
            "those are the passes that the chain costs; divide by the passes that each image saves",
        ),
    ),
)


def _pairs_with_a_common_part(generator: torch.Generator) -> dict[str, Any]:
    """Distances that differ much between seeds, and less between variant and baseline."""
    count = int(torch.randint(3, 7, (1,), generator=generator))
    common, own = torch.randn(2, count, generator=generator, dtype=torch.float64)
    return {"variant": (common + 0.2 * own - 0.3).exp(), "baseline": common.exp()}


def _ratio_left_out(variant: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """The product's n-th root, and the jackknife's standard error of its logarithm, one seed left out at a time."""
    count = len(variant)
    ratios = variant / baseline
    without = torch.stack([torch.cat([ratios[:k], ratios[k + 1 :]]).prod() for k in range(count)])
    logs = without.log() / (count - 1)
    error = ((count - 1) / count * (logs - logs.mean()).square().sum()).sqrt()
    return ratios.prod() ** (1 / count), error.exp()


EXERCISES["07_paired_ratio"] = Exercise(
    cases=_pairs_with_a_common_part,
    reference=_ratio_left_out,
    mistakes=(
        (
            lambda variant, baseline: (
                (variant.log().mean() - baseline.log().mean()).exp(),
                ((variant.log().var() + baseline.log().var()) / len(variant)).sqrt().exp(),
            ),
            "those are the errors of two means added up, the seeds' differences in both; take the differences first, "
            "seed by seed",
        ),
        (
            lambda variant, baseline: (
                (variant / baseline).log().mean().exp(),
                (variant / baseline).log().std().exp(),
            ),
            "that is the spread of one seed; the mean of n has it divided by √n",
        ),
        (
            lambda variant, baseline: (
                (variant / baseline).log().mean().exp(),
                ((variant / baseline).log().std(correction=0) / len(variant) ** 0.5).exp(),
            ),
            "the standard deviation is divided by n there; of a sample with its own mean it is n − 1, which three "
            "seeds feel",
        ),
        (
            lambda variant, baseline: (
                (variant / baseline).mean(),
                ((variant / baseline).log().std() / len(variant) ** 0.5).exp(),
            ),
            "that is the arithmetic mean of the ratios: a half and a double would make 1.25; average the logarithms",
        ),
        (
            lambda variant, baseline: (
                (variant / baseline).log().mean().exp(),
                (variant / baseline).log().std() / len(variant) ** 0.5,
            ),
            "that is the standard error of the logarithm; as a factor it is exp of it",
        ),
        (
            lambda variant, baseline: (
                (baseline / variant).log().mean().exp(),
                ((baseline / variant).log().std() / len(variant) ** 0.5).exp(),
            ),
            "the ratio is upside down: the variant's distance over the baseline's, below 1 where it is better",
        ),
    ),
)


def _start_in_the_average(decay: float, updates: int) -> float:
    """The average itself, of weights that are 1 at the start and 0 ever after."""
    average = 1.0
    for _ in range(updates):
        average = average + (1 - decay) * (0.0 - average)
    return average


EXERCISES["07_ema_share"] = Exercise(
    cases=lambda generator: {
        "decay": round(0.9 + 0.09 * torch.rand(1, generator=generator).item(), 3),
        "updates": int(torch.randint(5, 200, (1,), generator=generator)),
    },
    reference=_start_in_the_average,
    mistakes=(
        (lambda decay, updates: 1 - decay**updates, "that is the share of all later weights; the two add up to 1"),
        (
            lambda decay, updates: (1 - decay) ** updates,
            "1 − d is what each update's own weights get; what is there already is multiplied by d",
        ),
        (
            lambda decay, updates: 1 - updates * (1 - decay),
            "each update takes a share of what is left, not of the whole: the factors multiply",
        ),
        (
            lambda decay, updates: (1 - decay) * decay**updates,
            "that is as if the first weights had come in by an update; the average begins as them, with the share 1",
        ),
        (
            lambda decay, updates: math.exp(-updates * (1 - decay)),
            "that is close for d near 1; exactly it is a power of d",
        ),
    ),
)


# 08 The parent that predicts noise


def _truncated_over_eps(alpha: Tensor, sigma: Tensor) -> Tensor:
    x_loss, eps_loss, _ = _measured_losses(alpha, sigma)
    return torch.maximum(x_loss, eps_loss) / eps_loss


EXERCISES["08_weight_on_eps"] = Exercise(
    cases=_mixing_angles,
    reference=_truncated_over_eps,
    mistakes=(
        (
            lambda alpha, sigma: (alpha**2 / sigma**2).clamp(min=1),
            "that is the weight on ‖x̂ − x‖²; ‖x̂ − x‖² is itself (σ²/α²) ‖ε̂ − ε‖²",
        ),
        (lambda alpha, sigma: (sigma / alpha).clamp(min=1), "the losses are squares: σ/α enters squared"),
        (
            lambda alpha, sigma: sigma**2 / alpha**2,
            "that is the x loss at every t; where σ < α the ε loss is the larger, with the weight 1",
        ),
        (lambda alpha, sigma: (sigma**2 / alpha**2).clamp(max=1), "that is the smaller of the two losses"),
    ),
)


def _mean_squared_pairing(alpha: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """E (q − z_1(q))² over equal quantiles q of both Gaussians, by Gauss's quadrature."""
    pairs = [alpha * (mean + a * deviation) + b * (1 - alpha**2).sqrt() for a in (-1, 1) for b in (-1, 1)]
    centre = sum(pairs) / 4
    spread = (sum((z - centre) ** 2 for z in pairs) / 4).sqrt()
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    total = sum(w * (q - centre - spread * q) ** 2 for q, w in zip(nodes, weights, strict=True))
    return total / math.sqrt(2 * math.pi)


EXERCISES["08_start_mismatch"] = Exercise(
    cases=lambda generator: {
        "alpha": 0.3 + 0.6 * torch.rand(4, generator=generator, dtype=torch.float64),
        "mean": torch.randn(4, generator=generator, dtype=torch.float64),
        "deviation": 0.2 + 0.5 * torch.rand(4, generator=generator, dtype=torch.float64),
    },
    reference=_mean_squared_pairing,
    mistakes=(
        (
            lambda alpha, mean, deviation: (alpha * mean) ** 2 + (alpha**2 - alpha**2 * deviation**2) ** 2,
            "those are variances; take the difference of the standard deviations",
        ),
        (
            lambda alpha, mean, deviation: (1 - (alpha**2 * deviation**2 + 1 - alpha**2).sqrt()) ** 2,
            "the means differ as well: z_1 has the mean α₁ m",
        ),
        (
            lambda alpha, mean, deviation: (alpha * mean) ** 2 + (1 - alpha * deviation) ** 2,
            "z_1 holds the noise too, with the variance σ₁² = 1 − α₁²",
        ),
        (
            lambda alpha, mean, deviation: mean**2 + (1 - (alpha**2 * deviation**2 + 1 - alpha**2).sqrt()) ** 2,
            "x enters z_1 as α₁ x: its mean as α₁ m",
        ),
    ),
)
