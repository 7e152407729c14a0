"""Images larger than the network's input: where their tiles lie, cutting them out, and blending their maps into one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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

    def tiles(self, image_3HW: Tensor) -> Iterator[Tensor]:
        """The tiles (3, h, w) of an image, which share its memory."""
        height, width = self.tile
        for top, left in self.corners:
            yield image_3HW[:, top : top + height, left : left + width]

    def cut(self, image_3HW: Tensor) -> Tensor:
        """The tiles (T, 3, h, w) of an image."""
        return torch.stack(list(self.tiles(image_3HW)))

    def blend(self, maps_Thw: Tensor) -> Tensor:
        """One map (H, W) from the tiles' maps: their mean, weighted down towards the tiles' borders."""
        blend = Blend(self)
        for map_hw in maps_Thw:
            blend.add(map_hw)
        return blend.map()


class Blend:
    """One map (H, W) from the maps of an image's tiles as they come, of which none is kept."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._added = 0
        self._total_HW: Tensor | None = None
        """Of the maps so far, each weighted down towards its tile's borders."""

    @property
    def is_whole(self) -> bool:
        """Whether all tiles' maps are there."""
        return self._added == len(self._layout.corners)

    def add(self, map_hw: Tensor) -> None:
        """Take in the map of the next tile, in the order of the layout."""
        layout = self._layout
        if len(layout.corners) == 1:
            self._total_HW = map_hw
        else:
            if self._total_HW is None:  # in float64: up to hundreds of tiles are summed at a pixel
                self._total_HW = map_hw.new_zeros(layout.size, dtype=torch.float64)
            (top, left), (height, width) = layout.corners[self._added], layout.tile
            weights_h1, weights_w = _ramp(height, self._total_HW)[:, None], _ramp(width, self._total_HW)
            self._total_HW[top : top + height, left : left + width] += map_hw * weights_h1 * weights_w
        self._added += 1

    def map(self) -> Tensor:
        """The mean of the tiles' maps at every pixel, once all are there."""
        assert self._total_HW is not None
        assert self.is_whole
        if len(self._layout.corners) == 1:
            return self._total_HW
        tops, lefts = (sorted(set(starts)) for starts in zip(*self._layout.corners, strict=True))
        weights_H1 = _summed_ramps(tops, self._layout.tile[0], self._layout.size[0], self._total_HW)[:, None]
        weights_W = _summed_ramps(lefts, self._layout.tile[1], self._layout.size[1], self._total_HW)
        return (self._total_HW / (weights_H1 * weights_W)).float().clamp(0.0, LARGEST)  # a mean may round up to 1


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if side <= tile:
        return [0]
    step = max(1, tile - math.ceil(overlap * tile))
    count = 1 + math.ceil((side - tile) / step)
    return [round(number * (side - tile) / (count - 1)) for number in range(count)]


def _summed_ramps(starts: Sequence[int], tile: int, side: int, like: Tensor) -> Tensor:
    """Weights (side,) of all tiles along one side of an image."""
    sum_S = like.new_zeros(side)
    for start in starts:
        sum_S[start : start + tile] += _ramp(tile, like)
    return sum_S


def _ramp(side: int, like: Tensor) -> Tensor:
    """Weights (side,) that rise linearly from a border to the middle."""
    at = torch.arange(side, device=like.device, dtype=like.dtype)
    return torch.minimum(at + 1, side - at)
