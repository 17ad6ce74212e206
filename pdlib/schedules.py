"""Noise schedules: time t in [0, 1] to the α and σ of z_t = α_t x + σ_t ε, with α² + σ² = 1.

t = 0 is clean data, t = 1 is noise. All is computed in float64 and in α and σ (never in the ratio α²/σ²), so that
α_1 = 0, the value that distillation needs at t = 1, is an ordinary input.

Salimans & Ho 2022, section 2; Nichol & Dhariwal 2021; Ho et al. 2020; Lin et al. 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pdlib.files import named

__all__ = [
    "SCHEDULES",
    "CosineSchedule",
    "DiscreteSchedule",
    "LinearSchedule",
    "Schedule",
    "ZeroTerminalSNR",
    "diffuse",
    "expand",
    "make_schedule",
    "schedule_from_config",
    "zero_terminal_snr",
]


class Schedule:
    """The interface of every schedule: t ↦ α, σ, λ = log(α²/σ²) and dλ/dt.

    A subclass implements :meth:`_alpha_sigma` and :meth:`dlog_snr`, and lists in :meth:`config` the arguments that
    build it again. A schedule never changes once it is built.
    """

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t, each of t's shape and in float64. ``t``: any shape, in [0, 1].

        Whoever asks for the same tensor of times again, as everything in an update does, is given the same answer
        without computing: it is kept for as long as that tensor lives.
        """
        if t.is_inference() or t.requires_grad or torch.is_inference_mode_enabled():
            return self._alpha_sigma(t)  # t may change unseen, or the answer takes its graph along, or cannot have one
        known = self.__dict__.setdefault("_known", WeakTensorKeyDictionary())
        answer, versions = known.get(t, ((), None))
        if versions != [part._version for part in (t, *answer)]:
            answer = self._alpha_sigma(t)
            if not any(part is t or part._base is t or part.requires_grad for part in answer):  # which would keep t
                known[t] = answer, [part._version for part in (t, *answer)]
        return answer

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`alpha_sigma` returns, computed."""
        raise NotImplementedError

    def dlog_snr(self, t: Tensor) -> Tensor:
        """dλ/dt, of t's shape, in float64; never positive, −∞ where λ runs off to ±∞."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The JSON-ready arguments that :func:`schedule_from_config` builds this schedule from."""
        raise NotImplementedError

    def log_snr(self, t: Tensor) -> Tensor:
        """λ_t = log(α_t²/σ_t²), of t's shape, in float64: +∞ where σ = 0, −∞ where α = 0."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    def angle(self, t: Tensor) -> Tensor:
        """φ_t with α = cos φ and σ = sin φ, from 0 (clean) to π/2 (noise), in float64.

        φ = arctan(exp(−λ/2)): the log-SNR squeezed into a bounded range, finite even at α = 0.
        """
        alpha, sigma = self.alpha_sigma(t)
        return torch.atan2(sigma, alpha)

    def __repr__(self) -> str:
        arguments = [f"{key}={value!r}" for key, value in self.config().items() if key != "name"]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __deepcopy__(self, memo: dict) -> Schedule:
        return self  # so that a network and its copies ask one schedule

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_known"}


class CosineSchedule(Schedule):
    """α_t = cos(πt/2), with α_1 = 0 exactly; optionally with an offset, or with λ kept in a range.

    Args:
        offset: Nichol & Dhariwal's s ≥ 0 (theirs is 0.008): α_t = cos u_t / cos u_0 with
            u_t = (π/2)(t + s)/(1 + s), which adds noise more slowly near t = 0.
        log_snr_min, log_snr_max: λ_1 and λ_0 where they are to be finite (the official code uses ∓20): the angle φ
            then runs between theirs, not from 0 to π/2. A finite ``log_snr_min`` makes α_1 small instead of 0.

    Raises:
        ValueError: for a negative offset or an empty range of λ.
    """

    def __init__(self, offset: float = 0.0, log_snr_min: float | None = None, log_snr_max: float | None = None):
        if not 0 <= offset < math.inf:
            raise ValueError(f"offset={offset}: the cosine schedule needs an offset of 0 or more")
        low = -math.inf if log_snr_min is None else log_snr_min
        high = math.inf if log_snr_max is None else log_snr_max
        if not low < high:
            ends = f"log_snr_min={log_snr_min} is not below log_snr_max={log_snr_max}"
            raise ValueError(f"{ends}: give a lower log_snr_min or a higher log_snr_max")
        self.offset, self.log_snr_min, self.log_snr_max = offset, log_snr_min, log_snr_max
        self._first = math.atan(math.exp(-high / 2))  # φ_0 = arctan(exp(−λ_max/2))
        self._last = math.atan(math.exp(low / 2))  # π/2 − φ_1, exactly 0 when λ_min = −∞
        self._squeeze = 1 - (self._first + self._last) / (math.pi / 2)
        self._rate = math.pi / 2 / (1 + offset)  # du/dt

    def _whole_range(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ before λ is confined to its range."""
        # With u_t as above and d_t = π/2 − u_t: α = cos u_t / cos u_0 = sin d_t / cos u_0, exactly
        # 0 at t = 1, and σ² = 1 − α² = sin(u_t − u_0) sin(u_t + u_0) / cos² u_0, exactly 0 at t = 0.
        start = self._rate * self.offset
        alpha = torch.sin(self._rate * (1 - t)) / math.cos(start)
        sigma = (torch.sin(self._rate * t) * torch.sin(self._rate * t + 2 * start)).clamp(min=0)
        return alpha, sigma.sqrt() / math.cos(start)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._whole_range(t.double())
        if self._squeeze == 1:
            return alpha, sigma
        angle = self._first + self._squeeze * torch.atan2(sigma, alpha)
        complement = self._last + self._squeeze * torch.atan2(alpha, sigma)
        return complement.sin(), angle.sin()

    def dlog_snr(self, t: Tensor) -> Tensor:
        # λ = 2 log cot φ, so dλ/dt = −2 (dφ/dt) / (sin φ cos φ); without an offset φ grows evenly.
        rate = torch.full_like(t, self._rate, dtype=torch.float64)
        if self.offset > 0:
            _, whole_sigma = self._whole_range(t.double())
            start = self._rate * self.offset
            rate = rate * torch.sin(self._rate * t.double() + start) / math.cos(start) / whole_sigma
        alpha, sigma = self.alpha_sigma(t)
        return -2 * self._squeeze * rate / (alpha * sigma)

    def config(self) -> dict[str, Any]:
        ends = {"log_snr_min": self.log_snr_min, "log_snr_max": self.log_snr_max}
        return {"name": "cosine", "offset": self.offset, **ends}


class LinearSchedule(Schedule):
    """DDPM's linear β in continuous time (the VP process): β(t) = beta_min + t (beta_max − beta_min).

    α_t = exp(−½ ∫₀ᵗ β) = exp(−¼ t² (beta_max − beta_min) − ½ t beta_min). The default gives
    α_1 = exp(−5.025) ≈ 0.0066: small, but not 0. Song et al. 2021, equation 33.

    Raises:
        ValueError: unless 0 < beta_min ≤ beta_max.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"beta_min={beta_min}, beta_max={beta_max}: needs 0 < beta_min <= beta_max")
        self.beta_min, self.beta_max = beta_min, beta_max

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        log_alpha = -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def dlog_snr(self, t: Tensor) -> Tensor:
        # dλ/dt = 2 (d log α/dt) / σ², as for any schedule with α² + σ² = 1.
        _, sigma = self.alpha_sigma(t)
        beta = self.beta_min + t.double() * (self.beta_max - self.beta_min)
        return -beta / sigma**2

    def config(self) -> dict[str, Any]:
        return {"name": "linear", "beta_min": self.beta_min, "beta_max": self.beta_max}


class DiscreteSchedule(Schedule):
    """A schedule given by its T values ᾱ_i = α²_{i/T}, i = 1 … T.

    On the grid t = i/T it returns the given values. Between two grid points the angle
    φ = arctan(σ/α) is interpolated linearly: it stays finite where λ does not.

    Args:
        alpha_bar: the T values, strictly decreasing, in [0, 1); the last may be 0.
        alpha_bar_0: ᾱ at t = 0, above them all; 1 (the default) means that t = 0 is clean.

    Raises:
        ValueError: for values that are not finite, not decreasing, or outside [0, 1].
    """

    def __init__(self, alpha_bar: Tensor | list[float], alpha_bar_0: float = 1.0):
        alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64).flatten()
        if alpha_bar.numel() == 0 or not torch.isfinite(alpha_bar).all():
            raise ValueError("alpha_bar needs at least one value, all of them finite")
        padded = torch.cat([torch.tensor([alpha_bar_0], dtype=torch.float64), alpha_bar])
        if (padded.diff() >= 0).any() or padded[-1] < 0 or padded[0] > 1:
            raise ValueError(
                "alpha_bar must fall strictly, from alpha_bar_0 (at most 1) to 0 or more; with "
                f"alpha_bar_0={alpha_bar_0:.6g} it starts at {alpha_bar[0]:.6g} and ends at {alpha_bar[-1]:.6g}"
            )
        self.alpha_bar, self.alpha_bar_0 = alpha_bar, float(alpha_bar_0)
        self._alpha, self._sigma = padded.sqrt(), (1 - padded).sqrt()
        self._angle = torch.atan2(self._sigma, self._alpha)  # φ: exactly 0 at t = 0
        self._complement = torch.atan2(self._alpha, self._sigma)  # π/2 − φ: exactly 0 where α = 0

    @property
    def T(self) -> int:
        """The number of grid points, t = 0 not counted."""
        return self.alpha_bar.numel()

    @classmethod
    def cosine(cls, T: int = 1000, offset: float = 0.008, start_clean: bool = True) -> DiscreteSchedule:
        """Nichol & Dhariwal 2021, equation 17, betas not clipped: ᾱ_i = f(i)/f(0), ᾱ_T = 0.

        ``start_clean=False`` leaves out the division by f(0) = cos²((π/2) s/(1 + s)), as many
        write it: ᾱ_i = f(i), so that a little noise, 1 − f(0), is there at t = 0 already.
        """
        alpha, _ = CosineSchedule(offset).alpha_sigma(torch.arange(1, T + 1, dtype=torch.float64) / T)
        f_0 = 1.0 if start_clean else math.cos(math.pi / 2 * offset / (1 + offset)) ** 2
        return cls(f_0 * alpha**2, alpha_bar_0=f_0)

    @classmethod
    def linear_beta(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteSchedule:
        """Ho et al. 2020: β_i equally spaced, ᾱ_i = Π (1 − β). With the defaults α_T ≈ 0.0064."""
        return cls((1 - torch.linspace(beta_start, beta_end, T, dtype=torch.float64)).cumprod(0))

    @classmethod
    def scaled_linear_beta(cls, T: int = 1000, beta_start: float = 8.5e-4, beta_end: float = 0.012) -> DiscreteSchedule:
        """Stable Diffusion's: √β_i equally spaced. With the defaults α_T ≈ 0.068."""
        return cls((1 - torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2).cumprod(0))

    def for_steps(self, steps: int, log_snr_min: float | None = None) -> DiscreteSchedule:
        """A part of it with a multiple of N grid points, on which a grid of N steps lies, and so do its halves.

        Args:
            steps: N.
            log_snr_min: where it is to end, at the latest; what must go besides for a multiple goes there too. Without
                it the end stays, and what must go goes at the clean side.

        Raises:
            ValueError: where fewer than N values are left.
        """
        alpha_bar = self.alpha_bar
        kept = alpha_bar if log_snr_min is None else alpha_bar[torch.logit(alpha_bar) >= log_snr_min]
        left_out, count = len(kept) % steps, len(kept)
        if count < steps:
            which = "" if log_snr_min is None else f", {count} of them with λ ≥ {log_snr_min}"
            raise ValueError(f"steps={steps}: the schedule has {self.T} values{which}: take fewer steps")
        kept = kept[left_out:] if count == self.T else kept[: count - left_out]
        return DiscreteSchedule(kept, self.alpha_bar_0)

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The grid index at or below t, and how far t lies towards the next, in [0, 1]."""
        position = t.double().to(self._angle.device) * self.T
        nearest = position.round()
        position = torch.where((position - nearest).abs() < 1e-9 * self.T, nearest, position)
        index = (position.ceil() - 1).clamp(0, self.T - 1).long()
        return index, position - index

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index, fraction = self._segment(t)
        angle = torch.lerp(self._angle[index], self._angle[index + 1], fraction)
        complement = torch.lerp(self._complement[index], self._complement[index + 1], fraction)
        return complement.sin().to(t.device), angle.sin().to(t.device)

    def dlog_snr(self, t: Tensor) -> Tensor:
        # λ = 2 log cot φ, so dλ/dt = −2 (dφ/dt) / (sin φ cos φ); at a grid point, from the left.
        index, _ = self._segment(t)
        slope = ((self._angle[index + 1] - self._angle[index]) * self.T).to(t.device)
        alpha, sigma = self.alpha_sigma(t)
        return -2 * slope / (alpha * sigma)

    def config(self) -> dict[str, Any]:
        return {"name": "discrete", "alpha_bar": self.alpha_bar.tolist(), "alpha_bar_0": self.alpha_bar_0}

    def __repr__(self) -> str:
        return f"DiscreteSchedule(T={self.T}, alpha_bar[T]={self.alpha_bar[-1]:.3g})"


class ZeroTerminalSNR(Schedule):
    """Another schedule shifted and scaled so that α_1 = 0 exactly. See :func:`zero_terminal_snr`."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        alpha, sigma = schedule.alpha_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
        (self._first, self._last), self._last_sigma = alpha.tolist(), sigma[1].item()
        self._range = self._above_last(alpha, sigma)[0].item()

    def _above_last(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """α − α_1; where both are near 1, from the σ's, so that no digits cancel."""
        if self._last < self._last_sigma:
            return alpha - self._last
        return (self._last_sigma - sigma) * (self._last_sigma + sigma) / (alpha + self._last)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        original, sigma = self.schedule.alpha_sigma(t)
        alpha = self._above_last(original, sigma) * self._first / self._range
        # 1 − α² = σ_o² + (α_o − α)(α_o + α): no cancellation near t = 0, where σ_o is small.
        sigma = (sigma**2 + (original - alpha) * (original + alpha)).clamp(0, 1).sqrt()
        return alpha.clamp(min=0), torch.where(alpha > 0, sigma, 1.0)  # exact at the end on every processor

    def dlog_snr(self, t: Tensor) -> Tensor:
        # dλ/dt = 2 (dα/dt) / (α σ²) holds for both; dα/dt differs by the factor of the scaling.
        original, original_sigma = self.schedule.alpha_sigma(t)
        scale = self._first / self._range
        alpha, sigma = self.alpha_sigma(t)
        slope = scale * self.schedule.dlog_snr(t) * original * original_sigma**2 / (alpha * sigma**2)
        return torch.where(sigma == 0, -math.inf, slope)

    def config(self) -> dict[str, Any]:
        return {"name": "zero_terminal_snr", "schedule": self.schedule.config()}


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Rescale a schedule so that α_1 = 0, keeping α_0. Lin et al. 2023, algorithm 1.

    α_t becomes (α_t − α_1) α_0 / (α_0 − α_1). A schedule whose α_1 is 0 already is returned as it is; a
    :class:`DiscreteSchedule` stays one (its α_0 in the rescaling is that of i = 1, as in the paper's algorithm).
    """
    alpha, _ = schedule.alpha_sigma(torch.ones(1, dtype=torch.float64))
    if alpha.item() == 0:
        return schedule
    if isinstance(schedule, DiscreteSchedule):
        root = schedule.alpha_bar.sqrt()
        return DiscreteSchedule(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2, schedule.alpha_bar_0)
    return ZeroTerminalSNR(schedule)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": lambda T=1000: CosineSchedule(),
    "cosine_clipped": lambda T=1000: CosineSchedule(log_snr_min=-20.0, log_snr_max=20.0),
    "cosine_offset": lambda T=1000: CosineSchedule(offset=0.008),
    "linear": lambda T=1000: LinearSchedule(),
    "linear_zero_terminal": lambda T=1000: zero_terminal_snr(LinearSchedule()),
    "discrete_cosine": DiscreteSchedule.cosine,
    "notes_cosine": lambda T=1000: DiscreteSchedule.cosine(T, start_clean=False),
    # T betas that add as much noise as the published 1000
    "discrete_linear": lambda T=1000: DiscreteSchedule.linear_beta(T, 0.1 / T, 20 / T),
    "discrete_linear_zero_terminal": lambda T=1000: zero_terminal_snr(SCHEDULES["discrete_linear"](T)),
    "discrete_scaled_linear": lambda T=1000: DiscreteSchedule.scaled_linear_beta(T, 0.85 / T, 12 / T),
    "discrete_scaled_linear_zero_terminal": lambda T=1000: zero_terminal_snr(SCHEDULES["discrete_scaled_linear"](T)),
}
"""Every schedule by name, from the number of its grid points T, where it has them. A new one is one entry, which also
builds it again from its :meth:`Schedule.config`, whose ``name`` is that of the entry."""


def make_schedule(
    name: str,
    log_snr_min: float | None = None,
    log_snr_max: float | None = None,
    zero_terminal: bool = False,
    T: int = 1000,
) -> Schedule:
    """The schedule that a run's settings or the explorer's knobs ask for.

    Args:
        name: one of :data:`SCHEDULES`.
        log_snr_min, log_snr_max: λ_1 and λ_0 of a cosine schedule, where they are to be finite.
        zero_terminal: rescale it so that α_1 = 0, see :func:`zero_terminal_snr`.
        T: grid points of a discrete schedule.

    Raises:
        ValueError: for an unknown name, or ends of λ that the schedule does not take.
    """
    if T < 1:
        raise ValueError(f"T={T}: a schedule needs at least 1 grid point")
    schedule = named("schedule", name, SCHEDULES)(T)
    if log_snr_min is not None or log_snr_max is not None:
        if not isinstance(schedule, CosineSchedule) or name == "cosine_clipped":
            ends = f"log_snr_min={log_snr_min}, log_snr_max={log_snr_max} with schedule={name!r}"
            raise ValueError(f"{ends}: only cosine and cosine_offset take them; leave them out or change the schedule")
        schedule = CosineSchedule(schedule.offset, log_snr_min, log_snr_max)
    return zero_terminal_snr(schedule) if zero_terminal else schedule


_CLASSES = {
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "discrete": DiscreteSchedule,
    "zero_terminal_snr": lambda schedule: ZeroTerminalSNR(schedule_from_config(schedule)),
}


def schedule_from_config(config: dict[str, Any]) -> Schedule:
    """Build the schedule that :meth:`Schedule.config` described.

    Raises:
        ValueError: for an unknown name or unknown arguments.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    try:
        return named("schedule name", name, {**SCHEDULES, **_CLASSES})(**arguments)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} was given wrong arguments: {error}") from error


def diffuse(x: Tensor, t: Tensor, schedule: Schedule, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The forward process: z_t = α_t x + σ_t ε, and the ε drawn for it; both of x's shape. Equation 1's q(z_t | x).

    Args:
        x: clean data, shape (batch, …).
        t: shape (batch,), in [0, 1].
        schedule: gives α and σ.
        generator: source of ε, on x's device.
    """
    eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    alpha, sigma = schedule.alpha_sigma(t)
    return expand(alpha, x) * x + expand(sigma, x) * eps, eps


def expand(value: Tensor, z: Tensor) -> Tensor:
    """A per-example value of shape (batch,), cast to z's dtype and shaped to multiply z."""
    return value.to(z).reshape(-1, *[1] * (z.ndim - 1))
