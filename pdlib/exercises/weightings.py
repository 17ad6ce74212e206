"""The exercises of notebook 04, weightings."""

import torch
from torch import Generator, Tensor

from pdlib.exercises.common import angles, decimal, exercise, losses, uniform, whole
from pdlib.grids import Grid


@exercise("04_v_loss_weight", angles, lambda a, s: losses(a, s)["v"] / losses(a, s)["x"])
def _wrong_v_weight(a, s):
    v_plus = (s**2 - a**2) ** 2 / s**2
    return {
        "the loss is a square: α/σ comes out squared": 1 + a / s,
        "1/σ is the factor of the error; the loss has its square": 1 / s,
        "the ratio is upside down: ε̂ − ε is −(α/σ)(x̂ − x), not −(σ/α)(x̂ − x)": 1 / a**2,
        "that is the ε loss; v̂ − v has a part −σ (x̂ − x) as well": a**2 / s**2,
        "that is the loss of α ε + σ x; v = α ε − σ x has a minus, and the two parts of its error add up": v_plus,
    }


@exercise("04_truncated_snr", angles, lambda a, s: losses(a, s)["larger"] / losses(a, s)["x"])
def _wrong_truncated_snr(a, s):
    snr = a**2 / s**2
    return {
        "this takes the smaller of the two losses; the larger of them has a weight of at least 1": snr.clamp(max=1),
        "the SNR is the square of α/σ": (a / s).clamp(min=1),
        "the ratio is upside down: SNR is α²/σ²": (1 / snr).clamp(min=1),
        "that is the ε loss alone: near α = 0 the x loss is larger": snr,
        "that is the sum of the two losses, not the larger of them": 1 + snr,
    }


def _falling_snr(generator: Generator) -> dict[str, Tensor]:
    snr = (3 - uniform(generator, 0.3, shape=(5,)).cumsum(0)).exp()
    if torch.rand(1, generator=generator) < 0.5:
        snr[-1] = 0
    return {"snr": snr}


# The reference, with λ = log SNR: 1/(exp(λ_{i−1} − λ_i) − 1).
@exercise("04_discretised_weight", _falling_snr, lambda snr: 1 / (-snr.log().diff()).expm1())
def _wrong_discretised(snr):
    fall = snr[:-1] - snr[1:]
    late = snr[1:-1] / fall[1:]
    return {
        "SNR_{i−1} stands in the numerator; it is SNR_i, the weight of the ε loss at step i": snr[:-1] / fall,
        "the SNR falls as i grows: SNR_{i−1} − SNR_i is the positive one": snr[1:] / -fall,
        "this compares step i with i + 1; the term of the bound compares it with i − 1, and there are N terms": late,
        "that is the weight of the bound itself; how often does SNR_i hold it?": fall,
    }


def _min_snr_shares(steps: int, gamma: float) -> Tensor:
    """By α² = (1 + cos πt)/2 and σ² = (1 − cos πt)/2."""
    cosine = torch.cos(torch.pi * Grid(steps).times)
    w = ((1 + cosine) / (1 - cosine)).clamp(max=gamma)
    return w / w.sum()


@exercise("04_shares", lambda g: {"steps": whole(g, 2, 9), "gamma": decimal(g, 1, 7, 2)}, _min_snr_shares)
def _wrong_shares(steps, gamma):
    snr = torch.tan(torch.pi / 2 * torch.arange(steps + 1, dtype=torch.float64) / steps) ** -2  # at i = 0 … N
    w = snr.clamp(max=gamma)
    low = w[:-1] / w[:-1].sum()
    least, root = snr[1:].clamp(min=gamma), snr[1:].sqrt().clamp(max=gamma)
    return {
        "this is the grid 0 … N − 1; the sampler calls the network at i/N with i = 1 … N, t = 1 included": low,
        "these are N + 1 times; the network is never called at t = 0, where sampling ends": w / w.sum(),
        "these are the weights; divide by their sum": w[1:],
        "divided by the mean they average 1; shares add up to 1, so divide by the sum": w[1:] / w[1:].mean(),
        "γ is the largest weight, not the smallest: min(SNR, γ)": least / least.sum(),
        "the SNR is α²/σ², the square of cot(πt/2)": root / root.sum(),
    }
