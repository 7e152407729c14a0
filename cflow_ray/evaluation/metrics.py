"""Metrics of detection and localisation; every input lies in [0, 1], as scores and maps do by construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate, ndimage
from torchmetrics.functional.classification import binary_auroc, binary_precision_recall_curve

# Shapes: I images, H x W pixels of a map and its mask.


@dataclass(frozen=True)
class Metrics:
    """The figures of one category; None where labels or masks do not allow them."""

    image_auroc: float | None = None
    image_f1: float | None = None
    pixel_auroc: float | None = None
    pixel_f1: float | None = None
    aupro: float | None = None
    images: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, float | None]) -> Metrics:
        """What `as_dict` gave, as a manifest keeps it."""
        return cls(**{**values, "images": int(values.get("images") or 0)})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, float | None]:
        """The figures by name."""
        return asdict(self)


def compute_metrics(
    scores: Sequence[float],
    labels: Sequence[int],
    maps: Sequence[NDArray[np.float32] | None],
    masks: Sequence[NDArray[np.bool_] | None],
) -> Metrics:
    """All figures of labelled images (1 anomaly): `masks` is None for anomalous images whose mask is not known.

    Pixel figures are over all pixels of the images with both a map and a mask; they are None unless every image has
    both. AUPRO is integrated up to a false-positive rate of 0.3.
    """
    if len(set(labels)) < 2:
        return Metrics(images=len(labels))
    score_I, label_I = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    image = Metrics(auroc(score_I, label_I), f1_max(score_I, label_I), images=len(labels))
    known = [(m, truth) for m, truth in zip(maps, masks, strict=True) if m is not None and truth is not None]
    if len(known) < len(labels) or not any(truth.any() for _, truth in known):
        return image
    map_P = np.concatenate([m.ravel() for m, _ in known])
    truth_P = np.concatenate([truth.ravel() for _, truth in known])
    return Metrics(
        image.image_auroc,
        image.image_f1,
        pixel_auroc=auroc(map_P, truth_P),
        pixel_f1=f1_max(map_P, truth_P),
        aupro=aupro([m for m, _ in known], [truth for _, truth in known]),
        images=len(labels),
    )


def auroc(score_N: NDArray[np.floating], label_N: NDArray[np.generic]) -> float:
    """Area under the ROC curve; ties count half."""
    return float(binary_auroc(torch.from_numpy(score_N), torch.from_numpy(label_N.astype(np.int64))))


def f1_max(score_N: NDArray[np.floating], label_N: NDArray[np.generic]) -> float:
    """The largest F1 over all thresholds."""
    labels = torch.from_numpy(label_N.astype(np.int64))
    precision, recall, _ = binary_precision_recall_curve(torch.from_numpy(score_N), labels)
    return float((2 * precision * recall / (precision + recall).clamp_min(1e-12)).max())


def aupro(maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate, divided by it (Bergmann et al. 2021).

    Regions are the 8-connected parts of the masks; the curve takes every distinct map value as a threshold.
    """
    good_weights, region_weights, values, regions = [], [], [], 0
    for map_HW, mask_HW in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask_HW, structure=np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())
        weight_of_label = np.concatenate([[0.0], 1.0 / sizes[1:]]) if count else np.zeros(1)
        region_weights.append(weight_of_label[labels.ravel()])
        good_weights.append(labels.ravel() == 0)
        values.append(map_HW.ravel())
        regions += count
    value_P = np.concatenate(values)
    order = np.argsort(-value_P, kind="stable")
    good_P = np.concatenate(good_weights)[order]
    rate = np.cumsum(good_P, dtype=np.float64) / max(1, good_P.sum())
    overlap = np.cumsum(np.concatenate(region_weights)[order]) / max(1, regions)
    last_of_ties = np.append(np.diff(value_P[order]) != 0, True)
    rate, overlap = np.append(0.0, rate[last_of_ties]), np.append(0.0, overlap[last_of_ties])
    return _area_up_to(rate, overlap, limit) / limit


def _area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Trapezoid area from 0 to `limit`, the curve interpolated there; x ascends."""
    inside = x <= limit
    x_cut = np.append(x[inside], limit)
    y_cut = np.append(y[inside], np.interp(limit, x, y))
    return float(integrate.trapezoid(y_cut, x_cut))
