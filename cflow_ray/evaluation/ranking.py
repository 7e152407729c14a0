"""Figures of a ranking, from the counts of good and defect at each of its levels.

A level holds all that have the same value (or fall into the same bin) and so pass a threshold together. Counts may be
weights, whole or not: every function takes them as they are. A figure that the counts do not allow is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Shapes: K >= 1 levels, the highest value first; `...` stands for any number of rankings side by side.
Counts = NDArray[np.float64]


def auroc(good: Counts, defect: Counts) -> Counts:
    """Area under the ROC curve, (...): the share of (defect, good) pairs in the right order, ties counting half."""
    return area_up_to(good, defect, 1.0)


def average_precision(good: Counts, defect: Counts) -> Counts:
    """Mean over the defects of the precision at their level, (...): scikit-learn's, without interpolation."""
    true, false = defect.cumsum(-1), good.cumsum(-1)
    precision = true / np.maximum(true + false, 1e-300)
    with np.errstate(invalid="ignore"):
        average: Counts = (defect * precision).sum(-1) / true[..., -1]
    return average


def average_precision_floor(good: Counts, defect: Counts) -> Counts:
    """A lower bound, (...), of the average precision of whatever order the levels hide inside.

    At worst a level's d defects come after its goods and one by one: with t defects before the level and f goods up
    to its end their precisions are (t + j) / (t + j + f), j = 1..d. That rises in j, so the sum is at least the
    integral over [0, d], d - f ln(1 + d / (t + f)).
    """
    before, false = defect.cumsum(-1) - defect, good.cumsum(-1)
    worst = defect - false * np.log1p(defect / np.maximum(before + false, 1e-300))
    with np.errstate(invalid="ignore"):
        floor: Counts = np.where(false > 0, worst, defect).sum(-1) / defect.sum(-1)
    return floor


def f1_max(good: Counts, defect: Counts) -> Counts:
    """The largest F1 over all thresholds, (...)."""
    true, false = defect.cumsum(-1), good.cumsum(-1)
    with np.errstate(invalid="ignore"):
        best = (2 * true / (true + false + true[..., -1:])).max(-1)
    highest: Counts = np.where(true[..., -1] > 0, best, np.nan)
    return highest


def tpr_at_fpr(good: Counts, defect: Counts, limit: float) -> Counts:
    """The largest true-positive rate of a threshold whose false-positive rate stays within `limit`, (...)."""
    false = good.cumsum(-1)
    allowed = false <= limit * false[..., -1:] * (1 + 1e-12)  # 0.07 * 100 is 7.000000000000001, 0.29 * 100 is 28.99...
    rate: Counts = np.where(allowed, _share(defect), 0.0).max(-1)
    return rate


def area_up_to(good: Counts, gain: Counts, limit: float) -> Counts:
    """Area under the curve of `gain`'s share over the good's, up to `limit` and divided by it, (...).

    The curve runs straight from level to level (trapezoid rule) and is interpolated at the limit. With the overlap of
    regions as gain this is AUPRO (Bergmann et al. 2021), with defects and a limit of 1 the area under the ROC curve.
    """
    rate, height = _share(good), _share(gain)
    width, rise = np.diff(rate, prepend=0.0), np.diff(height, prepend=0.0)
    inside = np.clip(limit - (rate - width), 0.0, width)
    part = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    area: Counts = (inside * (height - rise + rise * part / 2)).sum(-1) / limit
    return area


def log_area(normal: Counts, gain: Counts, low: float, high: float) -> Counts:
    """Mean share of `gain` that passes, over rates of the normal from `low` to `high` on a logarithmic scale, (...).

    Each rate r stands for the lowest threshold at which at most the share r of the normal passes. A level whose
    threshold lets F of the normal pass is therefore counted for the rates from F on, which are
    clip(ln(high / F) / ln(high / low), 0, 1) of the scale: the integral of AUPIMO's equation without a grid of
    thresholds (Bertoldo et al. 2024, arXiv 2401.01984).
    """
    rate = np.clip(_share(normal), low, high)
    with np.errstate(invalid="ignore"):
        counted = gain * np.log(high / rate) / np.log(high / low)
        area: Counts = counted.sum(-1) / gain.sum(-1)
    return area


def _share(counts: Counts) -> Counts:
    """What share of all lies at a level or above, (..., K)."""
    above = counts.cumsum(-1)
    with np.errstate(invalid="ignore"):
        share: Counts = above / above[..., -1:]
    return share
