"""A category's encoded images: every level's fibres in half precision, one block of rows an image or tile."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cflow_ray.errors import FitError
from cflow_ray.model.encoder_model import CompiledEncoder
from cflow_ray.model.region import covered
from cflow_ray.model.seeds import seeded
from cflow_ray.model.tiling import Layout

log = logging.getLogger(__name__)

# Shapes: T tiles (an image that is not cut is one tile), P = h * w positions, C channels.

Keep = Callable[[Tensor], Tensor]
"""Puts a tensor where features are kept - memory, or a map of a file - and returns it there."""

_TILES_OF_A_PASS = 16
_HEADROOM = 64.0  # between the first pass's largest feature and the largest that half precision holds
_LARGEST_HALF = 65504.0


@dataclass
class LevelFeatures:
    """The fibres of one level. Values are kept as half(x / scale), the scale a power of two that fits the level."""

    size: tuple[int, int]
    """Height and width of the feature map."""
    scale: float
    tiles: list[Tensor] = field(default_factory=list)
    """Per tile its rows (P, C), float16."""

    @property
    def channels(self) -> int:
        """C."""
        return self.tiles[0].shape[1]

    @property
    def positions(self) -> int:
        """P."""
        return self.size[0] * self.size[1]

    def fibres(self, tiles: Sequence[int], positions: Tensor) -> Tensor:
        """Fibres (t, p, C), float32, of some tiles at some positions."""
        return torch.stack([self.tiles[tile][positions] for tile in tiles]).float() * self.scale

    def maps(self, tiles: Sequence[int]) -> Tensor:
        """Feature maps (t, C, h, w), float32, of some tiles."""
        rows_tPC = torch.stack([self.tiles[tile] for tile in tiles]).float() * self.scale
        return rows_tPC.view(len(tiles), *self.size, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Features:
    """What the encoder made of a category's normal images, and of altered copies of them."""

    levels: tuple[LevelFeatures, ...]
    layouts: tuple[Layout, ...]
    """Of every image; copies not counted."""
    tiles_of: tuple[range, ...]
    """Per image its tiles."""
    copies_of: tuple[range, ...]
    """Per image the tiles of its altered copies."""

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.layouts)

    def tiles(self, images: Iterable[int], copies: bool = False) -> list[int]:
        """Tiles of some images, and those of their altered copies where asked for."""
        return [
            tile for image in images for tile in (*self.tiles_of[image], *(self.copies_of[image] if copies else ()))
        ]

    @classmethod
    def of_pyramid(cls, pyramid: Sequence[Tensor], input_size: tuple[int, int]) -> Features:
        """Features from whole maps (I, C_l, h_l, w_l) of images that are not cut."""
        builder = _Builder(lambda rows: rows)
        builder.add_tiles(pyramid)
        for _ in range(len(pyramid[0])):
            builder.add_piece(1, Layout(input_size, input_size, ((0, 0),)))
        return builder.features()


def encode(
    encoder: CompiledEncoder,
    images: Iterable[tuple[Tensor, Layout]],
    copies: Callable[[Tensor], Sequence[Tensor]] = lambda image: (),
    keep: Keep = lambda rows: rows,
    region_HW: Tensor | None = None,
) -> Features:
    """Features of uint8 images (3, H, W) with their layouts, and of what `copies` makes of each.

    Nothing outside the region of interest is seen. Raises FitError where the encoder's output is not finite.
    """
    builder = _Builder(keep)
    waiting: list[Tensor] = []
    for image_3HW, layout in images:
        for number, version_3HW in enumerate((image_3HW, *copies(image_3HW))):
            tiles_T3hw = layout.cut(covered(version_3HW, region_HW))
            builder.add_piece(len(tiles_T3hw), layout if number == 0 else None)
            waiting += tiles_T3hw.unbind()
        while len(waiting) >= _TILES_OF_A_PASS:
            builder.add_tiles(encoder(torch.stack(waiting[:_TILES_OF_A_PASS])))
            del waiting[:_TILES_OF_A_PASS]
    if waiting:
        builder.add_tiles(encoder(torch.stack(waiting)))
    return builder.features()


class _Builder:
    """Gathers tiles and, apart from them, how many of them make an image or a copy of the image before."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._levels: list[LevelFeatures] = []
        self._layouts: list[Layout] = []
        self._tiles_of: list[range] = []
        self._copies_of: list[range] = []
        self._tiles = 0
        self._generator = seeded(0, "dither")
        self._cut_off: set[int] = set()

    def add_tiles(self, pyramid: Sequence[Tensor]) -> None:
        """Append tiles with their maps (t, C_l, h_l, w_l)."""
        _refuse_non_finite(pyramid)
        if not self._levels:
            self._levels = [LevelFeatures((level.shape[2], level.shape[3]), _fitting_scale(level)) for level in pyramid]
        for number, (level, maps_tChw) in enumerate(zip(self._levels, pyramid, strict=True)):
            rows_tPC = maps_tChw.permute(0, 2, 3, 1).flatten(1, 2).cpu() / level.scale
            self._tell_of_what_is_cut_off(number, _largest(rows_tPC))
            level.tiles += self._keep(_dithered(rows_tPC, self._generator)).unbind()

    def _tell_of_what_is_cut_off(self, number: int, largest: float) -> None:
        if largest <= _LARGEST_HALF or number in self._cut_off:
            return
        self._cut_off.add(number)
        kept = _LARGEST_HALF * self._levels[number].scale
        log.warning(
            "level %d: a feature of %.3g is fitted as %.3g, the most that fits beside the first %d images'. "
            "Look for images unlike the others.",
            *(number, largest * self._levels[number].scale, kept, _TILES_OF_A_PASS),
        )

    def add_piece(self, tiles: int, layout: Layout | None) -> None:
        """The next tiles are an image of this layout or, without one, a copy of the image before."""
        span = range(self._tiles, self._tiles + tiles)
        self._tiles = span.stop
        if layout is not None:
            self._layouts.append(layout)
            self._tiles_of.append(span)
            self._copies_of.append(range(span.stop, span.stop))
        else:
            self._copies_of[-1] = range(self._copies_of[-1].start, span.stop)

    def features(self) -> Features:
        return Features(tuple(self._levels), tuple(self._layouts), tuple(self._tiles_of), tuple(self._copies_of))


def _refuse_non_finite(pyramid: Sequence[Tensor]) -> None:
    for number, maps_tChw in enumerate(pyramid):
        if not torch.isfinite(maps_tChw).all():
            raise FitError(
                f"the encoder gave features that are not finite at level {number}, before the first step; "
                "check its weights."
            )


def _dithered(values: Tensor, generator: torch.Generator) -> Tensor:
    """In half precision, rounded up or down by chance so that the mean stays.

    A channel that is constant would be so at the nearest half, and a decoder fitted to that would take the true value,
    which is scored, for a large deviation.
    """
    dropped_bits = 13  # of the mantissa's 23, of which half precision has 10
    chance = torch.randint(1 << dropped_bits, values.shape, dtype=torch.int32, generator=generator)
    bits = (values.float().contiguous().view(torch.int32) + chance) & -(1 << dropped_bits)
    return bits.view(torch.float32).clamp(-_LARGEST_HALF, _LARGEST_HALF).half()


def _fitting_scale(level_tChw: Tensor) -> float:
    """A power of two that brings the level's largest value near 1024: exact, and far from half precision's ends."""
    largest = _largest(level_tChw)
    return 2.0 ** math.ceil(math.log2(largest * _HEADROOM / _LARGEST_HALF)) if largest > 0 else 1.0


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
