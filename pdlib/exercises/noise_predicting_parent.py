"""The exercises of notebook 08, the parent that predicts noise."""

import torch
from torch import Tensor

from pdlib.exercises.common import angles, exercise, losses, normal, uniform


@exercise("08_weight_on_eps", angles, lambda a, s: losses(a, s)["larger"] / losses(a, s)["eps"])
def _wrong_weight(a, s):
    x_loss = s**2 / a**2
    return {
        "that is the weight on ‖x̂ − x‖²; ‖x̂ − x‖² is itself (σ²/α²) ‖ε̂ − ε‖²": (1 / x_loss).clamp(min=1),
        "the losses are squares: σ/α enters squared": (s / a).clamp(min=1),
        "that is the x loss at every t; where σ < α the ε loss is the larger, with the weight 1": x_loss,
        "that is the smaller of the two losses": x_loss.clamp(max=1),
    }


def _mean_squared_pairing(alpha: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """E (q − z_1(q))² over equal quantiles q of both; a fair ±1 has all of a Gaussian's moments that count."""
    z = torch.stack([alpha * (mean + a * deviation) + b * (1 - alpha**2).sqrt() for a in (-1, 1) for b in (-1, 1)])
    return sum((q - z.mean(0) - z.std(0, correction=0) * q) ** 2 for q in (-1, 1)) / 2


@exercise(
    "08_start_mismatch",
    lambda g: {"alpha": uniform(g, 0.3, 0.6), "mean": normal(g, 4), "deviation": uniform(g, 0.2, 0.5)},
    _mean_squared_pairing,
)
def _wrong_mismatch(a, m, d):
    off = (1 - (a**2 * d**2 + 1 - a**2).sqrt()) ** 2
    of_variances = (a**2 - (a * d) ** 2) ** 2
    return {
        "those are variances; take the difference of the standard deviations": (a * m) ** 2 + of_variances,
        "the means differ as well: z_1 has the mean α₁ m": off,
        "z_1 holds the noise too, with the variance σ₁² = 1 − α₁²": (a * m) ** 2 + (1 - a * d) ** 2,
        "x enters z_1 as α₁ x: its mean as α₁ m": m**2 + off,
    }
