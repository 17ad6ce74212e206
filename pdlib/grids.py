"""Grids: which times a network is trained at and sampled through.

Salimans & Ho 2022, algorithm 2: t = i/N, i = 1 … N, whose top is t = 1, where sampling starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """The times t = i/N, i = 1 … N − missing.

    ``missing=1`` leaves out t = 1. That is what is left of the off-by-one grid {0 … N − 1}, as there is nothing to
    learn at t = 0: a mistake that halving makes fatal, here so that it can be seen and studied.

    Args:
        N: the number of steps.
        missing: how many times are left out at the top.

    Raises:
        ValueError: for fewer than one step, or a ``missing`` outside 0 … N.
    """

    N: int
    missing: int = 0

    def __post_init__(self):
        if self.N < 1 or self.N % 1:
            raise ValueError(f"steps={self.N}: a sampler needs at least 1 step, and whole ones")
        if not 0 <= self.missing <= self.N:
            raise ValueError(f"missing={self.missing}: of {self.N} times between 0 and {self.N} can be left out")

    @property
    def times(self) -> Tensor:
        """i/N, i = 1 … N − missing, in float64, shape (N − missing,)."""
        return torch.arange(1, self.N - self.missing + 1, dtype=torch.float64) / self.N

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """So many times of the grid, each as likely as the others: float64, shape (count,), on the generator's device.

        Raises:
            ValueError: where no time is left to draw.
        """
        if self.missing == self.N:
            raise ValueError(f"missing={self.missing} leaves no step to train at N = {self.N}: stop at more steps")
        i = torch.randint(self.N - self.missing, (count,), generator=generator, device=generator.device)
        return self.times.to(generator.device)[i]

    def walk(self, count: int, device: torch.device | str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The sampler's pairs (t, s = t − 1/N) from the top down to s = 0, each of shape (count,), float64."""
        times = torch.cat([torch.zeros(1, dtype=torch.float64), self.times]).to(device)
        t = times[-1].expand(count)
        for earlier in times[:-1].flip(0):
            s = earlier.expand(count)
            yield t, s
            t = s

    def halved(self) -> Grid:
        """The grid of a student that does in one step what this grid does in two.

        Raises:
            ValueError: for an odd number of steps.
        """
        if self.N % 2:
            raise ValueError(f"steps={self.N} is odd: two steps cannot become one")
        return Grid(self.N // 2, self.missing)

    def down_to(self, end: int) -> list[Grid]:
        """The students' grids, of N/2, N/4, … end steps.

        Raises:
            ValueError: unless N is ``end`` times a power of two.
        """
        ratio = self.N // end if end > 0 else 0
        if end < 1 or end * ratio != self.N or ratio < 1 or ratio & (ratio - 1):
            rule = "steps must be end_steps times a power of two (1, 2, 4, …)"
            raise ValueError(f"steps={self.N} cannot be halved down to end_steps={end}: {rule}")
        grids = [self]
        while end < grids[-1].N:
            grids.append(grids[-1].halved())
        return grids[1:]

    def config(self) -> dict[str, int]:
        """The JSON-ready arguments that build it again."""
        return asdict(self)
