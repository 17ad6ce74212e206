"""The exercises of notebook 09, build it yourself.

Answers draw, train and loop here, so that what is handed to them looks on: a :class:`Watched` denoiser keeps what it
was first asked, and the loss is then computed of the same draws; a stand-in that sees a mistake says so.
"""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pdlib.exercises.common import Mistake, decimal, exercise, normal, rotated, whole
from pdlib.exercises.x_tilde import SLIPS, RandomMixture, ddim, two_steps, weighted

_WALKS = {
    "no top": "the grid is off by one: i goes from N down to 1, so that the first t is 1, pure noise",
    "no end": "the last step is missing, from t = 1/N to t = 0",
    "upwards": "that walks from t = 1/N up; the noise is at t = 1: start there, and go down",
    "one step": "that comes to one step from t = 1 to 0: take N of them, and ask the denoiser anew before each",
    "asked at s": "the denoiser is shown z_t, so it must be told t; s is where the step ends",
    "swapped": "α and σ are swapped: z_s = α_s x̂ + σ_s ε̂",
    "undivided": "z_t − α_t x̂ is σ_t ε̂, not yet ε̂: divide it by σ_t",
    "plus": "a sign: ε̂ is in what is left of z_t when α_t x̂ is taken away",
    "nan": "it divides by σ = 0. No step starts at t = 0: i goes down to 1; and ε̂ is divided by σ_t, never by σ_s",
}


def _walk(slip: str, denoiser: RandomMixture, z: Tensor, N: int) -> Tensor:
    """The sampler, by turning, with one thing wrong if ``slip`` is one of those."""
    other = {"no top": range(N - 1, 0, -1), "no end": range(N, 1, -1), "upwards": range(1, N + 1), "one step": [N]}
    z = z.double() * (torch.nan if slip == "nan" else 1)
    for i in other.get(slip, range(N, 0, -1)):
        t = torch.full((len(z),), i / N, dtype=torch.float64)
        s = 0 * t if slip == "one step" else t - 1 / N
        start, end = map(denoiser.schedule.alpha_sigma, (t, s))
        x_hat = denoiser(z, s if slip == "asked at s" else t)
        (a, b), (a_s, b_s) = ((alpha[:, None], sigma[:, None]) for alpha, sigma in (start, end))
        wrong = {"undivided": a_s * x_hat + b_s * (z - a * x_hat), "plus": a_s * x_hat + b_s / b * (z + a * x_hat)}
        z = wrong.get(slip, ddim(z, x_hat, *start, *(end[::-1] if slip == "swapped" else end)))
    return z


def _noise(generator: Generator) -> dict[str, Any]:
    return {"denoiser": RandomMixture(generator, 3), "z": normal(generator, 6, 2).float(), "N": whole(generator, 2, 7)}


@exercise("09_sampler", _noise, partial(_walk, ""), 1e-4)
def _wrong_walks(*case):
    return {hint: partial(_walk, slip, *case) for slip, hint in _WALKS.items()}


class Watched:
    """A denoiser that keeps what it is first asked: what was drawn. Copies of it are itself, so that this is seen."""

    def __init__(self, denoiser: RandomMixture):
        self.denoiser, self.schedule, self.asked = denoiser, denoiser.schedule, None

    def __deepcopy__(self, memo: dict) -> "Watched":
        return self

    def __repr__(self) -> str:
        return repr(self.denoiser)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        if self.asked is None:
            self.asked = z.detach().double(), torch.as_tensor(t).double().flatten().expand(len(z))
        return self.denoiser(z, t)


def _drawn(watched: Watched, x: Tensor, N: int | None) -> tuple[Tensor, ...]:
    """z_t, t, α and σ as they were drawn; at random where nothing was. Mistake where they are not what they should."""
    if watched.asked is None:
        t = 1 - torch.rand(len(x), dtype=torch.float64) if N is None else torch.randint(1, N + 1, (len(x),)) / N
        watched(rotated(x, torch.randn_like(x), *watched.schedule.alpha_sigma(t)).real, t)
    z, t = watched.asked
    alpha, sigma = watched.schedule.alpha_sigma(t)
    eps, i = (z - alpha[:, None] * x) / sigma[:, None], t * (N or 1)
    swapped = (z - sigma[:, None] * x) / alpha[:, None]
    standard = [(e.mean(0).abs() < 0.1).all() and ((e.std(0) - 1).abs() < 0.1).all() for e in (eps, swapped)]
    on_grid = N is None or ((i - i.round()).abs() < 1e-4).all()
    for wrong, hint in (
        (len(t) > 1 and (t == t[0]).all(), "all points have the same t: draw one for each, 1 − torch.rand(len(x))"),
        (N is None and (t.min() < 0 or t.max() < 0.9 or t.max() > 1), "t is to be drawn uniformly from 0 to 1"),
        (not on_grid, "t lies between the student's times: draw a whole i of 1 … N, and divide it by N"),
        (
            N and i.min() < 0.5,
            "the grid is off by one: t = 0 is drawn, where nothing is left to learn; i is one of 1 … N",
        ),
        (
            N and i.max() < N - 0.5,
            "the grid is off by one: t = 1 is never drawn, and there sampling starts; i is one of 1 … N",
        ),
        ((z - x).abs().max() < 1e-6, "the network is shown the clean x; show it z_t = α x + σ ε"),
        (standard[1] and not standard[0], "α and σ are swapped: z_t = α x + σ ε"),
        (not standard[0], "that z_t is not α x + σ ε with ε drawn by torch.randn_like(x), anew for each number of x"),
    ):
        if wrong:
            raise Mistake(hint)
    return z, t, alpha, sigma


def _data(generator: Generator) -> Tensor:
    """A curve in the plane, in float32 as data are."""
    angle = 6 * torch.rand(3000, generator=generator)
    return torch.stack([angle.cos() + 0.3, angle.sin() * angle / 4], 1)


def _denoising(slip: str, denoiser: Watched, x: Tensor) -> Tensor:
    z, t, *angle = _drawn(denoiser, x, None)
    return weighted(slip, x - denoiser(z, t), *angle)


@exercise(
    "09_denoising_loss",
    lambda g: {"denoiser": Watched(RandomMixture(g, 2)), "x": _data(g)},
    partial(_denoising, ""),
    1e-3,
)
def _wrong_denoising(*case):
    names = "no weight", "snr", "sum"
    return {SLIPS[slip]: partial(_denoising, slip, *case) for slip in names}


def _lesson(generator: Generator) -> dict[str, Any]:
    """A linear network, and data that are one point many times, so that it does not matter which are drawn."""
    rate, decay = decimal(generator, 0.01, 0.05, 3), decimal(generator, 0.7, 0.2, 2)
    net, x = nn.Linear(2, 2), torch.randn(2, generator=generator).expand(300, 2).clone()
    for value in net.parameters():
        nn.init.normal_(value, generator=generator)
    updates = whole(generator, 5, 9)
    return {"net": net, "loss": Miss(), "x": x, "updates": updates, "rate": rate, "decay": decay}


class Miss:
    """A loss for that: how far the network is from exchanging a point's two numbers."""

    def __repr__(self) -> str:
        return "a loss of (net, batch)"

    def __call__(self, net: nn.Module, batch: Tensor) -> Tensor:
        return (net(batch) - batch.flip(1)).square().mean()


def _train(slip: str, net: nn.Linear, loss: Miss, x: Tensor, updates: int, rate: float, decay: float) -> tuple:
    """The averaged weights, as the sum that the recursion comes to, with one thing wrong if ``slip`` is one."""
    net = deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    passed = [[value.detach().clone() for value in net.parameters()]]
    for _ in range(updates):
        if slip != "heaped":
            optimizer.zero_grad()
        loss(net, x[:7]).backward()
        optimizer.step()
        passed.append([value.detach().clone() for value in net.parameters()])
    keep = 1 - decay if slip == "swapped" else decay
    shares = [keep**updates, *((1 - keep) * keep ** (updates - k) for k in range(1, updates + 1))]
    shares = {"raw": [0] * updates + [1], "start": [1] + [0] * updates, "zero": [0, *shares[1:]]}.get(slip, shares)
    return tuple(
        sum(share * value for share, value in zip(shares, values, strict=True)) for values in zip(*passed, strict=True)
    )


@exercise("09_train", _lesson, partial(_train, ""), 1e-4)
def _wrong_training(*case):
    return {
        hint: lambda slip=slip: _train(slip, *case)
        for slip, hint in {
            "raw": "the average is forgotten: those are the last weights. Average a copy, and return the copy",
            "start": "those are the weights of the beginning: the average never moves",
            "swapped": "the decay is what is kept: average ← decay · average + (1 − decay) · weights",
            "zero": "the average starts from the network's weights, a copy of it, not from zeros",
            "heaped": "gradients pile up from update to update: optimizer.zero_grad() before each",
        }.items()
    }


_X_TILDE = ("swapped", "t' for t''", "x_mid", "asked once", "long steps")


def _noisy(generator: Generator) -> dict[str, Any]:
    N = whole(generator, 2, 7)
    t = torch.randint(2, N + 1, (4,), generator=generator) / N
    return {"teacher": RandomMixture(generator, 3), "z": torch.randn(4, 2, generator=generator), "t": t, "N": N}


def _target(slip: str, teacher: RandomMixture, z: Tensor, t: Tensor, N: int) -> Tensor:
    return two_steps(slip, teacher, z.double(), t.double(), N)


@exercise("09_x_tilde", _noisy, partial(_target, ""), 1e-3)
def _wrong_targets(*case):
    return {SLIPS[slip]: partial(_target, slip, *case) for slip in _X_TILDE}


def _distilling(slip: str, student: Watched, teacher: RandomMixture, x: Tensor, N: int) -> Tensor:
    z, t, *angle = _drawn(student, x, N)
    target = x if slip == "x" else two_steps(slip, teacher, z, t, N)
    return weighted(slip, target - student(z, t), *angle)


@exercise(
    "09_distillation_loss",
    lambda g: {
        "student": Watched(RandomMixture(g, 2)),
        "teacher": RandomMixture(g, 3),
        "x": _data(g),
        "N": whole(g, 2, 7),
    },
    partial(_distilling, ""),
    1e-3,
)
def _wrong_distilling(*case):
    return {SLIPS[slip]: partial(_distilling, slip, *case) for slip in ("x", "no weight", "snr", "sum", *_X_TILDE)}


class Teach:
    """A stand-in for a stage's training: the student changes in place, and its average is returned."""

    def __repr__(self) -> str:
        return "trains the student, returns its average"

    def __call__(self, student: Tensor, teacher: Tensor, N: int) -> Tensor:
        if not isinstance(student, Tensor):
            raise Mistake(
                "the student is not started from its teacher: it begins as a copy of it, copy.deepcopy(teacher)"
            )
        if student is teacher:
            raise Mistake(
                "student and teacher are one and the same network, and both would learn: copy.deepcopy(teacher)"
            )
        average = (student + 3 * teacher + torch.arange(3) * N).cos()
        student += average
        return average


def _halve(slip: str, teacher: Tensor, N: int, teach: Teach) -> Tensor:
    """The outer loop, with one thing wrong if ``slip`` is one of those."""
    first, found = teacher.clone(), teacher
    while 1 + (slip == "early") < N:
        student = (first if slip in ("first weights", "never promoted") else found).clone()
        average = teach(student, first if slip == "never promoted" else found, N if slip == "late" else N // 2)
        N, found = N // 2, student if slip == "raw" else average
    return found


@exercise(
    "09_halve",
    lambda g: {"teacher": torch.rand(3, generator=g), "N": 2 ** whole(g, 2, 7), "teach": Teach()},
    partial(_halve, ""),
)
def _wrong_halving(*case):
    return {
        hint: partial(_halve, slip, *case)
        for slip, hint in {
            "never promoted": "the student is never promoted: it is the next stage's teacher",
            "first weights": "the student is not started from its teacher: copy this stage's, not the first",
            "raw": "the average is forgotten: what teach returns is promoted, not the student that it has trained",
            "late": "N is halved too late: a teacher of N steps has a student of N/2, and teach is told that",
            "early": "the last stage is missing, from two steps to one",
        }.items()
    }
