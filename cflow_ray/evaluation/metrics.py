"""Metrics of detection and localisation; every input lies in [0, 1], as scores and maps do by construction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_precision_recall_curve,
    binary_sensitivity_at_specificity,
)

from cflow_ray.evaluation.bootstrap import intervals, weighted_image_figures, weighted_pixel_figures
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.evaluation.pixels import JudgedMap, exact_counts, pixel_figures

# Shapes: I images, N scored things, H x W pixels of a map and its mask.


def compute_metrics(
    scores: Sequence[float],
    labels: Sequence[int],
    maps: Sequence[NDArray[np.float32] | None],
    masks: Sequence[NDArray[np.bool_] | None],
    generator: np.random.Generator | None = None,
) -> Metrics:
    """All figures of labelled images (1 anomaly) with their intervals; a mask is None where it is not known.

    Image figures need good and anomalous images. Pixel figures are over all pixels; they need every image's map and
    mask, and good and defect pixels among them; AUPIMO needs normal images as well. `generator` draws the resamples
    of the intervals; without one it starts from 0, so that the same findings always give the same intervals.
    """
    score_I, label_I = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    generator = generator or np.random.default_rng(0)
    image: dict[str, float] = {}
    pixel: dict[str, float] = {}
    bounds: dict[str, tuple[float, float]] = {}
    if len(set(labels)) == 2:
        image = image_figures(score_I, label_I)
        bounds = intervals(image, weighted_image_figures(score_I, label_I), label_I, generator)
    if judged := _judged(maps, masks, label_I):
        values, counts = exact_counts(judged)
        pixel = {name: float(value) for name, value in pixel_figures(counts).items() if np.isfinite(value)}
        bounds |= intervals(pixel, weighted_pixel_figures(judged, values, counts), label_I, generator)
    return Metrics(**image, **pixel, images=len(labels), intervals=bounds)


def image_figures(score_N: NDArray[np.floating], label_N: NDArray[np.integer]) -> dict[str, float]:
    """The figures of detection by name; both labels must occur.

    Pixels do not go this way: torchmetrics sorts them anew for each figure, 5 s for 10 million.
    """
    scores, labels = torch.from_numpy(score_N), torch.from_numpy(label_N)
    precision, recall, _ = binary_precision_recall_curve(scores, labels)
    tpr_01, tpr_05 = (
        binary_sensitivity_at_specificity(scores, labels, min_specificity=1 - limit)[0] for limit in (0.01, 0.05)
    )
    return {
        "image_auroc": float(binary_auroc(scores, labels)),
        "image_ap": float(binary_average_precision(scores, labels)),
        "image_f1": float((2 * precision * recall / (precision + recall).clamp_min(1e-12)).max()),
        "image_tpr_at_fpr_01": float(tpr_01),
        "image_tpr_at_fpr_05": float(tpr_05),
    }


def _judged(
    maps: Sequence[NDArray[np.float32] | None],
    masks: Sequence[NDArray[np.bool_] | None],
    label_I: NDArray[np.int64],
) -> list[JudgedMap]:
    """All images' maps beside their masks; none unless all are known and show good and defect pixels."""
    judged = [
        JudgedMap.of(map_HW, mask_HW, label == 0)
        for map_HW, mask_HW, label in zip(maps, masks, label_I, strict=True)
        if map_HW is not None and mask_HW is not None
    ]
    defects, pixels = sum(one.region_P.size for one in judged), sum(one.map_HW.size for one in judged)
    return judged if len(judged) == label_I.size and 0 < defects < pixels else []
