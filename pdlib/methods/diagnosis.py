"""The diagnosis of a student of another method than progressive distillation, whose target stands in itself."""

from __future__ import annotations

import torch
from torch import Tensor

from pdlib.denoiser import Denoiser, DenoiserLike, jump
from pdlib.diagnosis import Finding
from pdlib.methods import Method
from pdlib.methods.consistency import ConsistencyDistillation, ContinuousConsistency, EasyConsistency
from pdlib.methods.flow_maps import MeanFlow
from pdlib.methods.tangents import _along_the_flow
from pdlib.methods.tract import Tract
from pdlib.predictions import v_from_x
from pdlib.sampling import ddim_step, sample
from pdlib.training import TrainingSettings

__all__ = ["CULPRITS", "diagnose_learned"]

CULPRITS = ("pairs that stay apart", "an average that lags", "a wild derivative", "a path with two ends")
CULPRITS += ("worse with more steps",)
"""The known mistakes, by the names that :func:`diagnose_learned` gives them."""


def diagnose_learned(
    method: Method,
    student: Denoiser,
    teacher: DenoiserLike,
    training: TrainingSettings | None = None,
    distances: dict[int, tuple[float, float]] | None = None,
) -> list[Finding]:
    """What makes a method fail that learns from itself; nothing where all is well.

    - *pairs that stay apart*: trained consistency whose last gap (t − r)/t, the figure, is above 1/8.
    - *an average that lags*: it remembers 1/(1 − ema) updates, and as the target hands on what is learned so and so
      often. The figure is the product over the updates made, found above 2; or a tenth of it is still its start.
    - *a wild derivative*: dx̂/dφ along the teacher's flow is much more than x̂'s change over 1/64 of time. The figure is
      their ratio, in the root mean square: 1 for a network that is smooth in time, found above 2.
    - *a path with two ends*: the jump from t = 1 to 0 misses the end of the teacher's walk from the same
      noise. The figure is by how much, over how much the teacher's own x̂ misses it there: found above 0.7.
    - *worse with more steps*: one network is further from the data in 4 steps than in 1, by a tenth and two errors.

    ``distances``, by number of steps: how far the samples are from the data, and the standard error.
    """
    found = []
    find = lambda which, *about: found.append(Finding(CULPRITS[which], *about))  # noqa: E731
    gap = 0.5 ** max(1, method.finest) if isinstance(method, EasyConsistency) else 0.0
    if gap > 1 / 8:
        find(0, gap, f"the last pairs are still {gap:.2g} t apart: a target is a mean over many ends. Take finest=6.")
    if training is not None:
        memory, hands = 1 / (1 - training.ema), _hands(method, student, teacher)
        need, share = hands * memory / training.updates, training.ema**training.updates
        if need > 2 or share > 0.1:
            text = f"it remembers {memory:.0f} updates and hands on what is learned {hands} times, {need:.2g} times "
            text += f"the {training.updates} updates that there were; {share:.2g} of it is still its start. Lower "
            find(1, need, text + "stage_ema, train for longer, or take target=student where the method has that.")
    if not method.one_network:
        return found
    device = next(student.parameters()).device
    noise = torch.randn(128, *student.shape, generator=torch.Generator().manual_seed(0)).to(device)
    one = torch.ones(len(noise), dtype=torch.float64, device=device)
    with torch.no_grad():
        walk = [*sample(teacher, z=noise)]
        missed, of_copy = (jump(each, noise, one, 0 * one).sub(walk[-1]).norm() for each in (student, teacher))
    if isinstance(method, MeanFlow | ContinuousConsistency):
        wild = _wildness(student, teacher, walk)
        if wild > 2:
            text = f"by its derivative x̂ changes {wild:.3g} times as fast as over 1/64 of time, and it learns "
            find(2, wild, text + "from that. Use fewer octaves, as the method does where none are given.")
    if (left := (missed / of_copy).item()) > 0.7:
        text = f"its one step misses where the teacher's walk ends by {left:.2f} of what a copy of it would miss: "
        find(3, left, text + "little was learned, whatever the loss says. Mend what else is found, or train longer.")
    if distances and {1, 4} <= distances.keys():
        (few, error), (more, other) = distances[1], distances[4]
        if more > max(1.1 * few, few + 2 * (error**2 + other**2) ** 0.5):
            text = f"in 4 {student.sampler} steps its samples are {more / few:.2f} times as far from the data as in 1: "
            find(4, more / few, text + f"use its one step; or sampler='{method.sampler}', if it has another.")
    return found


def _hands(method: Method, student: Denoiser, teacher: DenoiserLike) -> int:
    """How often the average hands on what is learned near an end, before it is known at the far end."""
    if getattr(method, "target", "student") == "student" or isinstance(method, EasyConsistency):
        return 1
    steps = teacher.grid.N // student.grid.N
    return steps if isinstance(method, Tract | ConsistencyDistillation) else max(1, teacher.grid.N.bit_length() - 1)


@torch.no_grad()
def _wildness(student: Denoiser, teacher: DenoiserLike, walk: list[Tensor]) -> float:
    schedule, steps, sizes = teacher.schedule, len(walk) - 1, torch.zeros(2)
    for k in {steps // 4, steps // 2, 3 * steps // 4}:
        t = torch.full((len(walk[k]),), 1 - k / steps, dtype=torch.float64, device=walk[k].device)
        r, x_star = t - 1 / 64, teacher(walk[k], t)
        x_hat, rate = _along_the_flow(student, walk[k], t, 0 * t, v_from_x(walk[k], x_star, *schedule.alpha_sigma(t)))
        change = x_hat - jump(student, ddim_step(walk[k], x_star, t, r, schedule), r, 0 * t)
        change /= (schedule.angle(t) - schedule.angle(r))[0]
        sizes += torch.stack([rate.cpu().norm(), change.cpu().norm()]).square()
    return (sizes[0] / sizes[1]).sqrt().item()
