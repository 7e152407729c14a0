"""Figures of localisation for sets of any size: histograms that workers fill, add up and send."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cflow_ray.evaluation import ranking
from cflow_ray.evaluation.pixels import JudgedMap, PixelCounts, pixel_figures

# Shapes: P pixels, K bins.

_MANTISSA = 12  # bits of a float32's mantissa that choose a bin: 4096 bins an octave
_DROPPED = 23 - _MANTISSA
_SMALLEST = int(np.float32(2**-24).view(np.int32)) >> _DROPPED  # maps are multiples of 2^-24
_MIDDLE = (int(np.float32(0.5).view(np.int32)) >> _DROPPED) - _SMALLEST + 1
BINS = 2 * _MIDDLE + 1
_ONE = 2**40  # a region or an image, in the whole numbers that its pixels' shares are kept in


def bin_of(value_P: NDArray[np.float32]) -> NDArray[np.int32]:
    """The bin of each value in [0, 1], from 0 to BINS - 1; a higher value never has a lower bin.

    A value's distance to the nearer end of [0, 1] chooses the bin, by the leading bits of its floating-point pattern:
    4096 equal bins for every halving of the distance, down to 2^-24. So a bin is nowhere wider than 2^-14 and, as in
    a grid over the logit, narrows towards both ends, where maps crowd; within 2^-11 of an end every map value (they
    are multiples of 2^-24) has a bin of its own.
    """
    near_zero = value_P < 0.5
    distance = np.where(near_zero, value_P, 1 - value_P)  # exact: 1 - v is a float32 for v >= 0.5
    step = np.maximum((distance.view(np.int32) >> _DROPPED) - (_SMALLEST - 1), 0)
    bin_P: NDArray[np.int32] = np.where(near_zero, step, 2 * _MIDDLE - step).astype(np.int32)
    return bin_P


@dataclass(frozen=True)
class Bounds:
    """What the bins say of a figure, and between which ends the exact one lies."""

    low: float
    value: float
    """The figure of values that are equal throughout each bin: exact where they are."""
    high: float

    @property
    def error(self) -> float:
        """How far `value` may be off."""
        return max(self.high - self.value, self.value - self.low)


@dataclass(eq=False)
class BinnedPixels:
    """Histograms of judged maps. States add up: in any order and grouping the sum is that of one pass, bit by bit.

    The bounds hold for every set, because they are the figures of the best and of the worst order that the bins could
    hide. How far apart they are depends on how many pixels share a bin. With g good and d defect pixels in a bin, G
    and D in all, the distance is at most:

    - pixel AUROC: sum g d / (G D), so no more than the largest g / G or the largest d / D;
    - AUPRO up to r: the largest g / G, over r, since the overlap rises by 1 in all;
    - best F1: the largest g / (n + D), n all pixels down to that bin, which rare defects make larger;
    - average precision: the mean over the defects of (g + d) / (n - d) of their bin;
    - AUPIMO: the largest ln(1 + g / m) / ln 10 where its rates lie, m and g the normal images' pixels above and in it.

    The value of AUROC lies in the middle, so off by half of that. A bin is at most 2^-14 wide: good pixels with a
    density of no more than 32 per unit of value (a normal distribution of standard deviation 0.0125) keep AUROC within
    0.001. Constant maps, or maps that differ in the fifth digit only, leave the bounds apart, as they should;
    `Bounds.error` says by how much.

    A region's and an image's shares are kept as multiples of 2^-40, rounded so that each still adds up to one, which
    moves no figure by more than 1e-7; sums stay exact up to 2^23 regions or images.
    """

    table_5K: NDArray[np.int64] = field(default_factory=lambda: np.zeros((5, BINS), np.int64))
    """The rows of `PixelCounts`; bins ascend, and shares are in units of 2^-40."""

    def update(self, map_HW: NDArray[np.float32], mask_HW: NDArray[np.bool_], normal: bool) -> None:
        """Take in one image; its mask has the map's size and `normal` says that it is labelled good."""
        image = JudgedMap.of(map_HW, mask_HW, normal)
        good_P, defect_P = bin_of(image.good), bin_of(image.defect)
        good_K, defect_K, overlap_K, normal_K, found_K = self.table_5K
        good_K += np.bincount(good_P, minlength=BINS)
        defect_K += np.bincount(defect_P, minlength=BINS)
        _add_shares(overlap_K, defect_P, image.region_P)
        _add_shares(found_K, defect_P, np.zeros_like(image.region_P))
        if normal:
            _add_shares(normal_K, good_P, np.zeros(good_P.size, np.int64))

    def __add__(self, other: BinnedPixels) -> BinnedPixels:
        """The state of both sets of images together."""
        return BinnedPixels(self.table_5K + other.table_5K)

    def compute(self) -> dict[str, Bounds]:
        """Bounds of every figure of `pixel_figures` that the images allow, by name."""
        filled = np.flatnonzero(self.table_5K.any(axis=0))[::-1]
        if not filled.size:
            return {}
        counts = PixelCounts(*self.table_5K[:, filled].astype(np.float64))
        value = pixel_figures(counts)
        low, high = (pixel_figures(_in_order(counts, defect_first)) for defect_first in (False, True))
        low["pixel_ap"] = ranking.average_precision_floor(counts.good, counts.defect)
        return {
            name: Bounds(float(low[name]), float(value[name]), float(high[name]))
            for name in value
            if np.isfinite(value[name])
        }


def _add_shares(row_K: NDArray[np.int64], bin_P: NDArray[np.int32], group_P: NDArray[np.int64]) -> None:
    """Spread one unit for each group over its pixels' bins; rounding the running sum keeps the unit whole."""
    keys, counts = np.unique(group_P * BINS + bin_P, return_counts=True)
    group, bins = np.divmod(keys, BINS)
    size = np.bincount(group_P)
    before = counts.cumsum() - counts - (size.cumsum() - size)[group]
    units = np.stack([before, before + counts]) / size[group] * _ONE
    np.add.at(row_K, bins, np.diff(np.rint(units), axis=0)[0].astype(np.int64))


def _in_order(counts: PixelCounts, defect_first: bool) -> PixelCounts:
    """Every bin as two levels: defect above good, the best order it could hide, or below, the worst."""

    def spread(row_K: NDArray[np.float64], first: bool) -> NDArray[np.float64]:
        pair = np.stack([row_K, np.zeros_like(row_K)] if first else [np.zeros_like(row_K), row_K], axis=-1)
        return pair.reshape(-1)

    return PixelCounts(
        good=spread(counts.good, not defect_first),
        defect=spread(counts.defect, defect_first),
        overlap=spread(counts.overlap, defect_first),
        normal=spread(counts.normal, not defect_first),
        found=spread(counts.found, defect_first),
    )
