"""The exercises of notebook 02, parameterizations."""

from functools import partial

import torch
from torch import Generator, Tensor

from pdlib.exercises.common import columns, exercise, noising, normal, rotated


def _given(names: str, generator: Generator) -> dict[str, Tensor]:
    """Cases with z, α, σ and what is named between: ε, v, or heads that do not agree, whose pair does not explain z."""
    case = noising(generator)
    turned = rotated(*case.values())
    case |= {"z": turned.real, "v": turned.imag}
    if "head" in names:
        case["x_head"], case["eps_head"] = normal(generator, 2, 4, 3)
    return {name: case[name] for name in ("z", *names.split(), "alpha", "sigma")}


def _unmixed(z: Tensor, other: Tensor, alpha: Tensor, sigma: Tensor, *row: Tensor) -> tuple[Tensor, ...]:
    """The x and the ε of which z and another mixture are known, by solving two equations for each example."""
    mixing = torch.stack([alpha, sigma, *row], -1).reshape(-1, 2, 2)
    return torch.linalg.solve(mixing, torch.stack([z, other], 1)).unbind(1)


@exercise("02_x_from_eps", partial(_given, "eps"), lambda z, eps, a, s: _unmixed(z, eps, a, s, 0 * a, 0 * a + 1)[0])
@columns
def _wrong_x(z, eps, a, s):
    return {
        "the noise was added to make z, so it is subtracted to get back": (z + s * eps) / a,
        "that is α x, the faded data; divide it by α": z - s * eps,
        "all of z − σ ε is divided by α, the noise too": z / a - s * eps,
        "z holds α x and σ ε, not their squares: no squares here": (z - s**2 * eps) / a**2,
        "α and σ are swapped: ε came in with σ, and x with α": (z - a * eps) / s,
    }


@exercise("02_v", noising, lambda *case: rotated(*case).imag)
@columns
def _wrong_v(x, eps, a, s):
    v = a * eps - s * x
    return {
        "the sign: with the plus of the slides, α z − σ v is (α² − σ²) x and not x": a * eps + s * x,
        "that is −v: both signs are turned round. Put it into α z − σ v, and see that x does not come out": -v,
        "x and ε are swapped: at α = 1, where z = x, v must be what z does not show, ε": a * x - s * eps,
        "that is the direction of a straight line from x to ε; on the circle α and σ belong to it": eps - x,
    }


@exercise("02_eps_from_v", partial(_given, "v"), lambda z, v, a, s: _unmixed(z, v, a, s, -s, a)[1])
@columns
def _wrong_eps(z, v, a, s):
    minus = s * z - a * v
    return {
        "the sign: v = α ε − σ x holds ε with a plus, so α v is added; then the x parts, σα x and −ασ x, cancel": minus,
        "that is x̂; for ε̂ let the x parts cancel instead": a * z - s * v,
        "α and σ are swapped: z holds ε with σ, so multiply z by σ": a * z + s * v,
        "v = α ε − σ x also holds x; z is there to take it out": v / a,
        "that takes all of z for noise": z / s,
    }


# The reference: of the pairs that explain z, the nearest to the two heads has their v, which is at right angles to z.
@exercise(
    "02_both",
    partial(_given, "x_head eps_head"),
    columns(lambda z, x, eps, a, s: _unmixed(z, a * eps - s * x, a, s, -s, a)[0]),
)
@columns
def _wrong_pair(z, x, eps, a, s):
    rest = z - s * eps  # α times the ε head's x̂
    swapped, even = a**2 * x + s**2 / a * rest, (x + rest / a) / 2
    return {
        "the shares are swapped: where there is little noise, trust the ε head, whose x̂ has the share α²": swapped,
        "the ε head's x̂ is (z − σ ε_head)/α: one α of its share α² is used up by that division": s**2 * x + a**2 * rest,
        "an α is missing: z − σ ε_head is α x̂, and its share is α², so α (z − σ ε_head)": s**2 * x + rest,
        "the shares are σ² and α², which add up to 1; σ and α do not": s * x + a * rest,
        "an even average keeps half of (z − σ ε_head)/α, which blows up as α → 0; weigh the two by σ² and α²": even,
    }
