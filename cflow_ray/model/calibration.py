"""What normal images say of weights that are fixed: each level's peak, and the scores that make p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cflow_ray.model.detector import Detector
from cflow_ray.model.features import Features
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.partition import halve_normals
from cflow_ray.model.region import inside
from cflow_ray.model.scoring import Calibration

# Shapes: T tiles, h x w locations of a level, H x W pixels of the network's input.

_PEAK_QUANTILE = 0.99  # of the held-out likelihoods; as good as the maximum and unmoved by one odd image
_TILES_OF_A_PASS = 16  # bounds the memory for features in float32


def calibrated(fitted: Fitted, features: Features, seed: int) -> Fitted:
    """The same weights with peaks and calibration scores from normal images that the weights were not fitted on.

    A random half of the images gives the peaks, the other half the scores. Raises DataError below 8 images.
    """
    split = halve_normals(len(features), torch.Generator().manual_seed(seed))
    peaks = peaks_of(fitted.decoders, features, split.selection, fitted.region_HW)
    with_peaks = replace(fitted, calibration=Calibration(peaks, ()))
    scores = image_scores_of(with_peaks.detector(), features, split.calibration)
    return replace(fitted, calibration=Calibration.of(peaks, scores))


def peaks_of(
    decoders: Sequence[Decoder], features: Features, selection: Sequence[int], region_HW: Tensor | None
) -> tuple[float, ...]:
    """Each level's peak: a high quantile of the likelihoods of the selection images."""
    peaks = []
    for decoder, level in zip(decoders, features.levels, strict=True):
        folded, tiles = FoldedDecoder.of(decoder), features.tiles(selection)
        passes = [tiles[at : at + _TILES_OF_A_PASS] for at in range(0, len(tiles), _TILES_OF_A_PASS)]
        likelihood_Thw = torch.cat([folded(level.maps(of_pass)) for of_pass in passes])
        inside_hw = torch.ones(level.size, dtype=torch.bool) if region_HW is None else inside(region_HW, level.size)
        peaks.append(_quantile(likelihood_Thw[:, inside_hw], _PEAK_QUANTILE))
    return tuple(peaks)


def image_scores_of(detector: Detector, features: Features, images: Sequence[int]) -> list[float]:
    """Scores of encoded images, each alone, as scoring gives them but for the features' half precision."""
    scores = []
    for image in images:
        tiles = features.tiles([image])
        maps_Thw = detector.maps([level.maps(tiles) for level in features.levels])
        scores.append(detector.score(detector.whole(maps_Thw, features.layouts[image])))
    return scores


def _quantile(values: Tensor, share: float) -> float:
    rank = max(1, round(share * values.numel()))
    return float(values.flatten().kthvalue(rank).values)
