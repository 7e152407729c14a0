"""The condition of the flow: a fixed 2-D sinusoidal encoding of where in the map a fibre lies (paper section 4)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def position_encoding(channels: int, height: int, width: int) -> Tensor:
    """Encoding (height * width, channels), float32 in [-1, 1], rows in raster order.

    The first half of the channels encodes the column, the second the row, each as sin and cos in turn with
    frequencies 1e4^(-2k / (channels / 2)). `channels` must be a multiple of 4; 0 gives rows without columns. The result
    is shared: do not write to it.
    """
    if channels == 0:
        return torch.empty(height * width, 0)
    half = channels // 2
    frequencies = torch.exp(torch.arange(0.0, half, 2) * -(math.log(1e4) / half))
    column = _waves(torch.arange(width), frequencies)[None].expand(height, width, half)
    row = _waves(torch.arange(height), frequencies)[:, None].expand(height, width, half)
    return torch.cat([column, row], dim=2).reshape(height * width, channels)


def _waves(index: Tensor, frequencies: Tensor) -> Tensor:
    """(n, 2 * frequencies): sin and cos of index times frequency, in turn."""
    phase = index.float()[:, None] * frequencies
    return torch.stack([phase.sin(), phase.cos()], dim=2).flatten(1)
