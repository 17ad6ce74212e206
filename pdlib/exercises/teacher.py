"""The exercises of notebook 06, the teacher."""

from typing import Any

import torch
from torch import Generator, Tensor

from pdlib.exercises.common import angles, exercise, uniform, whole
from pdlib.schedules import CosineSchedule


# The reference: the mean over x = ±√power and ε = ±1, all four pairs alike.
@exercise(
    "06_identity_loss",
    lambda g: {**angles(g), "power": uniform(g, 0.2, shape=())},
    lambda a, s, power: sum((a * x * power.sqrt() + s * e - e) ** 2 for x in (-1, 1) for e in (-1, 1)) / 4,
)
def _wrong_pixels(a, s, power):
    x, z = a**2 * power, a**2 * power + s**2
    return {
        "that is the mean of z²; ε is taken away first, and σ ε − ε = −(1 − σ) ε": z,
        "z holds ε itself: z and ε are not independent, so that their squares do not add up": z + 1,
        "that is as if z held the whole ε; it holds σ ε, and (1 − σ) ε is missing": x,
        "the noise that is missing is (1 − σ) ε; square 1 − σ, not σ alone": x + 1 - s**2,
        "the loss is a square: so are its factors": a * power + 1 - s,
        "power is the mean of x² already; it is not squared again": x * power + (1 - s) ** 2,
    }


def _norms_with_spikes(generator: Generator) -> dict[str, Any]:
    """Norms that rise and fall, with clusters of spikes high enough to move a mean, and among them the ends."""
    norms = uniform(generator, width=2, shape=(60,)).exp() * torch.linspace(1, 6, 60, dtype=torch.float64)
    norms[torch.randperm(60, generator=generator)[:9]] *= 12 * (1 + uniform(generator, width=4, shape=(9,)))
    norms[[3, -1]] = norms.max() * torch.tensor([2.0, 3.0], dtype=torch.float64)
    return {"norms": norms, "window": whole(generator, 3, 7) * 2 + 1, "factor": 5.0}


def _counted_spikes(norms: Tensor, window: int, factor: float) -> int:
    """One by one: the middle one of the sorted window, the window being odd."""
    values = norms.tolist()
    return sum(values[k] > factor * sorted(values[k - window : k])[window // 2] for k in range(window, len(values)))


@exercise("06_spikes", _norms_with_spikes, _counted_spikes)
def _wrong_count(norms, window, factor):
    windows, later = norms.unfold(0, window, 1), norms[window:]
    middle = windows.median(1).values
    mean, all_of_it = windows.mean(1)[:-1], norms > factor * norms.median()
    before, own = norms[1:] > factor * norms[:-1], norms[window - 1 :] > factor * middle
    return {
        "a mean is dragged up by the spikes themselves; the median is not": (later > factor * mean).sum(),
        "that compares with the median of the whole training; take the updates just before": all_of_it.sum(),
        "that compares with the one update before; take the median of the window before": before.sum(),
        "the window holds the update that it judges; it should end just before it": own.sum(),
        "that is the share of the updates; return how many they are": (later > factor * middle[:-1]).double().mean(),
    }


def _first_time_below(s: Tensor) -> Tensor:
    """The t at which the falling SNR of the cosine schedule meets s, by halving: until then it is above."""
    t = torch.zeros_like(s)
    for k in range(1, 60):
        later = t + 0.5**k
        t = torch.where(torch.div(*CosineSchedule().alpha_sigma(later)) ** 2 > s, later, t)
    return t


@exercise("06_heavy_tail", lambda g: {"s": uniform(g, -1, 8).exp()}, _first_time_below)
def _wrong_share(s):
    t = 2 / torch.pi
    return {
        "that is where α/σ meets s; the SNR is its square, so that α/σ meets √s": t * torch.atan(1 / s),
        "that is the angle πt/2; divide by π/2 to have t": torch.atan(1 / s.sqrt()),
        "that is how often the SNR is below s: the two shares add up to 1": t * torch.atan(s.sqrt()),
        "that is σ² where the SNR is s; ask at which t that is: σ = sin(πt/2)": 1 / (1 + s),
        "that would be so if the SNR were 1/t; on the cosine schedule it is cot²(πt/2)": 1 / s,
    }
