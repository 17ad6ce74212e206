"""How a jump's end moves as its start moves along the flow: not at all, for the exact flow map.

Both derivative forms, continuous-time consistency (s = 0) and MeanFlow (any s), learn from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pdlib.denoiser import DenoiserLike, OfClasses, jump
from pdlib.objectives import Objective, Update
from pdlib.predictions import v_from_x
from pdlib.schedules import expand

__all__ = ["AlongTheFlow", "require_tangents", "tangent_target"]


@dataclass(frozen=True, kw_only=True)
class AlongTheFlow(Objective):
    """x̃ of :func:`tangent_target`.

    Args:
        teacher: of the flow.
        normalize: c of the tangent's normalisation; 0 for none.
        warmup: the part of the training over which the tangent grows to its full size.
        share: of it at this moment, which :meth:`at_update` sets.
    """

    teacher: DenoiserLike
    normalize: float
    warmup: float = 0.0
    share: float = 1.0

    def at_update(self, update: int, updates: int) -> AlongTheFlow:
        return replace(self, share=min(1.0, update / (self.warmup * updates))) if self.warmup else self

    def x_tilde(self, update: Update) -> Tensor:
        at = (update.z, update.t, update.s)
        return tangent_target(self.teacher, update.student, *at, self.share, self.normalize)


def tangent_target(
    teacher: DenoiserLike, student: DenoiserLike, z: Tensor, t: Tensor, s: Tensor, share: float, normalize: float
) -> Tensor:
    """x̃ = x̂ − σ g, where g says how far x̂(z_t, t, s) is from that of a flow map.

    A jump lands at F = a x̂ + b z, with b = σ_s/σ_t and a = α_s − b α_t. In the angle φ, α = cos φ and σ = sin φ, the
    flow is dz/dφ = v*, the teacher's, and along it g = dF/dφ = a' (x̂ − x*) + a dx̂/dφ with a' = σ_s/σ_t². As a change
    of v̂ it is plain distillation, v* − v̂, at s = t, and the tangent of Lu & Song 2024 (section 4) at s = 0, but for
    their factor cos φ_t: where the longest jump begins, at φ_t = π/2, that would leave nothing to learn.

    Args:
        teacher: of the velocity.
        student: without its gradient; one of two times where s is not 0 throughout.
        z, t, s: shapes (batch, …), (batch,), (batch,), with s ≤ t and t > 0.
        share: from 0 to 1, how much there is of what is not plain distillation, by which training warms up.
        normalize: c in g/(‖g‖ + c), ‖·‖ the root of the mean square; 0 for g itself.
    """
    schedule = teacher.schedule
    (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    x_star = teacher(z, t)
    v_star = v_from_x(z, x_star, alpha, sigma)
    x_hat, rate = _along_the_flow(student, z, t, s, v_star)
    cosine, sine = alpha * alpha_s + sigma * sigma_s, sigma * alpha_s - alpha * sigma_s  # of φ_t − φ_s
    plain = expand(cosine, z) * (v_star - v_from_x(z, x_hat, alpha, sigma))
    whole = expand(sigma_s / sigma**2, z) * (x_hat - x_star) + expand(sine / sigma, z) * rate  # dF/dφ
    g = plain + share * (whole - plain)
    if normalize:
        g = g / (expand(g.square().flatten(1).mean(1).sqrt(), z) + normalize)
    return x_hat - expand(sigma, z) * g


def _along_the_flow(student: DenoiserLike, z: Tensor, t: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """x̂, and dx̂/dφ along dz/dφ = v, by a forward-mode derivative."""
    _, speed = torch.func.jvp(student.schedule.angle, (t,), (torch.ones_like(t),))  # dφ/dt
    with torch.no_grad(), _InOnePiece(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(lambda z, t: jump(student, z, t, s), (z, t), (v, 1 / speed))


class _InOnePiece(TorchFunctionMode):
    """The forward derivative of torch's group norm takes no images whose channels lie last in memory."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.group_norm, functional.group_norm):
            args = (args[0].contiguous(), *args[1:])
        return function(*args, **(kwargs or {}))


def require_tangents(teacher: DenoiserLike, instead: str) -> None:
    """ValueError where there is no forward-mode derivative: some networks' kernels lack it, and discrete schedules."""
    if not getattr(teacher, "shape", None):
        return
    like = next(teacher.parameters(), torch.zeros(()))
    teacher = teacher if getattr(teacher, "classes", None) is None else OfClasses(teacher, 0)
    z = torch.ones(1, *teacher.shape, device=like.device)
    t = torch.full((1,), 0.5, device=like.device, dtype=torch.float64)
    try:
        _, speed = torch.func.jvp(teacher.schedule.angle, (t,), (torch.ones_like(t),))
        why = "" if (speed > 0).all() else "of the schedule, which is discrete"
        _along_the_flow(teacher, z, t, t, z)
    except (NotImplementedError, RuntimeError) as error:
        why = str(error).splitlines()[0]
    if why:
        raise ValueError(f"method: no forward-mode derivative ({why}): use method={instead}, which needs none")
