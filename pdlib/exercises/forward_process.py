"""The exercises of notebook 01, the forward process."""

import torch
from torch import Generator, Tensor

from pdlib.exercises.common import angles, columns, exercise, noising, normal, rotated, uniform


@exercise("01_diffuse", noising, lambda *case: rotated(*case).real)
@columns
def _wrong_z(x, eps, a, s):
    z = a**2 * x + s**2 * eps
    return {
        "these are the shares of the variance; x and ε themselves are multiplied by α and σ, not by their squares": z,
        "α and σ are swapped: α, which is 1 at t = 0, belongs to the clean x": s * x + a * eps,
        "the data must fade as the noise grows: x is multiplied by α": x + s * eps,
        "the noise is added: α x + σ ε has a plus": a * x - s * eps,
        "σ² is the variance of the noise; ε is multiplied by the standard deviation, σ": a * x + s**2 * eps,
    }


# The reference: λ is where the logistic function is ᾱ.
@exercise("01_log_snr", lambda g: {"alpha_bar": uniform(g, 0.01, 0.98)}, torch.logit)
def _wrong_log_snr(bar):
    return {
        "that is the SNR; λ is its natural logarithm": bar / (1 - bar),
        "that is log(α/σ); λ is the log of the ratio of the squares, twice as much": 0.5 * (bar / (1 - bar)).log(),
        "the ratio is upside down: signal over noise": ((1 - bar) / bar).log(),
        "ᾱ is α² already, the bar does not ask for another square; and σ² = 1 − ᾱ": (bar**2 / (1 - bar**2)).log(),
        "that leaves out the noise: divide by σ² = 1 − ᾱ first": bar.log(),
        "λ is a natural logarithm, not one to base 10": (bar / (1 - bar)).log10(),
    }


def _gaussian_posterior(generator: Generator) -> dict[str, Tensor]:
    (mean, z), spread = 2 * normal(generator, 2, 4), uniform(generator, 0.3)
    return {"z": z, **angles(generator), "mean": mean, "spread": spread}


def _integrated_mean(z: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """∫ x p(x) p(z | x) dx / ∫ p(x) p(z | x) dx, as sums over a fine line of x."""
    x = mean + spread * torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    log_joint = -((x - mean) ** 2) / (2 * spread**2) - (z - alpha * x) ** 2 / (2 * sigma**2)
    return (log_joint.softmax(0) * x).sum(0)


@exercise("01_gaussian_mean", _gaussian_posterior, _integrated_mean)
def _wrong_mean(z, a, s, m, d):
    gain, off = a * d**2 / (a**2 * d**2 + s**2), z - a * m
    return {
        "z is not centred on m: the data have been multiplied by α, their mean too": m + gain * (z - m),
        "an α is missing in the gain: x and z vary together as α s²": m + gain / a * off,
        "s is a standard deviation; the formula has the variance s²": m + a * d / (a**2 * d + s**2) * off,
        "variances add up, not deviations: the variance of z is α² s² + σ²": m + a * d**2 / (a * d**2 + s) * off,
        "that takes all of z for signal; the data's own mean and spread say how much to trust it": z / a,
    }


@exercise("01_two_points", lambda g: {"z": normal(g, 4), **angles(g)}, lambda z, a, s: (a * z / s**2).tanh())
def _wrong_point(z, a, s):
    return {
        "that is the probability of +1; the mean also counts the −1": torch.sigmoid(2 * a * z / s**2),
        "the exponent of a Gaussian is divided by 2σ², not by 2σ": torch.tanh(a * z / s),
        "the two bumps of z stand at +α and −α, not at +1 and −1": torch.tanh(z / s**2),
        "the exponent of a Gaussian is divided by 2σ², not by σ²": torch.tanh(2 * a * z / s**2),
        "that is the likelier point; the mean weighs both points by how likely they are": z.sign(),
    }
