"""The exercises of notebook 05, the failure at the top."""

from math import cos, pi, sin

import numpy as np
import torch
from torch import Tensor

from pdlib.exercises.common import exercise, normal, uniform, whole


@exercise("05_top_alpha", lambda g: {"steps": whole(g, 1, 65)}, lambda n: min(cos(pi / 2 * i / n) for i in range(n)))
def _wrong_alpha(steps):
    return {
        "that is α², often written ᾱ": sin(pi / (2 * steps)) ** 2,
        "that is σ at the highest time, or α at 1/N, the lowest": cos(pi / (2 * steps)),
        "that is α at t = 1; the wrong grid stops at 1 − 1/N": 0.0,
        "α = cos(πt/2): the angle left to π/2 is π/(2N)": sin(pi / steps),
    }


def _flow(alpha: Tensor, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The flow dz/dφ = α ε̂ − σ x̂ changes d = z − α m at the rate ασ (1 − c)/(α² c + σ²) d, integrated by quadrature."""
    nodes, weights = torch.tensor(np.array(np.polynomial.legendre.leggauss(40)))[:, :, None]
    phi = alpha.acos() / 2 * (1 + nodes)
    rate = phi.cos() * phi.sin() * (1 - c) / (phi.cos() ** 2 * c + phi.sin() ** 2)
    kept = (-alpha.acos() / 2 * (weights * rate).sum(0)).exp()
    return m - kept * alpha * m, kept**2


@exercise(
    "05_sample_moments", lambda g: {"alpha": uniform(g, 0.1, 0.7), "m": normal(g, 4), "c": uniform(g, 0.3, 0.5)}, _flow
)
def _wrong_moments(a, m, c):
    variance = c / (a**2 * c + 1 - a**2)
    shift = variance.sqrt() * a * m
    return {
        "z has the mean 0 where the flow expects α m: the difference is carried along": (m, variance),
        "z has the variance 1 where the flow expects α² c + σ²": (m - shift, c),
        "the second is a standard deviation; the variance is its square": (m - shift, variance.sqrt()),
        "the sign: the flow carries z − α m, and z is 0 on average": (m + shift, variance),
    }
