"""Days of scores beside calibrations of their own, drawn for the tests of drift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cflow_ray.evaluation.comparison import DayScores, Reference
from cflow_ray.model.scoring import Calibration

Array = NDArray[np.float64]


def squashed(latent: Array) -> Array:
    """Scores in (0, 1) from any numbers; what is compared are ranks."""
    return 1 / (1 + np.exp(-latent))


def scores_of(calibration: Array, day: Array, target_fpr: float = 0.05) -> DayScores:
    reference = Reference(Calibration.of([0.0], calibration.tolist()), target_fpr)
    scores = DayScores(reference)
    at_least = calibration.size - np.searchsorted(np.sort(calibration), day)
    scores.add(day, (1 + at_least) / (1 + calibration.size))
    return scores


def normal_days(
    count: int, calibration_images: int, images: int, shift: float = 0.0, target_fpr: float = 0.05, seed: int = 0
) -> list[DayScores]:
    """Days of as many categories, each with a calibration of its own; the days' scores lie `shift` sigma higher."""
    rng = np.random.default_rng(seed)
    return [
        scores_of(
            squashed(rng.standard_normal(calibration_images)),
            squashed(rng.standard_normal(images) + shift),
            target_fpr,
        )
        for _ in range(count)
    ]


def most_likely(count: int, rate: float) -> int:
    """So often an event of that rate happens at most, but for one time in a thousand."""
    return int(stats.binom.ppf(0.999, count, rate))
