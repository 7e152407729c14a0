"""Exact figures of localisation: maps against masks, every distinct value a threshold, the good pixels sorted once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cflow_ray.evaluation import ranking

# Shapes: H x W pixels of a map and its mask, P some of them, K levels of a ranking (see `ranking`).

PIMO_RATES = (1e-5, 1e-4)
"""Rates over the normal images' pixels between which AUPIMO is integrated."""


@dataclass(frozen=True, eq=False)
class JudgedMap:
    """One image's anomaly map beside the truth."""

    map_HW: NDArray[np.float32]
    """Values in [0, 1]."""
    mask_HW: NDArray[np.bool_]
    region_P: NDArray[np.int64]
    """For each defect pixel the number, from 0, of its region: an 8-connected part of the mask."""
    normal: bool
    """Whether the image is labelled good."""

    @classmethod
    def of(cls, map_HW: NDArray[np.float32], mask_HW: NDArray[np.bool_], normal: bool) -> JudgedMap:
        """A map with its mask's regions found."""
        labels_HW, _ = ndimage.label(mask_HW, structure=np.ones((3, 3))) if mask_HW.any() else (mask_HW, 0)
        return cls(map_HW, mask_HW, labels_HW[mask_HW].astype(np.int64) - 1, normal)

    @property
    def good(self) -> NDArray[np.float32]:
        """The map's values on good pixels."""
        return self.map_HW[~self.mask_HW] if self.region_P.size else self.map_HW.ravel()

    @property
    def defect(self) -> NDArray[np.float32]:
        """The map's values on defect pixels, in `region_P`'s order."""
        return self.map_HW[self.mask_HW]

    @property
    def overlap(self) -> NDArray[np.float64]:
        """The share of its region that each defect pixel is."""
        sizes = np.bincount(self.region_P)
        return 1 / sizes[self.region_P]


class PixelCounts(NamedTuple):
    """What the figures of localisation need at each level; each (..., K)."""

    good: ranking.Counts
    """Good pixels of all images."""
    defect: ranking.Counts
    """Defect pixels of all images."""
    overlap: ranking.Counts
    """Regions, each spread evenly over its pixels."""
    normal: ranking.Counts
    """Normal images, each spread evenly over its pixels."""
    found: ranking.Counts
    """Images with a defect pixel, each spread evenly over its defect pixels."""


def pixel_figures(counts: PixelCounts) -> dict[str, NDArray[np.float64]]:
    """The figures of localisation by name, each (...); NaN where the counts do not allow one.

    AUPRO is integrated up to a false-positive rate of 0.3 and of 0.05; AUPIMO takes its rate on normal images alone,
    as the mean over them, and is the mean over the images with a defect.
    """
    return {
        "pixel_auroc": ranking.auroc(counts.good, counts.defect),
        "pixel_ap": ranking.average_precision(counts.good, counts.defect),
        "pixel_f1": ranking.f1_max(counts.good, counts.defect),
        "aupro": ranking.area_up_to(counts.good, counts.overlap, 0.3),
        "aupro_005": ranking.area_up_to(counts.good, counts.overlap, 0.05),
        "aupimo": ranking.log_area(counts.normal, counts.found, *PIMO_RATES),
    }


def exact_counts(images: Sequence[JudgedMap]) -> tuple[NDArray[np.float32], PixelCounts]:
    """The n distinct values of defect pixels, descending, and the counts at 2 n + 1 levels.

    Thresholds between two defect values change nothing but the false positives, so good pixels there share a level:
    level 2 k + 1 holds the pixels equal to value k, level 2 k the good pixels between it and the value before.
    """
    defect_P = np.concatenate([image.defect for image in images])
    order = np.argsort(defect_P)
    starts = np.flatnonzero(np.diff(defect_P[order], prepend=np.float32(-1)))
    values = defect_P[order[starts]]
    good, normal = np.zeros(2 * values.size + 1), np.zeros(2 * values.size + 1)
    for size, pool in _pools(images).items():
        counts = _good_counts(pool, values)
        good += counts
        normal += counts / size if size else 0.0
    gains = np.zeros((3, 2 * values.size + 1))
    shares = [np.full(image.region_P.size, 1 / max(1, image.region_P.size)) for image in images]
    gains[0, 1::2] = np.diff(starts, append=order.size)
    for gain, parts in ((gains[1], [image.overlap for image in images]), (gains[2], shares)):
        gain[1::2] = np.add.reduceat(np.concatenate(parts)[order], starts) if starts.size else 0.0
    defect, overlap, found = gains[:, ::-1]
    return values[::-1], PixelCounts(good[::-1], defect, overlap, normal[::-1], found)


def _pools(images: Sequence[JudgedMap]) -> dict[int, list[NDArray[np.float32]]]:
    """Good pixels by their number in the normal image they are of; those of anomalous images under 0."""
    pools: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
    for image in images:
        good_P = image.good
        pools[good_P.size if image.normal else 0].append(good_P)
    return pools


def _good_counts(pool: Sequence[NDArray[np.float32]], values: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many of a pool lie below, on and between the ascending values, (2 n + 1)."""
    sorted_P = np.concatenate(pool)
    sorted_P.sort()
    edges = np.stack([np.searchsorted(sorted_P, values, side) for side in ("left", "right")], axis=1)
    return np.diff(edges.ravel(), prepend=0, append=sorted_P.size)
