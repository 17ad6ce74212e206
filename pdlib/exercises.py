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

import torch
from torch import Tensor

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


# 03 The target x̃


# 04 Weightings


def _measured_losses(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """‖x̂ − x‖², ‖ε̂ − ε‖² and ‖v̂ − v‖² of one wrong guess x̂, by solving for ε̂ and v̂."""
    x, eps, x_hat = torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = alpha * x + sigma * eps
    eps_hat = (z - alpha * x_hat) / sigma
    difference = (alpha * eps_hat - sigma * x_hat) - (alpha * eps - sigma * x)
    losses = ((x_hat - x) + 0 * alpha, eps_hat - eps, difference)
    return tuple(loss.square().sum(0) for loss in losses)


def _mixing_angles(generator: torch.Generator) -> dict[str, Any]:
    """α = cos φ and σ = sin φ, among them one of mostly signal and one of mostly noise."""
    angle = torch.tensor([0.1, 0.5, 1.0, 1.5]) + 0.07 * torch.rand(4, generator=generator, dtype=torch.float64)
    return {"alpha": angle.cos(), "sigma": angle.sin()}


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
