"""Images larger than the network's input: where their tiles lie, cutting them out, and blending their maps into one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow_ray.config import InputConfig
from cflow_ray.model.scoring import LARGEST

# Shapes: T tiles of h x w pixels, H x W pixels of the whole image.


@dataclass(frozen=True)
class Layout:
    """Where the tiles of one image lie; an image of the input's own size is one tile."""

    size: tuple[int, int]
    """Height and width of the whole image."""
    tile: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    """Top and left of every tile, in raster order."""

    @classmethod
    def of(cls, size: tuple[int, int], config: InputConfig) -> Layout:
        """The tiles of an image of `size` (H, W): as few as cover it with the overlap asked for, evenly spaced."""
        overlap = config.tiling.overlap if config.tiling else 0.0
        tops, lefts = (_starts(side, tile, overlap) for side, tile in zip(size, config.size, strict=True))
        return cls(size, config.size, tuple((top, left) for top in tops for left in lefts))

    def cut(self, image_3HW: Tensor) -> Tensor:
        """The tiles (T, 3, h, w) of an image."""
        height, width = self.tile
        return torch.stack([image_3HW[:, top : top + height, left : left + width] for top, left in self.corners])

    def blend(self, maps_Thw: Tensor) -> Tensor:
        """One map (H, W) from the tiles' maps: their mean, weighted down towards the tiles' borders."""
        if len(self.corners) == 1:
            return maps_Thw[0]
        height, width = self.tile
        maps_Thw = maps_Thw.double()  # up to hundreds of tiles are summed at a pixel
        weight_hw = _ramp(height, maps_Thw)[:, None] * _ramp(width, maps_Thw)
        total_HW, weights_HW = maps_Thw.new_zeros(self.size), maps_Thw.new_zeros(self.size)
        for map_hw, (top, left) in zip(maps_Thw, self.corners, strict=True):
            total_HW[top : top + height, left : left + width] += map_hw * weight_hw
            weights_HW[top : top + height, left : left + width] += weight_hw
        return (total_HW / weights_HW).float().clamp(0.0, LARGEST)  # a weighted mean may round up to 1


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if side <= tile:
        return [0]
    step = max(1, tile - math.ceil(overlap * tile))
    count = 1 + math.ceil((side - tile) / step)
    return [round(number * (side - tile) / (count - 1)) for number in range(count)]


def _ramp(side: int, like: Tensor) -> Tensor:
    """Weights (side,) that rise linearly from a border to the middle."""
    at = torch.arange(side, device=like.device, dtype=like.dtype)
    return torch.minimum(at + 1, side - at)
