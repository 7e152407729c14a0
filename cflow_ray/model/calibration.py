"""What normal images say of weights that are fixed: each level's peak, and the scores that make p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from cflow_ray.errors import FitError
from cflow_ray.model.detector import Detector
from cflow_ray.model.features import Features
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.partition import Split, halve_normals
from cflow_ray.model.region import inside
from cflow_ray.model.scoring import LARGEST, Calibration

# Shapes: T tiles, h x w locations of a level, H x W pixels of the network's input.

_PEAK_QUANTILE = 0.99  # of the held-out likelihoods; as good as the maximum and unmoved by one odd image
_TILES_OF_A_PASS = 16  # bounds the memory for features in float32


def calibrated(fitted: Fitted, features: Features, seed: int) -> Fitted:
    """The same weights with peaks and calibration scores from normal images that the weights were not fitted on.

    A random half of the images gives the peaks, the other half the scores. Raises DataError below 8 images.
    """
    split = halve_normals(len(features), torch.Generator().manual_seed(seed))
    held_out = held_out_likelihood(fitted.decoders, features, split.selection, fitted.region_HW)
    with_peaks = replace(fitted, calibration=Calibration(held_out.peaks, ()), nll=held_out.nll)
    scores = image_scores_of(with_peaks.detector(), features, split.calibration)
    return replace(with_peaks, calibration=Calibration.of(held_out.peaks, scores))


@dataclass(frozen=True)
class HeldOut:
    """What the images that chose the steps say of the weights, level by level, in nats per dimension."""

    peaks: tuple[float, ...]
    """A high quantile of the log-likelihoods."""
    nll: tuple[float, ...]
    """The mean negative log-likelihood."""


def held_out_likelihood(
    decoders: Sequence[Decoder], features: Features, images: Sequence[int], region_HW: Tensor | None
) -> HeldOut:
    """Peaks and negative log-likelihoods of some images, over all locations inside the region of interest.

    Raises FitError, naming the level, where one is not finite.
    """
    peaks, nll = [], []
    for decoder, level in zip(decoders, features.levels, strict=True):
        folded, tiles = FoldedDecoder.of(decoder), features.tiles(images)
        passes = [tiles[at : at + _TILES_OF_A_PASS] for at in range(0, len(tiles), _TILES_OF_A_PASS)]
        likelihood_Thw = torch.cat([folded(level.maps(of_pass)) for of_pass in passes])
        inside_hw = torch.ones(level.size, dtype=torch.bool) if region_HW is None else inside(region_HW, level.size)
        likelihood_N = likelihood_Thw[:, inside_hw].flatten()
        peaks.append(_quantile(likelihood_N, _PEAK_QUANTILE))
        nll.append(-float(likelihood_N.double().mean()))
        if not math.isfinite(peaks[-1]) or not math.isfinite(nll[-1]):
            raise FitError(
                f"the likelihood of held-out images is not finite at level {len(nll) - 1}; it cannot be calibrated."
            )
    return HeldOut(tuple(peaks), tuple(nll))


def image_scores_of(detector: Detector, features: Features, images: Sequence[int]) -> list[float]:
    """Scores of encoded images, each alone, as scoring gives them but for the features' half precision."""
    scores = []
    for image in images:
        tiles = features.tiles([image])
        maps_Thw = detector.maps([level.maps(tiles) for level in features.levels])
        scores.append(detector.score(detector.whole(maps_Thw, features.layouts[image])))
    return scores


def calibration_scores(splits: Sequence[Split], scores: Sequence[Tensor]) -> list[float]:
    """What the last model, which is kept, would say of every calibration image, had it not seen it.

    `scores` are each model's of what it held out (`Split.held_out`). Models of other images give an image other scores,
    and where images hardly differ, as under a fixed camera, these differ by more than the images do: a model of its own
    would then call all fresh images anomalous, or none. So the kept model's mean difference to a fold's, over the images
    that both held out for selection, is added to the fold's scores.
    """
    by_image = [
        dict(zip(split.held_out, of_model.tolist(), strict=True))
        for split, of_model in zip(splits, scores, strict=True)
    ]
    kept = {image: by_image[-1][image] for image in splits[-1].selection}
    aligned = []
    for split, of_model in zip(splits, by_image, strict=True):
        differences = [kept[image] - of_model[image] for image in split.selection if image in kept]
        offset = fmean(differences) if differences else 0.0
        aligned += [min(max(of_model[image] + offset, 0.0), LARGEST) for image in split.calibration]
    return aligned


def _quantile(values: Tensor, share: float) -> float:
    rank = max(1, round(share * values.numel()))
    return float(values.flatten().kthvalue(rank).values)
