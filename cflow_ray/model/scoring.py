"""From log-likelihoods to map, score, p-value and regions: functions of one image and the calibration alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

# Shapes: B images, L levels, H x W pixels of the network's input, h_l x w_l of level l.


@dataclass(frozen=True)
class Calibration:
    """What held-out normal images say: each level's peak and the scores of images that chose nothing.

    `peaks`: the largest log-likelihood per dimension of each level, in nats. `scores`: ascending, in [0, 1).
    """

    peaks: tuple[float, ...]
    scores: tuple[float, ...]

    def p_value(self, score: float) -> float:
        """Share of normal images expected to score at least this, in (0, 1] (split conformal prediction)."""
        return (1 + len(self.scores) - int(np.searchsorted(self.scores, score, side="left"))) / (len(self.scores) + 1)

    def threshold(self, target_fpr: float) -> float | None:
        """The largest calibration score an image must exceed so that p_value <= target_fpr; None if none suffices.

        With n calibration images the smallest p-value is 1 / (n + 1), so targets below that cannot be kept.
        """
        rank = math.floor(target_fpr * (len(self.scores) + 1) + 1e-9)  # the product may miss a whole number
        if rank / (len(self.scores) + 1) > target_fpr:
            rank -= 1
        return self.scores[-rank] if rank >= 1 else None

    @property
    def smallest_target(self) -> float:
        """The smallest false-alarm rate these scores can promise."""
        return 1 / (len(self.scores) + 1)

    @classmethod
    def of(cls, peaks: Sequence[float], scores: Sequence[float]) -> Calibration:
        """A calibration from scores in any order."""
        return cls(tuple(peaks), tuple(sorted(scores)))


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
    score: float, map_HW: NDArray[np.float32], calibration: Calibration, target_fpr: float, size: tuple[int, int]
) -> Verdict:
    """The verdict on an image of size (width, height) from its score and map."""
    threshold = calibration.threshold(target_fpr)
    return Verdict(
        score=score,
        p_value=calibration.p_value(score),
        is_anomaly=threshold is not None and score > threshold,
        threshold=threshold,
        regions=find_regions(map_HW, threshold, *size),
    )


def anomaly_map(likelihoods: Sequence[Tensor], peaks: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Maps (B, H, W) in [0, 1) from each level's log-likelihoods per dimension (B, h_l, w_l).

    p_l = exp(min(ll_l - peak_l, 0)) is brought to H x W bilinearly; the map is 1 - mean_l p_l. Unlike the paper's
    rule nothing of another image enters, so an image's map does not depend on its batch.
    """
    total: Tensor | None = None
    for likelihood_Bhw, peak in zip(likelihoods, peaks, strict=True):
        p_Bhw = torch.exp(torch.clamp(likelihood_Bhw - peak, max=0.0))
        p_BHW = functional.interpolate(p_Bhw[:, None], size, mode="bilinear", align_corners=True)[:, 0]
        total = p_BHW if total is None else total + p_BHW
    if total is None:
        raise ValueError("no level")
    return (1 - total / len(peaks)).clamp(0.0, 1.0 - 2**-24)


def image_scores(map_BHW: Tensor, top_fraction: float) -> Tensor:
    """Scores (B,) in [0, 1): the mean of the map's highest pixels; a fraction of 0 takes the maximum."""
    pixels_BP = map_BHW.flatten(1)
    count = max(1, math.ceil(top_fraction * pixels_BP.shape[1]))
    return pixels_BP.topk(count, dim=1).values.double().mean(1).float()  # a float32 mean can pass the maximum


def find_regions(map_HW: NDArray[np.float32], threshold: float | None, width: int, height: int) -> list[Region]:
    """8-connected regions of the map above the threshold, scaled to an original of width x height, highest peak first."""
    if threshold is None or not (above := map_HW > threshold).any():
        return []
    map_height, map_width = map_HW.shape
    labels, count = ndimage.label(above, structure=np.ones((3, 3)))
    indices = np.arange(1, count + 1)
    areas = ndimage.sum_labels(above, labels, indices)
    peaks = ndimage.maximum(map_HW, labels, indices)
    regions = [
        Region(
            box=(
                columns.start * width // map_width,  # whole numbers: a float product can pass the image's edge
                rows.start * height // map_height,
                -(-columns.stop * width // map_width),
                -(-rows.stop * height // map_height),
            ),
            area=float(area * width * height / map_HW.size),
            peak=float(peak),
        )
        for (rows, columns), area, peak in zip(ndimage.find_objects(labels), areas, peaks, strict=True)
    ]
    return sorted(regions, key=lambda region: -region.peak)
