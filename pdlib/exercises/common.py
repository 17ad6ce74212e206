"""What the notebooks' exercises share: their form, random inputs, and what more than one of them computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Exercise:
    """What an answer must compute. What ``cases`` draws is given to the other two by position, in its order.

    Args:
        cases: draws one random set of arguments, by the answer's argument names, from a generator.
        reference: the right value for them, computed another way than the learner is asked to.
        mistakes: what plausible wrong answers give for them, or a function of nothing that computes it, each under
            the hint that belongs to it; of several that fit, the first counts.
        tolerance: largest difference, relative to the size of the right value, that counts as equal.
    """

    cases: Callable[[Generator], dict[str, Any]]
    reference: Callable[..., Any]
    mistakes: Callable[..., dict[str, Any]] = lambda *case: {}
    tolerance: float = 1e-6


EXERCISES: dict[str, Exercise] = {}
"""Every exercise by the name that its check cell uses: those of each file here, and what is put in from outside."""


class Mistake(Exception):
    """Raised by a stand-in that an answer calls, where it sees a mistake being made; what it says is the hint."""


def exercise(name: str, cases: Callable[..., Any], reference: Callable[..., Any], tolerance: float = 1e-6) -> Callable:
    """Puts an exercise, whose mistakes this decorates, into :data:`EXERCISES`."""

    def put(mistakes: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        EXERCISES[name] = Exercise(cases, reference, mistakes, tolerance)
        return mistakes

    return put


def columns(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with each of its arguments of shape (batch,) made (batch, 1), to go with those of (batch, …)."""
    return lambda *values: function(*(value[:, None] if value.ndim == 1 else value for value in values))


def normal(generator: Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: Generator, low: float = 0.0, width: float = 1.0, shape: tuple[int, ...] = (4,)) -> Tensor:
    """Numbers of [low, low + width) in float64."""
    return low + width * torch.rand(shape, generator=generator, dtype=torch.float64)


def whole(generator: Generator, low: int, end: int) -> int:
    """One of low … end − 1."""
    return int(torch.randint(low, end, (1,), generator=generator))


def decimal(generator: Generator, low: float, width: float, digits: int) -> float:
    """A number of [low, low + width] with so many digits after the point."""
    return round(low + width * torch.rand(1, generator=generator).item(), digits)


def angles(generator: Generator) -> dict[str, Tensor]:
    """α = cos φ and σ = sin φ, among them one of mostly signal and one of mostly noise."""
    angle = torch.tensor([0.1, 0.5, 1.0, 1.5]) + uniform(generator, width=0.07)
    return {"alpha": angle.cos(), "sigma": angle.sin()}


def noising(generator: Generator) -> dict[str, Tensor]:
    """Data, noise, and for each of four examples an α and a σ, from mostly signal to mostly noise."""
    x, eps = normal(generator, 2, 4, 3)
    return {"x": x, "eps": eps, **angles(generator)}


@columns
def rotated(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """(α − iσ)(x + iε): its real part is z = α x + σ ε, its imaginary part v = α ε − σ x."""
    return torch.complex(alpha, -sigma) * torch.complex(x, eps)


def losses(alpha: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """‖x̂ − x‖², ‖ε̂ − ε‖², the larger of the two, and ‖v̂ − v‖² of one wrong guess x̂, by solving for ε̂ and v̂."""
    x, eps, x_hat = normal(Generator().manual_seed(1), 3, 4, 1)
    eps_hat = (alpha * x + sigma * eps - alpha * x_hat) / sigma
    v_error = (alpha * eps_hat - sigma * x_hat) - (alpha * eps - sigma * x)
    x_loss, eps_loss, v_loss = (e.square().sum(0) for e in (x_hat - x + 0 * alpha, eps_hat - eps, v_error))
    return {"x": x_loss, "eps": eps_loss, "larger": torch.maximum(x_loss, eps_loss), "v": v_loss}
