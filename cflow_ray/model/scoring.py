"""From log-likelihoods to map, score and p-value: functions of one image and the calibration alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Shapes: B images, L levels, H x W pixels of the network's input, h_l x w_l of level l, P pixels of a map.

LARGEST = 1.0 - 2**-24
"""The largest float32 below 1, which is no score."""


@dataclass(frozen=True)
class Calibration:
    """What held-out normal images say: each level's peak and the scores of images that did not train.

    `peaks`: a high quantile of each level's log-likelihood per dimension, in nats. `scores`: ascending, in [0, 1).
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
        rank = self.rank(target_fpr)
        return self.scores[-rank] if rank >= 1 else None

    def rank(self, target_fpr: float) -> int:
        """The largest l with l / (n + 1) <= target_fpr: that share of normal images is what a target promises."""
        rank = math.floor(target_fpr * (len(self.scores) + 1) + 1e-9)  # the product may miss a whole number
        return rank if rank / (len(self.scores) + 1) <= target_fpr else rank - 1

    @property
    def smallest_target(self) -> float:
        """The smallest false-alarm rate these scores can promise."""
        return 1 / (len(self.scores) + 1)

    def support(self, target_fpr: float) -> str:
        """For people, which false-alarm rates these scores can promise, and whether the target is among them."""
        rates = f"{len(self.scores)} calibration images support false-alarm rates down to {_rounded_up(self.smallest_target)}"
        if self.smallest_target <= target_fpr:
            return f"{rates}."
        return (
            f"{rates}; at the target of {target_fpr:g} nothing will be called an anomaly. "
            "Add normal images or raise target_fpr."
        )

    @classmethod
    def of(cls, peaks: Sequence[float], scores: Sequence[float]) -> Calibration:
        """A calibration from scores in any order."""
        return cls(tuple(peaks), tuple(sorted(scores)))


def _rounded_up(rate: float) -> str:
    """To three digits, so that a target of what is said is kept."""
    digits = 2 - math.floor(math.log10(rate))
    return f"{math.ceil(rate * 10**digits - 1e-9) / 10**digits:.3g}"


def anomaly_map(
    likelihoods: Sequence[Tensor],
    peaks: Sequence[float | Tensor],
    size: tuple[int, int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Maps (B, H, W) in [0, 1) from each level's log-likelihoods per dimension (B, h_l, w_l).

    p_l = exp(min(ll_l - peak_l, 0)) is brought to H x W bilinearly; the map is 1 - mean_l p_l, the levels weighted alike
    or by `weights`. Unlike the paper's rule nothing of another image enters, so an image's map does not depend on its
    batch.
    """
    weights = [1.0] * len(peaks) if weights is None else weights
    total: Tensor | None = None
    for likelihood_Bhw, peak, weight in zip(likelihoods, peaks, weights, strict=True):
        p_Bhw = torch.exp(torch.clamp(likelihood_Bhw - peak, max=0.0))
        p_BHW = functional.interpolate(p_Bhw[:, None], size, mode="bilinear", align_corners=True)[:, 0]
        p_BHW = p_BHW if weight == 1.0 else p_BHW * weight
        total = p_BHW if total is None else total + p_BHW
    if total is None:
        raise ValueError("no level")
    return (1 - total / sum(weights)).clamp(0.0, LARGEST)


def smoothed(map_BHW: Tensor, sigma: float) -> Tensor:
    """Maps blurred by a Gaussian of `sigma` pixels, cut off at four of them; the border is repeated outwards."""
    radius = math.ceil(4 * sigma)
    at = torch.arange(-radius, radius + 1, dtype=map_BHW.dtype, device=map_BHW.device)
    kernel = torch.exp(-0.5 * (at / sigma).square())
    kernel = kernel / kernel.sum()
    padded_B1HW = functional.pad(map_BHW[:, None], (radius, radius, radius, radius), mode="replicate")
    rows_B1HW = functional.conv2d(padded_B1HW, kernel[None, None, None, :])
    return functional.conv2d(rows_B1HW, kernel[None, None, :, None])[:, 0].clamp(0.0, LARGEST)


def image_scores(pixels_BP: Tensor, top_fraction: float) -> Tensor:
    """Scores (B,) in [0, 1) of maps as rows of pixels: the mean of the highest; a fraction of 0 takes the maximum."""
    count = max(1, math.ceil(top_fraction * pixels_BP.shape[1]))
    return pixels_BP.topk(count, dim=1).values.double().mean(1).float()  # a float32 mean can pass the maximum
