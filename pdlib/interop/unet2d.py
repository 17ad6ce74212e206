"""diffusers' network as one of ours: told our time, it looks up its own timestep."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pdlib.interop import InteropError, one_line
from pdlib.interop.library import diffusers
from pdlib.schedules import Schedule

__all__ = ["UNet2D", "angles", "new_unet2d"]


class UNet2D(nn.Module):
    """diffusers' ``UNet2DModel`` as a :class:`pdlib.networks.Network`: told our time, it looks up its own timestep.

    Args:
        channels, out_channels: of z, and of the output; ``None`` for as many.
        unet: the ``UNet2DModel``'s config, as far as it differs from its defaults.
        times: the T times (2/π) arctan(exp(−λ/2)), rising, at which its timesteps 0 … T − 1 were trained; between them
            it is told a timestep between, in proportion.

    Raises:
        InteropError: for a config that makes no ``UNet2DModel``.
    """

    def __init__(self, channels: int, out_channels: int | None, unet: dict[str, Any], times: list[float]):
        super().__init__()
        out_channels = out_channels or channels
        self.config = {
            "name": "unet2d",
            "channels": channels,
            "out_channels": out_channels,
            "unet": unet,
            "times": times,
        }
        try:
            self.unet = diffusers.UNet2DModel(**{**unet, "in_channels": channels, "out_channels": out_channels})
        except (TypeError, ValueError, ArithmeticError, IndexError, RuntimeError, AttributeError) as error:
            raise InteropError(f"no UNet2DModel can be made of its config: {one_line(error)}") from error
        self.register_buffer("times", torch.tensor([0.0, *times], dtype=torch.float64), persistent=False)

    @property
    def classes(self) -> int | None:
        """How many labels it knows, or ``None``."""
        return self.unet.config.num_class_embeds

    def timestep(self, time: Tensor) -> Tensor:
        """Its own count of the time, float64: i − 1 at the i-th of its times, from 0 to T − 1. time: (batch,)."""
        time = time.to(self.times)
        above = (self.times < time[:, None]).sum(1).clamp(1, len(self.times) - 1)
        low, high = self.times[above - 1], self.times[above]
        return (above - 2 + (time - low) / (high - low)).clamp(0, len(self.times) - 2)

    def forward(self, z: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: (batch, channels, height, width); time: (batch,) in [0, 1]; labels: (batch,). Returns the output."""
        return self.unet(z, self.timestep(time).to(z.dtype), class_labels=labels, return_dict=False)[0]


def new_unet2d(
    channels: int,
    out_channels: int,
    width: int,
    multipliers: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...] | None,
    heads: int,
    dropout: float,
    *,
    size: tuple[int, int],
    schedule: Schedule,
    steps: int,
) -> UNet2D:
    """An untrained network for a schedule, the other arguments those of :class:`pdlib.networks.UNet`.

    ``heads`` are those of the lowest level; at others there are as many as have the same number of channels.

    It has about 1000 timesteps: a multiple of ``steps``, so that students of it can be saved.
    """
    each = max(1, width * multipliers[-1] // heads)
    if any(width * multipliers[level] % each for level in attention or ()):
        raise InteropError(f"heads={heads}: {each} channels a head do not divide an attending level: take others")
    attends = [attention is not None and level in attention for level in range(len(multipliers))]
    unet = {
        "sample_size": list(size),
        "layers_per_block": blocks,
        "block_out_channels": [width * multiplier for multiplier in multipliers],
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "add_attention": attention is not None,
        "attention_head_dim": each,
        "norm_num_groups": math.gcd(8, width),
        "dropout": dropout,
    }
    return UNet2D(channels, out_channels, unet, angles(schedule, steps * max(1, round(1000 / steps))))


def angles(schedule: Schedule, T: int) -> list[float]:
    """(2/π) arctan(exp(−λ/2)) of a schedule at its T times i/T, as :class:`UNet2D` takes them."""
    return (schedule.angle(torch.arange(1, T + 1, dtype=torch.float64) / T) * (2 / math.pi)).tolist()
