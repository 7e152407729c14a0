"""What is said of one image from its score and map: is it an anomaly, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cflow_ray.model.scoring import Calibration


@dataclass(frozen=True)
class Region:
    """A connected part of the map above the threshold, in pixels of the original image."""

    box: tuple[int, int, int, int]
    """Left, top, right, bottom; right and bottom exclusive."""
    area: float
    """Pixels of the original image."""
    peak: float
    """The map's largest value inside, in [0, 1)."""


@dataclass(frozen=True)
class Verdict:
    """All that is said of one image, in the archive's table as online."""

    score: float
    p_value: float
    is_anomaly: bool
    threshold: float | None
    regions: list[Region]


def judge(
    score: float,
    map_HW: NDArray[np.float32],
    calibration: Calibration,
    target_fpr: float,
    frame: tuple[int, int, int, int],
) -> Verdict:
    """The verdict on an image from its score and map; the map covers `frame` (left, top, width, height) of it."""
    threshold = calibration.threshold(target_fpr)
    return Verdict(
        score=score,
        p_value=calibration.p_value(score),
        is_anomaly=threshold is not None and score > threshold,
        threshold=threshold,
        regions=find_regions(map_HW, threshold, frame),
    )


def find_regions(
    map_HW: NDArray[np.float32], threshold: float | None, frame: tuple[int, int, int, int]
) -> list[Region]:
    """8-connected regions of the map above the threshold, highest peak first.

    They are scaled to the part of the original that the map covers: `frame` is its left, top, width and height.
    """
    if threshold is None or not (above := map_HW > threshold).any():
        return []
    left, top, width, height = frame
    map_height, map_width = map_HW.shape
    labels, count = ndimage.label(above, structure=np.ones((3, 3)))
    indices = np.arange(1, count + 1)
    areas = ndimage.sum_labels(above, labels, indices)
    peaks = ndimage.maximum(map_HW, labels, indices)
    regions = [
        Region(
            box=(
                left + columns.start * width // map_width,  # whole numbers: a float product can pass the image's edge
                top + rows.start * height // map_height,
                left - (-columns.stop * width // map_width),
                top - (-rows.stop * height // map_height),
            ),
            area=float(area * width * height / map_HW.size),
            peak=float(peak),
        )
        for (rows, columns), area, peak in zip(ndimage.find_objects(labels), areas, peaks, strict=True)
    ]
    return sorted(regions, key=lambda region: -region.peak)
