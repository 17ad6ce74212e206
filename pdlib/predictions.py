"""What a network's output means, and every conversion between the meanings.

A network sees z = α x + σ ε and its output is read as one of

    "x"     x̂ itself
    "eps"   ε̂, the noise:          x̂ = (z − σ ε̂) / α        (no value at α = 0)
    "v"     v̂, v = α ε − σ x:      x̂ = α z − σ v̂,   ε̂ = σ z + α v̂
    "both"  two outputs x̃ and ε̃:   x̂ = σ² x̃ + α (z − σ ε̃)

Salimans & Ho 2022, section 4. Here z, x, eps, v have shape (batch, …), alpha and sigma (batch,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pdlib.files import named
from pdlib.schedules import expand

__all__ = [
    "PREDICTIONS",
    "Prediction",
    "PredictionError",
    "eps_from_output",
    "eps_from_v",
    "eps_from_x",
    "output_channels",
    "v_from_eps",
    "v_from_x",
    "x_from_both",
    "x_from_eps",
    "x_from_output",
    "x_from_v",
]


class PredictionError(ValueError):
    """A conversion was asked to divide by α = 0 or σ = 0."""


def x_from_eps(z: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂ = (z − σ ε̂) / α. Raises :class:`PredictionError` where α = 0."""
    if (alpha == 0).any():
        raise PredictionError(
            "x̂ = (z − σ ε̂)/α was asked for at α = 0, where z = ε says nothing of x. Use a network that "
            "predicts v, x or both; or a schedule whose last α is not 0 (such as cosine with log_snr_min=-20); "
            "or convert the ε network first with pdlib.distillation.convert."
        )
    return (z - expand(sigma, z) * eps) / expand(alpha, z)


def x_from_v(z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂ = α z − σ v̂."""
    return expand(alpha, z) * z - expand(sigma, z) * v


def x_from_both(z: Tensor, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂ = σ² x̃ + α (z − σ ε̃): the x output where noise is high, the ε output where it is low."""
    return expand(sigma**2, z) * x + expand(alpha, z) * (z - expand(sigma, z) * eps)


def eps_from_x(z: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ = (z − α x̂) / σ. Raises :class:`PredictionError` where σ = 0."""
    _require_noise(sigma, "ε̂ = (z − α x̂)/σ")
    return (z - expand(alpha, z) * x) / expand(sigma, z)


def eps_from_v(z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ = σ z + α v̂."""
    return expand(sigma, z) * z + expand(alpha, z) * v


def v_from_x(z: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v̂ = (α z − x̂) / σ. Raises :class:`PredictionError` where σ = 0."""
    _require_noise(sigma, "v̂ = (α z − x̂)/σ")
    return (expand(alpha, z) * z - x) / expand(sigma, z)


def v_from_eps(z: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v̂ = (ε̂ − σ z) / α. Raises :class:`PredictionError` where α = 0."""
    if (alpha == 0).any():
        raise PredictionError(
            "v̂ = (ε̂ − σ z)/α was asked for at α = 0, where ε̂ = z for every x: "
            "use a schedule whose last α is not 0, or a network that predicts v"
        )
    return (eps - expand(sigma, z) * z) / expand(alpha, z)


class Prediction(NamedTuple):
    """One meaning of a network's output."""

    x: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(z, output, alpha, sigma) -> x̂."""
    outputs: int = 1
    """How many times the data's channels the network puts out."""
    bounded: bool = True
    """Whether x̂ has a value at α = 0."""


PREDICTIONS: dict[str, Prediction] = {
    "x": Prediction(lambda z, output, alpha, sigma: output),
    "eps": Prediction(x_from_eps, bounded=False),
    "v": Prediction(x_from_v),
    "both": Prediction(
        lambda z, output, alpha, sigma: x_from_both(z, *output.chunk(2, dim=1), alpha, sigma), outputs=2
    ),
}
"""Every prediction by name. A new one is one entry."""


def output_channels(prediction: str, channels: int) -> int:
    """How many output channels a network needs for data of so many channels."""
    return named("prediction", prediction, PREDICTIONS).outputs * channels


def x_from_output(prediction: str, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂ of a network's output under any prediction."""
    return named("prediction", prediction, PREDICTIONS).x(z, output, alpha, sigma)


def eps_from_output(prediction: str, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ of a network's output under any prediction."""
    if prediction == "eps":
        return output
    if prediction == "v":
        return eps_from_v(z, output, alpha, sigma)
    return eps_from_x(z, x_from_output(prediction, output, z, alpha, sigma), alpha, sigma)


def _require_noise(sigma: Tensor, formula: str) -> None:
    if (sigma == 0).any():
        raise PredictionError(f"{formula} was asked for at σ = 0, where z = x holds no noise: use t > 0")
