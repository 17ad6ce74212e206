"""Tensors in sixteen bits a number: half of float32, and as a rule nearer to it than float16.

Each tensor is a header of twelve bytes, then its numbers k, uint16, which stand for low + k · step: all little-endian.
The header is how many there are, uint32, and low and step, float32. Shapes are for the reader to know.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

__all__ = ["pack", "unpack"]

_HEADER = struct.Struct("<Iff")


def pack(tensors: Iterable[Tensor]) -> bytes:
    """Tensors one after another. Each is off by half a step at most, a step being its range in 65,535 parts."""
    parts = []
    for tensor in tensors:
        values = tensor.detach().cpu().double().flatten().numpy()
        low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
        low, step = np.float32(low), np.float32((high - low) / 65535)
        numbers = np.zeros(values.size) if step == 0 else ((values - low) / step).round().clip(0, 65535)
        parts += [_HEADER.pack(values.size, low, step), numbers.astype("<u2").tobytes()]
    return b"".join(parts)


def unpack(content: bytes) -> list[Tensor]:
    """What :func:`pack` wrote, each tensor flat, in float32."""
    tensors, place = [], 0
    while place < len(content):
        count, low, step = _HEADER.unpack_from(content, place)
        numbers = np.frombuffer(content, "<u2", count, place + _HEADER.size)
        tensors.append(torch.from_numpy((low + numbers.astype(np.float64) * step).astype(np.float32)))
        place += _HEADER.size + 2 * count
    return tensors
