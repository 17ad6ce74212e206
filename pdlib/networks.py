"""What a network must offer, and two that do: a small UNet for images, and an MLP for points in the plane.

A network maps (z, time) to an output of z's shape (twice the channels with ``out_channels``); that of a flow map
(z, time, end), with ``two_times``. ``time`` is
the bounded log-SNR (2/π) arctan(exp(−λ/2)) in [0, 1] that :class:`pdlib.denoiser.Denoiser` supplies:
it is finite at α_1 = 0, and is t itself under the cosine schedule.

Ho et al. 2020, appendix B; Salimans & Ho 2022, appendix D.
"""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pdlib.files import unknown

__all__ = ["MLP", "NETWORKS", "Network", "UNet", "network_from_config"]


@runtime_checkable
class Network(Protocol):
    """What a module must offer to be saved, and to change what it predicts. To be trained, the call is enough.

    One of your own needs these, and an entry in :data:`NETWORKS` under the name that its config gives.
    """

    config: dict[str, Any]
    """JSON-ready: ``name``, its entry in :data:`NETWORKS`, and the arguments that build it again; among them
    ``channels`` of z and ``out_channels`` of the output."""

    def __call__(self, z: Tensor, time: Tensor, *labels: Tensor) -> Tensor:
        """The output for z of shape (batch, channels, …) at ``time`` of shape (batch,) in [0, 1].

        A class-conditional one takes ``labels``, shape (batch,), and has ``classes``, their number.
        """
        ...


OCTAVES = 9


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time in [0, 1] at geometric frequencies, then two linear layers; of two times the sum.

    What it says of the second one starts at 0.
    """

    def __init__(self, width: int, out_features: int, octaves: float = OCTAVES, two_times: bool = False):
        super().__init__()
        # From half a turn over the whole range of times to 2⁹ half turns: fine enough to tell
        # the neighbours of a 1024-step grid apart. The faster ones stand still where fewer octaves are asked for.
        turns = torch.linspace(0, OCTAVES, width // 2)
        self.register_buffer("frequencies", math.pi * 2**turns * (turns <= octaves), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * (width // 2), out_features), nn.SiLU(), nn.Linear(out_features, out_features)
        )
        self.end = TimeEmbedding(width, out_features, octaves) if two_times else None
        if two_times:
            _zero(self.end.layers[-1])

    def forward(self, time: Tensor, end: Tensor | None = None) -> Tensor:
        angles = time[:, None] * self.frequencies
        embedded = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedded if self.end is None else embedded + self.end(time if end is None else end.to(time.dtype))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions; the time scales and shifts the second's normalised input."""

    def __init__(self, in_channels: int, channels: int, time_features: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(8, in_channels), in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time = nn.Linear(time_features, 2 * channels)
        self.norm2 = nn.GroupNorm(math.gcd(8, channels), channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(channels, channels, 3, padding=1))
        same = in_channels == channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(h)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        residual = self.norm2(residual) * (1 + scale) + shift
        return self.skip(h) + self.conv2(self.dropout(F.silu(residual)))


class Attention(nn.Module):
    """Self-attention over all positions of the feature map."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(math.gcd(8, channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        batch, channels, height, width = h.shape
        qkv = self.qkv(self.norm(h)).reshape(batch, 3, self.heads, channels // self.heads, -1)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(attended.transpose(-1, -2).reshape(batch, channels, height, width))


class UNet(nn.Module):
    """A UNet over images of shape (batch, channels, height, width).

    Args:
        channels: image channels (1 grey, 3 colour).
        out_channels: channels of the output; ``None`` for as many as ``channels``.
        width: feature channels at full resolution.
        multipliers: width of each resolution, as multiples of ``width``; each after the first
            halves height and width, which must therefore divide by 2^(len(multipliers) − 1).
        blocks: residual blocks at each resolution on the way down, and as many on the way up, each of
            which also sees the output of its twin.
        attention: indices of the resolutions with self-attention; the middle always has it
            unless this is ``None``.
        heads: attention heads.
        dropout: probability inside the residual blocks.
        two_times: whether it also takes the time at which a jump ends, as the network of a flow map does.
        octaves: how many times the frequency is doubled at which it looks at a time. What is taught by derivatives in
            time needs few: a derivative magnifies what is fast.

    Raises:
        ValueError: for heads that do not divide the channels that attention sees; from ``forward``, for an image that
            the resolutions do not divide.
    """

    def __init__(
        self,
        channels: int = 1,
        out_channels: int | None = None,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        attention: tuple[int, ...] | None = (),
        heads: int = 4,
        dropout: float = 0.0,
        two_times: bool = False,
        octaves: float = OCTAVES,
    ):
        super().__init__()
        self.config = {
            "name": "unet",
            "channels": channels,
            "out_channels": out_channels or channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": None if attention is None else list(attention),
            "heads": heads,
            "dropout": dropout,
            **_of_time(two_times, octaves),
        }
        self.two_times = two_times
        if not multipliers or blocks < 1 or width < 4:
            given = f"width={width}, multipliers={tuple(multipliers)}, blocks={blocks}"
            raise ValueError(f"{given}: a UNet needs a width of 4 or more, one multiplier and one block at least")
        seen = () if attention is None else (*attention, len(multipliers) - 1)
        attended = [width * multiplier for level, multiplier in enumerate(multipliers) if level in seen]
        if heads < 1 or any(features % heads for features in attended):
            raise ValueError(
                f"width={width}, heads={heads}: attention splits its channels, width times multiplier, evenly among "
                f"one head or more; take width={width + -width % max(heads, 1)}, or other heads"
            )
        time_features = 4 * width
        levels = range(len(multipliers))
        self.embed = TimeEmbedding(width, time_features, octaves, two_times)
        self.first = nn.Conv2d(channels, width, 3, padding=1)

        def block(in_channels: int, out: int, level: int) -> nn.ModuleList:
            attends = attention is not None and level in attention
            parts = [ResidualBlock(in_channels, out, time_features, dropout)]
            return nn.ModuleList([*parts, Attention(out, heads)] if attends else parts)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = width, []
        for level in levels:
            for _ in range(blocks):
                self.down.append(block(current, width * multipliers[level], level))
                current = width * multipliers[level]
                skips.append(current)
            if level != levels[-1]:
                self.down.append(nn.ModuleList([nn.Conv2d(current, current, 3, stride=2, padding=1)]))
        middle = ResidualBlock(current, current, time_features, dropout)
        self.middle = nn.ModuleList([middle] if attention is None else [middle, Attention(current, heads)])
        for level in reversed(levels):
            for _ in range(blocks):
                self.up.append(block(current + skips.pop(), width * multipliers[level], level))
                current = width * multipliers[level]
            if level != 0:
                # To fewer channels before doubling height and width: a quarter of the work.
                above = width * multipliers[level - 1]
                self.up.append(nn.ModuleList([nn.Conv2d(current, above, 3, padding=1), nn.Upsample(scale_factor=2)]))
                current = above
        self.norm = nn.GroupNorm(math.gcd(8, current), current)
        self.last = _zero(nn.Conv2d(current, out_channels or channels, 3, padding=1))

    def forward(self, z: Tensor, time: Tensor, end: Tensor | None = None) -> Tensor:
        """z: (batch, channels, height, width); time, and end of a flow map: (batch,) in [0, 1]. Returns the output."""
        multiple = 2 ** (len(self.config["multipliers"]) - 1)
        if z.ndim != 4 or z.shape[1] != self.config["channels"] or z.shape[2] % multiple or z.shape[3] % multiple:
            raise ValueError(
                f"this UNet takes images of shape (batch, {self.config['channels']}, height, width) with height "
                f"and width divisible by {multiple}; it was given {tuple(z.shape)}"
            )
        time = self.embed(time.to(z.dtype), end)
        h = self.first(z.contiguous(memory_format=torch.channels_last))
        skips = []
        for part in self.down:
            h = _apply(part, h, time)
            if isinstance(part[0], ResidualBlock):
                skips.append(h)
        h = _apply(self.middle, h, time)
        for part in self.up:
            if isinstance(part[0], ResidualBlock):
                h = torch.cat([h, skips.pop()], dim=1)
            h = _apply(part, h, time)
        return self.last(F.silu(self.norm(h)))


class MLP(nn.Module):
    """A residual perceptron over points of shape (batch, channels), for 2-D toy data."""

    def __init__(
        self,
        channels: int = 2,
        out_channels: int | None = None,
        width: int = 128,
        blocks: int = 3,
        two_times: bool = False,
        octaves: float = OCTAVES,
    ):
        super().__init__()
        sizes = {"channels": channels, "out_channels": out_channels or channels, "width": width, "blocks": blocks}
        self.config, self.two_times = {"name": "mlp", **sizes, **_of_time(two_times, octaves)}, two_times
        self.embed = TimeEmbedding(32, width, octaves, two_times)
        self.first = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), _zero(nn.Linear(width, width)))
            for _ in range(blocks)
        )
        self.last = _zero(nn.Linear(width, out_channels or channels))

    def forward(self, z: Tensor, time: Tensor, end: Tensor | None = None) -> Tensor:
        """z: (batch, channels); time, and end of a flow map: (batch,) in [0, 1]. Returns (batch, out_channels)."""
        if z.ndim != 2 or z.shape[1] != self.config["channels"]:
            raise ValueError(f"this MLP takes points (batch, {self.config['channels']}); it was given {tuple(z.shape)}")
        time = self.embed(time.to(z.dtype), end)
        h = self.first(z)
        for block in self.blocks:
            h = h + block(h + time)
        return self.last(h)


NETWORKS: dict[str, Callable[..., nn.Module] | str] = {
    "unet": UNet,
    "mlp": MLP,
    "unet2d": "pdlib.interop.unet2d:UNet2D",
}
"""Every network that can be built again, by the name in its config: a class, or where it is imported from when it is
asked for, as "module:class". A new one is one entry."""


def network_from_config(config: dict[str, Any]) -> nn.Module:
    """Build the network that ``network.config`` described, with fresh weights.

    Raises:
        ValueError: for an unknown name or unknown arguments.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in NETWORKS:
        raise ValueError(f"{unknown('network', name, NETWORKS)}; add yours to pdlib.networks.NETWORKS")
    build = NETWORKS[name]
    build = pkgutil.resolve_name(build) if isinstance(build, str) else build
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"network={name!r}: {error}") from error
    return build(**arguments)


def _apply(part: nn.ModuleList, h: Tensor, time: Tensor) -> Tensor:
    for layer in part:
        h = layer(h, time) if isinstance(layer, ResidualBlock) else layer(h)
    return h


def _of_time(two_times: bool, octaves: float) -> dict[str, Any]:
    """What a config says of a network's times, where it is unusual."""
    return ({"two_times": True} if two_times else {}) | ({"octaves": octaves} if octaves != OCTAVES else {})


def _zero(layer: nn.Module) -> nn.Module:
    """Start a layer at 0, so that every residual block starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
