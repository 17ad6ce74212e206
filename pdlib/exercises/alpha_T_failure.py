"""The exercises of notebook 05, the failure at the top."""

import math

import torch
from torch import Generator, Tensor

from pdlib.exercises.common import exercise, normal, uniform, whole
from pdlib.schedules import CosineSchedule


def _highest_alpha(steps: int) -> float:
    times = torch.arange(steps, dtype=torch.float64) / steps
    return CosineSchedule().alpha_sigma(times)[0].min().item()


@exercise("05_top_alpha", lambda g: {"steps": whole(g, 1, 65)}, _highest_alpha)
def _wrong_alpha(steps):
    return {
        "that is α², often written ᾱ": math.sin(math.pi / (2 * steps)) ** 2,
        "that is σ at the highest time, or α at 1/N, the lowest": math.cos(math.pi / (2 * steps)),
        "that is α at t = 1; the wrong grid stops at 1 − 1/N": 0.0,
        "α = cos(πt/2): the angle left to π/2 is π/(2N)": math.sin(math.pi / steps),
    }


def _gaussian(generator: Generator) -> dict[str, Tensor]:
    return {"alpha": uniform(generator, 0.1, 0.7), "m": normal(generator, 4), "c": uniform(generator, 0.3, 0.5)}


def _moments_by_small_steps(alpha: Tensor, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The probability flow dz/dφ = −(x̂ − α z)/σ of a Gaussian, from two probes, by the classical Runge–Kutta method."""

    def slope(phi: Tensor, z: Tensor) -> Tensor:
        a, s = phi.cos(), phi.sin()
        # v̂ = α ε̂ − σ x̂ with x̂ = E[x | z] and ε̂ = E[ε | z] of Gaussian data.
        gain = (z - a * m) / (a**2 * c + s**2)
        return a * s * gain - s * (m + a * c * gain)

    count, top = 80, torch.acos(alpha)
    z, h = torch.stack([-torch.ones_like(alpha), torch.ones_like(alpha)]), -top / count
    for k in range(count):
        phi = top * (1 - k / count)
        k1 = slope(phi, z)
        k2 = slope(phi + h / 2, z + h / 2 * k1)
        k3 = slope(phi + h / 2, z + h / 2 * k2)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(phi + h, z + h * k3))
    low, high = z
    return (low + high) / 2, ((high - low) / 2) ** 2


@exercise("05_sample_moments", _gaussian, _moments_by_small_steps)
def _wrong_moments(a, m, c):
    variance = c / (a**2 * c + 1 - a**2)
    shift = variance.sqrt() * a * m
    return {
        "z has the mean 0 where the flow expects α m: the difference is carried along": (m, variance),
        "z has the variance 1 where the flow expects α² c + σ²": (m - shift, c),
        "the second is a standard deviation; the variance is its square": (m - shift, variance.sqrt()),
        "the sign: the flow carries z − α m, and z is 0 on average": (m + shift, variance),
    }
