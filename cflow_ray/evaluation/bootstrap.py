"""Confidence intervals of the figures by the bootstrap over images, from counts instead of sorted pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cflow_ray.evaluation import ranking
from cflow_ray.evaluation.binned import BINS, bin_of
from cflow_ray.evaluation.pixels import PIMO_RATES, JudgedMap, PixelCounts, pixel_figures

# Shapes: I images, R resamples, P pixels, K levels of a ranking (see `ranking`).

Figures = Mapping[str, NDArray[np.float64]]

RESAMPLES = 1000
_BLOCK = 50  # resamples at a time: 50 x 5 x 1024 counts are 2 MB, about a core's cache
_LEVELS = 1024


def intervals(
    exact: Mapping[str, float],
    figures: Callable[[NDArray[np.float64]], Figures],
    label_I: NDArray[np.integer],
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """95 % percentile interval of every exact figure; none where good or anomalous images are a single one.

    `figures` gives figures (R,) for weights (R, I) of the images. What it gives for the images as they are may differ
    from `exact` by its levels; that difference is taken off every resample. Two limits of the method: the interval
    says how the figure varies with the choice of test images, not with the seed of a fit, and it has no width where
    every resample gives the same, above all for a perfect ranking, however few the images.
    """
    if (np.unique_counts(label_I).counts < 2).any():
        return {}
    whole = figures(np.ones((1, label_I.size)))
    blocks = [figures(weight_RI) for weight_RI in resampled_weights(label_I, generator, resamples)]
    found = {}
    for name, value in exact.items():
        drawn = np.concatenate([block[name] for block in blocks])
        drawn = np.clip(drawn[np.isfinite(drawn)] - whole[name] + value, 0.0, 1.0)
        low, high = np.percentile(drawn, [2.5, 97.5])
        found[name] = (float(low), float(high))
    return found


def resampled_weights(
    label_I: NDArray[np.integer], generator: np.random.Generator, resamples: int
) -> Iterator[NDArray[np.float64]]:
    """How often each image is drawn, (R, I) in blocks: as many good and as many anomalous images as there are."""
    for start in range(0, resamples, _BLOCK):
        weight_RI = np.zeros((min(_BLOCK, resamples - start), label_I.size))
        for label in np.unique(label_I):
            chosen = np.flatnonzero(label_I == label)
            shares = np.full(chosen.size, 1 / chosen.size)
            weight_RI[:, chosen] = generator.multinomial(chosen.size, shares, size=len(weight_RI))
        yield weight_RI


def weighted_image_figures(
    score_I: NDArray[np.floating], label_I: NDArray[np.integer]
) -> Callable[[NDArray[np.float64]], Figures]:
    """The figures of detection for weights (R, I) of the images; every distinct score is a level."""
    order = np.argsort(-score_I, kind="stable")
    starts = np.flatnonzero(np.diff(score_I[order], prepend=np.inf))
    anomalous_I = label_I[order] == 1

    def figures(weight_RI: NDArray[np.float64]) -> Figures:
        sorted_RI = weight_RI[:, order]
        good, defect = (np.add.reduceat(sorted_RI * kind, starts, axis=1) for kind in (~anomalous_I, anomalous_I))
        return {
            "image_auroc": ranking.auroc(good, defect),
            "image_ap": ranking.average_precision(good, defect),
            "image_f1": ranking.f1_max(good, defect),
            "image_tpr_at_fpr_01": ranking.tpr_at_fpr(good, defect, 0.01),
            "image_tpr_at_fpr_05": ranking.tpr_at_fpr(good, defect, 0.05),
        }

    return figures


def weighted_pixel_figures(
    images: Sequence[JudgedMap], values: NDArray[np.float32], counts: PixelCounts
) -> Callable[[NDArray[np.float64]], Figures]:
    """The figures of localisation for weights (R, I) of the images, from a histogram of each over common levels.

    `values` and `counts` are `exact_counts` of the images.
    """
    levels = _Levels(level_edges(values, counts))
    table_IM = np.stack([_histograms(image, levels).ravel() for image in images])  # M = 5 K

    def figures(weight_RI: NDArray[np.float64]) -> Figures:
        table_R5K = (weight_RI @ table_IM).reshape(len(weight_RI), 5, -1)
        return pixel_figures(PixelCounts(*table_R5K.swapaxes(0, 1)))

    return figures


def level_edges(values: NDArray[np.float32], counts: PixelCounts) -> NDArray[np.float32]:
    """Ascending lower edges of at most `_LEVELS` levels that join neighbours among the exact ones.

    Levels are even in the mean of four ranks: those among the defects, among the good, and among the good and the
    normal on a logarithmic scale, so that the few false alarms which decide precision and AUPIMO are told apart. An
    exact level of more than two such steps keeps a level to itself.
    """
    lower_K = np.append(np.stack([np.nextafter(values, np.float32(2)), values], axis=1).ravel(), np.float32(-1))
    defect, good, normal = (
        row.cumsum() / max(row.sum(), 1e-300) for row in (counts.defect, counts.good, counts.normal)
    )
    tail = PIMO_RATES[0] / 10
    good_log, normal_log = (1 - np.log(np.maximum(rate, tail)) / np.log(tail) for rate in (good, normal))
    rank = (defect + good + good_log + normal_log) / 4
    middle = (rank + np.append(0.0, rank[:-1])) / 2
    ends = np.flatnonzero(np.diff(np.floor(middle * _LEVELS)))
    return lower_K[ends][::-1]


class _Levels:
    """Finds values' levels, 0 the highest, between ascending edges.

    A bin without an edge inside lies in one level whole, so most values need no search: 1 s less for 40 million.
    """

    def __init__(self, edges: NDArray[np.float32]) -> None:
        edge_bins = bin_of(edges)
        self.count = edges.size + 1
        self._edges = edges
        self._level_of_bin = edges.size - np.searchsorted(edge_bins, np.arange(BINS))
        self._divided = np.bincount(edge_bins, minlength=BINS) > 0

    def of(self, value_P: NDArray[np.float32]) -> NDArray[np.intp]:
        """The level of each value."""
        bin_P = bin_of(value_P)
        level_P: NDArray[np.intp] = self._level_of_bin[bin_P]
        searched = self._divided[bin_P]
        level_P[searched] = self._edges.size - np.searchsorted(self._edges, value_P[searched], "right")
        return level_P


def _histograms(image: JudgedMap, levels: _Levels) -> NDArray[np.float64]:
    """One image's counts at the levels, (5, K): the rows of `PixelCounts`."""
    good_P, defect_P = levels.of(image.good), levels.of(image.defect)
    table_5K = np.zeros((len(PixelCounts._fields), levels.count))
    good_K, defect_K, overlap_K, normal_K, found_K = table_5K
    good_K += np.bincount(good_P, minlength=levels.count)
    defect_K += np.bincount(defect_P, minlength=levels.count)
    overlap_K += np.bincount(defect_P, image.overlap, minlength=levels.count)
    normal_K += good_K / max(1, good_P.size) * image.normal
    found_K += defect_K / max(1, defect_P.size)
    return table_5K
