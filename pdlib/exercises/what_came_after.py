"""The exercises of notebook 10, what came after progressive distillation."""

from typing import Any

import torch
from torch import Generator, Tensor

from pdlib.exercises.common import exercise, normal, whole


def _times_in_groups(generator: Generator) -> dict[str, Any]:
    """Times i/N, N a power of two: the first, an end of a group, the last, and two others."""
    groups = 2 ** whole(generator, 1, 4)
    steps = groups * 2 ** whole(generator, 2, 4)
    boundary = whole(generator, 1, groups) * steps // groups
    i = [1, boundary, steps, whole(generator, 1, steps + 1), whole(generator, 1, steps + 1)]
    return {"t": torch.tensor(i, dtype=torch.float64) / steps, "groups": groups}


# The reference tries all ends.
@exercise(
    "10_group_end",
    _times_in_groups,
    lambda t, n: torch.tensor([max(k / n for k in range(n) if k / n < time) for time in t.tolist()]),
)
def _wrong_end(t, groups):
    numbers = t * groups
    floor, ceil, nearest = (k / groups for k in (numbers.floor(), numbers.ceil(), numbers.round()))
    step = t - 1 / groups
    return {
        "a t that is a k/groups belongs to the group below it: its group ends strictly below t": floor,
        "that is the group's upper end; sampling goes from noise at t = 1 to data at t = 0": ceil,
        "that is k; the time is k/groups": numbers.ceil() - 1,
        "that is one step of 1/groups below t; here all t of a group have the same end": step,
        "0 is the end for consistency models; each group has its own": 0 * t,
        "that is right where t is a k/groups; inside a group it is one group too low": floor - 1 / groups,
        "that is the nearest of the k/groups; it should be the nearest strictly below t": nearest,
    }


def _bought(updates: int, frozen: int, derivatives: int) -> int:
    """Update by update, until the next one could not be paid."""
    left, bought = sum(2 + 1 + 2 for _ in range(updates)), 0
    price = sum([1] * frozen + [2] * derivatives + [1, 2])
    while left >= price:
        left, bought = left - price, bought + 1
    return bought


@exercise(
    "10_same_budget",
    lambda g: {"updates": whole(g, 50, 1000), "frozen": whole(g, 1, 5), "derivatives": whole(g, 0, 3)},
    _bought,
)
def _wrong_number(updates, frozen, derivatives):
    budget, price = 5 * updates, frozen + 2 * derivatives + 3
    return {
        "equal updates are not equal work: count the evaluations of each": updates,
        "a derivative costs two passes": budget // (price - derivatives),
        "a derivative's two passes hold its value already": budget // (price + derivatives),
        "the student's own passes are missing: one forward, and a backward one that counts as two": (
            budget // (price - 3)
        ),
        "a backward pass counts as two, in both methods": 4 * updates // (price - 1),
        "a backward pass counts as two in the other method as well": budget // (price - 1),
        "the teacher's two passes are part of what an update of progressive distillation costs": 3 * updates // price,
        "it is upside down: of dearer updates there are fewer": updates * price // 5,
        "an update that is paid only in part is not made: round down": budget / price,
        "the last of them is not paid in full: round down": -(-budget // price),
    }


def _two_sets(generator: Generator) -> dict[str, Any]:
    """Real points, and made ones that keep closer together, but for the last, which reaches far."""
    entries = whole(generator, 1, 4)
    real = 1.5 * normal(generator, whole(generator, 4, 7), entries)
    made = 0.3 + 0.7 * normal(generator, whole(generator, 5, 7), entries)
    made[-1] *= 3
    return {"real": real, "made": made, "k": whole(generator, 1, 4)}


def _recall_by_rank(real: Tensor, made: Tensor, k: int) -> Tensor:
    """Without a radius: a real point is within reach where fewer than k other made points are nearer."""
    away, apart = _apart(made, real), _apart(made, made)
    nearer = (apart[:, None] < away[:, :, None]).sum(-1) - 1  # itself is no other
    return (nearer < k).any(0).double().mean()


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return (one[:, None] - other).norm(dim=-1)


def _reach(points: Tensor, k: int) -> Tensor:
    """The distance to each one's k-th nearest other, or with k = 0 to itself."""
    return _apart(points, points).sort(1).values[:, k]


@exercise("10_recall", _two_sets, _recall_by_rank)
def _wrong_share(real, made, k):
    away = _apart(real, made)
    within, of_real = away <= _reach(made, k), away <= _reach(real, k)[:, None]
    itself = away <= _reach(made, k - 1)
    farthest = away <= _apart(made, made).sort(1, descending=True).values[:, k - 1]
    to_real = away <= away.sort(0).values[k - 1]
    hits = {
        "that is precision: it asks of the made points whether a real one reaches them": of_real.any(0),
        "how far it reaches is up to the made point, not to the real one": of_real.any(1),
        "a made point is no neighbour of its own: its distance to itself, 0, does not count": itself.any(1),
        "one made point that reaches it is enough; it need not be all of them": within.all(1),
        "that is the share of all pairs; a real point counts once, however many reach it": within,
        "that is the k-th farthest: topk gives the largest, unless it is told largest=False": farthest.any(1),
        "a made point reaches to its k-th nearest made point, not to its k-th nearest real one": to_real.any(1),
        "the nearest made point need not be the one that reaches it: ask all of them": (
            within.gather(1, away.argmin(1, keepdim=True))
        ),
    }
    shares = {hint: hit.double().mean() for hint, hit in hits.items()}
    return shares | {"that is how many they are; divide by the number of real points": within.any(1).sum()}
